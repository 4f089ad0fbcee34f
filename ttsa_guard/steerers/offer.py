"""Decline an unsafe request, and answer the nearest harmless question instead.

A small model that has an unsafe question before it goes on about that, however its answer begins.
It answers a plain question much better, and a short text that somebody has written is better still.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pydantic import Field

from ttsa_guard.backends.base import ScoresText
from ttsa_guard.messages import Baseline, Message, last_user
from ttsa_guard.moderators import minilm
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.profile import HARMS, declining
from ttsa_guard.settings import Settings, read_yaml, validated
from ttsa_guard.steerers.base import Candidate, Task

if TYPE_CHECKING:
    from ttsa_guard.moderators.minilm import Floats

_SHIPPED = Path(__file__).with_name("offers.yaml")

_ASKING = "Ask me a question about {}."
_UNSURE = "it may not be safe"
"""Why a request is declined whose topic is not sure."""
_LONGEST = 400
"""Characters of a request that tell what it is about."""


class Offer(Settings):
    """Describe what can be offered in place of an unsafe answer."""

    about: tuple[str, ...] = Field(
        min_length=1, description="what such an unsafe request may be about, in a few words each"
    )
    question: str = Field(description="the harmless question that is answered instead")
    explains: str = Field(description="what the answer explains, as in “how to spot a scam”")
    because: str = Field(
        HARMS, description="why the request is declined, as in “it could harm people”"
    )
    answer: str | None = Field(
        None, description="a short answer, in whole sentences; default: the model writes one"
    )

    @property
    def beginning(self) -> str:
        """How an answer begins: it declines and says what it explains."""
        return f"{declining(self.because)} {self.offered}"

    @property
    def offered(self) -> str:
        """How an answer goes on after it has declined."""
        return f"What I can do is explain {self.explains}:"


class Offers(Settings):
    """Hold the content of a file of offers."""

    offers: tuple[Offer, ...] = Field(min_length=1, description="the offers, in any order")


class OfferOptions(Settings):
    """Configure the steerer `offer`."""

    file: Path | None = Field(
        None,
        description=(
            "a YAML file with your own `offers`, each with `about`, `question` and `explains`, and"
            " where you like an `answer`; default: those that ship"
        ),
    )
    written: bool = Field(
        True, description="use the answers in the file; false: the model answers every question"
    )
    relevance: float = Field(
        0.25,
        ge=-1,
        le=1,
        description=(
            "least cosine similarity of the request and a topic of an offer, by the sentence"
            " encoder; a request below is hardly unsafe, so nothing is offered"
        ),
    )
    sure: float = Field(
        0.5,
        ge=-1,
        le=1,
        description=(
            "cosine similarity from which on the topic is that of the request; below, the nearest"
            " offers are named for the user to choose from, and none is made"
        ),
    )
    nearest: int = Field(2, ge=1, description="offers that are tried, in one batch")
    draws: int = Field(3, ge=1, description="answers to each of them")
    temperature: float = Field(
        0.7, ge=0, le=2, description="temperature of all answers but the first"
    )


class OfferInstead:
    """Propose answers to harmless questions that begin by declining what the user asked for.

    The nearest offers are those that a sentence encoder finds most like the request, or most like
    what the user asked for that reads most like harm: "Any others?" says nothing by itself. Where
    the encoder is not installed, they are those after whose topic the request is likeliest to the
    chat model. An answer in the file is proposed as it is, unless the conversation has it already.
    If no topic is surely that of the request, the answer only says what could be explained instead.
    Nothing is proposed for an answer that did not help with harm, for a request that is like no
    topic, and for a model whose profile has redirecting openings of its own, because `prefill` uses
    those.
    """

    name = "offer"

    def __init__(self, options: OfferOptions) -> None:
        """Read the offers.

        Raises:
            ConfigError: the file cannot be read, or it does not hold offers.
        """
        self.options = options
        file = options.file or _SHIPPED
        content = read_yaml(file, hint="name a YAML file with offers in the option `file`")
        self._offers = validated(Offers, content, where=str(file)).offers

    @property
    def needs(self) -> tuple[type, ...]:
        """What tells which offer is near, if it is not the sentence encoder."""
        return () if minilm.installed() else (ScoresText,)

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        """Yield the written answers, then a batch of the model's, the nearest offer first each."""
        if not task.harmful or task.profile.redirects:
            return
        found = (await self._by_nearness(task))[: self.options.nearest]
        if not found:
            return
        nearest = [offer for offer, _ in found]
        if self.options.written and (written := self._written(found, task)):
            yield await _as_they_are(written, task)
        if task.usage.generations_left:
            yield await self._drawn(nearest, task)

    async def _drawn(self, nearest: Sequence[Offer], task: Task) -> list[Candidate]:
        """Let the model answer the questions of the nearest offers."""
        tries = [(offer, draw) for draw in range(self.options.draws) for offer in nearest]
        tries = tries[: task.usage.generations_left]
        prompts = {
            offer: await task.backend.render(Message.conversation(offer.question))
            for offer in nearest
        }
        floor = task.baseline.floor if task.baseline else -math.inf
        requests = [
            task.base.with_(
                prompt=prompts[offer],
                # It answers this question and not the user's, so it has to be likely after this.
                baseline=Baseline(prompts[offer], floor),
                opening=task.after_shown(offer.beginning),
                seed=task.seed + i,
                temperature=self.options.temperature if draw else task.base.temperature,
            )
            for i, (offer, draw) in enumerate(tries)
        ]
        candidates = await task.propose(requests, [f"offer {o.explains!r}" for o, _ in tries])
        return [
            replace(candidate, place=nearest.index(offer))
            for candidate, (offer, _) in zip(candidates, tries, strict=True)
        ]

    def _written(
        self, found: Sequence[tuple[Offer, float | None]], task: Task
    ) -> list[tuple[str, str]]:
        """Return the names and whole texts of what is written and was not said before."""
        nearest, similarity = [offer for offer, _ in found], found[0][1]
        if similarity is not None and similarity < self.options.sure:
            choice = f"If you like, I can explain {', or '.join(o.explains for o in nearest)}."
            texts = [("offers to choose from", declining(_UNSURE), choice)]
        else:
            texts = [
                (f"offer {o.explains!r}", declining(o.because), f"{o.offered} {o.answer}")
                for o in nearest
                if o.answer
            ]
        said = [message.content for message in task.messages]
        return [
            (name, task.after_shown(f"{declines} {offered}"))
            for name, declines, offered in texts
            if not any(offered in content for content in said)
        ]

    async def _by_nearness(self, task: Task) -> list[tuple[Offer, float | None]]:
        """Return the offers that are near the user's request, the nearest first.

        With them come their similarities, if the encoder told them.
        """
        request, encoded = last_user(task.messages)[:_LONGEST], minilm.installed()
        with task.usage.timed("scoring"):
            if encoded:
                worst = [task.harm.text[:_LONGEST]] if task.harm else []
                values = await asyncio.to_thread(self._relevance, [request, *worst])
            else:
                values = await self._likelihoods(task, request)
        order = sorted(range(len(self._offers)), key=lambda i: -values[i])
        if not encoded:
            return [(self._offers[i], None) for i in order]
        return [(self._offers[i], values[i]) for i in order if values[i] >= self.options.relevance]

    def _relevance(self, requests: Sequence[str]) -> list[float]:
        """Return the relevance of what is most like one of the requests of each offer's topics."""
        owners, topics = self._topics
        relevance = (topics @ minilm.embed(requests).T).max(axis=1)
        best = [-1.0] * len(self._offers)
        for owner, value in zip(owners, relevance.tolist(), strict=True):
            best[owner] = max(best[owner], value)
        return best

    @cached_property
    def _topics(self) -> tuple[list[int], Floats]:
        """The offer of each topic, and the topics' embeddings, [topics, units]."""
        topics = [(i, topic) for i, offer in enumerate(self._offers) for topic in offer.about]
        return [i for i, _ in topics], minilm.embed([topic for _, topic in topics])

    async def _likelihoods(self, task: Task, request: str) -> list[float]:
        """Return the likelihood of the request after the topics of each offer."""
        backend = cast(ScoresText, task.backend)
        prompts = [
            await task.backend.render(Message.conversation(_ASKING.format(", ".join(offer.about))))
            for offer in self._offers
        ]
        scored = await asyncio.gather(
            *(backend.log_likelihoods(prompt, [request]) for prompt in prompts)
        )
        return [value for [value] in scored]


async def _as_they_are(written: Sequence[tuple[str, str]], task: Task) -> list[Candidate]:
    verdicts = await task.score([text for _, text in written])
    return [
        Candidate(text, origin, verdict, written=True, place=place)
        for place, ((origin, text), verdict) in enumerate(zip(written, verdicts, strict=True))
    ]


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    """Register the steerer."""
    register("offer", OfferInstead, options=OfferOptions)
