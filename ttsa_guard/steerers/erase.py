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
from ttsa_guard.steerers.prefill import beginnings, propose_begun

_CLAUSES = re.compile(r"(?<=[,;:])\s+|(?<=[，；：、])|\s+(?=(?:and|but|then|so)\b)")


class EraseOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    candidates: int = Field(4, ge=1, description="most answers")


class Erase:
    """Erase-and-check (arXiv 2309.02705), used to mend instead of to detect: a batch of answers to shorter messages.

    The parts are the sentences of the last user message, or the clauses of its only one. Whether an answer is still about what
    was asked shows in its likelihood under the whole message, which the guard looks at.
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
        openings = await beginnings(task)
        variants: list[tuple[str, GenerationRequest]] = []
        for kept in shortened(len(parts), max(1, self.options.candidates // len(openings))):
            shorter = replace(task.messages[last], content=" ".join(parts[i] for i in kept))
            prompt = await task.backend.render([*task.messages[:last], shorter, *task.messages[last + 1 :]])
            name = f"parts {', '.join(str(i + 1) for i in kept)} of {len(parts)}"
            variants.append((name, task.base.having(prompt=prompt)))
        yield await propose_begun(task, variants, openings)


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
