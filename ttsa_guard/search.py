"""Search for a good answer: run the cascade under one budget, and judge what it proposes."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Literal

from ttsa_guard.backends.base import Backend, ScoresText, TextOnly
from ttsa_guard.budget import within
from ttsa_guard.completion import completed, cut_loop, ended
from ttsa_guard.config import GuardConfig
from ttsa_guard.errors import BudgetError
from ttsa_guard.messages import Baseline, GenerationRequest, Message, Prompt, last_user
from ttsa_guard.moderators.base import Moderator, moderate_safely
from ttsa_guard.moderators.everyday import BESIDE, EVERYDAY, Harm, harm_of
from ttsa_guard.moderators.questions import find_needed, find_question
from ttsa_guard.profile import ModelProfile
from ttsa_guard.quality import Quality
from ttsa_guard.reasoning import has_reasoning
from ttsa_guard.request import said_besides, stands_alone, understood
from ttsa_guard.review import Review
from ttsa_guard.selection import Judged, best_first, refusal
from ttsa_guard.steerers.base import POLICY, Candidate, Steerer, Task, category, harmful
from ttsa_guard.text import split_sentences
from ttsa_guard.verdict import Verdict

log = logging.getLogger(__name__)
SearchEnd = Literal["steered", "budget used up"]
_COMPLETED_TOGETHER = 4
_EARLIER = 8
"""Earlier messages of the user that are read for what they ask."""
_WORDS_OF_AN_OFFER = 15
"""Words that an answer must have besides those that decline; with fewer it is a mere refusal."""


@dataclass(frozen=True, eq=False)
class Search:
    """The search of one review. What it finds is added to the review's candidates.

    Args:
        review: the review of a flagged answer.
        config: the guard's settings.
        backend: the chat model.
        guide: the moderator that scores the candidates.
        quality: the limits of an acceptable answer, with the floor of this model.
        profile: what is known about the backend's model.
        request_for: makes the request for the model's own answer to a conversation.
        steerers: the cascade, in the order in which it is tried.
        steerers_for_harm: the cascade for answers that were flagged for what they help with.
    """

    review: Review
    config: GuardConfig
    backend: Backend
    guide: Moderator
    quality: Quality
    profile: ModelProfile
    request_for: Callable[[tuple[Message, ...]], Awaitable[GenerationRequest]]
    steerers: Sequence[Steerer]
    steerers_for_harm: Sequence[Steerer]

    async def run(self) -> SearchEnd:
        """Run the cascade until it finds a helpful candidate or the budget is used up.

        Returns:
            Why the search ended.
        """
        usage = self.review.usage
        try:
            with self.review.phase("search"):
                await within(usage.seconds_left, self._cascade())
        except (BudgetError, asyncio.TimeoutError):
            return "budget used up"
        return "steered" if usage.generations_left else "budget used up"

    def answers(self) -> list[tuple[Judged, str]]:
        """Return the acceptable candidates and their texts as they may be shown, best first."""
        whole = ((judged, self._whole(judged)) for judged in best_first(self.review.judged))
        return [(judged, text) for judged, text in whole if text]

    # ------------------------------------------------------------------ cascade

    async def _cascade(self) -> None:
        task = await self._task()
        for steerer in self.steerers_for_harm if task.harmful else self.steerers:
            try:
                async with aclosing(steerer.steer(task)) as rounds:
                    async for candidates in rounds:
                        self.review.judged += await self._judge(task, steerer.name, candidates)
                        # If the answer was harmful, declining is right and may end the search.
                        if await self._completed(task, helpful=not task.harmful):
                            return
                        # Check the deadline here: a steerer that never waits cannot be timed out.
                        self.review.usage.charge()
            except (BudgetError, asyncio.CancelledError):
                raise
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
                    raise
                log.error(
                    "steerer %s failed with %s; the next one goes on",
                    steerer.name,
                    type(error).__name__,
                )
        await self._completed(task, helpful=False)

    async def _task(self) -> Task:
        review = self.review
        plain = await self.request_for(review.messages)
        most = plain.max_new_tokens
        if not isinstance(self.backend, TextOnly):
            most = min(most, self.config.generation.draft_tokens)
        base = plain.with_(opening=review.shown, max_new_tokens=most)
        with review.usage.timed("scoring"):
            question = await find_question(last_user(review.messages))
        task = Task(
            messages=review.messages,
            answer=review.answer if review.gate_verdict and review.gate_verdict.flagged else "",
            backend=self.backend,
            base=base,
            profile=self.profile,
            usage=review.usage,
            score=self._score,
            flag=review.flag,
            found=question,
            harm=await self._harm(question),
            seed=base.seed,
            prefer=review.prefer,
        )
        # Where harm may be meant, what was said before may be what leads to it.
        if task.harmful is False:
            with review.usage.timed("scoring"):
                needed = await find_needed(question, said_besides(review.messages, question))
            task = replace(task, needed=tuple(needed))
        asked = [await self._asked(messages, plain) for messages in task.versions]
        # An answer can be broken off as too unlikely only if a single prompt decides that.
        measured = isinstance(self.backend, ScoresText) and len(asked) == 1
        baseline = Baseline(asked[0], self.quality.lowest) if measured else None
        return replace(task, asked=tuple(asked), baseline=baseline)

    async def _harm(self, asked: str) -> Harm | None:
        """Return what the user asked for that reads most like a request for harm.

        None if that is not known. It need not be where a policy was broken or the gate gives no
        categories, and for a model that redirects by itself, because it can do so in any case.
        """
        if self.profile.redirects or category(self.review.flag) in (None, POLICY):
            return None
        *before, last = [m.content for m in self.review.messages if m.role == "user"]
        # Instructions, now and in earlier turns, are about tone more often than about harm.
        told = [] if stands_alone(asked) else [" ".join([*before[-1:], last])]
        with self.review.usage.timed("scoring"):
            earlier = [await find_question(text) for text in before[-_EARLIER:]]
            found = await harm_of([*understood([*earlier, asked]), *told], turns=bool(before))
            if found and found.value < EVERYDAY and harmful(self.review.flag):
                whole = await harm_of([last])
                return found if whole and whole.value < BESIDE else None
        return found

    async def _asked(self, messages: list[Message], plain: GenerationRequest) -> Prompt:
        same = messages == list(self.review.messages)
        return plain.prompt if same else await self.backend.render(messages)

    async def _completed(self, task: Task, *, helpful: bool) -> bool:
        """Continue the best drafts until the best candidate is a whole answer.

        Args:
            helpful: consider helpful candidates only.

        Returns:
            Whether there is such a candidate.
        """
        while best := [j for j in best_first(self.review.judged) if j.helpful or not helpful]:
            # All sequences of a batch are drawn from one distribution.
            same = [j for j in best if j.candidate.decoding is best[0].candidate.decoding]
            drafts = list(takewhile(lambda j: not j.candidate.finished, same))[:_COMPLETED_TOGETHER]
            if not drafts:
                return True
            grown = await completed(
                task, [j.candidate for j in drafts], most=self.config.generation.max_new_tokens
            )
            passing = [c for c in grown if not c.verdict.flagged]
            likelihoods = await self._likelihoods(task, passing)
            refusing = await self._refusing(passing)
            for old, new in zip(drafts, grown, strict=True):
                # The floor is for drafts: steered decoding may go on where the model would not.
                whole = self._judged(
                    task, old.steerer, new, old.log_likelihood, new.text in refusing
                )
                likely = likelihoods.get(new, old.log_likelihood)
                place = self.review.judged.index(old)
                self.review.judged[place] = replace(whole, log_likelihood=likely)
        return False

    async def _likelihoods(
        self, task: Task, candidates: Sequence[Candidate]
    ) -> dict[Candidate, float]:
        """Return the log-likelihoods of candidates, in one batched forward pass for each prompt.

        There are none if the backend cannot measure them.
        """
        if not isinstance(self.backend, ScoresText):
            return {}
        found: dict[Candidate, float] = {}
        with task.usage.timed("scoring"):
            for asked in dict.fromkeys(c.asked for c in candidates):
                some = [c for c in candidates if c.asked == asked]
                texts = [c.text for c in some]
                prompts = [asked] if asked else task.asked
                values = [await self.backend.log_likelihoods(p, texts) for p in prompts]
                found.update((c, max(own)) for c, *own in zip(some, *values, strict=True))
        return found

    async def _score(self, texts: Sequence[str]) -> list[Verdict]:
        self.review.usage.charge(moderation_calls=1)
        prompts = [self.review.prompt] * len(texts)
        return await moderate_safely(
            self.guide, texts, prompts=prompts, seconds=self.review.usage.seconds_left
        )

    async def _judge(
        self, task: Task, steerer: str, candidates: Sequence[Candidate]
    ) -> list[Judged]:
        """Judge the quality of the candidates.

        Only what the model wrote and the guide passes needs a likelihood.
        """
        if self.quality.repeats < 1:
            candidates = [cut_loop(candidate, len(task.shown)) for candidate in candidates]
        passing = [c for c in candidates if not c.verdict.flagged and c.log_likelihood is None]
        likelihoods = await self._likelihoods(task, [c for c in passing if not c.written])
        refusing = await self._refusing([c for c in candidates if not c.verdict.flagged])
        return [
            self._judged(task, steerer, c, likelihoods.get(c, c.log_likelihood), c.text in refusing)
            for c in candidates
        ]

    async def _refusing(self, candidates: Sequence[Candidate]) -> set[str]:
        """Return the texts that decline and say little besides that."""
        limit = self.config.quality.refusal_threshold
        declining = [c.text for c in candidates if refusal(c.verdict) >= limit]
        longer = [text for text in declining if len(text.split()) > _WORDS_OF_AN_OFFER]
        parts = [(text, sentence) for text in longer for sentence in split_sentences(text)]
        verdicts = await self._score([sentence for _, sentence in parts]) if parts else []
        besides = Counter[str]()
        for (text, sentence), verdict in zip(parts, verdicts, strict=True):
            besides[text] += len(sentence.split()) if refusal(verdict) < limit else 0
        return {text for text in declining if besides[text] < _WORDS_OF_AN_OFFER}

    def _judged(
        self,
        task: Task,
        steerer: str,
        candidate: Candidate,
        log_likelihood: float | None,
        refuses: bool,
    ) -> Judged:
        return Judged.of(
            candidate,
            steerer,
            self.quality,
            asked=last_user(task.messages),
            earlier="\n".join(m.content for m in task.messages if m.role == "assistant"),
            answer=task.answer,
            shown=task.shown,
            log_likelihood=log_likelihood,
            refuses=refuses,
        )

    def _whole(self, judged: Judged) -> str:
        """Return the text of a candidate that may be shown, or "" if there is none.

        A draft for which there was no time counts with its whole sentences, if they are long
        enough.
        """
        text = ended(judged.candidate).text
        if has_reasoning(text):
            return ""  # the model reasons although it was asked not to; nobody may see reasoning
        enough = judged.candidate.finished or len(text.split()) >= self.config.quality.shortest
        return text if enough else ""
