"""Run a benchmark into a folder; a run that was stopped goes on where it was."""

from __future__ import annotations

import asyncio
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.progress import Progress

from ttsa_guard.backends.base import Backend, device_of
from ttsa_guard.bench import cases as stored
from ttsa_guard.bench import data
from ttsa_guard.bench.cases import Case, Collector
from ttsa_guard.bench.config import BenchConfig, PromptSource
from ttsa_guard.bench.files import CASES, META, ROWS, SCHEMA, TEXTS, CaseResult, RunMeta
from ttsa_guard.bench.judges import (
    EncoderJudge,
    Judge,
    ModeratorJudge,
    WorldJudge,
    lexical_similarity,
)
from ttsa_guard.bench.prompts import Item
from ttsa_guard.errors import ConfigError, TTSAError, nearest
from ttsa_guard.files import read_state_lines
from ttsa_guard.guard import Guard
from ttsa_guard.moderators.base import Moderator, close, moderate_safely
from ttsa_guard.plugins import Plugins
from ttsa_guard.record import Outcome

_PACKAGES = ("ttsa-guard", "torch", "transformers", "nemoguardrails")


@dataclass
class Runner:
    """One benchmark in one folder.

    Args:
        folder: gets ``meta.json`` (settings, versions, device), ``cases.jsonl`` (prompts and plain
            answers) and ``rows.jsonl`` (numbers for each arm and case). Only the second one holds
            texts; nothing prints them.
        texts: also write what left in each arm and case to ``texts.jsonl``, to be read.
        datasets: the folder with the public data sets.
        together: how many answers are reviewed at once; with more than one, seconds say little.
        command: how it was started, for readers of the results.
        plugins: makes the plugin manager of each guard.
    """

    config: BenchConfig
    folder: Path
    datasets: Path | None = None
    together: int = 1
    texts: bool = False
    command: str = ""
    plugins: Callable[[], Plugins] = Plugins
    failed: dict[str, str] = field(default_factory=dict)
    """Arms that could not be run to the end, and why."""

    async def run(self, progress: Progress, *, arms: Sequence[str] = ()) -> None:
        """Do what is left of all arms, or of those that are named.

        `failed` says afterwards which of them broke.

        Raises:
            ConfigError: an arm is unknown, the folder has another benchmark, or data are missing.
            PluginError, ModelError: the model, the judge or the common moderators cannot be had.
        """
        for arm in arms:
            if arm not in self.config.arms:
                raise ConfigError(f"there is no arm {arm!r}", hint=nearest(arm, self.config.arms))
        # The backend takes longest: missing data and typos should show at once.
        items = None if (self.folder / CASES).exists() else [*map(self._items, self.config.data)]
        judge = self.plugins().make("moderators", self.config.judge) if self.config.judge else None
        backend = self.plugins().make("backends", self.config.backend)
        try:
            self._begin(backend)
            cases = await self._cases(backend, progress, items)
            judges = _Judges(cases, judge)
            rows = read_state_lines(self.folder / ROWS, CaseResult.parse)
            done = {row.key for row in rows}
            chosen = arms or list(self.config.arms)
            left = {arm: [case for case in cases if (arm, case.id) not in done] for arm in chosen}
            total = len(chosen) * len(cases)
            bar = progress.add_task(
                "arms", total=total, completed=total - sum(map(len, left.values()))
            )
            for arm, todo in left.items():
                progress.update(bar, description=arm)
                try:
                    await self._arm(arm, backend, todo, judges, lambda: progress.advance(bar))
                except Exception as error:
                    # A foreign message may quote a text.
                    self.failed[arm] = (
                        error.message if isinstance(error, TTSAError) else type(error).__name__
                    )
        finally:
            await backend.close()
            if judge:
                await close(judge)

    # ------------------------------------------------------------------ steps

    def _begin(self, backend: Backend) -> None:
        """Write down what is run, or check that the folder has just that."""
        meta = RunMeta(
            schema=SCHEMA,
            command=self.command,
            config=self.config.model_dump(mode="json"),
            versions={
                "python": platform.python_version(),
                **{name: _version(name) for name in _PACKAGES},
            },
            device=device_of(backend),
            seed=self.config.seed,
        )
        if not (self.folder / META).exists():
            meta.save(self.folder)
        elif others := RunMeta.load(self.folder).differing(meta):
            raise ConfigError(
                f"{self.folder} has a benchmark with another {', '.join(others)}",
                hint="name another folder with --out, or start it as it was begun",
            )

    async def _cases(
        self, backend: Backend, progress: Progress, items: Sequence[Sequence[Item]] | None
    ) -> list[Case]:
        """Return the stored cases, or make them of the `items` of each data set."""
        path = self.folder / CASES
        if items is not None:
            guards = _Guards(lambda policy: self._guard(None, backend, policy))
            try:
                config = self.config.guard()
                collector = Collector(backend, lambda item: guards.of(item).gate, config)
                cases: list[Case] = []
                for source, its in zip(self.config.data, items, strict=True):
                    cases += await collector.collect(its, progress, enough=source.flagged)
                stored.save(cases, path)
            finally:
                await guards.close()
        return stored.load(path)

    async def _arm(
        self,
        arm: str,
        backend: Backend,
        todo: Sequence[Case],
        judges: _Judges,
        advance: Callable[[], None],
    ) -> None:
        if not todo:
            return
        guards = _Guards(lambda policy: self._guard(arm, backend, policy))
        guarded = self.config.arms[arm] is not None
        slots = asyncio.Semaphore(self.together)

        async def one(case: Case) -> None:
            async with slots:
                guard = guards.of(case.item)
                outcome = await guard.review(case.messages, case.answer) if guarded else None
                result = await _result(arm, case, guard, outcome, judges)
                if self.texts:
                    self._keep(arm, case, outcome)
                file.write(result.as_line() + "\n")
                file.flush()
                advance()

        with (self.folder / ROWS).open("a", encoding="utf-8") as file:
            work = [asyncio.ensure_future(one(case)) for case in todo]
            try:
                await asyncio.gather(*work)
            finally:
                for task in work:
                    task.cancel()
                await asyncio.gather(*work, return_exceptions=True)
                await guards.close()

    def _keep(self, arm: str, case: Case, outcome: Outcome | None) -> None:
        line = {
            "arm": arm,
            "case": case.id,
            "action": outcome.action if outcome else "none",
            "text": outcome.text if outcome else case.answer,
        }
        with (self.folder / TEXTS).open("a", encoding="ascii") as file:
            file.write(json.dumps(line) + "\n")

    def _items(self, source: PromptSource) -> list[Item]:
        items = data.read(source, n=self.config.n, seed=self.config.seed, folder=self.datasets)
        if self.config.half:
            items = [item for item in items if item.half == self.config.half]
        return sorted(items, key=lambda item: item.rank) if source.flagged else items

    def _guard(self, arm: str | None, backend: Backend, policy: Mapping[str, Any] | None) -> Guard:
        config = self.config.guard(arm, policy)
        return Guard.from_config(config, plugins=self.plugins(), backend=backend)


