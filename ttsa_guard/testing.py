"""Fakes for tests of guards and plugins: scripted, deterministic, without torch or network."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias
from unittest.mock import patch

from ttsa_guard.budget import Clock
from ttsa_guard.config import GuardConfig
from ttsa_guard.conformance import check
from ttsa_guard.errors import PromptError
from ttsa_guard.guard import Guard
from ttsa_guard.messages import Generation, GenerationRequest, Message, Prompt, Scope, Soft, Tokens
from ttsa_guard.moderators.base import Moderator, close
from ttsa_guard.plugins import Plugins
from ttsa_guard.profile import GENERIC, ModelProfile
from ttsa_guard.steerers.base import Steerer
from ttsa_guard.verdict import Verdict

Scores: TypeAlias = Callable[[str], Any]


class FakeClock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class ScriptedModerator:
    """Scores every text with `score`; raises what it is given to raise, returns `instead` if that is set.

    The default flags every text that contains the word "bad", and calls texts that begin with "Sorry" refusals. `calls`
    keeps the batches that it was asked about.
    """

    blocking = False

    def __init__(
        self,
        score: Scores = lambda text: 1.0 if "bad" in text else 0.0,
        *,
        name: str = "scripted",
        threshold: float = 0.5,
        error: BaseException | None = None,
        instead: Any = ...,
        delay: float = 0.0,
    ) -> None:
        self.name = name
        self.calls: list[list[str]] = []
        self._score, self._threshold, self._error, self._instead, self._delay = score, threshold, error, instead, delay

    async def moderate(self, texts: Sequence[str], *, prompts: Sequence[str]) -> list[Verdict]:
        self.calls.append(list(texts))
        await asyncio.sleep(self._delay)
        if self._error:
            raise self._error
        if self._instead is not ...:
            return self._instead  # type: ignore[no-any-return]
        return [self._verdict(text) for text in texts]

    def _verdict(self, text: str) -> Verdict:
        refusal = float(text.startswith("Sorry"))
        return Verdict.scored(self.name, self._score(text), threshold=self._threshold, categories={"refusal": refusal})


class ScriptedBackend:
    """Answers from a script: a list that is used up in order, or a function of the request.

    A list that runs out raises and says which call it was. `calls` keeps the batches.
    """

    def __init__(
        self, answers: Sequence[str] | Callable[[GenerationRequest], str], *, error: BaseException | None = None
    ) -> None:
        self.name = "scripted"
        self.context_length = 1024
        self.calls: list[list[GenerationRequest]] = []
        self.closed = False
        self._answers = answers if callable(answers) else list(answers)
        self._error = error

    async def render(self, messages: Sequence[Message], *, scope: Scope = "user") -> Prompt:
        words = " ".join(m.content for m in messages).split()
        if not words:
            raise PromptError("the conversation is empty", hint="give at least one non-empty user message")
        return Prompt((Tokens((0,)), Soft(tuple(range(1, len(words) + 1))), Tokens((0,))))

    async def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        self.calls.append(list(requests))
        if self._error:
            raise self._error
        return [Generation(text := self._next(request), len(text.split()), True) for request in requests]

    async def close(self) -> None:
        self.closed = True

    def _next(self, request: GenerationRequest) -> str:
        if callable(self._answers):
            return request.opening + self._answers(request)
        if not self._answers:
            raise AssertionError(f"ScriptedBackend: no answer is scripted for call {len(self.calls)}")
        return self._answers.pop(0)


def scripted_guard(
    backend: ScriptedBackend | Sequence[str] = (),
    *,
    gate: Moderator | None = None,
    guide: Moderator | None = None,
    steerers: Sequence[Steerer] = (),
    profile: ModelProfile = GENERIC,
    plugins: Plugins | None = None,
    clock: Clock = time.monotonic,
    **settings: Any,
) -> Guard:
    """A guard made of fakes; `settings` go into its `GuardConfig`."""
    return Guard(
        GuardConfig.parse(settings),
        backend=backend if isinstance(backend, ScriptedBackend) else ScriptedBackend(backend),
        gate=gate or ScriptedModerator(name="gate"),
        guide=guide or ScriptedModerator(name="guide"),
        steerers=steerers,
        profile=profile,
        plugins=plugins,
        clock=clock,
    )


def check_moderator(moderator: Moderator, *, seconds: float = 60.0) -> None:
    """Try everything that a guard may do to a moderator: the one line for the tests of a plugin.

    Batches and single texts, long, empty and odd ones, several conversations and event loops, a cancellation, and what it
    logs. Its texts are harmless.

    Args:
        seconds: time limit of each of the checks.

    Raises:
        AssertionError: it breaks its contract; the message lists all that was found.
    """
    for _ in range(2):  # a moderator outlives the event loop in which it was first used
        asyncio.run(_checked(moderator, seconds))


async def _checked(moderator: Moderator, seconds: float) -> None:
    try:
        await check(moderator, seconds=seconds)
    finally:
        await close(moderator)


@contextmanager
def no_network() -> Iterator[None]:
    """Any attempt to connect to anything but this machine raises `ConnectionError`."""
    import socket

    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise ConnectionError(f"network is switched off in tests: {address!r}")
        real(self, address)

    with patch.object(socket.socket, "connect", connect):
        yield
