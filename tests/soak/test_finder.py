"""The finder misses no canary."""

from __future__ import annotations

import contextvars
import logging
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

from .finder import Finder, Logs, canary

MARK = canary(1, 7)
TEXT = f"Then a bad {MARK} comes."


class Record(BaseModel):
    text: str


def chained() -> BaseException:
    try:
        try:
            raise ValueError(TEXT)
        except ValueError:
            raise RuntimeError("something else") from None
    except RuntimeError as error:
        return error


def grouped() -> BaseException:
    error = RuntimeError("several")
    error.exceptions = (KeyError(TEXT),)  # type: ignore[attr-defined]
    return error


@pytest.fixture
def finder() -> Finder:
    return Finder({MARK: "a case"})


@pytest.mark.parametrize(
    "value",
    [
        TEXT,
        TEXT.upper(),
        TEXT.encode(),
        {"a": [{"b": (TEXT,)}]},
        {TEXT: 1},
        {TEXT},
        deque([TEXT]),
        Record(text=TEXT),
        SimpleNamespace(flow=SimpleNamespace(context={"text": TEXT})),
        ValueError(TEXT),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values(finder: Finder, value: Any) -> None:
    finder.look("reply", value)
    [(channel, found)] = finder.summary().items()
    assert channel.startswith("reply")
    assert found["in"] == ["a case"]


def test_values_that_hold_themselves(finder: Finder) -> None:
    value: list[Any] = [TEXT]
    value.append(value)
    finder.look("reply", value)
    assert sum(finder.leaks.values()) == 1


@pytest.mark.parametrize("error", [chained(), grouped()], ids=["hidden context", "group"])
def test_errors_behind_errors(finder: Finder, error: BaseException) -> None:
    finder.look_at_error("error", error)
    assert sum(finder.leaks.values()) >= 1


def test_variables_of_a_task(finder: Finder) -> None:
    context = contextvars.copy_context()
    context.run(contextvars.ContextVar[Any]("explained").set, {"calls": [TEXT]})
    finder.look_at_context(context)
    assert list(finder.leaks) == ["variable explained.calls"]


def test_logs_with_their_tracebacks(finder: Finder) -> None:
    log = logging.Logger("somebody")
    log.addHandler(Logs(finder))
    log.debug("it says %s", TEXT)
    log.error("it failed", exc_info=ValueError(TEXT))
    assert finder.leaks == {"log somebody": 2}


def test_nothing_is_found_in_nothing(finder: Finder) -> None:
    finder.look("reply", {"text": "zq is no canary, and neither is zq12", "n": 1, "none": None})
    assert finder.summary() == {}
