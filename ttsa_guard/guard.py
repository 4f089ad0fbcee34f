"""The guard: gate, search, quality checks, gate again, then swap or fall back.

The guard knows protocols only. Whatever fails below it ends in the fallback text. A text leaves the
guard only if the gate has passed that very text.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from functools import cache
from itertools import takewhile
from typing import Any, Literal

from ttsa_guard.audit import AuditSink
from ttsa_guard.backends.base import Backend, Profiled, ScoresText
from ttsa_guard.backends.plain import plain_answer
from ttsa_guard.budget import Clock, Usage, answered, within
from ttsa_guard.completion import completed, cut_loop, ended
from ttsa_guard.config import GuardConfig, Use
from ttsa_guard.errors import BudgetError, ConfigError
from ttsa_guard.forks import refuse_after_fork
from ttsa_guard.messages import Baseline, GenerationRequest, Message, Prompt, own_seed
from ttsa_guard.moderators.advice import BETTER, weak_gate
from ttsa_guard.moderators.base import Moderator, close, is_coarse, moderate_safely
from ttsa_guard.moderators.panel import Panel, build_panel
from ttsa_guard.observers import publish
from ttsa_guard.plugins import Plugins
from ttsa_guard.profile import GENERIC, ModelProfile
from ttsa_guard.reasoning import has_reasoning, split_reasoning
from ttsa_guard.record import Action, Outcome
from ttsa_guard.request import questions
from ttsa_guard.review import Review, last_user
from ttsa_guard.selection import Judged, best_first, refusal
from ttsa_guard.steerers.base import Candidate, Fits, Steerer, Task
from ttsa_guard.streaming import StreamGate
from ttsa_guard.telemetry import span
from ttsa_guard.text import split_sentences
from ttsa_guard.verdict import Verdict

log = logging.getLogger(__name__)
_GATE_TRIES = 3
_COMPLETED_TOGETHER = 3
_WORDS_OF_AN_OFFER = 15
"""Words that an answer must have besides those that decline; with fewer it is a mere refusal."""


SearchEnd = Literal["steered", "budget used up"]


class Guard:
    """Reviews answers of a chat model and mends the flagged ones.

    Backend, gate, guide and steerers are usually made by `from_config`.

    Args:
        config: the settings.
        backend: the chat model.
        gate: the moderator that decides what a user may see.
        guide: the moderator that scores the candidates of a search.
        steerers: the cascade, in the order in which it is tried.
        steerers_for_harm: the cascade for answers that were flagged for what they help with; by
            default `steerers`.
        profile: what is known about the backend's model.
        plugins: the plugins whose ``ttsa_guard_finished`` hooks are told about every review.
        clock: the clock of the budget, in seconds.

    Raises:
        ConfigError: a steerer needs something that the backend cannot do.
    """

    def __init__(
        self,
        config: GuardConfig,
        *,
        backend: Backend,
        gate: Moderator,
        guide: Moderator,
        steerers: Sequence[Steerer],
        steerers_for_harm: Sequence[Steerer] | None = None,
        profile: ModelProfile = GENERIC,
        plugins: Plugins | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.config = config
        self.backend = backend
        self.gate = gate
        self.guide = guide
        self.steerers = tuple(steerers)
        self.steerers_for_harm = self.steerers if steerers_for_harm is None else tuple(steerers_for_harm)
        self.profile = profile
        self.quality = config.quality.for_model(profile.floor)
        self._plugins = plugins or Plugins()
        self._clock = clock
        self._sink = AuditSink(config.audit.path) if config.audit.path else None
        if is_coarse(guide):
            log.warning(
                "the guide %s tells only a few scores apart, so a search sees no progress; keep it as the gate", guide.name
            )
        for steerer in dict.fromkeys((*self.steerers, *self.steerers_for_harm)):
            missing = [need.__name__ for need in steerer.needs if not isinstance(backend, need)]
            if missing:
                raise ConfigError(
                    f"steerer {steerer.name!r} needs a backend that {', '.join(missing)}; {backend.name!r} does not",
                    hint="choose another backend, or one of the steerers 'resample', 'prefill' and 'tsa'",
                )
            if isinstance(steerer, Fits):
                steerer.fit(backend)

    @classmethod
    def from_config(cls, config: GuardConfig, *, plugins: Plugins | None = None, backend: Backend | None = None) -> Guard:
        """Load the plugins that `config` names and build a guard.

        Args:
            backend: replaces the configured backend.

        Raises:
            PluginError: a plugin is missing or cannot be loaded.
            ConfigError: an option of a plugin is wrong.
            ModelError: a model cannot be loaded.
        """
        plugins, config = plugins or Plugins(), config.resolved()
        gate = build_panel(plugins, config.gate, config.combine)
        guide = build_panel(plugins, config.guide, config.guide_combine)
        steerers = _made(plugins, config.steerers)
        for_harm = None if config.steerers_for_harm is None else _made(plugins, config.steerers_for_harm)
        # The backend comes last. It takes longest, and a typo elsewhere should show at once.
        backend = backend or plugins.make("backends", config.backend)
        profile = backend.profile if isinstance(backend, Profiled) else GENERIC
        if "steerers" not in config.model_fields_set and profile.steerers:
            steerers = _made(plugins, profile.steerers)
        if not config.model_fields_set & {"steerers", "steerers_for_harm"} and profile.steerers_for_harm:
            for_harm = _made(plugins, profile.steerers_for_harm)
        if weak := weak_gate(backend.name, [member.use for member in config.gate]):
            _warn_once(weak)
        return cls(
            config,
            backend=backend,
            gate=gate,
            guide=guide,
            steerers=steerers,
            steerers_for_harm=for_harm,
            profile=profile,
            plugins=plugins,
        )

    def with_steerers(self, steerers: Sequence[Steerer], profile: ModelProfile) -> Guard:
        """Return a guard of the same parts, but with only these steerers and this profile."""
        return Guard(
            self.config,
            backend=self.backend,
            gate=self.gate,
            guide=self.guide,
            steerers=steerers,
            profile=profile,
            plugins=self._plugins,
            clock=self._clock,
        )

    @property
    def moderators(self) -> tuple[Moderator, ...]:
        """The members of the gate and of the guide."""
        panels = (m.members if isinstance(m, Panel) else (m,) for m in (self.gate, self.guide))
        return tuple(member for members in panels for member in members)

    async def respond(
        self, messages: Sequence[Message | Mapping[str, Any]] | str, *, prefer: Mapping[str, float] | None = None
    ) -> Outcome:
        """Let the backend answer, and review the answer.

        Args:
            prefer: as in `review`.

        Raises:
            PromptError: the model cannot be given this conversation.
            ModelError: the plain answer could not be generated, or took too long.
        """
        conversation = Message.conversation(messages)
        work = plain_answer(self.backend, conversation, lambda prompt: self._request_with(prompt, conversation))
        _, plain = await answered(self.config.answer_seconds, work)
        reasoning, answer = split_reasoning(plain.text)
        return await self.review(conversation, answer, reasoning=reasoning, prefer=prefer)

    async def review(
        self,
        messages: Sequence[Message | Mapping[str, Any]] | str,
        answer: str,
        *,
        reasoning: str = "",
        release: StreamGate | None = None,
        prefer: Mapping[str, float] | None = None,
        mend: bool = True,
    ) -> Outcome:
        """Pass `answer` on if the gate passes it; else find a good answer, or give the fallback.

        Nothing is raised but `asyncio.CancelledError`.

        Args:
            messages: the conversation up to, and without, the answer.
            reasoning: what the model thought before it answered. It never leaves. With the setting
                ``reasoning: regenerate``, an answer after flagged reasoning does not leave either.
            release: the gate of the stream that has shown a part of the answer already. That part
                stays, so every outcome begins with it: the search looks for another continuation,
                and the fallback comes after it. The stream shows no more.
            prefer: the preferences of this user, for steerers that use preferences. They replace
                those in the configuration.
            mend: False for a text that is no answer to the user, such as the arguments of a tool
                call. If it is flagged, the fallback is given.
        """
        judged = reasoning.strip() if self.config.reasoning == "regenerate" else ""
        review = Review(answer, Usage(self.config.budget, self._clock), judged, prefer=prefer)
        with span("ttsa_guard.review"):
            return await self._reviewed(review, messages, release, mend)

    async def _reviewed(
        self, review: Review, messages: Sequence[Message | Mapping[str, Any]] | str, release: StreamGate | None, mend: bool
    ) -> Outcome:
        answer = review.answer
        try:
            refuse_after_fork(self.backend)
            if release:
                shown, review.gate_calls = release.close(), release.checks
                # If the host has rewritten the answer since, it does not begin with what was shown.
                review.shown = shown if answer.startswith(shown) else ""
            review.messages = Message.conversation(messages)
            review.gate_verdict, *thoughts = await self._check(review, [answer, *filter(None, [review.reasoning])], "gate")
            review.reasoning_verdict = thoughts[0] if thoughts else None
            if review.flag is None:
                return self._finish(review, answer, "pass", "passed by the gate", None, review.gate_verdict)
            if review.flag.decision == "failed":
                # Without a gate no text may leave, so a search would be of no use.
                return self._fall_back(review, f"gate failed: {review.flag.reason}")
            if not mend:
                return self._fall_back(review, "the gate flagged it")
            end = await self._search(review)
            best = [judged for judged in best_first(review.judged) if self._whole(judged)][:_GATE_TRIES]
            for judged in best:
                [final] = await self._check(review, [self._whole(judged)], "final")
                if not final.flagged:
                    return self._finish(review, self._whole(judged), "swap", end, judged, final)
            reason: str = "no good candidate" if end == "steered" else end
            if best:
                reason = "the gate flagged the candidates"
        except Exception as error:
            # The message may quote the moderated text, so only the kind of error is logged.
            log.error("review failed with %s; the fallback is given", type(error).__name__)
            reason = f"error: {type(error).__name__}"
        return self._fall_back(review, reason)

    def release(self, prompt: str) -> StreamGate:
        """Return a gate for the stream of the answer to the user text `prompt`.

        Give it to the `review` of that answer.
        """

        async def passes(text: str) -> bool:
            [verdict] = await moderate_safely(self.gate, [text], prompts=[prompt], seconds=self.config.gate_seconds)
            return not verdict.flagged

        return StreamGate(passes)

    async def close(self) -> None:
        """Let go of what the backend and the moderators hold, for example connections."""
        for moderator in self.moderators:
            await close(moderator)
        await self.backend.close()

    # ------------------------------------------------------------------ steps

    async def _check(self, review: Review, texts: Sequence[str], phase: str) -> list[Verdict]:
        review.gate_calls += 1
        prompts = [review.prompt] * len(texts)
        with review.phase(phase):
            return await moderate_safely(self.gate, texts, prompts=prompts, seconds=self.config.gate_seconds)

    async def _search(self, review: Review) -> SearchEnd:
        """Run the cascade until it finds a helpful candidate or the budget is used up.

        Returns:
            Why the search ended.
        """
        try:
            with review.phase("search"):
                await within(review.usage.seconds_left, self._cascade(review))
        except (BudgetError, asyncio.TimeoutError):
            return "budget used up"
        return "steered" if review.usage.generations_left else "budget used up"

    async def _cascade(self, review: Review) -> None:
        plain = await self.plain_request(review.messages)
        most = min(plain.max_new_tokens, self.config.generation.draft_tokens)
        base = plain.with_(opening=review.shown, max_new_tokens=most)
        asked = tuple([await self._asked(messages, review, plain) for messages in questions(review.messages)])
        # An answer can be broken off as too unlikely only if a single prompt decides that.
        measured = isinstance(self.backend, ScoresText) and len(asked) == 1
        task = Task(
            messages=review.messages,
            answer=review.answer if review.gate_verdict and review.gate_verdict.flagged else "",
            backend=self.backend,
            base=base,
            profile=self.profile,
            usage=review.usage,
            score=lambda texts: self._score(review, texts),
            flag=review.flag,
            baseline=Baseline(asked[0], self.quality.lowest) if measured else None,
            asked=asked,
            seed=base.seed,
            prefer=review.prefer,
        )
        for steerer in self.steerers_for_harm if task.harmful else self.steerers:
            try:
                async with aclosing(steerer.steer(task)) as rounds:
                    async for candidates in rounds:
                        review.judged += await self._judge(review, task, steerer.name, candidates)
                        # If the answer was harmful, declining is right and may end the search.
                        if await self._completed(task, review, helpful=not task.harmful):
                            return
                        # Check the deadline here: a steerer that never waits cannot be timed out.
                        review.usage.charge()
            except (BudgetError, asyncio.CancelledError):
                raise
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
                    raise
                log.error("steerer %s failed with %s; the next one goes on", steerer.name, type(error).__name__)
        await self._completed(task, review, helpful=False)

    def _whole(self, judged: Judged) -> str:
        """Return the text of a candidate that may be shown, or "" if there is none.

        A draft for which there was no time counts with its whole sentences, if they are long
        enough.
        """
        text = ended(judged.candidate).text
        if has_reasoning(text):
            return ""  # the model reasons although it was asked not to; nobody may see reasoning
        return text if judged.candidate.finished or len(text.split()) >= self.config.quality.shortest else ""

    async def _asked(self, messages: list[Message], review: Review, plain: GenerationRequest) -> Prompt:
        return plain.prompt if messages == list(review.messages) else await self.backend.render(messages)

    async def _completed(self, task: Task, review: Review, *, helpful: bool) -> bool:
        """Continue the best drafts until the best candidate is a whole answer.

        Args:
            helpful: consider helpful candidates only.

        Returns:
            Whether there is such a candidate.
        """
        while best := [j for j in best_first(review.judged) if j.helpful or not helpful]:
            # All sequences of a batch are drawn from one distribution.
            same = [j for j in best if j.candidate.decoding is best[0].candidate.decoding]
            drafts = list(takewhile(lambda j: not j.candidate.finished, same))[:_COMPLETED_TOGETHER]
            if not drafts:
                return True
            grown = await completed(task, [j.candidate for j in drafts], most=self.config.generation.max_new_tokens)
            refusing = await self._refusing(review, [c for c in grown if not c.verdict.flagged])
            for old, new in zip(drafts, grown, strict=True):
                whole = self._judged(task, old.steerer, new, old.log_likelihood, new.text in refusing)
                review.judged[review.judged.index(old)] = whole
        return False

    async def _score(self, review: Review, texts: Sequence[str]) -> list[Verdict]:
        review.usage.charge(moderation_calls=1)
        prompts = [review.prompt] * len(texts)
        return await moderate_safely(self.guide, texts, prompts=prompts, seconds=review.usage.seconds_left)

    async def _judge(self, review: Review, task: Task, steerer: str, candidates: Sequence[Candidate]) -> list[Judged]:
        """Judge the quality of the candidates.

        Likelihoods of all texts that the guide passes are measured in one batched forward pass for
        each prompt.
        """
        if self.quality.repeats < 1:
            candidates = [cut_loop(candidate, len(task.shown)) for candidate in candidates]
        passing = [c.text for c in candidates if not c.verdict.flagged and c.log_likelihood is None]
        likelihoods: dict[str, float] = {}
        if passing and isinstance(self.backend, ScoresText):
            with task.usage.timed("scoring"):
                values = [await self.backend.log_likelihoods(prompt, passing) for prompt in task.asked]
            likelihoods = {text: max(of_text) for text, *of_text in zip(passing, *values, strict=True)}
        refusing = await self._refusing(review, [c for c in candidates if not c.verdict.flagged])
        return [self._judged(task, steerer, c, likelihoods.get(c.text, c.log_likelihood), c.text in refusing) for c in candidates]

    async def _refusing(self, review: Review, candidates: Sequence[Candidate]) -> set[str]:
        """Return the texts that decline and say little besides that."""
        limit = self.config.quality.refusal_threshold
        declining = [c.text for c in candidates if refusal(c.verdict) >= limit]
        longer = [text for text in declining if len(text.split()) > _WORDS_OF_AN_OFFER]
        parts = [(text, sentence) for text in longer for sentence in split_sentences(text)]
        verdicts = await self._score(review, [sentence for _, sentence in parts]) if parts else []
        besides = Counter[str]()
        for (text, sentence), verdict in zip(parts, verdicts, strict=True):
            besides[text] += len(sentence.split()) if refusal(verdict) < limit else 0
        return {text for text in declining if besides[text] < _WORDS_OF_AN_OFFER}

    def _judged(self, task: Task, steerer: str, candidate: Candidate, log_likelihood: float | None, refuses: bool) -> Judged:
        return Judged.of(
            candidate,
            steerer,
            self.quality,
            asked=last_user(task.messages),
            answer=task.answer,
            shown=task.shown,
            log_likelihood=log_likelihood,
            refuses=refuses,
        )

    async def plain_request(self, messages: tuple[Message, ...]) -> GenerationRequest:
        """Return a request for the model's own answer to the conversation, without reasoning.

        Raises:
            PromptError: the model cannot be given this conversation.
        """
        return self._request_with(await self.backend.render(messages), messages)

    def _request_with(self, prompt: Prompt, messages: tuple[Message, ...]) -> GenerationRequest:
        settings = self.config.generation
        return GenerationRequest(
            prompt,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            seed=own_seed(self.config.seed, messages),
        )

    # ------------------------------------------------------------------ record

    def _fall_back(self, review: Review, reason: str) -> Outcome:
        text = f"{review.shown}\n\n{self.config.fallback}" if review.shown else self.config.fallback
        return self._finish(review, text, "fallback", reason, None, None)

    def _finish(
        self, review: Review, text: str, action: Action, reason: str, chosen: Judged | None, final: Verdict | None
    ) -> Outcome:
        audit = self.config.audit
        record = review.record(text, action, reason, chosen, final, seed=self.config.seed, texts=audit.texts)
        publish(record, self._sink, self._plugins)
        texts = (review.answer, review.reasoning, *(judged.candidate.text for judged in review.judged))
        return Outcome(text, action, record, withheld=tuple({other for other in texts if other not in ("", text)}))


def _made(plugins: Plugins, uses: Sequence[Use]) -> list[Steerer]:
    return [plugins.make("steerers", use) for use in uses]


@cache
def _warn_once(problem: str) -> None:
    log.warning("%s; better are:\n  %s", problem, "\n  ".join(BETTER))
