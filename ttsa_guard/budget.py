"""One deadline and one budget for everything that a flagged answer costs, and work that may take only so long."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import Field

from ttsa_guard.errors import BudgetError, ModelError, ServiceError
from ttsa_guard.settings import Settings

T = TypeVar("T")
Clock = Callable[[], float]
_GRACE = 1.0  # seconds for cancelled work to clean up


class Budget(Settings):
    """Limits for one flagged answer."""

    seconds: float = Field(30.0, gt=0, description="Time limit in seconds, from the flag to the swapped answer.")
    generations: int = Field(96, ge=0, description="Most candidates that are generated.")
    moderation_calls: int = Field(
        32,
        ge=0,
        description="Most calls of the guide during the search. The gate's own checks are always made and do not count.",
    )
    decode_passes: int | None = Field(None, ge=0, description="Most batches that are generated one after another.")
    tokens: int | None = Field(None, ge=0, description="Most new tokens of all candidates together.")


@dataclass
class Usage:
    """What has been used of a budget. `charge` is called before the work, so a limit is never overrun."""

    budget: Budget
    clock: Clock = time.monotonic
    generations: int = 0
    moderation_calls: int = 0
    decode_passes: int = 0
    """Sequential batched generations."""
    decode_steps: int = 0
    """Tokens of the longest answer of each of those batches, for the record."""
    tokens: int = 0
    """Generated tokens."""
    seconds_by_phase: dict[str, float] = field(default_factory=dict)
    """Seconds by what they were used for, for the record."""
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def seconds(self) -> float:
        return self.clock() - self.started

    @property
    def seconds_left(self) -> float:
        return max(0.0, self.budget.seconds - self.seconds)

    @property
    def generations_left(self) -> int:
        return self.budget.generations - self.generations

    def longest(self, answers: int) -> int:
        """Most new tokens that each of so many answers may have.

        Raises:
            BudgetError: not even one.
        """
        if self.budget.tokens is None:
            return sys.maxsize
        longest = (self.budget.tokens - self.tokens) // max(1, answers)
        if longest < 1:
            raise BudgetError("tokens", limit=self.budget.tokens, wanted=self.tokens + answers)
        return longest

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the seconds of what happens inside to those of `what`."""
        started = self.clock()
        try:
            yield
        finally:
            self.seconds_by_phase[what] = self.seconds_by_phase.get(what, 0.0) + self.clock() - started

    def charge(self, *, generations: int = 0, moderation_calls: int = 0) -> None:
        """Take from the budget.

        Raises:
            BudgetError: a limit would be overrun; nothing is taken then.
        """
        passes = self.decode_passes + (generations > 0)
        for resource, wanted, limit in (
            ("seconds", self.seconds, self.budget.seconds),
            ("decode_passes", passes, passes if self.budget.decode_passes is None else self.budget.decode_passes),
            ("generations", self.generations + generations, self.budget.generations),
            ("moderation_calls", self.moderation_calls + moderation_calls, self.budget.moderation_calls),
        ):
            if wanted > limit:
                raise BudgetError(resource, limit=limit, wanted=wanted)
        self.generations += generations
        self.moderation_calls += moderation_calls
        self.decode_passes = passes


async def within(seconds: float | None, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, or `asyncio.TimeoutError` after `seconds`.

    Three things that `asyncio.wait_for` does not do: work that ignores its cancellation is left behind; a cancellation that
    starts inside the work is a `ServiceError`, so that it is not taken for one of the caller; and so is an error that is no
    `Exception`, but for `KeyboardInterrupt` and `SystemExit`, which the event loop raises itself.
    """
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda t: t.cancelled() or t.exception())  # seen, or asyncio would log it, and it may quote a text
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=_GRACE)
    if not done:
        raise asyncio.TimeoutError
    if task.cancelled():
        raise ServiceError("the work was cancelled from inside")
    fault = task.exception()
    if fault is not None and not isinstance(fault, Exception):
        # A panic of a native library: nobody above expects it, and its message may quote a text.
        raise ServiceError(f"{type(fault).__name__} inside", hint="see the log of the part that was asked")
    return task.result()


async def answered(seconds: float | None, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is a backend's own answer to the user.

    Raises:
        ModelError: it took more than `seconds`.
    """
    try:
        return await within(seconds, work)
    except asyncio.TimeoutError:
        raise ModelError(
            f"no answer within {seconds:g} seconds", hint="raise answer_seconds, or lower generation.max_new_tokens"
        ) from None
