"""Where sentences end."""

from __future__ import annotations

import re

_END = re.compile(r"(?<=[.!?؟।])\s+|(?<=[。！？])\s*")


_LAST = re.compile(r".*(?:[.!?؟।…][\"'”’)\]*]*(?=\s|$)|[。！？][」』”]*|(?=\n))", re.DOTALL)
_UNENDED = re.compile(r"(?:(?:^|\n)\s*(?:\d+[.)]?|[-*•]|[^\n]*:\W*))+\s*$")


def ended_sentences(text: str) -> str:
    """The beginning of `text` up to the end of its last whole sentence or line; the number of a list's next item is none, nor is
    a line that announces more."""
    found = _LAST.match(_UNENDED.sub("", text.rstrip()))
    return _UNENDED.sub("", found.group()).rstrip() if found else ""


def split_sentences(text: str) -> list[str]:
    """Sentences of `text`, with their closing punctuation."""
    return [s for s in _END.split(text.strip()) if s]
