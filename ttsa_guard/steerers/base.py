"""Define what a steerer is given (`Task`), yields (`Candidate`) and promises (`Steerer`)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast, runtime_checkable

from ttsa_guard.backends.base import Backend, ControlledDecoding, ExposesLogits
from ttsa_guard.budget import Usage
from ttsa_guard.messages import (
    Baseline,
    Generation,
    GenerationRequest,
    Message,
    Prompt,
    last_user,
)
from ttsa_guard.moderators.everyday import EVERYDAY, UNSAFE, Harm
from ttsa_guard.profile import ModelProfile
from ttsa_guard.request import question, questions
from ttsa_guard.verdict import Verdict

TONE = frozenset({"toxicity", "harassment", "insult", "profanity"})
"""These categories blame the tone of an answer."""
POLICY = "policy"
ANSWERABLE = TONE | {POLICY}
"""With these categories the question can still be answered."""


def category(flag: Verdict | None) -> str | None:
    """Return the category with the highest score, without its moderator's name.

    None if the gate gives no categories.
    """
    scores = {
        name.rpartition("/")[2]: score for name, score in (flag.categories if flag else {}).items()
    }
    scores.pop("refusal", None)
    return max(scores, key=lambda name: scores[name], default=None)


def harmful(flag: Verdict | None) -> bool | None:
    """Say whether an answer was flagged because it helps with harm, so that declining is right.

    Returns:
        True if the category with the highest score is one of harm; False if it is one of
        `ANSWERABLE`; None if the gate gives no categories.
    """
    worst = category(flag)
    return None if worst is None else worst not in ANSWERABLE


@dataclass(frozen=True, eq=False)
class Candidate:
    """Hold an answer that a steerer proposes, with the verdict of the guide moderator on it."""

    text: str
    origin: str
    """It says in the audit record how the answer was made. Nothing depends on it."""
    verdict: Verdict
    finished: bool = True
    log_likelihood: float | None = None
    """Mean log-likelihood of a token, in nats, if the backend gave it with the answer (see
    `Generation`). If it is None, the guard asks the backend for it."""
    asked: Prompt | None = None
    """The prompt after which its likelihood is measured; None means all of `Task.asked`."""
    request: GenerationRequest | None = None
    """The request that it answers. An unfinished answer can be continued only if this is known."""
    decoding: ControlledDecoding | None = None
    """The distribution that its tokens were drawn from; None means that of the model alone."""
    written: bool = False
    """Whether a person wrote it, so that the model's likelihood says nothing about it."""
    place: int = 0
    """Rank of its opening, or of how it was asked for, among those that were tried; 0 is the best.
    The guard compares ranks before likelihoods, because a likelihood depends more on the opening
    than on what follows it."""


