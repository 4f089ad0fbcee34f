"""Ask the question alone for a short answer.

A small model begins well, and goes in circles where it goes on. It ends sooner if it is asked to.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from itertools import cycle, product
from typing import ClassVar

from pydantic import Field

from ttsa_guard.messages import GenerationRequest, Message
from ttsa_guard.moderators.patterns import language
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.quotes import normal, quotes
from ttsa_guard.request import questions
from ttsa_guard.settings import Settings
from ttsa_guard.steerers.base import Candidate, Task
from ttsa_guard.steerers.trim import in_prose


class ConciseOptions(Settings):
    """Configure the steerer `concise`."""

    wishes: tuple[str, ...] = Field(
        (
            "Answer in at most three sentences.",
            "Answer in at most five sentences.",
            "Answer in one or two sentences.",
            "Answer in one short paragraph, and be specific.",
        ),
        min_length=1,
        description=(
            "what the question is followed by, for one answer each; one that is not in the language"
            " of the question is left out"
        ),
    )
    draws: int = Field(1, ge=0, description="more answers with the first wish")
    temperature: float = Field(0.3, ge=0, le=2, description="temperature of those")


class Concise:
    """Propose short answers to the question alone, and the model's plain one to choose from.

    What stands around the question is left out, as the guard does where it measures how likely an
    answer is. If what was said before may be needed, the question is asked with it and without it.
    Nothing is proposed where declining may be right, and for a question in another language than
    all wishes.
    """

    name = "concise"
    needs: ClassVar[tuple[type, ...]] = ()

    def __init__(self, options: ConciseOptions) -> None:
        self.options = options

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        """Yield one batch, then those of its answers whose lists break a policy as prose."""
        wishes = self._wishes(task)
        if not task.answerable or not wishes:
            return
        tries = (await self._tries(task, wishes))[: task.usage.generations_left]
        if not tries:
            return
        proposed = await task.propose([r for _, r in tries], [name for name, _ in tries])
        told = [normal(wish) for wish in wishes]
        candidates = [c for c in proposed if not any(quotes(c.text, wish) for wish in told)]
        yield candidates
        if prose := await in_prose(task, candidates):
            yield prose

    def _wishes(self, task: Task) -> list[str]:
        asked = language(task.question, fewest=1)
        return [wish for wish in self.options.wishes if language(wish, fewest=1) == asked]

    async def _tries(self, task: Task, wishes: list[str]) -> list[tuple[str, GenerationRequest]]:
        """Return the names and requests of all answers, the most promising ones first."""
        versions = questions(task.messages, task.question)
        base = task.base.with_(baseline=task.baseline)

        async def wished(messages: list[Message], wish: str) -> GenerationRequest:
            *before, last = messages
            asked = [*before, replace(last, content=f"{last.content}\n\n{wish}")]
            return base.with_(prompt=await task.backend.render(asked))

        # The first wish is asked after every version, and the others in turn.
        asked = list(product(versions, wishes[:1]))
        asked += zip(cycle(reversed(versions)), wishes[1:], strict=False)
        tries = [(wish, await wished(version, wish)) for version, wish in asked]
        tries += [
            ("the question", base.with_(prompt=prompt))
            for prompt in task.asked[:1]
            if prompt is not task.base.prompt
        ]
        warm = tries[0][1].with_(temperature=self.options.temperature)
        tries += [(f"{wishes[0]} draw {i}", warm) for i in range(self.options.draws)]
        return [(name, r.with_(seed=task.seed + i)) for i, (name, r) in enumerate(tries)]


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    """Register the steerer."""
    register("concise", Concise, options=ConciseOptions)
