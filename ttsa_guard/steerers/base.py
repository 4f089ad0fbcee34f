"""The steerer contract."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from ttsa_guard.backends.base import Backend, ControlledDecoding, ExposesLogits
from ttsa_guard.budget import Usage
from ttsa_guard.messages import Baseline, Generation, GenerationRequest, Message, Prompt
from ttsa_guard.profile import ModelProfile
from ttsa_guard.verdict import Verdict

HARMLESS = frozenset({"toxicity", "harassment", "insult", "profanity", "policy"})
"""Categories of answers whose question can be answered all the same."""


def harmful(flag: Verdict | None) -> bool | None:
    """Whether an answer was flagged for what it helps with, so that declining is right, and not for its tone or a policy; None:
    the gate gives no categories."""
    scores = {name.rpartition("/")[2]: score for name, score in (flag.categories if flag else {}).items()}
    scores.pop("refusal", None)
    return max(scores, key=lambda name: scores[name]) not in HARMLESS if scores else None


@dataclass(frozen=True, eq=False)
class Candidate:
    """An answer that a steerer proposes, with the guide's verdict on it."""

    text: str
    origin: str
    verdict: Verdict
    finished: bool = True
    log_likelihood: float | None = None
    """Mean token log-likelihood, in nats, if the backend told it with the answer (see `Generation`); None: it is asked for."""
    request: GenerationRequest | None = None
    """What it is an answer to, so that an unfinished one can be continued; None: it cannot."""
    guide: ControlledDecoding | None = None
    """What its tokens were drawn from, if not from the model alone."""
    place: int = 0
    """Of its opening among those that were tried, best first. It counts before the likelihood, which tells more about the opening
    than about what follows it."""


@dataclass(frozen=True, eq=False)
class Task:
    """One flagged answer, and all that a steerer may use to mend it. Everything here is charged to one budget.

    Args:
        messages: the conversation up to the answer.
        answer: the flagged answer.
        backend: the model that is steered.
        base: the request that plain generation would make; steerers vary it. Its opening is what has been shown of the
            answer already: every candidate has to begin with it.
        profile: what is known about the model.
        usage: what is left of the budget.
        score: the guide: texts to verdicts, in order. Never raises for a moderator's fault: such verdicts are failed.
        flag: the gate's verdict on the answer; None: not known.
        baseline: for requests whose answers pass the moderator more often than they are likely, so that it pays to measure
            them from the start; None: nothing measures likelihoods.
        asked: the question after which answers are measured: in its conversation, and alone if more surrounds it.
        seed: of everything random in this task.
        prefer: this user's preferences as the request has them, unchecked; None: it has none.
    """

    messages: tuple[Message, ...]
    answer: str
    backend: Backend
    base: GenerationRequest
    profile: ModelProfile
    usage: Usage
    score: Callable[[Sequence[str]], Awaitable[list[Verdict]]]
    flag: Verdict | None = None
    baseline: Baseline | None = None
    asked: tuple[Prompt, ...] = ()
    seed: int = 0
    prefer: Mapping[str, float] | None = None

    @property
    def harmful(self) -> bool | None:
        """See `harmful`, of the gate's verdict on the answer."""
        return harmful(self.flag)

    @property
    def shown(self) -> str:
        return self.base.opening

    def after_shown(self, text: str) -> str:
        """`text` as the next thing that the user reads."""
        return f"{self.shown} {text}" if self.shown else text

    def reworded(self, change: Callable[[str], str]) -> tuple[Message, ...]:
        """The conversation with `change` applied to what the user said last."""
        last = max((i for i, m in enumerate(self.messages) if m.role == "user"), default=None)
        return tuple(replace(m, content=change(m.content)) if i == last else m for i, m in enumerate(self.messages))

    async def generate(self, requests: Sequence[GenerationRequest], guide: ControlledDecoding | None = None) -> list[Generation]:
        """Generate one batch, from the guide's distribution if there is one.

        Raises:
            BudgetError: the batch would overrun the budget.
        """
        self.usage.charge(generations=len(requests))
        return await self._decoded(requests, guide)

    async def _decoded(self, requests: Sequence[GenerationRequest], guide: ControlledDecoding | None) -> list[Generation]:
        longest = self.usage.longest(len(requests))
        requests = [r if r.max_new_tokens <= longest else r.with_(max_new_tokens=longest) for r in requests]
        with self.usage.timed("decoding"):
            if guide:
                assert isinstance(self.backend, ExposesLogits)
                answers = await self.backend.generate_controlled(requests, guide)
            else:
                answers = await self.backend.generate(requests)
        self.usage.tokens += sum(a.tokens for a in answers)
        self.usage.decode_steps += max((a.tokens for a in answers), default=0)
        return answers

    async def propose(
        self, requests: Sequence[GenerationRequest], origins: Sequence[str], guide: ControlledDecoding | None = None
    ) -> list[Candidate]:
        """Generate one batch and have the moderator that guides the search look at it."""
        answers = await self.generate(requests, guide)
        verdicts = await self.score([a.text for a in answers])
        return [
            Candidate(a.text, origin, verdict, a.finished, a.log_likelihood, request, guide)
            for a, origin, verdict, request in zip(answers, origins, verdicts, requests, strict=True)
        ]

    async def extend(self, candidates: Sequence[Candidate], tokens: Sequence[int]) -> list[Candidate]:
        """Each candidate with so many more tokens, as one batch, and looked at again. It is the same answer as before, so it
        takes tokens and time of the budget, but no generation and no decode pass.

        Raises:
            BudgetError: there is no time or there are no tokens left.
        """
        self.usage.charge()
        requests = [
            c.request.with_(opening=c.text, max_new_tokens=n, baseline=None)
            for c, n in zip(candidates, tokens, strict=True)
            if c.request
        ]
        answers = await self._decoded(requests, candidates[0].guide)
        verdicts = await self.score([a.text for a in answers])
        return [
            replace(c, text=a.text, verdict=verdict, finished=a.finished)
            for c, a, verdict in zip(candidates, answers, verdicts, strict=True)
        ]


@runtime_checkable
class Steerer(Protocol):
    """Proposes candidates, one round (a batch) at a time; the guard may stop after any round."""

    name: str

    @property
    def needs(self) -> tuple[type, ...]:
        """Backend capabilities (protocols of `backends.base`) without which it cannot work as its options say; an attribute
        will do."""
        ...

    def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]: ...


@runtime_checkable
class Fits(Protocol):
    """A steerer that works with certain models only; it is asked when the guard is built."""

    def fit(self, backend: Any) -> None:
        """
        Args:
            backend: one that has what the steerer `needs`.

        Raises:
            ConfigError: this model is none of them.
        """
        ...
