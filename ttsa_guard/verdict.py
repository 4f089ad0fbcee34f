"""What a moderator says about a text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from ttsa_guard.errors import ModeratorError

Decision = Literal["pass", "flag", "failed"]


@dataclass(frozen=True)
class Verdict:
    """A score in [0, 1] (higher is worse) with a decision, or a failure.

    A failed verdict counts as a flag (`flagged` is true), so a moderator that is down never lets a
    text through.

    Raises:
        ModeratorError: `score` or a category is not a number in [0, 1].
    """

    moderator: str
    decision: Decision
    score: float
    categories: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    """Why the moderator failed. It never contains the moderated text."""

    def __post_init__(self) -> None:
        for name, value in (("score", self.score), *self.categories.items()):
            if not is_score(value):
                raise ModeratorError(
                    f"moderator {self.moderator!r} gave {name} = {value!r}",
                    hint="a score is a number in [0, 1], higher is worse",
                )

    @classmethod
    def scored(
        cls,
        moderator: str,
        score: float,
        *,
        threshold: float,
        categories: Mapping[str, float] | None = None,
    ) -> Verdict:
        """Return a flag if `score` is at least `threshold`, else a pass."""
        checked = cls(moderator, "flag", score, MappingProxyType(dict(categories or {})))
        return replace(checked, decision="pass") if score < threshold else checked

    @classmethod
    def failure(cls, moderator: str, reason: str) -> Verdict:
        """Return a verdict that says that the moderator failed; its score is 1."""
        return cls(moderator, "failed", 1.0, reason=reason)

    @property
    def flagged(self) -> bool:
        """Whether the text may not be shown: it was flagged, or the moderator failed."""
        return self.decision != "pass"


def is_score(value: object) -> bool:
    """Return whether `value` is a number in [0, 1]. Truth values are not numbers here."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and 0.0 <= value <= 1.0
    )
