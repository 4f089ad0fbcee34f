"""Take quotes of some texts out of records of any shape."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from itertools import groupby
from typing import Any

from nemoguardrails import RailsConfig
from nemoguardrails.colang.v2_x.runtime.flows import FlowConfig, FlowHead, State
from pydantic import BaseModel

MARK = "[withheld]"
WINDOW = 24
"""So many characters in a row, of the normal form, are a quote."""
_SHORTEST = 8
"""Shorter texts are found only where they are all there is: they are in everybody's mouth."""
_NAMES = frozenset("type role uid action_uid source_uid action_name action_result_key flow_id event_created_at status".split())
"""Keys whose values are the host's own words, and decide what it does."""
_WORD = re.compile(r"(?:[^\W_]|\0)+")
_ESCAPES = re.compile(r"\\(?:[nrtfb]|u[0-9a-fA-F]{4})")
_WHOLE = (RailsConfig, FlowConfig, FlowHead, State, type, Enum, int, float, complex)
"""Settings, programs and numbers hold nothing that a model has written."""


class Redactor:
    """Replaces quotes by `MARK`.

    Texts are compared by the words in them: case, spaces, punctuation and the escapes of JSON and of Python do not count. A
    quote is a whole text, or any `WINDOW` characters of one.

    Args:
        texts: what is to be withheld.
        kept: what may be read, e.g. the words of the user and the answer that left: what a text shares with these is no quote.
    """

    def __init__(self, texts: Iterable[str], kept: Iterable[str] = ()) -> None:
        known = "\n".join({_normal(text) for text in kept})
        plain = {"", _normal(MARK), *known.split("\n")}
        self._wholes = {whole for text in texts if (whole := _normal(text)) not in plain}
        self._found = {whole for whole in self._wholes if len(whole) >= _SHORTEST and whole not in known}
        windows = {whole[i : i + WINDOW] for whole in self._wholes for i in range(len(whole) - WINDOW + 1)}
        self._windows = {window for window in windows if window not in known}
        self._seen: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return bool(self._wholes)

    def text(self, text: str) -> str:
        """`text` with a mark in the place of every quote."""
        normal = _normal(text)
        if normal in self._wholes:
            return MARK
        quoted = any(whole in normal for whole in self._found) or any(
            normal[i : i + WINDOW] in self._windows for i in range(len(normal) - WINDOW + 1)
        )
        return self._marked(text) if quoted else text

    def clean(self, value: Any) -> Any:
        """`value` without quotes: the same object wherever it can be changed, as the host holds on to it."""
        self._seen = {}
        return self._clean(value)

    def _marked(self, text: str) -> str:
        normal, places = _mapped(text)
        hidden = set[int]()
        for whole in self._found:
            start = normal.find(whole)
            while start >= 0:
                hidden.update(range(start, start + len(whole)))
                start = normal.find(whole, start + 1)
        for i in range(len(normal) - WINDOW + 1):
            if normal[i : i + WINDOW] in self._windows:
                hidden.update(range(i, i + WINDOW))
        if not hidden:
            return text
        runs = [[i for _, i in run] for _, run in groupby(enumerate(sorted(hidden)), key=lambda pair: pair[1] - pair[0])]
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
                value.__dict__[name] = new  # what a model of pydantic validates or freezes is no concern here
            else:
                object.__setattr__(value, name, new)
        if isinstance(value, BaseModel) and value.__pydantic_extra__:
            self._clean(value.__pydantic_extra__)
        return value


def _normal(text: str) -> str:
    return " ".join(word.replace("\0", "") for word in _WORD.findall(_unescaped(text))).casefold()


def _mapped(text: str) -> tuple[str, list[int]]:
    """The normal form, and where in `text` each of its characters is from."""
    normal: list[str] = []
    places: list[int] = []
    for word in _WORD.finditer(_unescaped(text)):
        if normal:
            normal.append(" ")
            places.append(word.start())
        for at, letter in enumerate(word.group(), word.start()):
            folded = "" if letter == "\0" else letter.casefold()
            normal += folded
            places += [at] * len(folded)
    return "".join(normal), places


def _unescaped(text: str) -> str:
    """`text` with what escapes stand for in their places, filled up so that all other characters stay in theirs."""
    return _ESCAPES.sub(_unescape, text) if "\\" in text else text


def _unescape(escape: re.Match[str]) -> str:
    said = escape.group()
    return "  " if len(said) == 2 else chr(int(said[2:], 16)) + "\0" * (len(said) - 1)
