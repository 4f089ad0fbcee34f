"""Whether one text quotes another, however it is written down.

Texts are compared by the words in them: case, spaces, punctuation and the escapes of JSON and of Python do not count.
"""

from __future__ import annotations

import re

WINDOW = 24
"""So many characters in a row, of the normal form, are a quote."""
SHORTEST = 8
"""Shorter texts are in everybody's mouth, and no quote inside others."""
_WORD = re.compile(r"(?:[^\W_]|\0)+")
_ESCAPES = re.compile(r"\\(?:[nrtfb]|u[0-9a-fA-F]{4})")


def normal(text: str) -> str:
    """The words of `text`, with one space between them."""
    return " ".join(word.replace("\0", "") for word in _WORD.findall(_unescaped(text))).casefold()


def mapped(text: str) -> tuple[str, list[int]]:
    """The normal form, and where in `text` each of its characters is from."""
    letters: list[str] = []
    places: list[int] = []
    for word in _WORD.finditer(_unescaped(text)):
        if letters:
            letters.append(" ")
            places.append(word.start())
        for at, letter in enumerate(word.group(), word.start()):
            folded = "" if letter == "\0" else letter.casefold()
            letters += folded
            places += [at] * len(folded)
    return "".join(letters), places


def quotes(said: str, known: str) -> bool:
    """Whether `said` quotes `known`, which is in its normal form."""
    said = normal(said)
    if len(said) <= WINDOW:
        return len(said) >= SHORTEST and said in known
    return any(said[i : i + WINDOW] in known for i in range(len(said) - WINDOW + 1))


def _unescaped(text: str) -> str:
    """`text` with what escapes stand for in their places, filled up so that all other characters stay in theirs."""
    return _ESCAPES.sub(_unescape, text) if "\\" in text else text


def _unescape(escape: re.Match[str]) -> str:
    said = escape.group()
    return "  " if len(said) == 2 else chr(int(said[2:], 16)) + "\0" * (len(said) - 1)
