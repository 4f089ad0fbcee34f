"""Prepare texts of users and models for a tokenizer.

A text must be encodable, and it must not be able to open or end a turn of the conversation.
"""

from __future__ import annotations

import re
from typing import Any


def encodable(text: str) -> str:
    """Replace lone surrogates in `text` by question marks, because tokenizers fail at them.

    The length stays the same.
    """
    return text.encode("utf-8", "replace").decode("utf-8")


def markers(tokenizer: Any, *others: str) -> re.Pattern[str]:
    """Return a pattern that matches every special token, and `others`.

    Many tokenizers name only some of their special tokens in `all_special_tokens`.
    """
    special = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special} | set(
        map(str, tokenizer.all_special_tokens)
    )
    longest_first = sorted(filter(None, special | set(others)), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def without_markers(pattern: re.Pattern[str], content: str) -> str:
    """Return `content` as a text that can neither end a turn nor open another one.

    A space takes the place of each marker, so that the text around it cannot join to another
    marker.
    """
    return encodable(pattern.sub(" ", content))
