"""Handle the reasoning that some models write before their answers.

It stands between ``<think>`` and ``</think>``. No moderator judges it, so nobody may see it.
"""

from __future__ import annotations

import re

OPEN, CLOSE = "<think>", "</think>"
_BLOCK = re.compile(r"<think>.*?(?:</think>\s*|$)", re.DOTALL)
_BEGUN = re.compile(r"\A.*</think>\s*", re.DOTALL)
"""Reasoning whose beginning is in the prompt, so that only its end is in the text."""


def without_reasoning(text: str) -> str:
    """Return `text` without reasoning, and without a block of it that has not ended yet."""
    return _BEGUN.sub("", _BLOCK.sub("", text)).lstrip()


def split_reasoning(text: str) -> tuple[str, str]:
    """Return the reasoning in `text` and the rest. Without reasoning the rest is the whole text."""
    if CLOSE not in text and OPEN not in text:
        return "", text
    rest = without_reasoning(text)
    thoughts = [m.group() for m in _BLOCK.finditer(text)]
    if begun := _BEGUN.search(_BLOCK.sub("", text)):
        thoughts.insert(0, begun.group())
    return "\n".join(t.replace(OPEN, "").replace(CLOSE, "").strip() for t in thoughts), rest


def has_reasoning(text: str) -> bool:
    """Return whether `text` has a mark of reasoning, be it only the one at its beginning or end."""
    return OPEN in text or CLOSE in text


def shown_so_far(text: str) -> str:
    """Return the part of a growing text that may be shown.

    That is the text without reasoning, and without an end that may become the mark at which
    reasoning begins.
    """
    _, rest = split_reasoning(text)
    begun = next((n for n in range(len(OPEN) - 1, 0, -1) if rest.endswith(OPEN[:n])), 0)
    return rest[: len(rest) - begun]
