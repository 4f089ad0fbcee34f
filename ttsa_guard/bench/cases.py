"""The model's own answers to the prompts: which of them are flagged, and how hard they are to mend
by drawing again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress

from ttsa_guard.backends.base import Backend
from ttsa_guard.bench.prompts import Item
from ttsa_guard.config import GuardConfig
from ttsa_guard.embedded.grammar import Topic
from ttsa_guard.errors import PromptError
from ttsa_guard.files import replacing
from ttsa_guard.messages import GenerationRequest, Message, own_seed
from ttsa_guard.moderators.base import Moderator, moderate_safely

log = logging.getLogger(__name__)
RESAMPLES = 16
_BATCH = 32
_TIMED = 6
"""Cases of a source whose plain answer is timed, where only so many are wanted."""


@dataclass(frozen=True)
class Case:
    """A prompt and the model's plain answer to it.

    Args:
        flagged: by the gate that all arms have in common.
        resamples_flagged: of 16 answers drawn at temperature 1.0; None for a case that is not
            flagged, or if only so many are wanted.
        plain: the model's answer to a benign question without anything wrapped around it; None
            where that is not known, or the same as `answer`.
        seconds: of one plain generation of this prompt alone; None for a case that is not flagged,
            or if only so many are wanted and it is not among the first.
    """

    item: Item
    answer: str = field(repr=False)
    flagged: bool
    resamples_flagged: int | None = None
    plain: str | None = field(default=None, repr=False)
    seconds: float | None = None

    @property
    def id(self) -> str:
        """The prompt's identifier."""
        return self.item.id

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation up to the answer."""
        return _conversation(self.item)

    @property
    def level(self) -> str:
        """Hard: every one of the re-samples is flagged."""
        return "hard" if self.resamples_flagged == RESAMPLES else "mixed"


@dataclass(frozen=True)
class Collector:
    """Finds the cases of a benchmark."""

    backend: Backend
    gate: Callable[[Item], Moderator]
    config: GuardConfig

    async def collect(
        self, items: Sequence[Item], progress: Progress, *, enough: int | None = None
    ) -> list[Case]:
        """Return the flagged cases, and the benign ones that are not flagged.

        The benign ones tell whether an arm touches what is fine. With `enough`, return only that
        many flagged ones, in the order of the items.
        """
        kept: list[Case] = []
        bar = progress.add_task("plain answers", total=len(items))
        for start in range(0, len(items), _BATCH):
            chunk = items[start : start + _BATCH]
            cases = await self._answered(chunk)
            kept += [case for case in cases if case.flagged or not (enough or case.item.unsafe)]
            progress.advance(bar, len(chunk))
            if enough and len(kept) >= enough:
                kept = kept[:enough]
                break
        flagged = [i for i, case in enumerate(kept) if case.flagged]
        for start in range(0, len(flagged), _BATCH):
            some = flagged[start : start + _BATCH]
            for i, plain in zip(some, await self._alone([kept[i] for i in some]), strict=True):
                kept[i] = replace(kept[i], plain=plain)
        # How hard a case is costs more than an arm does. It is told where all cases are kept.
        measured = flagged[:_TIMED] if enough else flagged
        bar = progress.add_task("plain time" if enough else "difficulty", total=len(measured))
        for i in measured:
            kept[i] = await self._measured(kept[i], difficulty=not enough)
            progress.advance(bar)
        return kept

    async def _answered(self, items: Sequence[Item]) -> list[Case]:
        """Return the items that the model can take, with its answers."""
        taken, requests = [], []
        for item in items:
            try:
                requests.append(await self._request(_conversation(item)))
            except PromptError as error:
                log.warning("%s is left out: %s", item.id, error.message)
            else:
                taken.append(item)
        if not taken:
            return []
        answers = [g.text for g in await self.backend.generate(requests)]
        flags = await self._flags(answers, taken)
        return [
            Case(item, answer, flag)
            for item, answer, flag in zip(taken, answers, flags, strict=True)
        ]

    async def _alone(self, cases: Sequence[Case]) -> list[str | None]:
        """Return the answers to benign questions without anything wrapped around them."""
        wrapped = [
            i
            for i, case in enumerate(cases)
            if not case.item.unsafe and case.item.question != case.item.user
        ]
        requests = [
            await self._request(Message.conversation(cases[i].item.question)) for i in wrapped
        ]
        answers = await self.backend.generate(requests) if requests else []
        found: list[str | None] = [None] * len(cases)
        for i, answer in zip(wrapped, answers, strict=True):
            found[i] = answer.text
        return found

    async def _measured(self, case: Case, *, difficulty: bool) -> Case:
        """Time one plain answer and, for the difficulty, judge answers that are drawn."""
        request = await self._request(case.messages)
        started = time.perf_counter()
        await self.backend.generate([request])
        timed = replace(case, seconds=time.perf_counter() - started)
        if not difficulty:
            return timed
        # Seeds that no arm has: otherwise re-sampling would find just the answers that say how hard
        # a case is.
        seed = own_seed(self.config.seed + 1, case.messages)
        drafts = request.with_(temperature=1.0, max_new_tokens=self.config.generation.draft_tokens)
        draws = [drafts.with_(seed=seed + i) for i in range(RESAMPLES)]
        drawn = [g.text for g in await self.backend.generate(draws)]
        flags = await self._flags(drawn, [case.item] * RESAMPLES)
        return replace(timed, resamples_flagged=sum(flags))

    async def _request(self, messages: tuple[Message, ...]) -> GenerationRequest:
        generation = self.config.generation
        prompt = await self.backend.render(messages)
        seed = own_seed(self.config.seed, messages)
        return GenerationRequest(
            prompt,
            max_new_tokens=generation.max_new_tokens,
            temperature=generation.temperature,
            seed=seed,
        )

    async def _flags(self, texts: Sequence[str], items: Sequence[Item]) -> list[bool]:
        flags: list[bool] = []
        for text, item in zip(texts, items, strict=True):
            [verdict] = await moderate_safely(self.gate(item), [text], prompts=[item.user])
            flags.append(verdict.flagged)
        return flags


def save(cases: Sequence[Case], path: Path) -> None:
    """Write all cases at once: the file is there with every one of them, or not at all."""
    with replacing(path) as file:
        file.write_text(
            "".join(json.dumps(asdict(case)) + "\n" for case in cases), encoding="ascii"
        )


def load(path: Path) -> list[Case]:
    """Read the cases in the order in which they were saved."""
    return [_case(json.loads(line)) for line in path.read_text(encoding="ascii").splitlines()]


def _case(data: dict[str, Any]) -> Case:
    turns = tuple((role, content) for role, content in data["item"]["messages"])
    truth = data["item"].get("truth")
    item = Item(**{**data["item"], "messages": turns, "truth": Topic(**truth) if truth else None})
    return Case(**{**data, "item": item})


def _conversation(item: Item) -> tuple[Message, ...]:
    return Message.conversation(
        [{"role": role, "content": content} for role, content in item.messages]
    )
