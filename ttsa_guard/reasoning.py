"""The reasoning that some models write in front of their answers, between ``<think>`` and ``</think>``.

It is a draft for nobody's eyes: no moderator judges it, so nobody sees it.
"""

from __future__ import annotations

import re

OPEN, CLOSE = "<think>", "</think>"
_BLOCK = re.compile(r"<think>.*?(?:</think>\s*|$)", re.DOTALL)
_BEGUN = re.compile(r"\A.*</think>\s*", re.DOTALL)
"""What was begun in the prompt, so that only its end is in the text."""


def without_reasoning(text: str) -> str:
    """`text` without reasoning, also without a block that has not ended yet."""
    return _BEGUN.sub("", _BLOCK.sub("", text)).lstrip()


def split_reasoning(text: str) -> tuple[str, str]:
    """The reasoning in `text`, and the rest, which is all of it where there is none."""
    if CLOSE not in text and OPEN not in text:
        return "", text
    rest = without_reasoning(text)
    thoughts = [m.group() for m in _BLOCK.finditer(text)]
    if begun := _BEGUN.search(_BLOCK.sub("", text)):
        thoughts.insert(0, begun.group())
    return "\n".join(t.replace(OPEN, "").replace(CLOSE, "").strip() for t in thoughts), rest


def has_reasoning(text: str) -> bool:
    return OPEN in text or CLOSE in text


def shown_so_far(text: str) -> str:
    """Of a text that is still growing, what is not reasoning and will not become any."""
    _, rest = split_reasoning(text)
    begun = next((n for n in range(len(OPEN) - 1, 0, -1) if rest.endswith(OPEN[:n])), 0)
    return rest[: len(rest) - begun]
