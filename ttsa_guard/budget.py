"""One deadline and one budget for all that a flagged answer costs, and time limits for work."""

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
_GRACE = 1.0  # seconds for cancelled work to clean up, before it is cancelled again


class Budget(Settings):
    """Limits for one flagged answer."""

    seconds: float = Field(
        30.0, gt=0, description="Time limit in seconds, from the flag to the swapped answer."
    )
    generations: int = Field(96, ge=0, description="Most candidates that are generated.")
    moderation_calls: int = Field(
        32,
        ge=0,
        description=(
            "Most calls of the guide during the search. The gate's own checks are always made and"
            " do not count."
        ),
    )
    decode_passes: int | None = Field(
        None, ge=0, description="Most batches that are generated one after another."
    )
    tokens: int | None = Field(
        None, ge=0, description="Most new tokens of all candidates together."
    )


@dataclass
class Usage:
    """What has been used of a budget so far.

    `charge` is called before the work, so a limit is never overrun.
    """

    budget: Budget
    clock: Clock = time.monotonic
    generations: int = 0
    moderation_calls: int = 0
    decode_passes: int = 0
    """Number of batches that were generated, one after another."""
    decode_steps: int = 0
    """Sum over those batches of the tokens of the longest answer; it is for the record."""
    tokens: int = 0
    """Number of generated tokens."""
    seconds_by_phase: dict[str, float] = field(default_factory=dict)
    """Seconds by phase ("search", "decoding", ...); they are for the record."""
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def seconds(self) -> float:
        """Seconds since the usage began."""
        return self.clock() - self.started

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline, at least 0."""
        return max(0.0, self.budget.seconds - self.seconds)

    @property
    def generations_left(self) -> int:
        """Number of answers that may still be generated."""
        return self.budget.generations - self.generations

    def longest(self, answers: int) -> int:
        """Return how many new tokens each of `answers` answers may have at most.

        Raises:
            BudgetError: the budget does not hold one token for each of them.
        """
        if self.budget.tokens is None:
            return sys.maxsize
        longest = (self.budget.tokens - self.tokens) // max(1, answers)
        if longest < 1:
            raise BudgetError("tokens", limit=self.budget.tokens, wanted=self.tokens + answers)
        return longest

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the seconds that the block takes to `seconds_by_phase[what]`."""
        started = self.clock()
        try:
            yield
        finally:
            self.seconds_by_phase[what] = (
                self.seconds_by_phase.get(what, 0.0) + self.clock() - started
            )

    def charge(self, *, generations: int = 0, moderation_calls: int = 0) -> None:
        """Take generations or moderation calls from the budget, and check the deadline.

        Raises:
            BudgetError: a limit would be overrun. Nothing is taken then.
        """
        passes = self.decode_passes + (generations > 0)
        generations += self.generations
        calls = self.moderation_calls + moderation_calls
        for resource, wanted, limit in (
            ("seconds", self.seconds, self.budget.seconds),
            ("decode_passes", passes, self.budget.decode_passes),
            ("generations", generations, self.budget.generations),
            ("moderation_calls", calls, self.budget.moderation_calls),
        ):
            if limit is not None and wanted > limit:
                raise BudgetError(resource, limit=limit, wanted=wanted)
        self.decode_passes, self.generations, self.moderation_calls = passes, generations, calls


async def within(seconds: float | None, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, or raise `asyncio.TimeoutError` after `seconds`.

    This differs from `asyncio.wait_for` in three points:

    * Work that ignores its cancellation is left behind. It is cancelled again every second, so that
      it does not go on if only a part of it ignored that.
    * A cancellation that starts inside the work becomes a `ServiceError`, so that it is not taken
      for a cancellation by the caller.
    * An error that is no `Exception` becomes a `ServiceError`, too. `KeyboardInterrupt` and
      `SystemExit` are left alone, because the event loop raises them itself.

    Args:
        seconds: the time limit; None means no limit.
    """
    task = asyncio.ensure_future(work)
    # An exception that nobody reads is logged by asyncio, and its message may quote a text.
    task.add_done_callback(lambda t: t.cancelled() or t.exception())
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    finally:
        if not task.done():
            _cancel(task)
            await asyncio.wait({task}, timeout=_GRACE)
    if not done:
        raise asyncio.TimeoutError
    if task.cancelled():
        raise ServiceError("the work was cancelled from inside")
    fault = task.exception()
    if fault is not None and not isinstance(fault, Exception):
        # This is a panic of a native library. Nobody expects it, and it may quote a text.
        raise ServiceError(
            f"{type(fault).__name__} inside", hint="see the log of the part that was asked"
        )
    return task.result()


def _cancel(task: asyncio.Task[Any]) -> None:
    """Cancel a task, and again after each grace period in which it does not end."""
    if not task.done():
        task.cancel()
        task.get_loop().call_later(_GRACE, _cancel, task)


async def answered(seconds: float | None, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, which generates a backend's own answer to the user.

    Raises:
        ModelError: the work took more than `seconds`.
    """
    try:
        return await within(seconds, work)
    except asyncio.TimeoutError:
        raise ModelError(
            f"no answer within {seconds:g} seconds",
            hint="raise answer_seconds, or lower generation.max_new_tokens",
        ) from None
