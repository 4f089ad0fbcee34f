"""Texts of users and models on their way into a tokenizer: they must be encodable, and be able to open no turn."""

from __future__ import annotations

import re
from typing import Any


def encodable(text: str) -> str:
    """`text` with question marks for lone surrogates, at which tokenizers fail; its length stays."""
    return text.encode("utf-8", "replace").decode("utf-8")


def markers(tokenizer: Any, *others: str) -> re.Pattern[str]:
    """Matches every special token, and `others`; many tokenizers name only some of theirs in `all_special_tokens`."""
    special = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special} | set(map(str, tokenizer.all_special_tokens))
    longest_first = sorted(filter(None, special | set(others)), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def without_markers(pattern: re.Pattern[str], content: str) -> str:
    """Text that can neither end a turn nor open another one.

    A space takes the place of a marker, so that what stood around it cannot join to another one.
    """
    return encodable(pattern.sub(" ", content))
