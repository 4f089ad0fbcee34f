"""Gate, search, quality, gate again, then swap or fall back: the way of one answer.

The guard knows protocols only. Whatever fails below it ends in the fallback text; a text leaves it only if the gate has
passed that very text.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from ttsa_guard.backends.base import Backend, ScoresText
from ttsa_guard.budget import Clock, Spend, within
from ttsa_guard.config import GuardConfig, Use, validated
from ttsa_guard.errors import BudgetError, ConfigError, TTSAError
from ttsa_guard.messages import GenerationRequest, Message
from ttsa_guard.moderators.base import Moderator, Panel, moderate_safely
from ttsa_guard.plugins import Kind, Plugins
from ttsa_guard.profile import GENERIC, ModelProfile
from ttsa_guard.quality import Flaw, Quality
from ttsa_guard.record import Action, AuditRecord, AuditSink, CandidateRecord, Outcome
from ttsa_guard.steerers.base import Candidate, Steerer, Task
from ttsa_guard.verdict import Verdict

log = logging.getLogger(__name__)
_GATE_TRIES = 3


@dataclass(frozen=True, eq=False)
class _Judged:
    """A candidate with everything that decides about it."""

    candidate: Candidate
    steerer: str
    log_likelihood: float | None
    flaws: tuple[Flaw, ...]
    helpful: bool

    @property
    def acceptable(self) -> bool:
        return not self.candidate.verdict.flagged and not self.flaws

    @property
    def rank(self) -> tuple[bool, float]:
        """Helpful ones first, then the likeliest under the unsteered model: the least distortion."""
        return self.helpful, self.log_likelihood if self.log_likelihood is not None else -self.candidate.verdict.score


@dataclass(eq=False)
class _Review:
    """The state of one review."""

    messages: tuple[Message, ...]
    answer: str
    spend: Spend
    first: Verdict | None = None
    judged: list[_Judged] = field(default_factory=list)
    gate_calls: int = 0
    gate_seconds: float = 0.0


class Guard:
    """Reviews answers of a chat model and mends the flagged ones.

    Args:
        config: the settings.
        backend, gate, guide, steerers: the parts, usually made by `from_config`.
        profile: what is known about the backend's model.
        plugins: whose ``ttsa_guard_finished`` hooks are told about every review.
    """

    def __init__(
        self,
        config: GuardConfig,
        *,
        backend: Backend,
        gate: Moderator,
        guide: Moderator,
        steerers: Sequence[Steerer],
        profile: ModelProfile = GENERIC,
        plugins: Plugins | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.config = config
        self.backend = backend
        self.gate = gate
        self.guide = guide
        self.steerers = tuple(steerers)
        self.profile = profile
        self.quality = _quality(config, profile)
        self._plugins = plugins or Plugins()
        self._clock = clock
        self._sink = AuditSink(config.audit.path) if config.audit.path else None
        for steerer in self.steerers:
            missing = [need.__name__ for need in steerer.needs if not isinstance(backend, need)]
            if missing:
                raise ConfigError(
                    f"steerer {steerer.name!r} needs a backend that {', '.join(missing)}; {backend.name!r} does not",
                    hint="choose another backend, or the steerers 'resample' or 'prefill'",
                )

    @classmethod
    def from_config(cls, config: GuardConfig, *, plugins: Plugins | None = None, backend: Backend | None = None) -> Guard:
        """Load the plugins that `config` names and build a guard; `backend` replaces the configured one.

        Raises:
            PluginError, ConfigError, ModelError: with a hint each.
        """
        plugins = plugins or Plugins()
        members: tuple[Moderator, ...] = tuple(_made(plugins, "moderators", use) for use in config.gate)
        backend = backend or _made(plugins, "backends", config.backend)
        return cls(
            config,
            backend=backend,
            gate=members[0] if len(members) == 1 else Panel(members, config.combine),
            guide=_made(plugins, "moderators", config.guide),
            steerers=[_made(plugins, "steerers", use) for use in config.steerers],
            profile=getattr(backend, "profile", GENERIC),
            plugins=plugins,
        )

    async def respond(self, messages: Sequence[Message | Mapping[str, Any]] | str) -> Outcome:
        """Let the backend answer, and review the answer.

        Raises:
            PromptError, ModelError: the plain answer could not be generated.
        """
        conversation = Message.conversation(messages)
        [plain] = await self.backend.generate([await self._request(conversation)])
        return await self.review(conversation, plain.text)

    async def review(self, messages: Sequence[Message | Mapping[str, Any]] | str, answer: str) -> Outcome:
        """Pass `answer` on if the gate passes it; else find a good answer, or give the fallback. Raises nothing but
        `asyncio.CancelledError`.

        Args:
            messages: the conversation up to, and without, the answer.
        """
        review = _Review((), answer, Spend(self.config.budget.limits(), self._clock))
        try:
            review.messages = Message.conversation(messages)
            review.first = await self._check(review, answer)
            if not review.first.flagged:
                return self._finish(review, answer, "pass", "passed by the gate", None, review.first)
            reason = await self._search(review)
            best = _best(review)
            for judged in best:
                final = await self._check(review, judged.candidate.text)
                if not final.flagged:
                    return self._finish(review, judged.candidate.text, "swap", reason, judged, final)
            if best:
                reason = "the gate flagged the candidates"
            elif reason == "steered":
                reason = "no good candidate"
        except Exception as error:
            # The message may quote the moderated text, so only the kind of error is logged.
            log.error("review failed with %s; the fallback is given", type(error).__name__)
            reason = f"error: {type(error).__name__}"
        return self._finish(review, self.config.fallback, "fallback", reason, None, None)

    async def close(self) -> None:
        await self.backend.close()

    # ------------------------------------------------------------------ steps

    async def _check(self, review: _Review, text: str) -> Verdict:
        started = self._clock()
        prompts = [_last_user(review.messages)]
        [verdict] = await moderate_safely(self.gate, [text], prompts=prompts, seconds=self.config.gate_seconds)
        review.gate_calls += 1
        review.gate_seconds += self._clock() - started
        return verdict

    async def _search(self, review: _Review) -> str:
        """Run the cascade until a helpful candidate is found or the budget is gone; say why it ended."""
        try:
            await within(review.spend.seconds_left, self._cascade(review))
        except (BudgetError, asyncio.TimeoutError):
            return "budget used up"
        return "steered"

    async def _cascade(self, review: _Review) -> None:
        task = Task(
            messages=review.messages,
            answer=review.answer,
            backend=self.backend,
            base=await self._request(review.messages),
            profile=self.profile,
            spend=review.spend,
            score=lambda texts: self._score(review, texts),
            seed=self.config.seed,
        )
        for steerer in self.steerers:
            try:
                async with aclosing(steerer.steer(task)) as rounds:
                    async for candidates in rounds:
                        review.judged += await self._judge(task, steerer.name, candidates)
                        if any(j.acceptable and j.helpful for j in review.judged):
                            return
                        review.spend.charge()  # the clock alone: a steerer that never waits cannot be timed out
            except (BudgetError, asyncio.CancelledError):
                raise
            except Exception as error:
                log.error("steerer %s failed with %s; the next one goes on", steerer.name, type(error).__name__)

    async def _score(self, review: _Review, texts: Sequence[str]) -> list[Verdict]:
        review.spend.charge(moderation_calls=1)
        prompts = [_last_user(review.messages)] * len(texts)
        return await moderate_safely(self.guide, texts, prompts=prompts, seconds=review.spend.seconds_left)

    async def _judge(self, task: Task, steerer: str, candidates: Sequence[Candidate]) -> list[_Judged]:
        """Quality of the candidates that the guide passes; one batched forward pass for all of them."""
        passing = [c for c in candidates if not c.verdict.flagged]
        likelihoods: list[float | None] = [None] * len(passing)
        if passing and isinstance(self.backend, ScoresText):
            likelihoods = [*await self.backend.log_likelihoods(task.base.prompt, [c.text for c in passing])]
        known = dict(zip(map(id, passing), likelihoods, strict=True))
        judged = []
        for c in candidates:
            likelihood = known.get(id(c))
            flaws = self.quality.flaws(c.text, log_likelihood=likelihood, finished=c.finished)
            if c.text.strip() == task.answer.strip():
                flaws = (*flaws, "unchanged")
            refusal = c.verdict.categories.get("refusal", 0.0)
            helpful = not c.verdict.flagged and not flaws and refusal < self.config.quality.refusal_threshold
            measured = likelihood if likelihood is not None and math.isfinite(likelihood) else None
            judged.append(_Judged(c, steerer, measured, flaws, helpful))
        return judged

    async def _request(self, messages: tuple[Message, ...]) -> GenerationRequest:
        prompt = await self.backend.render(messages)
        settings = self.config.generation
        return GenerationRequest(
            prompt, max_new_tokens=settings.max_new_tokens, temperature=settings.temperature, seed=self.config.seed
        )

    # ------------------------------------------------------------------ record

    def _finish(
        self, review: _Review, text: str, action: Action, reason: str, chosen: _Judged | None, final: Verdict | None
    ) -> Outcome:
        spend, first = review.spend, review.first
        record = AuditRecord(
            id=uuid.uuid4().hex,
            created=time.time(),
            action=action,
            reason=reason,
            gate_score=first.score if first else 1.0,
            gate_categories=dict(first.categories) if first else {},
            final_score=final.score if final else None,
            helpful=chosen.helpful if chosen else action == "pass",
            steerer=chosen.steerer if chosen else None,
            candidates=tuple(self._describe(j) for j in review.judged),
            generations=spend.generations,
            decode_passes=spend.decode_passes,
            moderation_calls=spend.moderation_calls + review.gate_calls,
            seconds=spend.seconds,
            seconds_gate=review.gate_seconds,
            seed=self.config.seed,
            texts={"answer": review.answer, "final": text} if self.config.audit.texts else None,
        )
        self._publish(record)
        return Outcome(text, action, record)

    def _describe(self, judged: _Judged) -> CandidateRecord:
        candidate = judged.candidate
        return CandidateRecord(
            steerer=judged.steerer,
            origin=candidate.origin,
            score=candidate.verdict.score,
            passed=judged.acceptable,
            helpful=judged.helpful,
            log_likelihood=judged.log_likelihood,
            flaws=judged.flaws,
            text=candidate.text if self.config.audit.texts else None,
        )

    def _publish(self, record: AuditRecord) -> None:
        """Tell the sink and the plugins; a fault there must not keep the answer back, nor let another one out."""
        if self._sink:
            try:
                self._sink.write(record)
            except Exception as error:
                log.error("the audit record could not be written: %s", type(error).__name__)
        try:
            self._plugins.manager.hook.ttsa_guard_finished(record=record)
        except Exception as error:
            log.error("an observer plugin failed with %s", type(error).__name__)


def _made(plugins: Plugins, kind: Kind, use: Use) -> Any:
    registered = plugins.load(kind, use.use)
    options = validated(registered.options, use.options, where=f"{kind}.{use.use}")
    try:
        return registered.factory(options)
    except TTSAError:
        raise
    except Exception as error:
        raise ConfigError(f"plugin {use.use!r} cannot be built: {error}", hint=f"check its options in {kind}") from error


def _quality(config: GuardConfig, profile: ModelProfile) -> Quality:
    settings = config.quality
    if settings.floor == "auto":
        floor = profile.floor - settings.slack if profile.floor is not None else None
    else:
        floor = settings.floor
    return Quality(settings.shortest, settings.repeats, floor)


def _best(review: _Review) -> list[_Judged]:
    """The acceptable candidates to show the gate, best first, no text twice."""
    ranked = sorted((j for j in review.judged if j.acceptable), key=lambda j: j.rank, reverse=True)
    distinct = {j.candidate.text: j for j in reversed(ranked)}
    return [j for j in ranked if distinct.get(j.candidate.text) is j][:_GATE_TRIES]


def _last_user(messages: Sequence[Message]) -> str:
    return next((m.content for m in reversed(messages) if m.role == "user"), "")
