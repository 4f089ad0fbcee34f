"""Texts from JSON lines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttsa_guard.errors import ConfigError, UsageError


@dataclass(frozen=True)
class Row:
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
        """Of text and prompt: tells whether a result belongs to this row, without the texts."""
        joined = json.dumps([self.text, self.prompt])
        return hashlib.blake2b(joined.encode(), digest_size=8).hexdigest()


def read_rows(file: Path, *, text: str = "text", prompt: str = "prompt") -> Iterator[Row]:
    """The rows of a JSON-lines file; empty lines are left out.

    Raises:
        ConfigError: the file cannot be read.
        UsageError: a line is no JSON object with a text; the message names the line.
    """
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _row(file, number, line, text, prompt)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {file}: {type(error).__name__}", hint="give a UTF-8 file of JSON lines") from None


def _row(file: Path, number: int, line: str, text: str, prompt: str) -> Row:
    try:
        data = json.loads(line)
    except ValueError:
        raise UsageError(f"{file}, line {number}: not JSON", hint="each line is one JSON object") from None
    if not isinstance(data, dict) or not isinstance(data.get(text), str):
        raise UsageError(f"{file}, line {number}: no text in the field {text!r}", hint="name it with --text-field")
    asked = data.get(prompt, "")
    return Row(number, data[text], asked if isinstance(asked, str) else "", data)
