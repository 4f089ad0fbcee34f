"""Answer the user's message with parts left out.

What makes a model go wrong often stands beside the question.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import replace
from itertools import chain, combinations, islice
from typing import ClassVar

from pydantic import Field

from ttsa_guard.messages import GenerationRequest, Message
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.quality import has_debris
from ttsa_guard.request import asking, asking_alone, stands_alone, without_asides
from ttsa_guard.settings import Settings
from ttsa_guard.steerers.base import Candidate, Task
from ttsa_guard.steerers.prefill import beginnings, propose_variants
from ttsa_guard.steerers.trim import in_prose
from ttsa_guard.text import split_sentences


class EraseOptions(Settings):
    """Configure the steerer `erase`."""

    candidates: int = Field(4, ge=1, description="most answers")
    draws: int = Field(
        6,
        ge=0,
        description=(
            "more answers to the question alone; where it may be unsafe, their flags speak against"
            " all"
        ),
    )
    temperature: float = Field(
        0.3, ge=0, le=2, description="temperature of those where the question can be answered"
    )
    doubtful_temperature: float = Field(
        0.7, ge=0, le=2, description="temperature of those where the question may be unsafe"
    )


class Erase:
    """Propose answers to less of the conversation.

    This is erase-and-check (arXiv 2309.02705), used to mend instead of to detect. It may leave out
    sentences of the last user message, or clauses if that is one sentence; asides in brackets; and
    everything around that message, which is the system's text and earlier turns. Sentences that ask
    stay, because an answer to the rest answers nothing. If no sentence asks, the likelihood of an
    answer after the question shows whether it is still about the question; the guard checks that.

    More answers to the question alone are drawn. They are there to choose from; but if the question
    may be unsafe, because the answer may have been flagged for helping with harm, they are its
    test. If one of them is flagged, all answers to the question are dropped: they are likely to
    hold the same harm, which the moderator misses. Nothing is proposed for one unsafe sentence, or
    where harm was asked for.
    """

    name = "erase"
    needs: ClassVar[tuple[type, ...]] = ()

    def __init__(self, options: EraseOptions) -> None:
        self.options = options

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        """Yield answers to what asks, then those of them whose lists break a policy as prose.

        If the guard goes on, answers to other parts follow. Nothing is yielded if there is nothing
        to leave out.
        """
        message = next(m.content for m in reversed(task.messages) if m.role == "user")
        one = len(task.messages) == 1 and len(split_sentences(message)) == 1
        if task.harmful and (one or task.unsafe):
            return  # Parts of an unsafe request are not safer than all of it.
        openings = await beginnings(task)
        variants: list[tuple[str, GenerationRequest]] = []
        affordable = max(1, self.options.candidates // len(openings))
        reduced = reduced_conversations(task.messages, task.question)
        for name, messages in islice(reduced, affordable):
            variants.append((name, task.base.with_(prompt=await task.backend.render(messages))))
        if not variants:
            return
        question = variants[0][1]
        first = _of_the_question(task, message)
        drawn = self._drawn(task, question) if first or not task.answerable else []
        candidates = await propose_variants(task, variants[:first], openings, more=drawn)
        doubtful = not task.answerable and _is_doubtful(task, candidates, question)
        if doubtful:
            candidates = _declining(task, candidates)
        yield candidates
        if prose := await in_prose(task, candidates):
            yield prose
        if not doubtful and first and (others := variants[first:]):
            yield await propose_variants(task, others, openings)

    def _drawn(
        self, task: Task, question: GenerationRequest
    ) -> list[tuple[str, GenerationRequest]]:
        """Return names and requests of more answers to the question alone."""
        options = self.options
        again = question.with_(
            temperature=options.temperature if task.answerable else options.doubtful_temperature,
            baseline=task.baseline,
            opening=task.shown,
        )
        return [(f"draw {i}", again.with_(seed=task.seed + 100 + i)) for i in range(options.draws)]


def _of_the_question(task: Task, message: str) -> int | None:
    """Return how many of the first variants hold the question alone; None if no part asks.

    These are the question in its conversation and, if there is more of that, without it.
    """
    parts, asks = asking(message, task.question)
    if len(parts) > 1 and not asks:
        return None
    return 1 if len(task.messages) == 1 else 2


def _is_doubtful(task: Task, candidates: Sequence[Candidate], question: GenerationRequest) -> bool:
    """Return whether an answer to `question` without a safe opening is flagged."""
    answers = [
        c for c in _plain(task, candidates) if c.request and c.request.prompt is question.prompt
    ]
    # A garbled answer may be flagged because it is garbled, which says nothing about the others.
    return any(c.verdict.flagged and not has_debris(c.text) for c in answers)


def _declining(task: Task, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Drop what passes. Answers with a redirecting opening stay, if it is one of the model's own;
    else it is left to other steerers to offer something.
    """
    plain = _plain(task, candidates)
    return [
        c for c in candidates if c.verdict.flagged or (task.profile.redirects and c not in plain)
    ]


def _plain(task: Task, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates that begin as the model likes."""
    return [c for c in candidates if c.request and c.request.opening == task.shown]


def reduced_conversations(
    messages: Sequence[Message], question: str
) -> Iterator[tuple[str, list[Message]]]:
    """Yield the conversation with parts left out, each time with a name.

    The likeliest to help come first. Every one of them ends with the last user message, or with
    what is left of it.
    """
    last = max(i for i, m in enumerate(messages) if m.role == "user")
    before, asked = list(messages[:last]), messages[last]
    for i, (name, text) in enumerate(reduced_texts(asked.content, question)):
        yield name, [*before, replace(asked, content=text)]
        if before and i == 0:
            yield f"{name} alone", [replace(asked, content=text)]
    if before and stands_alone(asked.content):
        yield "the last message alone", [asked]


def reduced_texts(text: str, question: str) -> Iterator[tuple[str, str]]:
    """Yield `text`, in which `question` was found, with parts left out, each time with a name.

    The text without its asides comes first. Then come the parts that ask, with what was told beside
    them, without it, and together with some of the others. If no part asks, any of them may stay
    (see `kept_parts`).
    """
    plain = without_asides(text)
    if plain != text.strip():
        yield "without asides", plain
    parts, asks = asking(text, question)
    others = [i for i in range(len(parts)) if i not in asks]
    if not asks:
        chosen = kept_parts(len(parts))
    elif others:
        with_others = (
            tuple(sorted((*asks, *(others[k] for k in kept)))) for kept in kept_parts(len(others))
        )
        told = " ".join(parts[i] for i in asks)
        bare = asking(text, asking_alone(told))[1]
        chosen = chain([tuple(asks)], [tuple(bare)] if bare != asks else [], with_others)
    else:
        return
    for kept in chosen:
        yield (
            f"parts {', '.join(str(i + 1) for i in kept)} of {len(parts)}",
            " ".join(parts[i] for i in kept),
        )


def kept_parts(parts: int) -> Iterator[tuple[int, ...]]:
    """Yield the indices of the parts that stay, of `parts` in all.

    First one stays alone, then all but one stay, then other numbers of them. The last parts come
    first, because the question stands there more often than not.
    """
    sizes = [1, *range(parts - 1, 1, -1)]
    return (
        tuple(reversed(kept))
        for size in sizes
        if size < parts
        for kept in combinations(reversed(range(parts)), size)
    )


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    """Register the steerer."""
    register("erase", Erase, options=EraseOptions)
