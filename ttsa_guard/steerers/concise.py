"""Ask the question alone for a short answer.

A small model begins well, and goes in circles where it goes on. It ends sooner if it is asked to.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from itertools import cycle, product
from typing import ClassVar

from pydantic import Field

from ttsa_guard.languages import language
from ttsa_guard.messages import GenerationRequest, Message, Prompt
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.quotes import normal, quotes
from ttsa_guard.settings import Settings
from ttsa_guard.steerers.base import Candidate, Task
from ttsa_guard.steerers.trim import in_prose

_PLAIN = "the question"
"""The name of the plain answer, which is longer, and good less often than its likelihood tells."""


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
            " of the question, as far as that can be told, is left out"
        ),
    )
    draws: int = Field(2, ge=0, description="more answers with the first wish")
    temperature: float = Field(0.3, ge=0, le=2, description="temperature of those")


class Concise:
    """Propose short answers to the question alone, and the plain one where none of them will do.

    What stands around the question is left out, but for sentences that have to do with it. If what
    was said before may be needed, the question is asked in its place, too. How likely an answer is
    is measured after the question alone with the first wish, so that those are preferred that are
    short and to the point. Nothing is proposed where declining may be right, and for a question in
    another language than all wishes.
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
        measured = await _wished(task, min(task.versions, key=len), wishes[0])
        tries = (await self._tries(task, wishes, measured))[: task.usage.generations_left]
        if not tries:
            return
        proposed = await task.propose([r for _, r in tries], [name for name, _ in tries])
        told = [normal(wish) for wish in wishes]
        candidates = [
            replace(c, asked=measured, place=int(name == _PLAIN))
            for c, (name, _) in zip(proposed, tries, strict=True)
            if not any(quotes(c.text, wish) for wish in told)
        ]
        yield candidates
        if prose := await in_prose(task, candidates):
            yield prose

    def _wishes(self, task: Task) -> list[str]:
        asked = language(task.question)
        return [w for w in self.options.wishes if asked is None or language(w) in (asked, None)]

    async def _tries(
        self, task: Task, wishes: list[str], measured: Prompt
    ) -> list[tuple[str, GenerationRequest]]:
        """Return the names and requests of all answers, the most promising ones first."""
        versions = task.versions
        baseline = task.baseline and replace(task.baseline, prompt=measured)
        base = task.base.with_(baseline=baseline)
        # The first wish is asked after every version, and the others in turn.
        asked = list(product(versions, wishes[:1]))
        asked += zip(cycle(reversed(versions)), wishes[1:], strict=False)
        tries = [
            (wish, base.with_(prompt=await _wished(task, version, wish))) for version, wish in asked
        ]
        tries += [
            (_PLAIN, base.with_(prompt=prompt))
            for prompt in task.asked[:1]
            if prompt is not task.base.prompt
        ]
        warm = tries[0][1].with_(temperature=self.options.temperature)
        tries += [(f"{wishes[0]} draw {i}", warm) for i in range(self.options.draws)]
        return [(name, r.with_(seed=task.seed + i)) for i, (name, r) in enumerate(tries)]


async def _wished(task: Task, messages: list[Message], wish: str) -> Prompt:
    *before, last = messages
    asked = [*before, replace(last, content=f"{last.content}\n\n{wish}")]
    return await task.backend.render(asked)


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    """Register the steerer."""
    register("concise", Concise, options=ConciseOptions)
