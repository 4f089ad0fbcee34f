"""The guard: gate, search, quality checks, gate again, then swap or fall back.

The guard knows protocols only. Whatever fails below it ends in the fallback text. A text leaves the
guard only if the gate has passed that very text.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from ttsa_guard import languages
from ttsa_guard.audit import AuditSink
from ttsa_guard.backends.base import Backend, Profiled, sees
from ttsa_guard.backends.plain import plain_answer
from ttsa_guard.budget import Clock, Usage, answered
from ttsa_guard.config import GuardConfig, Use
from ttsa_guard.errors import ConfigError, ImageError
from ttsa_guard.forks import refuse_after_fork
from ttsa_guard.images import Image
from ttsa_guard.messages import GenerationRequest, Message, Prompt, images_of, own_seed
from ttsa_guard.moderators.advice import BETTER, weak_gate
from ttsa_guard.moderators.base import (
    ImageModerator,
    Moderator,
    close,
    is_coarse,
    moderate_images_safely,
    moderate_safely,
)
from ttsa_guard.moderators.panel import Panel, build_panel
from ttsa_guard.observers import publish
from ttsa_guard.plugins import Plugins
from ttsa_guard.profile import GENERIC, ModelProfile
from ttsa_guard.reasoning import split_reasoning
from ttsa_guard.record import Action, Outcome
from ttsa_guard.review import Review
from ttsa_guard.search import Search, SearchEnd
from ttsa_guard.selection import Judged
from ttsa_guard.steerers.base import Fits, Steerer
from ttsa_guard.streaming import StreamGate
from ttsa_guard.telemetry import span
from ttsa_guard.tool_calls import texts_of_calls
from ttsa_guard.verdict import Verdict

log = logging.getLogger(__name__)
_GATE_TRIES = 3


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
        image_gate: the image moderators that decide whether an answer to images may leave.
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
        image_gate: Sequence[ImageModerator] = (),
        profile: ModelProfile = GENERIC,
        plugins: Plugins | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.config = config
        self.backend = backend
        self.gate = gate
        self.guide = guide
        self.image_gate = tuple(image_gate)
        self.steerers = tuple(steerers)
        self.steerers_for_harm = (
            self.steerers if steerers_for_harm is None else tuple(steerers_for_harm)
        )
        self.profile = profile
        self.quality = config.quality.for_model(profile.floor)
        self._plugins = plugins or Plugins()
        self._clock = clock
        languages.load()  # or the first flagged answer would pay for it, out of its time
        self._sink = AuditSink(config.audit.path) if config.audit.path else None
        if is_coarse(guide):
            log.warning(
                "the guide %s tells only a few scores apart, so a search sees no progress; keep it"
                " as the gate",
                guide.name,
            )
        for steerer in dict.fromkeys((*self.steerers, *self.steerers_for_harm)):
            missing = [need.__name__ for need in steerer.needs if not isinstance(backend, need)]
            if missing:
                raise ConfigError(
                    f"steerer {steerer.name!r} needs a backend that {', '.join(missing)};"
                    f" {backend.name!r} does not",
                    hint=(
                        "choose another backend, or steerers that need less: 'tsa' only moves"
                        " embeddings; 'ask_again', 'resample' and 'prefill' need text alone"
                    ),
                )
            if isinstance(steerer, Fits):
                steerer.fit(backend)

    @classmethod
    def from_config(
        cls, config: GuardConfig, *, plugins: Plugins | None = None, backend: Backend | None = None
    ) -> Guard:
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
        image_gate = [plugins.make("image_moderators", use) for use in config.image_gate]
        steerers = _made(plugins, config.steerers)
        for_harm = (
            None if config.steerers_for_harm is None else _made(plugins, config.steerers_for_harm)
        )
        # The backend comes last. It takes longest, and a typo elsewhere should show at once.
        backend = backend or plugins.make("backends", config.backend)
        profile = backend.profile if isinstance(backend, Profiled) else GENERIC
        applied = profile.applied(config)
        if applied.steerers is not config.steerers:
            steerers = _made(plugins, applied.steerers)
        if applied.steerers_for_harm and config.steerers_for_harm is None:
            for_harm = _made(plugins, applied.steerers_for_harm)
        if weak := weak_gate(backend.name, [member.use for member in config.gate]):
            _warn_once(weak)
        return cls(
            config,
            backend=backend,
            gate=gate,
            guide=guide,
            steerers=steerers,
            steerers_for_harm=for_harm,
            image_gate=image_gate,
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
            image_gate=self.image_gate,
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
        self,
        messages: Sequence[Message | Mapping[str, Any]] | str,
        *,
        prefer: Mapping[str, float] | None = None,
    ) -> Outcome:
        """Let the backend answer, and review the answer.

        Args:
            prefer: as in `review`.

        Raises:
            PromptError: the model cannot be given this conversation, or not its images.
            ModelError: the plain answer could not be generated, or took too long.
        """
        conversation = Message.conversation(messages, limits=self.config.images)
        work = plain_answer(
            self.backend, conversation, lambda prompt: self._request_with(prompt, conversation)
        )
        _, plain = await answered(self.config.answer_seconds, work)
        reasoning, answer = split_reasoning(plain.text)
        return await self.review(conversation, answer, reasoning=reasoning, prefer=prefer)

    async def review(
        self,
        messages: Sequence[Message | Mapping[str, Any]] | str,
        answer: str,
        *,
        reasoning: str = "",
        stream_gate: StreamGate | None = None,
        prefer: Mapping[str, float] | None = None,
        mend: bool = True,
    ) -> Outcome:
        """Pass `answer` on if the gate passes it; else find a good answer, or give the fallback.

        Nothing is raised but `asyncio.CancelledError`.

        Args:
            messages: the conversation up to, and without, the answer.
            reasoning: what the model thought before it answered. It never leaves. With the setting
                ``reasoning: regenerate``, an answer after flagged reasoning does not leave either.
            stream_gate: the gate of the stream that has shown a part of the answer already. That
                part stays, so every outcome begins with it: the search looks for another
                continuation, and the fallback comes after it. The stream shows no more.
            prefer: the preferences of this user, for steerers that use preferences. They replace
                those in the configuration.
            mend: False for a text that is no answer to the user, such as the arguments of a tool
                call. If it is flagged, the fallback is given.
        """
        judged = reasoning.strip() if self.config.reasoning == "regenerate" else ""
        review = Review(answer, Usage(self.config.budget, self._clock), judged, prefer=prefer)
        with span("ttsa_guard.review"):
            try:
                refuse_after_fork(self.backend)
                if stream_gate:
                    shown, review.gate_calls = stream_gate.close(), stream_gate.checks
                    # If the host has rewritten the answer since, it does not begin with what was
                    # shown.
                    review.shown = shown if answer.startswith(shown) else ""
                review.messages = Message.conversation(messages, limits=self.config.images)
                if (seen := await self._judge_images(review)) and seen.flagged:
                    failed = seen.decision == "failed"
                    reason = (
                        f"image gate failed: {seen.reason}" if failed else "an image is flagged"
                    )
                    return self._fall_back(review, reason)
                await self._judge(review)
                if review.flag is None:
                    return self._finish(
                        review, answer, "pass", "passed by the gate", None, review.gate_verdict
                    )
                if review.flag.decision == "failed":
                    # Without a gate no text may leave, so a search would be of no use.
                    return self._fall_back(review, f"gate failed: {review.flag.reason}")
                if not mend:
                    return self._fall_back(review, "the gate flagged it")
                if not sees(self.backend, images_of(review.messages)):
                    return self._fall_back(review, "the model cannot see the images")
                search = self._search_of(review)
                end = await search.run()
                return await self._swapped(review, search.answers()[:_GATE_TRIES], end)
            except ImageError as error:
                return self._fall_back(review, f"image refused: {error.message}")
            except Exception as error:
                # The message may quote the moderated text, so only the kind of error is logged.
                log.error("review failed with %s; the fallback is given", type(error).__name__)
                return self._fall_back(review, f"error: {type(error).__name__}")

    async def review_calls(
        self, messages: Sequence[Message | Mapping[str, Any]] | str, calls: Any, *, reasoning: str
    ) -> Outcome | None:
        """Review the texts in the tool calls of a model, and the reasoning before them.

        No other calls are looked for: where the action is not "pass", the calls may not leave, and
        the text is the fallback. Nothing is raised but `asyncio.CancelledError`, and what `calls`
        itself raises where it is no plain data.

        Args:
            messages: the conversation up to, and without, the calls.
            calls: as plain data, with their ``arguments``, in any lists and mappings.
            reasoning: as in `review`.

        Returns:
            None if there is nothing to judge.
        """
        texts = texts_of_calls(calls)
        judged = [*texts, reasoning if self.config.reasoning == "regenerate" else ""]
        if not any(text.strip() for text in judged):
            return None
        return await self.review(messages, "\n".join(texts), reasoning=reasoning, mend=False)

    def stream_gate(self, prompt: str, images: Sequence[Image] = ()) -> StreamGate:
        """Return a gate for the stream of the answer to the user text `prompt`.

        Give it to the `review` of that answer.

        Args:
            images: of the whole conversation.
        """
        seen: list[Verdict | None] = []

        async def passes(text: str) -> bool:
            if not seen:
                seen.append(await self._image_verdict(images))
            if seen[0] and seen[0].flagged:
                return False
            [verdict] = await moderate_safely(
                self.gate, [text], prompts=[prompt], seconds=self.config.gate_seconds
            )
            return not verdict.flagged

        return StreamGate(passes)

    async def close(self) -> None:
        """Let go of what the backend and the moderators hold, for example connections."""
        for moderator in self.moderators:
            await close(moderator)
        for image_moderator in self.image_gate:
            await close(image_moderator)
        await self.backend.close()

    # ------------------------------------------------------------------ steps

    async def _judge_images(self, review: Review) -> Verdict | None:
        images = images_of(review.messages)
        if images and self.image_gate:
            review.gate_calls += len(self.image_gate)
            with review.phase("gate"):
                review.image_verdict = await self._image_verdict(images)
        return review.image_verdict

    async def _image_verdict(self, images: Sequence[Image]) -> Verdict | None:
        """Return the worst verdict of the image gate; None if there is nothing to judge."""
        distinct, seconds = list(dict.fromkeys(images)), self.config.gate_seconds
        verdicts = [
            verdict
            for moderator in self.image_gate
            for verdict in await moderate_images_safely(moderator, distinct, seconds=seconds)
        ]
        return max(verdicts, key=lambda v: (v.flagged, v.score), default=None)

    async def _judge(self, review: Review) -> None:
        """Ask the gate about the answer, and about the reasoning before it if that counts."""
        texts = [review.answer, *filter(None, [review.reasoning])]
        review.gate_verdict, *thoughts = await self._check(review, texts, "gate")
        review.reasoning_verdict = thoughts[0] if thoughts else None

    async def _swapped(
        self, review: Review, answers: Sequence[tuple[Judged, str]], end: SearchEnd
    ) -> Outcome:
        """Swap in the first of the answers that the gate passes, or give the fallback."""
        for judged, text in answers:
            [final] = await self._check(review, [text], "final")
            if not final.flagged:
                return self._finish(review, text, "swap", end, judged, final)
        if answers:
            return self._fall_back(review, "the gate flagged the candidates")
        return self._fall_back(review, "no good candidate" if end == "steered" else end)

    def _search_of(self, review: Review) -> Search:
        return Search(
            review,
            config=self.config,
            backend=self.backend,
            guide=self.guide,
            quality=self.quality,
            profile=self.profile,
            request_for=self.plain_request,
            steerers=self.steerers,
            steerers_for_harm=self.steerers_for_harm,
        )

    async def _check(self, review: Review, texts: Sequence[str], phase: str) -> list[Verdict]:
        review.gate_calls += 1
        prompts = [review.prompt] * len(texts)
        with review.phase(phase):
            return await moderate_safely(
                self.gate, texts, prompts=prompts, seconds=self.config.gate_seconds
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
        self,
        review: Review,
        text: str,
        action: Action,
        reason: str,
        chosen: Judged | None,
        final: Verdict | None,
    ) -> Outcome:
        audit = self.config.audit
        record = review.record(
            text, action, reason, chosen, final, seed=self.config.seed, texts=audit.texts
        )
        publish(record, self._sink, self._plugins)
        judged = [each.candidate.text for each in review.judged]
        withheld = {review.answer, review.reasoning, *judged} - {"", text}
        return Outcome(text, action, record, withheld=tuple(withheld))


def _made(plugins: Plugins, uses: Sequence[Use]) -> list[Steerer]:
    return [plugins.make("steerers", use) for use in uses]


@cache
def _warn_once(problem: str) -> None:
    log.warning("%s; better are:\n  %s", problem, "\n  ".join(BETTER))
