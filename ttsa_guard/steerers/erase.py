"""Answer the user's message with parts left out: what makes a model go wrong often stands beside the question."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import replace
from itertools import combinations, islice
from typing import ClassVar

from pydantic import Field

from ttsa_guard.messages import GenerationRequest, Message
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.quality import has_debris
from ttsa_guard.request import asking, split_parts, without_asides
from ttsa_guard.settings import Settings
from ttsa_guard.steerers.base import Candidate, Task
from ttsa_guard.steerers.prefill import beginnings, propose_begun
from ttsa_guard.text import split_sentences


class EraseOptions(Settings):
    candidates: int = Field(4, ge=1, description="most answers")
    doubts: int = Field(
        3, ge=0, description="more answers to the question alone where it may be unsafe: a flag speaks against all"
    )
    temperature: float = Field(0.7, ge=0, le=2, description="of those")


class Erase:
    """Erase-and-check (arXiv 2309.02705), used to mend instead of to detect: a batch of answers to less of the conversation.

    What may be left out: sentences of the last user message, or clauses of its only one; asides in brackets; and everything
    around that message, the system's text and earlier turns. A sentence that ends with a question mark stays wherever there is
    one, for an answer to the rest is an answer to nothing. Where there is none, whether an answer is still about what was asked
    shows in its likelihood after the question, which the guard looks at.

    Where the answer may have been flagged for what it helps with, the question itself may be unsafe. Then more answers to it
    alone are drawn, and one that is flagged speaks against all: what the moderator does not see in the others is likely there.
    """

    name = "erase"
    needs: ClassVar[tuple[type, ...]] = ()

    def __init__(self, options: EraseOptions) -> None:
        self.options = options

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        last = next(m.content for m in reversed(task.messages) if m.role == "user")
        if task.harmful and len(task.messages) == 1 and len(split_sentences(last)) == 1:
            return  # clauses of one unsafe request are not safer than all of it
        openings = await beginnings(task)
        variants: list[tuple[str, GenerationRequest]] = []
        for name, messages in islice(less(task.messages), max(1, self.options.candidates // len(openings))):
            variants.append((name, task.base.with_(prompt=await task.backend.render(messages))))
        if not variants:
            return
        doubted = [] if task.harmful is False else self._doubts(task, variants[0][1])
        candidates = await propose_begun(task, variants, openings, more=doubted)
        plain = [c for c in candidates if c.request and c.request.opening == task.shown]
        tested = [c for c in plain if c.request and c.request.prompt is variants[0][1].prompt]
        # What is garbled may be flagged for that.
        if doubted and any(c.verdict.flagged and not has_debris(c.text) for c in tested):
            candidates = [c for c in candidates if c not in plain or c.verdict.flagged]
        yield candidates

    def _doubts(self, task: Task, question: GenerationRequest) -> list[tuple[str, GenerationRequest]]:
        again = question.with_(temperature=self.options.temperature, baseline=task.baseline, opening=task.shown)
        return [(f"doubt {i}", again.with_(seed=task.seed + 100 + i)) for i in range(self.options.doubts)]


def less(messages: Sequence[Message]) -> Iterator[tuple[str, list[Message]]]:
    """The conversation with parts left out, likeliest to help first, each with a name; it ends with the last user message."""
    last = max(i for i, m in enumerate(messages) if m.role == "user")
    before, asked = list(messages[:last]), messages[last]
    for i, (name, text) in enumerate(shorter(asked.content)):
        yield name, [*before, replace(asked, content=text)]
        if before and i == 0:
            yield f"{name} alone", [replace(asked, content=text)]
    if before:
        yield "the last message alone", [asked]


def shorter(text: str) -> Iterator[tuple[str, str]]:
    """Names and texts: without asides, then the parts that ask, alone and with others; without any that asks, see `shortened`."""
    plain = without_asides(text)
    if plain != text.strip():
        yield "without asides", plain
    parts = split_parts(text)
    asks = asking(parts)
    others = [i for i in range(len(parts)) if i not in asks]
    if not asks:
        chosen = shortened(len(parts))
    else:
        chosen = (tuple(sorted((*asks, *(others[k] for k in kept)))) for kept in ((), *shortened(len(others))) if others)
    for kept in chosen:
        yield f"parts {', '.join(str(i + 1) for i in kept)} of {len(parts)}", " ".join(parts[i] for i in kept)


def shortened(parts: int) -> Iterator[tuple[int, ...]]:
    """Which of the parts stay: every one alone, then all but one, then other numbers of them.

    Last parts come first: the question stands there more often than not.
    """
    sizes = [1, *range(parts - 1, 1, -1)]
    return (tuple(reversed(kept)) for size in sizes if size < parts for kept in combinations(reversed(range(parts)), size))


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    register("erase", Erase, options=EraseOptions)
