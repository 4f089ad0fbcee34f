"""Where sentences end."""

from __future__ import annotations

import re

_END = re.compile(r"(?<=[.!?؟।])\s+|(?<=[。！？])\s*")


def split_sentences(text: str) -> list[str]:
    """Sentences of `text`, with their closing punctuation."""
    return [s for s in _END.split(text.strip()) if s]
