"""Find the texts in the tool calls of a model, which are what the gate judges of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_NAME = re.compile(r"[\w.:$-]{0,64}")
"""Names of functions and of their parameters hold no text. A longer or freer one may."""
_ARGUMENTS = ("arguments", "args")


class _Pairs(list[tuple[str, Any]]):
    """The members of a JSON object. A key may come twice, and then a mapping would lose a text."""


def texts_of_calls(calls: Any) -> list[str]:
    """Return the texts in the arguments of tool calls, which are plain data.

    Arguments may be data, or a JSON text of them, as in chat completions. What is no JSON is a text
    as a whole. A key or a name of a function is a text, too, if it is no plain name.
    """
    if isinstance(calls, Mapping):
        texts = []
        for key, value in calls.items():
            if key in _ARGUMENTS:
                texts += _inside(_read(value) if isinstance(value, str) else value)
            elif key == "name" and isinstance(value, str):
                texts += _unless_name(value)
            else:
                texts += texts_of_calls(value)
        return texts
    if isinstance(calls, list | tuple):
        return [text for call in calls for text in texts_of_calls(call)]
    return []


def _read(arguments: str) -> Any:
    try:
        return json.loads(arguments, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        return arguments


def _inside(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        value = _Pairs(value.items())
    if isinstance(value, _Pairs):
        return [text for key, item in value for text in (*_unless_name(str(key)), *_inside(item))]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _inside(item)]
    return []


def _unless_name(word: str) -> list[str]:
    return [] if _NAME.fullmatch(word) else [word]
