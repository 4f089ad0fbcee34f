"""Texts from JSON lines, and their labels."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ttsa_guard.errors import ConfigError, UsageError
from ttsa_guard.files import reason

HARMFUL = frozenset(
    {"1", "true", "yes", "unsafe", "harmful", "toxic", "flagged", "bad", "offensive", "hate"}
)
HARMLESS = frozenset(
    {
        "0",
        "false",
        "no",
        "none",
        "safe",
        "harmless",
        "benign",
        "good",
        "ok",
        "clean",
        "neutral",
        "normal",
        "unflagged",
    }
    | {
        "non-toxic",
        "nontoxic",
        "not toxic",
        "non-hate",
        "unharmful",
        "not harmful",
        "not offensive",
    }
)
"""Labels, in lower case with blanks or hyphens; numbers and truth values as text."""


@dataclass(frozen=True)
class LabelledText:
    """A line of a file.

    Args:
        line: its number, from 1.
        data: all of its fields.
    """

    line: int
    text: str
    prompt: str
    data: dict[str, Any]

    @property
    def digest(self) -> str:
        """Of text and prompt: tells whether a result belongs to this text, without the texts."""
        joined = json.dumps([self.text, self.prompt])
        return hashlib.blake2b(joined.encode(), digest_size=8).hexdigest()


def read_texts(file: Path, *, text: str = "text", prompt: str = "prompt") -> Iterator[LabelledText]:
    """Return the lines of a file of JSON lines, also of a ``.gz`` one; empty lines are left out.

    Raises:
        ConfigError: the file cannot be read.
        UsageError: a line is no JSON object with a text; the message names the line.
    """
    try:
        with _opened(file) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _labelled(file, number, line, text, prompt)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ConfigError(
            f"cannot read {file}: {reason(error)}", hint="give a UTF-8 file of JSON lines"
        ) from None


def is_harmful(file: Path, labelled: LabelledText, field: str) -> bool:
    """Whether a text is labelled as harmful.

    Raises:
        UsageError: it has no label, or one that says neither; the message names the line, not the
            label, for it may be a text.
    """
    value = labelled.data.get(field)
    if not isinstance(value, bool | int | float | str):
        raise UsageError(
            f"{file}, line {labelled.line}: no label in the field {field!r}",
            hint="name it with --label-field",
        )
    said = (value.strip() if isinstance(value, str) else f"{value:g}").lower().replace("_", "-")
    for harmful, names in ((True, HARMFUL), (False, HARMLESS)):
        if said in names or said.replace("-", " ") in names:
            return harmful
    hint = f"harmful are: {', '.join(sorted(HARMFUL))}; harmless are: {', '.join(sorted(HARMLESS))}"
    raise UsageError(
        f"{file}, line {labelled.line}: the label in {field!r} is none that is known", hint=hint
    )


def _opened(file: Path) -> IO[str]:
    if file.suffix == ".gz":
        return gzip.open(file, "rt", encoding="utf-8")
    return file.open(encoding="utf-8")


def _labelled(file: Path, number: int, line: str, text: str, prompt: str) -> LabelledText:
    try:
        data = json.loads(line)
    except ValueError:
        raise UsageError(
            f"{file}, line {number}: not JSON", hint="each line is one JSON object"
        ) from None
    if not isinstance(data, dict):
        raise UsageError(
            f"{file}, line {number}: no JSON object",
            hint=f'write lines such as {{"{text}": "..."}}',
        )
    if not isinstance(data.get(text), str):
        raise UsageError(
            f"{file}, line {number}: no text in the field {text!r}",
            hint="name it with --text-field",
        )
    asked = data.get(prompt, "")
    return LabelledText(number, data[text], asked if isinstance(asked, str) else "", data)