@dataclass(frozen=True, eq=False)
class Task:
    """Describe one flagged answer, and hold everything that a steerer may use to replace it.

    All work done through it is charged to one budget.

    Args:
        messages: the conversation up to the answer.
        answer: the flagged answer; empty if only the reasoning before it was flagged, of which
            nothing is to be kept.
        backend: the model that is steered.
        base: the request that plain generation would make; steerers vary it. Its opening is the
            part of the answer that the user has seen already, so every candidate has to begin
            with it.
        profile: what is known about the model.
        usage: what is left of the budget.
        score: a function that asks the guide moderator for a verdict on each text, in order. It
            does not raise if the moderator fails: such verdicts are marked as failed.
        flag: the gate's verdict on the answer, or on its reasoning; None if it is not known.
        found: the question of the last user message, if it was looked for with more than rules.
        needed: the sentences of the conversation that have to do with it.
        harm: what the user asked for that reads most like a request for harm; None if that is not
            known.
        baseline: the value to set in requests whose answers often pass the moderator but are
            seldom likely enough: their likelihoods are then measured during generation. None if
            nothing measures likelihoods.
        asked: the prompts after which the likelihood of an answer is measured: the question in
            its conversation, and the question alone if there is more in the conversation.
        seed: the seed of everything random in this task.
        prefer: this user's preferences as the request gives them, unchecked; None if it gives none.
    """

    messages: tuple[Message, ...]
    answer: str
    backend: Backend
    base: GenerationRequest
    profile: ModelProfile
    usage: Usage
    score: Callable[[Sequence[str]], Awaitable[list[Verdict]]]
    flag: Verdict | None = None
    found: str | None = None
    needed: tuple[str, ...] = ()
    harm: Harm | None = None
    baseline: Baseline | None = None
    asked: tuple[Prompt, ...] = ()
    seed: int = 0
    prefer: Mapping[str, float] | None = None

    @property
    def question(self) -> str:
        """Return what the last user message asks, without the text around it."""
        return question(last_user(self.messages)) if self.found is None else self.found

    @property
    def versions(self) -> list[list[Message]]:
        """Return the conversation, reduced to what is asked (see `request.questions`)."""
        return questions(self.messages, self.question, self.needed)

    @property
    def everyday(self) -> bool:
        """Say whether the question is harmless beyond doubt.

        Then an answer that is flagged for harm says nothing about the question.
        """
        return self.harm is not None and self.harm.value < EVERYDAY

    @property
    def unsafe(self) -> bool:
        """Say whether harm was asked for, whatever the answer was flagged for."""
        return self.harm is not None and self.harm.value >= UNSAFE

    @property
    def harmful(self) -> bool | None:
        """Say whether the answer was flagged because it helps with harm (see `harmful`).

        It counts as such, too, if its tone was flagged and harm was asked for. None if it is not
        known, or if the question is an everyday one.
        """
        if category(self.flag) in TONE:
            return self.unsafe
        return None if self.everyday and harmful(self.flag) else harmful(self.flag)

    @property
    def answerable(self) -> bool:
        """Say whether it is known that the question can be answered safely."""
        return self.everyday or self.harmful is False

    @property
    def shown(self) -> str:
        """Return the part of the answer that the user has seen; it may be empty."""
        return self.base.opening

    def after_shown(self, text: str) -> str:
        """Return what has been shown, followed by `text`."""
        return f"{self.shown} {text}" if self.shown else text

    def reworded(self, change: Callable[[str], str]) -> tuple[Message, ...]:
        """Return the conversation with `change` applied to the last user message."""
        last = max((i for i, m in enumerate(self.messages) if m.role == "user"), default=None)
        return tuple(
            replace(m, content=change(m.content)) if i == last else m
            for i, m in enumerate(self.messages)
        )

    async def generate(
        self, requests: Sequence[GenerationRequest], decoding: ControlledDecoding | None = None
    ) -> list[Generation]:
        """Generate one answer to each request, as one batch, and charge it to the budget.

        Args:
            decoding: the distribution to draw from; None means that of the model alone. Only a
                steerer that `needs` `ExposesLogits` may give one.

        Raises:
            BudgetError: the batch would overrun the budget.
        """
        self.usage.charge(generations=len(requests))
        return await self._decode(requests, decoding)

    async def _decode(
        self, requests: Sequence[GenerationRequest], decoding: ControlledDecoding | None
    ) -> list[Generation]:
        longest = self.usage.longest(len(requests))
        requests = [
            r if r.max_new_tokens <= longest else r.with_(max_new_tokens=longest) for r in requests
        ]
        with self.usage.timed("decoding"):
            if decoding:
                answers = await cast(ExposesLogits, self.backend).generate_controlled(
                    requests, decoding
                )
            else:
                answers = await self.backend.generate(requests)
        self.usage.tokens += sum(a.tokens for a in answers)
        self.usage.decode_steps += max((a.tokens for a in answers), default=0)
        return answers

    async def propose(
        self,
        requests: Sequence[GenerationRequest],
        origins: Sequence[str],
        decoding: ControlledDecoding | None = None,
    ) -> list[Candidate]:
        """Generate one batch, as `generate` does, and let the guide moderator judge the answers."""
        self.usage.charge(generations=len(requests))
        answers = await self._decode(requests, decoding)
        verdicts = await self.score([a.text for a in answers])
        return [
            Candidate(
                a.text,
                origin,
                verdict,
                a.finished,
                a.log_likelihood,
                request=request,
                decoding=decoding,
            )
            for a, origin, verdict, request in zip(
                answers, origins, verdicts, requests, strict=True
            )
        ]

    async def extend(
        self, candidates: Sequence[Candidate], tokens: Sequence[int]
    ) -> list[Candidate]:
        """Continue each candidate by at most its number of `tokens`, and judge it again.

        A longer candidate is still the same answer. So it costs tokens and time of the budget,
        but no generation and no decode pass.

        Raises:
            BudgetError: there is no time or there are no tokens left.
        """
        self.usage.charge()
        requests = [
            c.request.with_(opening=c.text, max_new_tokens=n, baseline=None)
            for c, n in zip(candidates, tokens, strict=True)
            if c.request
        ]
        answers = await self._decode(requests, candidates[0].decoding)
        verdicts = await self.score([a.text for a in answers])
        return [
            replace(c, text=a.text, verdict=verdict, finished=a.finished)
            for c, a, verdict in zip(candidates, answers, verdicts, strict=True)
        ]


@runtime_checkable
class Steerer(Protocol):
    """Propose candidates, one round (a batch) at a time; the guard may stop after any round."""

    name: str

    @property
    def needs(self) -> tuple[type, ...]:
        """Return the backend capabilities that it cannot work without.

        They are protocols of `backends.base`. They may depend on its options. The guard checks them
        when it is built, so a steerer need not check them again. A plain attribute will do.
        """
        ...

    def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        """Yield the candidates of one round after another.

        Raises:
            BudgetError: the next round would overrun the budget of `task`.
        """
        ...


@runtime_checkable
class Fits(Protocol):
    """Work with certain models only; the guard asks when it is built."""

    def fit(self, backend: Any) -> None:
        """Check that the steerer works with the model of `backend`.

        Args:
            backend: a backend that has what the steerer `needs`.

        Raises:
            ConfigError: the steerer does not work with this model.
        """
        ...
