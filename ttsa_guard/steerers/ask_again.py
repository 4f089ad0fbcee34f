"""Ask the model itself for a better answer, in several ways, with nothing but text.

Any backend will do, one behind an API too (`chat_completions`). The ways are the steerers
`rewrite`, `self_reminder` and `resample`, with defaults for a model whose every answer is paid for.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import ClassVar, Literal

from pydantic import Field

from ttsa_guard.errors import ModelError
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.quotes import normal, quotes
from ttsa_guard.settings import Settings
from ttsa_guard.steerers.base import Candidate, Steerer, Task
from ttsa_guard.steerers.baselines.resample import Resample, ResampleOptions
from ttsa_guard.steerers.baselines.rewrite import INSTRUCTION, Rewrite, RewriteOptions
from ttsa_guard.steerers.baselines.self_reminder import (
    AFTER,
    BEFORE,
    SelfReminder,
    SelfReminderOptions,
)

log = logging.getLogger(__name__)
Way = Literal["rewrite", "self_reminder", "resample"]


class AskAgainOptions(Settings):
    """Configure the steerer `ask_again`."""

    ways: tuple[Way, ...] = Field(
        ("rewrite", "self_reminder", "resample"),
        min_length=1,
        description=(
            "tried in order. rewrite: the flagged answer and an instruction; self_reminder: a"
            " reminder around the question; resample: the question as it is, unless the answer was"
            " flagged for helping with harm"
        ),
    )
    n: int = Field(2, ge=1, description="answers drawn in each way, at once")
    temperature: float = Field(0.7, ge=0, le=2, description="temperature of the answers")
    instruction: str = Field(
        INSTRUCTION, min_length=1, description="what rewrite tells the model after its answer"
    )


class AskAgain:
    """Propose answers of one way after another.

    A way in which the model fails is left out: a service may refuse to read a flagged answer again,
    and yet answer the question. Answers that quote the instruction or the reminder are dropped.
    """

    name = "ask_again"
    needs: ClassVar[tuple[type, ...]] = ()

    def __init__(self, options: AskAgainOptions) -> None:
        self._ways = [_made(way, options) for way in options.ways]
        self._told = [normal(text) for text in (options.instruction, BEFORE, AFTER)]

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        """Yield one batch for each way.

        Raises:
            ModelError: the model failed in the last way that was tried.
        """
        for way in self._ways:
            try:
                async with aclosing(way.steer(task)) as rounds:
                    async for candidates in rounds:
                        yield [c for c in candidates if not self._quotes(c.text)]
            except ModelError as error:
                if way is self._ways[-1]:
                    raise
                log.warning(
                    "%s failed with %s; the next way goes on", way.name, type(error).__name__
                )

    def _quotes(self, text: str) -> bool:
        return any(quotes(text, told) for told in self._told)


def _made(way: Way, options: AskAgainOptions) -> Steerer:
    if way == "rewrite":
        return Rewrite(
            RewriteOptions(
                n=options.n, temperature=options.temperature, instruction=options.instruction
            )
        )
    if way == "self_reminder":
        return SelfReminder(SelfReminderOptions(n=options.n, temperature=options.temperature))
    return Resample(ResampleOptions(n=options.n, temperature=options.temperature, harmless=True))


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    """Register the steerer."""
    register("ask_again", AskAgain, options=AskAgainOptions)
