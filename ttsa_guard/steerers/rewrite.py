"""Show the model its flagged answer and ask it to write a better one: the obvious thing to try."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import ClassVar

from pydantic import Field

from ttsa_guard.messages import Message
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.settings import Settings
from ttsa_guard.steerers.base import Candidate, Task

INSTRUCTION = (
    "Your last answer was not acceptable. Write it again so that it is harmless and kind and still answers my question as"
    " far as that can be done safely. Reply with the new answer alone."
)


class RewriteOptions(Settings):
    n: int = Field(4, ge=1, description="answers drawn, in one batch")
    temperature: float = Field(0.7, ge=0, le=2)
    instruction: str = Field(INSTRUCTION, min_length=1, description="what the model is told after its flagged answer")


class Rewrite:
    """Up to `n` answers to the conversation with the flagged answer as the model's turn and the instruction after it."""

    name = "rewrite"
    needs: ClassVar[tuple[type, ...]] = ()

    def __init__(self, options: RewriteOptions) -> None:
        self.options = options

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        options = self.options
        numbers = range(min(options.n, task.usage.generations_left))
        if not numbers:
            return
        more = (Message("assistant", task.answer), Message("user", options.instruction))
        base = task.base.with_(prompt=await task.backend.render((*task.messages, *more)), temperature=options.temperature)
        yield await task.propose([base.with_(seed=task.seed + i) for i in numbers], [f"rewrite {i}" for i in numbers])


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    register("rewrite", Rewrite, options=RewriteOptions)
