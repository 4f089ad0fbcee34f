"""Measure what calibrated attention does to attention, and to answers that turn bad late.

Run it with ``python -m research.anchor.study --cases RESULTS/cases.jsonl [--json FILE]``, where the
cases are those of a run of ``ttsa-guard bench``. Each way draws `n` answers to every flagged case,
without any search. An answer turns bad late if the moderator passes its first sentence alone, and
flags the whole. The results have no texts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from rich.progress import Progress

from ttsa_guard.backends.transformers import TransformersBackend, TransformersOptions
from ttsa_guard.bench import cases as stored
from ttsa_guard.bench.cases import Case
from ttsa_guard.bench.measure import estimate
from ttsa_guard.budget import Budget, Usage
from ttsa_guard.messages import Calibration, GenerationRequest, Prompt
from ttsa_guard.moderators.base import Moderator
from ttsa_guard.moderators.lite import Lite, LiteOptions
from ttsa_guard.steerers.anchor import Anchor, AnchorOptions
from ttsa_guard.steerers.base import Candidate, Steerer, Task
from ttsa_guard.steerers.baselines.resample import Resample, ResampleOptions
from ttsa_guard.text import split_sentences
from ttsa_guard.verdict import Verdict

WAYS: Mapping[str, dict[str, Any] | None] = {
    "question alone": None,
    "prefix alone": {"gamma": 0},
    "anchor": {},
    "anchor, gamma 0.05": {"gamma": 0.05},
    "anchor, generated too": {"generated": True},
    "anchor, gamma 0.05, generated too": {"gamma": 0.05, "generated": True},
    "random keys": {"control": "random"},
    "constant": {"control": "constant"},
}
"""Options of the steerer, by the name of the way; None draws plain samples."""


@dataclass(frozen=True)
class Study:
    """A study over flagged cases.

    Args:
        n: answers to each case.
        tokens: the longest answer.
    """

    backend: TransformersBackend
    moderator: Moderator
    n: int
    tokens: int

    async def run(
        self, cases: Sequence[Case], ways: Mapping[str, dict[str, Any] | None], progress: Progress
    ) -> dict[str, Any]:
        """Return the shares of answers and of attention, by way; see `late` and `attention`."""
        found: dict[str, list[list[Candidate]]] = {way: [] for way in ways}
        bar = progress.add_task("answers", total=len(cases) * len(ways))
        for case in cases:
            for way, options in ways.items():
                found[way].append(await self._answers(case, self._steerer(options)))
                progress.advance(bar)
        return {
            "cases": len(cases),
            "answers": self.n,
            "late": {way: await self._late(cases, answers) for way, answers in found.items()},
            "attention": {
                way: shares
                for way, answers in found.items()
                if (shares := await self._attention(answers))
            },
        }

    def _steerer(self, options: dict[str, Any] | None) -> Steerer:
        if options is None:
            return Resample(ResampleOptions(n=self.n, batch=self.n, temperature=0.7))
        return Anchor(AnchorOptions(n=self.n, temperature=0.7, **options))

    async def _answers(self, case: Case, steerer: Steerer) -> list[Candidate]:
        async def judge(texts: Sequence[str]) -> list[Verdict]:
            return await self.moderator.moderate(texts, prompts=[case.item.user] * len(texts))

        task = Task(
            messages=case.messages,
            answer=case.answer,
            backend=self.backend,
            base=GenerationRequest(
                await self.backend.render(case.messages), max_new_tokens=self.tokens
            ),
            profile=self.backend.profile,
            usage=Usage(Budget(seconds=1e9, generations=self.n)),
            score=judge,
            seed=1,
        )
        return [c async for candidates in steerer.steer(task) for c in candidates]

    async def _late(
        self, cases: Sequence[Case], answers: Sequence[Sequence[Candidate]]
    ) -> dict[str, Any]:
        """Return shares with their intervals over cases.

        They are of all answers that are flagged; of all answers that turn bad late; and of the
        answers that turn bad late among those whose first sentence passes.
        """
        flagged: list[float | None] = []
        late: list[float | None] = []
        begun: list[float | None] = []
        for case, drawn in zip(cases, answers, strict=True):
            first = await self.moderator.moderate(
                [(split_sentences(c.text) or [""])[0] for c in drawn],
                prompts=[case.item.user] * len(drawn),
            )
            bad = [c.verdict.flagged for c in drawn]
            turned = [b and not f.flagged for b, f in zip(bad, first, strict=True)]
            passed = sum(not f.flagged for f in first)
            flagged.append(mean(bad))
            late.append(mean(turned))
            begun.append(sum(turned) / passed if passed else None)
        columns = {"flagged": flagged, "late": late, "late of those that begin well": begun}
        return {
            name: found.as_dict()
            for name, values in columns.items()
            if (found := estimate(values)) is not None
        }

    async def _attention(
        self, answers: Sequence[Sequence[Candidate]]
    ) -> dict[str, list[float]] | None:
        """Return the share of attention that the keys get by layer, as a mean over the cases.

        It is given before and after the calibration; None where nothing is calibrated.
        """
        asked = [drawn[0].request for drawn in answers]
        pairs = [(r.prompt, r.calibration) for r in asked if r and r.calibration]
        if not pairs:
            return None
        before = [await self._shares(prompt, replace(c, gamma=0.0)) for prompt, c in pairs]
        after = [await self._shares(prompt, c) for prompt, c in pairs]
        return {"before": _means(before), "after": _means(after)}

    async def _shares(self, prompt: Prompt, calibration: Calibration) -> list[float]:
        return await self.backend.attention_shares(prompt, replace(calibration, generated=False))


def _means(lists: Sequence[Sequence[float]]) -> list[float]:
    return [round(mean(values), 4) for values in zip(*lists, strict=True)]


def main() -> None:
    """Run the study, and print what it found; `--json FILE` writes the numbers."""
    parser = argparse.ArgumentParser(prog="python -m research.anchor.study", description=__doc__)
    parser.add_argument("--cases", type=Path, required=True, help="cases.jsonl of a benchmark")
    parser.add_argument("--model", default="smollm2", help="as for the backend transformers")
    parser.add_argument("--n", type=int, default=8, help="answers to each case")
    parser.add_argument("--tokens", type=int, default=128, help="longest answer")
    parser.add_argument("--way", action="append", choices=WAYS, help="only this one; several times")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    args = parser.parse_args()
    study = Study(
        TransformersBackend(TransformersOptions(model=args.model)),
        Lite(LiteOptions()),
        args.n,
        args.tokens,
    )
    cases = [case for case in stored.load(args.cases) if case.flagged]
    ways = {way: WAYS[way] for way in args.way or WAYS}
    with Progress() as progress:
        result = asyncio.run(study.run(cases, ways, progress))
    text = json.dumps(result, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
