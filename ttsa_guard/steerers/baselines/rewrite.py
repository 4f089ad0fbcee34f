"""Show the model its flagged answer and ask for a better one: the obvious thing to try."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import ClassVar

from pydantic import Field

from ttsa_guard.messages import Message
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.settings import Settings
from ttsa_guard.steerers.base import Candidate, Task

INSTRUCTION = (
    "Your last answer was not acceptable. Write it again so that it is harmless and kind and still"
    " answers my question as far as that can be done safely. Reply with the new answer alone."
)
"""The model is told this after its flagged answer, unless the options say something else."""


class RewriteOptions(Settings):
    """Configure the steerer `rewrite`."""

    n: int = Field(4, ge=1, description="answers drawn, in one batch")
    temperature: float = Field(0.7, ge=0, le=2, description="temperature of the answers")
    instruction: str = Field(
        INSTRUCTION, min_length=1, description="what the model is told after its flagged answer"
    )


class Rewrite:
    """Draw up to `n` answers to the conversation with the flagged answer and the instruction."""

    name = "rewrite"
    needs: ClassVar[tuple[type, ...]] = ()

    def __init__(self, options: RewriteOptions) -> None:
        self.options = options

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        """Yield one batch of rewritten answers."""
        options = self.options
        numbers = range(min(options.n, task.usage.generations_left))
        if not numbers or not task.answer:
            return
        correction = (Message("assistant", task.answer), Message("user", options.instruction))
        base = task.base.with_(
            prompt=await task.backend.render((*task.messages, *correction)),
            temperature=options.temperature,
        )
        yield await task.propose(
            [base.with_(seed=task.seed + i) for i in numbers], [f"rewrite {i}" for i in numbers]
        )


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    """Register the steerer."""
    register("rewrite", Rewrite, options=RewriteOptions)
