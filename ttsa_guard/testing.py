"""Fakes for tests of guards and plugins: scripted, deterministic, without torch or network."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias
from unittest.mock import patch

from ttsa_guard.budget import Clock
from ttsa_guard.config import GuardConfig
from ttsa_guard.conformance import check, check_images
from ttsa_guard.errors import PromptError
from ttsa_guard.guard import Guard
from ttsa_guard.images import IMAGE_TYPES, Image
from ttsa_guard.messages import (
    Generation,
    GenerationRequest,
    Message,
    Prompt,
    Scope,
    Soft,
    Tokens,
    images_of,
)
from ttsa_guard.moderators.base import ImageModerator, Moderator, close
from ttsa_guard.plugins import Plugins
from ttsa_guard.profile import GENERIC, ModelProfile
from ttsa_guard.steerers.base import Steerer
from ttsa_guard.verdict import Verdict

Scores: TypeAlias = Callable[[str], Any]


class FakeClock:
    """A clock on which time passes only when `advance` is called."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the time, in seconds."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self.now += seconds


class ScriptedModerator:
    """A moderator that scores every text with a function.

    The default flags every text that contains the word "bad", and calls texts that begin with
    "Sorry" refusals. `calls` keeps the batches of texts that it was given.

    Args:
        score: returns the score of a text, in [0, 1].
        threshold: scores from here on are flagged.
        error: is raised by every call, if set.
        instead: is returned by every call, if set.
        delay: seconds that every call takes.
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
        self._score, self._threshold = score, threshold
        self._error, self._instead, self._delay = error, instead, delay

    async def moderate(self, texts: Sequence[str], *, prompts: Sequence[str]) -> list[Verdict]:
        """Judge `texts`, or raise or return what the script says."""
        self.calls.append(list(texts))
        await asyncio.sleep(self._delay)
        if self._error:
            raise self._error
        if self._instead is not ...:
            return self._instead  # type: ignore[no-any-return]
        return [self._verdict(text) for text in texts]

    def _verdict(self, text: str) -> Verdict:
        refusal = float(text.startswith("Sorry"))
        return Verdict.scored(
            self.name, self._score(text), threshold=self._threshold, categories={"refusal": refusal}
        )


class ScriptedImageModerator:
    """An image moderator that scores every image with a function.

    The default passes all. `calls` keeps the batches of images that it was given.

    Args:
        score: returns the score of an image, in [0, 1]; from 0.5 on it is flagged.
        error: is raised by every call, if set.
        delay: seconds that every call takes.
    """

    blocking = False

    def __init__(
        self,
        score: Callable[[Image], float] = lambda _: 0.0,
        *,
        name: str = "scripted_images",
        error: BaseException | None = None,
        delay: float = 0.0,
    ) -> None:
        self.name = name
        self.calls: list[list[Image]] = []
        self._score, self._error, self._delay = score, error, delay

    async def moderate_images(self, images: Sequence[Image]) -> list[Verdict]:
        """Judge `images`, or raise what the script says."""
        self.calls.append(list(images))
        await asyncio.sleep(self._delay)
        if self._error:
            raise self._error
        return [Verdict.scored(self.name, self._score(i), threshold=0.5) for i in images]


class ScriptedBackend:
    """A backend that answers from a script.

    `calls` keeps the batches of requests that it was given.

    Args:
        answers: a list that is used up in order, or a function of the request. A list that runs out
            raises an `AssertionError` that names the number of the call.
        error: is raised by every call, if set.
    """

    def __init__(
        self,
        answers: Sequence[str] | Callable[[GenerationRequest], str],
        *,
        error: BaseException | None = None,
    ) -> None:
        self.name = "scripted"
        self.context_length = 1024
        self.calls: list[list[GenerationRequest]] = []
        self.closed = False
        self._answers = answers if callable(answers) else list(answers)
        self._error = error

    async def render(self, messages: Sequence[Message], *, scope: Scope = "user") -> Prompt:
        """Return a prompt with one soft slot for each word of the conversation."""
        words = " ".join(m.content for m in messages).split()
        if not words:
            raise PromptError(
                "the conversation is empty", hint="give at least one non-empty user message"
            )
        return Prompt((Tokens((0,)), Soft(tuple(range(1, len(words) + 1))), Tokens((0,))))

    async def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Return the scripted answers to `requests`."""
        self.calls.append(list(requests))
        if self._error:
            raise self._error
        return [
            Generation(text := self._next(request), len(text.split()), True) for request in requests
        ]

    async def close(self) -> None:
        """Set `closed`."""
        self.closed = True

    def _next(self, request: GenerationRequest) -> str:
        if callable(self._answers):
            return request.opening + self._answers(request)
        if not self._answers:
            raise AssertionError(
                f"ScriptedBackend: no answer is scripted for call {len(self.calls)}"
            )
        return self._answers.pop(0)


