"""Answer the user's message with parts of it left out: what makes a model go wrong often stands beside the question."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from dataclasses import replace
from itertools import combinations, islice
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from ttsa_guard.messages import GenerationRequest
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.sentences import split_sentences
from ttsa_guard.steerers.base import Candidate, Task
from ttsa_guard.steerers.goals import find_turn
from ttsa_guard.steerers.prefill import mixed_openings

_CLAUSES = re.compile(r"(?<=[,;:])\s+|(?<=[，；：、])|\s+(?=(?:and|but|then|so)\b)")


class EraseOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    messages: int = Field(4, ge=1, description="most shortened messages, if the answer began harmlessly")
    begun: int = Field(2, ge=0, description="most otherwise, each of them also with a redirecting opening")


class Erase:
    """Erase-and-check (arXiv 2309.02705), used to mend instead of to detect: a batch of answers to shorter messages.

    The parts are the sentences of the last user message, or the clauses of its only one. Where the flagged answer began
    harmlessly, the question can be answered; otherwise it may itself be unsafe, and what helps then is an alternative.
    Whether an answer is still about what was asked shows in its likelihood under the whole message, which the guard looks at.
    """

    name = "erase"
    needs: ClassVar[tuple[type, ...]] = ()

    def __init__(self, options: EraseOptions) -> None:
        self.options = options

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        last = max(i for i, m in enumerate(task.messages) if m.role == "user")
        parts = split_parts(task.messages[last].content)
        if len(parts) < 2:
            return
        turn = await find_turn(task)
        redirects = [] if turn else mixed_openings(task.profile, 1, ("redirect",))
        requests: list[GenerationRequest] = []
        origins: list[str] = []
        for kept in shortened(len(parts), self.options.messages if turn else self.options.begun):
            shorter = replace(task.messages[last], content=" ".join(parts[i] for i in kept))
            prompt = await task.backend.render([*task.messages[:last], shorter, *task.messages[last + 1 :]])
            for opening in ("", *(task.after_shown(o.text) for o in redirects)):
                seed = task.seed + len(requests)
                requests.append(task.base.having(prompt=prompt, opening=opening or task.shown, seed=seed))
                origins.append(f"parts {', '.join(str(i + 1) for i in kept)} of {len(parts)}{' redirected' if opening else ''}")
        left = task.spend.generations_left
        if requests[:left]:
            yield await task.propose(requests[:left], origins[:left])


def split_parts(text: str) -> list[str]:
    sentences = split_sentences(text)
    return sentences if len(sentences) > 1 else [part for part in _CLAUSES.split(text.strip()) if part]


def shortened(parts: int, most: int) -> list[tuple[int, ...]]:
    """Which of the parts stay: every one alone, then all but one, then other numbers of them, at most `most` choices.

    Last parts come first: the question stands there more often than not.
    """
    sizes = [1, *range(parts - 1, 1, -1)]
    every = (kept for size in sizes if size < parts for kept in combinations(reversed(range(parts)), size))
    return [tuple(reversed(kept)) for kept in islice(every, most)]


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    register("erase", Erase, options=EraseOptions)
