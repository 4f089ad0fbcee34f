"""What each part can do wrong: errors that quote the flagged text, hangs, and answers that are
none."""

# ruff: noqa: ARG001, ARG005 - every fault gets the text and the sound result

from __future__ import annotations

import asyncio
import errno
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import aiohttp
from nemoguardrails.exceptions import LLMCallException
from pydantic import BaseModel, ValidationError

from ttsa_guard.errors import (
    AccessError,
    BudgetError,
    ConfigError,
    ModelError,
    ModeratorError,
    PromptError,
)
from ttsa_guard.messages import Generation
from ttsa_guard.steerers.base import Candidate
from ttsa_guard.verdict import Verdict

LONG = 600.0
SHORT = 0.02

Fault = Callable[[str, Any], Awaitable[Any]]
"""Gets the flagged text and the sound result; gives what the part gives instead."""


class Panic(BaseException):
    """As native libraries raise them."""


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("it cannot be printed")


class _Number(BaseModel):
    number: int


def _from(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def _noted(text: str) -> BaseException:
    error = RuntimeError("see the note")
    error.__notes__ = [text]  # type: ignore[attr-defined]
    return error


def _invalid(text: str) -> BaseException:
    try:
        _Number(number=text)  # type: ignore[arg-type]
    except ValidationError as error:
        return error
    raise AssertionError


ERRORS: dict[str, Callable[[str], BaseException]] = {
    "runtime error": RuntimeError,
    "value error": lambda text: ValueError(f"cannot handle {text!r}"),
    "type error": TypeError,
    "key error": KeyError,
    "index error": IndexError,
    "attribute error": AttributeError,
    "assertion": AssertionError,
    "recursion": RecursionError,
    "out of memory": MemoryError,
    "stop": StopAsyncIteration,
    "no such file": lambda text: FileNotFoundError(errno.ENOENT, "no such file", text),
    "disk full": lambda text: OSError(errno.ENOSPC, text),
    "reset": ConnectionResetError,
    "time-out": asyncio.TimeoutError,
    "bad encoding": lambda text: UnicodeDecodeError("utf-8", text.encode(), 0, 1, text),
    "bad json": lambda text: json.JSONDecodeError("expecting a value", text, 0),
    "invalid": _invalid,
    "http error": lambda text: aiohttp.ClientPayloadError(text),
    "error of the host": lambda text: LLMCallException(RuntimeError(text)),
    "moderator error": lambda text: ModeratorError(text, hint=text),
    "access error": lambda text: AccessError(text, hint=text),
    "model error": lambda text: ModelError(text, hint=text),
    "prompt error": lambda text: PromptError(text, hint=text),
    "config error": lambda text: ConfigError(text, hint=text),
    "budget error": lambda text: BudgetError(text, limit=1, wanted=2),
    "with a cause": lambda text: _from(RuntimeError("see the cause"), ValueError(text)),
    "unprintable": UnprintableError,
    "panic": Panic,
    "cancelled from inside": asyncio.CancelledError,
    "generator exit": GeneratorExit,
}
if sys.version_info >= (3, 11):
    ERRORS |= {
        "with a note": _noted,
        "several": lambda text: ExceptionGroup(text, [ValueError(text), KeyError(text)]),  # noqa: F821
        "several that are no Exception": lambda text: BaseExceptionGroup(text, [Panic(text)]),  # noqa: F821
    }


def _raises(make: Callable[[str], BaseException]) -> Fault:
    async def fault(text: str, sound: Any) -> Any:
        raise make(text)

    return fault


def _raises_late(make: Callable[[str], BaseException]) -> Fault:
    async def fault(text: str, sound: Any) -> Any:
        await asyncio.sleep(SHORT)
        raise make(text)

    return fault


def _gives(make: Callable[[str, Any], Any]) -> Fault:
    async def fault(text: str, sound: Any) -> Any:
        return make(text, sound)

    return fault


async def _hangs(text: str, sound: Any) -> Any:
    await asyncio.sleep(LONG)


async def _hangs_on(text: str, sound: Any) -> Any:
    """Goes on for a while when it is cancelled."""
    try:
        await asyncio.sleep(LONG)
    except asyncio.CancelledError:
        await asyncio.sleep(1.5)
    return sound


async def _swallows(text: str, sound: Any) -> Any:
    """Takes its cancellation for an error of something else."""
    try:
        await asyncio.sleep(LONG)
    except BaseException:
        raise RuntimeError(text) from None


async def _cancels_itself(text: str, sound: Any) -> Any:
    task = asyncio.current_task()
    assert task
    task.cancel(text)
    await asyncio.sleep(LONG)


async def _leaves_a_task(text: str, sound: Any) -> Any:
    """A task of its own fails, and nobody waits for it."""

    async def fails() -> None:
        raise RuntimeError("alone")

    asyncio.ensure_future(fails()).add_done_callback(lambda task: task.exception())
    return sound


async def _late(text: str, sound: Any) -> Any:
    await asyncio.sleep(SHORT)
    return sound


HANGS: dict[str, Fault] = {
    "hangs": _hangs,
    "hangs on": _hangs_on,
    "swallows its cancellation": _swallows,
}
ASYNC: dict[str, Fault] = {
    **{name: _raises(make) for name, make in ERRORS.items()},
    **{
        f"{name}, late": _raises_late(ERRORS[name])
        for name in ("runtime error", "panic", "cancelled from inside")
    },
    **HANGS,
    "cancels itself": _cancels_itself,
    "leaves a task": _leaves_a_task,
    "is late": _late,
}


def _verdict(**fields: Any) -> Callable[[str, Any], Any]:
    """Verdicts with these fields, without the checks of the class."""

    def make(text: str, sound: Any) -> Any:
        verdicts = [replace(verdict) for verdict in sound]
        for verdict in verdicts:
            for name, value in fields.items():
                object.__setattr__(verdict, name, value(text) if callable(value) else value)
        return verdicts

    return make


def _failed(text: str, sound: Any) -> Any:
    return [Verdict.failure("odd", text) for _ in sound]


MODERATION: dict[str, Callable[[str, Any], Any]] = {
    "nothing": lambda text, sound: None,
    "no verdicts": lambda text, sound: [],
    "nones": lambda text, sound: [None] * len(sound),
    "one too many": lambda text, sound: [*sound, *sound[:1]],
    "one too few": lambda text, sound: sound[1:],
    "a tuple": lambda text, sound: tuple(sound),
    "a text": lambda text, sound: text,
    "texts": lambda text, sound: [text] * len(sound),
    "numbers": lambda text, sound: [0.0] * len(sound),
    "dicts": lambda text, sound: [{"decision": "pass", "score": 0.0}] * len(sound),
    "a generator": lambda text, sound: (verdict for verdict in sound),
    "failures that quote": _failed,
    "reasons that quote": _verdict(reason=lambda text: f"it says {text}"),
    "categories that quote": _verdict(
        categories=lambda text: MappingProxyType({text: 0.9, "violence": 0.1})
    ),
    "a name that quotes": _verdict(moderator=lambda text: text),
}


def _generation(**fields: Any) -> Callable[[str, Any], Any]:
    return lambda text, sound: [replace(answer, **fields) for answer in sound]


GENERATION: dict[str, Callable[[str, Any], Any]] = {
    "nothing": lambda text, sound: None,
    "no answers": lambda text, sound: [],
    "nones": lambda text, sound: [None] * len(sound),
    "one too many": lambda text, sound: [*sound, *sound],
    "a text": lambda text, sound: text,
    "texts": lambda text, sound: [text] * len(sound),
    "dicts": lambda text, sound: [{"text": text}] * len(sound),
    "no text": _generation(text=None),
    "a number as text": _generation(text=7),
    "empty text": _generation(text=""),
    "spaces": _generation(text=" \n "),
    "surrogates": lambda text, sound: [Generation(f"bad \ud800 {text}", 3, True) for _ in sound],
    "the flagged text": lambda text, sound: [Generation(text, 3, True) for _ in sound],
    "no count": _generation(tokens=None),
    "not a number": _generation(log_likelihood=float("nan")),
}

LIKELIHOOD: dict[str, Callable[[str, Any], Any]] = {
    "nothing": lambda text, sound: None,
    "no values": lambda text, sound: [],
    "nones": lambda text, sound: [None] * len(sound),
    "one too many": lambda text, sound: [*sound, -1.0],
    "texts": lambda text, sound: [text] * len(sound),
    "a text": lambda text, sound: text,
    "not numbers": lambda text, sound: [float("nan")] * len(sound),
    "infinite": lambda text, sound: [float("inf")] * len(sound),
    "minus infinite": lambda text, sound: [float("-inf")] * len(sound),
    "positive": lambda text, sound: [1e9] * len(sound),
    "complex": lambda text, sound: [1j] * len(sound),
    "a dict": lambda text, sound: {text: -1.0},
}


def _forged(text: str, sound: Any) -> Any:
    """Flagged texts with the verdicts of others."""
    return [Candidate(text, "forged", Verdict("guide", "pass", 0.0))]


ROUNDS: dict[str, Callable[[str, Any], Any]] = {
    "nothing": lambda text, sound: None,
    "no candidates": lambda text, sound: [],
    "nones": lambda text, sound: [None],
    "texts": lambda text, sound: [text],
    "a text": lambda text, sound: text,
    "dicts": lambda text, sound: [{"text": text}],
    "forged": _forged,
    "forged many times": lambda text, sound: _forged(text, sound) * 50,
    "an origin that quotes": lambda text, sound: [
        Candidate("too short", text, Verdict("guide", "pass", 0.0))
    ],
    "a verdict that is none": lambda text, sound: [Candidate(text, "odd", None)],  # type: ignore[arg-type]
    "a likelihood that is none": lambda text, sound: [
        replace(c, log_likelihood=text) for c in _forged(text, sound)
    ],
}


def _faults(odd: dict[str, Callable[[str, Any], Any]]) -> dict[str, Fault]:
    return {**ASYNC, **{f"gives {name}": _gives(make) for name, make in odd.items()}}


FAULTS: dict[str, dict[str, Fault]] = {
    "gate": _faults(MODERATION),
    "guide": _faults(MODERATION),
    "steerer": _faults(ROUNDS),
    "backend": _faults(GENERATION),
    "likelihood": _faults(LIKELIHOOD),
}
"""By part and kind; those that wait."""
SYNC = ("sink", "observer", "telemetry")
"""Parts that are told and do not wait: theirs are the `ERRORS`."""
KINDS: dict[str, tuple[str, ...]] = {
    **{part: tuple(kinds) for part, kinds in FAULTS.items()},
    **{part: tuple(ERRORS) for part in SYNC},
}
