"""What a check found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from ttsa_guard.errors import TTSAError


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, the file it is in, and how to mend it."""

    where: str
    message: str
    hint: str = ""


@dataclass
class Report:
    """Everything that is wrong, what could not be checked, and what to expect."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    expect: dict[str, str] = field(default_factory=dict)
    """What to expect in plain words, by its subject."""

    def add(self, where: str, errors: Iterable[TTSAError]) -> None:
        """Add errors as problems of the file `where`. One that is there already is left out."""
        for error in errors:
            problem = Problem(where, error.message.replace("\n", " "), error.hint)
            if problem not in self.problems:
                self.problems.append(problem)

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {"ok": not self.problems, **asdict(self)}
