"""Take quotes of some texts out of records of any shape."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from itertools import groupby
from operator import is_
from typing import Any

from nemoguardrails import RailsConfig
from nemoguardrails.colang.v2_x.runtime.flows import FlowConfig, FlowHead, State
from pydantic import BaseModel

from ttsa_guard.quotes import SHORTEST, WINDOW, mapped, normal

MARK = "[withheld]"
_NAMES = frozenset(
    "type role uid action_uid source_uid action_name action_result_key flow_id event_created_at"
    " status".split()
)
"""Keys whose values are the host's own words, and decide what it does."""
_WHOLE = (RailsConfig, FlowConfig, FlowHead, State, type, Enum, int, float, complex)
"""Settings, programs and numbers hold nothing that a model has written."""
_PARTS = ("image_url", "file", "input_audio", "video_url")
"""Types of the content parts that are no texts."""
_IMAGE = re.compile(
    r"data:[^,\s]{0,200};base64,[A-Za-z0-9+/=]+|[A-Za-z0-9+/]{1000,}={0,2}", re.IGNORECASE
)


def without_images(value: Any) -> Any:
    """Return plain data with marks in the place of images in content parts.

    It is the same object if there are none. Texts stay as they are: an answer may hold base64, too.
    """
    if isinstance(value, list):
        items = [without_images(item) for item in value]
        return value if all(map(is_, items, value)) else items
    if isinstance(value, dict):
        kind = value.get("type")
        if kind in _PARTS and kind in value:
            return {**value, kind: MARK}
        found = {key: without_images(inner) for key, inner in value.items()}
        return value if all(map(is_, found.values(), value.values())) else found
    return value


def text_without_images(text: str) -> str:
    """Return a text, in which the host has written content parts, with marks for their images."""
    return _IMAGE.sub(MARK, text)


class Redactor:
    """Replaces quotes by `MARK`.

    A quote is a whole text, or any `WINDOW` characters of the words of one. Texts of less than
    `SHORTEST` characters are found only where they are all there is.

    Args:
        texts: what is to be withheld.
        kept: what may be read, e.g. the words of the user and the answer that left: what a text
            shares with these is no quote.
        images: the user's images as the host holds them. They are left as they are, unread: to look
            for quotes in megabytes of base64 takes minutes.
    """

    def __init__(
        self, texts: Iterable[str], kept: Iterable[str] = (), images: Iterable[str] = ()
    ) -> None:
        self._images = set(images)
        known = "\n".join({normal(text) for text in kept})
        plain = {"", normal(MARK), *known.split("\n")}
        self._wholes = {whole for text in texts if (whole := normal(text)) not in plain}
        self._found = {
            whole for whole in self._wholes if len(whole) >= SHORTEST and whole not in known
        }
        windows = {
            whole[i : i + WINDOW] for whole in self._wholes for i in range(len(whole) - WINDOW + 1)
        }
        self._windows = {window for window in windows if window not in known}
        self._seen: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return bool(self._wholes)

    def text(self, text: str) -> str:
        """Return `text` with a mark in the place of every quote."""
        if text in self._images:
            return text
        words = normal(text)
        if words in self._wholes:
            return MARK
        quoted = any(whole in words for whole in self._found) or any(
            words[i : i + WINDOW] in self._windows for i in range(len(words) - WINDOW + 1)
        )
        return self._marked(text) if quoted else text

    def clean(self, value: Any) -> Any:
        """Return `value` without quotes: the same object wherever it can be changed, as the host
        holds on to it.
        """
        self._seen = {}
        return self._clean(value)

    def _marked(self, text: str) -> str:
        words, places = mapped(text)
        hidden = set[int]()
        for whole in self._found:
            start = words.find(whole)
            while start >= 0:
                hidden.update(range(start, start + len(whole)))
                start = words.find(whole, start + 1)
        for i in range(len(words) - WINDOW + 1):
            if words[i : i + WINDOW] in self._windows:
                hidden.update(range(i, i + WINDOW))
        if not hidden:
            return text
        runs = [
            [i for _, i in run]
            for _, run in groupby(enumerate(sorted(hidden)), key=lambda pair: pair[1] - pair[0])
        ]
        shown, end = "", 0
        for run in runs:
            shown += text[end : places[run[0]]] + MARK
            end = places[run[-1]] + 1
        return shown + text[end:]

    def _clean(self, value: Any) -> Any:
        if value is None or isinstance(value, _WHOLE) or callable(value):
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, bytes | bytearray):
            said = value.decode("utf-8", "replace")
            return value if self.text(said) == said else MARK.encode()
        if id(value) in self._seen:
            return value
        self._seen[id(value)] = value  # the object too: its id must not come back
        try:
            return self._cleaned(value)
        except Exception:  # a record that cannot be read or changed is not handed out
            return MARK

    def _cleaned(self, value: Any) -> Any:
        if isinstance(value, dict):
            return self._changed_dict(value)
        if isinstance(value, list | deque):
            for i, item in enumerate(list(value)):
                value[i] = self._clean(item)
            return value
        if isinstance(value, set):
            items = {self._clean(item) for item in value}
            value.clear()
            value.update(items)
            return value
        if isinstance(value, tuple | frozenset):
            kept = [self._clean(item) for item in value]
            if all(new is old for new, old in zip(kept, value, strict=True)):
                return value
            return type(value)(*kept) if hasattr(value, "_fields") else type(value)(kept)
        if isinstance(value, Mapping):
            kept_items = {self._clean(key): self._clean(inner) for key, inner in value.items()}
            return value if kept_items == dict(value) else kept_items
        return self._changed_object(value)

    def _changed_dict(self, value: dict[Any, Any]) -> dict[Any, Any]:
        for key, inner in list(value.items()):
            new = inner if key in _NAMES and isinstance(inner, str) else self._clean(inner)
            if (name := self._clean(key)) != key:
                del value[key]
                value[name] = new
            elif new is not inner:
                value[key] = new
        return value

    def _changed_object(self, value: Any) -> Any:
        if is_dataclass(value):
            inside = {f.name: getattr(value, f.name, None) for f in fields(value)}
        elif isinstance(value, BaseException):
            inside = {"args": value.args, **vars(value)}
        elif isinstance(value, BaseModel) or type(value).__module__.startswith("nemoguardrails."):
            inside = dict(vars(value))
        else:  # of an unknown kind: as it would be shown
            said = f"{value!r} {value}"
            return value if self.text(said) == said else MARK
        for name, inner in inside.items():
            new = inner if name in _NAMES and isinstance(inner, str) else self._clean(inner)
            if new is inner:
                continue
            if isinstance(value, BaseModel):
                # what a model of pydantic validates or freezes is no concern here
                value.__dict__[name] = new
            else:
                object.__setattr__(value, name, new)
        if isinstance(value, BaseModel) and value.__pydantic_extra__:
            self._clean(value.__pydantic_extra__)
        return value
