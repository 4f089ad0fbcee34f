"""Finds canaries: marks in flagged text that are unlike anything else, wherever they come out."""

from __future__ import annotations

import asyncio
import enum
import hashlib
import json
import logging
import re
import traceback
from collections import Counter, deque
from collections.abc import Iterator
from contextvars import Context
from pathlib import Path
from types import ModuleType
from typing import Any

from nemoguardrails import LLMRails, RailsConfig
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from ttsa_guard.audit import AuditSink
from ttsa_guard.guard import Guard
from ttsa_guard.record import AuditRecord

CANARY = re.compile(r"zq[0-9a-f]{10}", re.IGNORECASE)


class Own:
    """Base of what the tests themselves know."""


_OPAQUE = (
    int,
    float,
    type,
    ModuleType,
    LLMRails,
    RailsConfig,
    Guard,
    Own,
    asyncio.Future,
    asyncio.AbstractEventLoop,
    enum.Enum,
    logging.Logger,
)
_STATIC = frozenset({"flow_configs", "rails_config"})
"""Of a 2.x state: what the app was made from."""
_SHOWN = 3


def canary(seed: int, number: int) -> str:
    return "zq" + hashlib.blake2b(f"{seed} {number}".encode(), digest_size=5).hexdigest()


class Finder:
    """Looks through whatever it is given, and counts what it finds by channel and kind of
    conversation.

    Args:
        owners: what kind of conversation a canary belongs to.
    """

    def __init__(self, owners: dict[str, str]) -> None:
        self.owners = owners
        self.leaks: Counter[str] = Counter()
        self.found: dict[str, set[str]] = {}

    def look(self, channel: str, value: Any) -> None:
        """Report every canary in `value`: in its texts and in everything that it refers to."""
        for where, text in _texts(value, "", set()):
            for mark in CANARY.findall(text):
                self._leaked(f"{channel}{where}", mark.lower())

    def look_at_error(self, channel: str, error: BaseException) -> None:
        """As it would be printed, and each error that it comes from, also those that are not
        printed."""
        self.look(channel, "".join(traceback.format_exception(error)))
        seen: set[int] = set()
        waiting: list[BaseException | None] = [error]
        while waiting:
            one = waiting.pop()
            if one is not None and id(one) not in seen:
                seen.add(id(one))
                self.look(f"{channel} context", _printed(one))
                waiting += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]

    def look_at_context(self, context: Context) -> None:
        """The host's variables of the task: what ``explain()`` and the tracing adapters read."""
        for variable, value in context.items():
            self.look(f"variable {variable.name}", value)

    def summary(self) -> dict[str, Any]:
        return {
            channel: {"leaks": n, "in": sorted(self.found[channel])[:_SHOWN]}
            for channel, n in self.leaks.most_common()
        }

    def _leaked(self, channel: str, mark: str) -> None:
        self.leaks[channel] += 1
        self.found.setdefault(channel, set()).add(self.owners.get(mark, "unknown"))


def _printed(error: BaseException) -> str:
    try:
        return (
            f"{error} {error.args} {getattr(error, 'hint', '')} {getattr(error, '__notes__', '')}"
        )
    except Exception as broken:
        return type(broken).__name__


def _texts(value: Any, where: str, seen: set[int]) -> Iterator[tuple[str, str]]:
    """Texts in a value and where in it they are."""
    if isinstance(value, str):
        yield where, value
        return
    if isinstance(value, bytes | bytearray):
        yield where, bytes(value).decode("latin-1")
        return
    if value is None or isinstance(value, _OPAQUE) or callable(value) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, BaseException):
        yield where, _printed(value)
    elif isinstance(value, dict):
        for key, inner in list(value.items()):
            if key not in _STATIC:
                yield from _texts(key, where, seen)
                yield from _texts(inner, _place(where, key), seen)
    elif isinstance(value, list | tuple | set | frozenset | deque):
        for inner in list(value):
            yield from _texts(inner, where, seen)
    elif hasattr(value, "__dict__"):
        yield from _texts(vars(value), where, seen)


def _place(where: str, key: Any) -> str:
    """The outermost and the innermost name."""
    if not isinstance(key, str) or len(key) > 40 or not key.isidentifier():
        return where
    return f".{key}" if not where else f".{where.split('.')[1]}.{key}"


class Logs(logging.Handler):
    """Every line that is logged, formatted with its traceback."""

    def __init__(self, finder: Finder) -> None:
        super().__init__(logging.DEBUG)
        self.finder, self.lines = finder, 0

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += 1
        self.finder.look(f"log {record.name}", self.format(record))


class Spans(SpanProcessor):
    """Every span that ends."""

    def __init__(self, finder: Finder) -> None:
        self.finder, self.ended = finder, 0

    def on_end(self, span: ReadableSpan) -> None:
        self.ended += 1
        self.finder.look("span", span.to_json(indent=None))


class Sink(AuditSink):
    """Every line of the audit file."""

    def __init__(self, path: Path, finder: Finder) -> None:
        super().__init__(path)
        self.finder = finder

    def write(self, record: AuditRecord) -> None:
        super().write(record)
        self.finder.look("audit", json.dumps(record.as_dict()))
        if self.path.stat().st_size > 2**20:
            self.finder.look("audit file", self.path.read_text(encoding="utf-8"))
            self.path.unlink()
