"""Find out whether one text quotes another, however it is written down.

Texts are compared by their words. Case, spaces, punctuation, and the escapes of JSON and of Python
do not count.
"""

from __future__ import annotations

import re

WINDOW = 24
"""So many consecutive characters of the normal form are a quote."""
SHORTEST = 8
"""Texts with fewer characters are too common to count as a quote inside another text."""
_WORD = re.compile(r"(?:[^\W_]|\0)+")
_ESCAPES = re.compile(r"\\(?:[nrtfb]|u[0-9a-fA-F]{4})")


def normal(text: str) -> str:
    """Return the normal form of `text`: its words in lower case, with one space between them."""
    return " ".join(word.replace("\0", "") for word in _WORD.findall(_unescaped(text))).casefold()


def mapped(text: str) -> tuple[str, list[int]]:
    """Return the normal form of `text`, and for each of its characters the index in `text`."""
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
    """Return whether `said` quotes `known`, which is in its normal form."""
    said = normal(said)
    if len(said) <= WINDOW:
        return len(said) >= SHORTEST and said in known
    return any(said[i : i + WINDOW] in known for i in range(len(said) - WINDOW + 1))


def _unescaped(text: str) -> str:
    """Return `text` with each escape replaced by its character.

    It is filled up to the length of the escape, so that all other characters keep their indices.
    """
    return _ESCAPES.sub(_unescape, text) if "\\" in text else text


def _unescape(escape: re.Match[str]) -> str:
    said = escape.group()
    return "  " if len(said) == 2 else chr(int(said[2:], 16)) + "\0" * (len(said) - 1)