class _Guards:
    """A guard for each policy that prompts bring, made when it is first needed."""

    def __init__(self, make: Callable[[Mapping[str, Any] | None], Guard]) -> None:
        self._make = make
        self._made: dict[str, Guard] = {}

    def of(self, item: Item) -> Guard:
        key = json.dumps(item.policy, sort_keys=True)
        if key not in self._made:
            self._made[key] = self._make(item.policy)
        return self._made[key]

    async def close(self) -> None:
        for guard in self._made.values():
            for moderator in guard.moderators:
                await close(moderator)


class _Judges:
    """The exact judge where there is one, and the moderator that judges."""

    def __init__(self, cases: Sequence[Case], moderator: Moderator | None) -> None:
        self.moderator = moderator
        self._exact = WorldJudge() if any(case.item.truth for case in cases) else None
        encoder = moderator is not None and moderator.name == "encoder_judge"
        kind = EncoderJudge if encoder else ModeratorJudge
        self._other = kind(moderator) if moderator else None

    def of(self, case: Case) -> Judge:
        judge = self._exact if case.item.truth else self._other
        assert judge is not None
        return judge

    async def flags(self, case: Case, texts: Sequence[str]) -> list[bool | None]:
        """Return whether the moderator flags answers to a case; None each without a moderator."""
        if self.moderator is None:
            return [None] * len(texts)
        prompts = [case.item.user] * len(texts)
        verdicts = await moderate_safely(self.moderator, texts, prompts=prompts)
        return [v.flagged for v in verdicts]


async def _result(
    arm: str, case: Case, guard: Guard, outcome: Outcome | None, judges: _Judges
) -> CaseResult:
    """Return what happened to one case in one arm, in numbers.

    Without an outcome, the answer leaves as it is.
    """
    text = outcome.text if outcome else case.answer
    prompts = [case.item.user] * 2
    gate = await moderate_safely(guard.gate, [case.answer, text], prompts=prompts)
    guide = await moderate_safely(guard.guide, [case.answer, text], prompts=prompts)
    judged = await judges.of(case).judge(case, text, guide[1])
    second = await judges.flags(case, [case.answer, text])
    answered = outcome is None or outcome.action != "fallback"
    record = outcome.record if outcome else None
    return CaseResult(
        arm=arm,
        case=case.id,
        action=outcome.action if outcome else "none",
        gate_before=gate[0].flagged,
        gate_after=gate[1].flagged,
        guide_before=guide[0].flagged,
        guide_after=guide[1].flagged,
        judge_before=second[0],
        judge_after=second[1],
        unchanged=text == case.answer,
        unsafe=not judged.safe,
        fluent=judged.fluent,
        on_topic=judged.on_topic,
        refusal=judged.refusal,
        good=answered and judged.good,
        helpful=answered and judged.good and judged.helpful,
        question_similarity=round(lexical_similarity(text, case.item.question), 4),
        plain_similarity=round(lexical_similarity(text, case.plain), 4) if case.plain else None,
        generations=record.generations if record else 0,
        decode_passes=record.decode_passes if record else 0,
        decode_steps=record.decode_steps if record else 0,
        moderation_calls=record.moderation_calls if record else 0,
        tokens=record.tokens if record else 0,
        seconds=round(record.seconds, 4) if record else 0,
        seconds_decoding=round(record.seconds_decoding, 4) if record else 0,
        seconds_scoring=round(record.seconds_scoring, 4) if record else 0,
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