class SeeingBackend(ScriptedBackend):
    """A `ScriptedBackend` that is given the images of a conversation: `calls` has them."""

    image_types = IMAGE_TYPES

    async def render(self, messages: Sequence[Message], *, scope: Scope = "user") -> Prompt:
        """Return a prompt with the images, and with one soft slot for each word."""
        words = " ".join(m.content for m in messages).split()
        soft = Soft(tuple(range(1, len(words) + 1)))
        return Prompt((Tokens((0,)), soft, Tokens((0,))), images=images_of(messages))


def scripted_guard(
    backend: ScriptedBackend | Sequence[str] = (),
    *,
    gate: Moderator | None = None,
    guide: Moderator | None = None,
    image_gate: Sequence[ImageModerator] = (),
    steerers: Sequence[Steerer] = (),
    profile: ModelProfile = GENERIC,
    plugins: Plugins | None = None,
    clock: Clock = time.monotonic,
    **settings: Any,
) -> Guard:
    """Make a guard of fakes; `settings` go into its `GuardConfig`."""
    return Guard(
        GuardConfig.parse(settings),
        backend=backend if isinstance(backend, ScriptedBackend) else ScriptedBackend(backend),
        gate=gate or ScriptedModerator(name="gate"),
        guide=guide or ScriptedModerator(name="guide"),
        image_gate=image_gate,
        steerers=steerers,
        profile=profile,
        plugins=plugins,
        clock=clock,
    )


def check_moderator(moderator: Moderator, *, seconds: float = 60.0) -> None:
    """Try everything that a guard may do to a moderator.

    One call of this is enough as a plugin's test. It tries batches and single texts; long, empty
    and odd texts; several conversations and event loops; a cancellation; and it checks what is
    logged. Its texts are harmless.

    Args:
        seconds: the time limit of each check.

    Raises:
        AssertionError: the moderator breaks its contract. The message lists all violations.
    """
    for _ in range(2):  # a moderator outlives the event loop in which it was first used
        asyncio.run(_checked(moderator, check(moderator, seconds=seconds)))


def check_image_moderator(moderator: ImageModerator, *, seconds: float = 60.0) -> None:
    """Try everything that a guard may do to an image moderator, as `check_moderator` does.

    Its images are harmless. One of them is broken.

    Raises:
        AssertionError: the moderator breaks its contract. The message lists all violations.
    """
    for _ in range(2):
        asyncio.run(_checked(moderator, check_images(moderator, seconds=seconds)))


async def _checked(
    moderator: Moderator | ImageModerator, checks: Coroutine[Any, Any, None]
) -> None:
    try:
        await checks
    finally:
        await close(moderator)


@contextmanager
def no_network() -> Iterator[None]:
    """Raise `ConnectionError` on every attempt to connect to another machine than this one."""
    import socket

    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise ConnectionError(f"network is switched off in tests: {address!r}")
        real(self, address)

    with patch.object(socket.socket, "connect", connect):
        yield
