"""Measure the steerer prosocial on the embedded model: ``python -m ttsa_guard.bench.prosocial [--json FILE]``.

Held-out prompts of the embedded world whose plain answer is flagged; one answer each at temperature 0.1, without any search or
gate, so that what is measured is the method and not the guard around it. Safety, fluency and topic are judged exactly
(`World.judge`), attributes by the exact share of answers with one of the trained sentences and by the meters of `attributes`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from ttsa_guard.backends.transformers import TransformersBackend, TransformersOptions
from ttsa_guard.bench.attributes import Meters
from ttsa_guard.bench.measure import estimate
from ttsa_guard.embedded import prosocial_data
from ttsa_guard.embedded.evaluate import answers, flags, messages
from ttsa_guard.embedded.world import Case, Judgement, World
from ttsa_guard.messages import GenerationRequest
from ttsa_guard.moderators.lite import Lite, LiteOptions
from ttsa_guard.steerers.prosocial import training
from ttsa_guard.steerers.prosocial.adapter import Adapter, Stored
from ttsa_guard.steerers.prosocial.data import Encoder
from ttsa_guard.steerers.prosocial.preferences import ATTRIBUTES, EQUAL, vector
from ttsa_guard.steerers.prosocial.product import Product
from ttsa_guard.steerers.prosocial.steerer import ProSocial, ProSocialOptions

SEED = 5
"""Of the prompts: neither the benchmark's nor that on which strength and alpha were chosen."""
LONGEST = 128
"""Tokens: an answer with prosocial sentences is longer than a plain one."""
_TIMED = 8


class Study:
    """What is measured, on one backend."""

    def __init__(self, n: int, benign: int, data: Path | None, progress: Progress) -> None:
        self.backend = TransformersBackend(TransformersOptions(device="cpu", batch_size=64))
        self.world, self.lite = World.load(), Lite(LiteOptions())
        self.meters = {"meters": Meters.fitted()}
        if data:
            self.meters["meters, GoEmotions too"] = Meters.fitted(data)
        self.shipped = ProSocial(ProSocialOptions()).guide
        self.n, self.benign, self.progress = n, benign, progress

    async def run(self, averaged: Path | None) -> dict[str, Any]:
        flagged = await self._flagged()
        other = Adapter.load(averaged) if averaged else None
        return {
            "flagged prompts": len(flagged),
            "ROC-AUC on sentences unseen by the meters": {name: meters.separation() for name, meters in self.meters.items()},
            "arms": await self._arms(flagged),
            "preferences": await self._preferences(flagged, self.shipped.reward),
            "preferences, gradients averaged": await self._preferences(flagged, other) if other else None,
            "pairwise accuracy": self._accuracy(self.shipped.reward),
            "pairwise accuracy, gradients averaged": self._accuracy(other) if other else None,
            "benign": await self._benign(),
            "seconds": await self._seconds(flagged),
        }

    async def _flagged(self) -> list[Case]:
        kinds = (("unsafe", "content"), ("benign", "tone"))
        cases = [case for kind in kinds for case in self.world.cases(*kind, self.n, seed=SEED)]
        found = await flags(self.lite, cases, await answers(self.backend, cases, temperature=0.1))
        return [case for case, flag in zip(cases, found, strict=True) if flag]

    def _guide(self, *, regulated: bool, prefer: Mapping[str, float] | None, reward: Stored | None = None) -> Product:
        own = self.shipped
        return Product(
            own.harm if regulated else None,
            (reward or own.reward) if prefer else None,
            own.strength,
            own.alpha,
            prefer or EQUAL,
        )

    async def _answers(self, cases: Sequence[Case], guide: Product) -> list[str]:
        prompts = [await self.backend.render(messages(case)) for case in cases]
        requests = [GenerationRequest(p, max_new_tokens=LONGEST, temperature=0.1, seed=i) for i, p in enumerate(prompts)]
        task = self.progress.add_task(f"{len(cases)} answers", total=None)
        found = await self.backend.generate_guided(requests, guide)
        self.progress.remove_task(task)
        return [g.text for g in found]

    # ------------------------------------------------------------------ tables

    async def _arms(self, cases: Sequence[Case]) -> dict[str, Any]:
        arms = {
            "base": self._guide(regulated=False, prefer=None),
            "regulation": self._guide(regulated=True, prefer=None),
            "reward": self._guide(regulated=False, prefer=EQUAL),
            "both": self._guide(regulated=True, prefer=EQUAL),
        }
        found: dict[str, Any] = {}
        for name, guide in arms.items():
            texts = await self._answers(cases, guide)
            judged = self._judged(cases, texts)
            flagged = await flags(self.lite, cases, texts)
            found[name] = {
                "unsafe": _share([not j.safe for j in judged]),
                **{
                    f"unsafe, {kind}": _share([not j.safe for j, c in zip(judged, cases, strict=True) if c.failure == kind])
                    for kind in ("content", "tone")
                },
                "flagged": _share(flagged),
                "fluent": _share([j.fluent for j in judged]),
                "on topic": _share([j.on_topic for j in judged]),
                "good": _share([j.good for j in judged]),
                "helpful": _share([j.good and j.helpful for j in judged]),
                **self._attributes(texts, judged),
            }
        return found

    async def _preferences(self, cases: Sequence[Case], reward: Stored | None) -> dict[str, Any]:
        """What becomes of each attribute when all weight is on one of them, with regulation."""
        found = {}
        for name in ATTRIBUTES:
            texts = await self._answers(cases, self._guide(regulated=True, prefer={name: 1.0}, reward=reward))
            judged = self._judged(cases, texts)
            good = _share([j.good for j in judged])
            found[name] = {"good": good, "unsafe": _share([not j.safe for j in judged]), **self._attributes(texts, judged)}
        return found

    async def _benign(self) -> dict[str, Any]:
        cases = self.world.cases("benign", None, self.benign, seed=SEED)
        plain = self._judged(cases, await self._answers(cases, self._guide(regulated=False, prefer=None)))
        found: dict[str, Any] = {"prompts": len(cases), "base": _benign(plain)}
        for name, prefer in (("regulation", None), ("both", EQUAL)):
            judged = self._judged(cases, await self._answers(cases, self._guide(regulated=True, prefer=prefer)))
            differences = [float(a.on_topic) - float(b.on_topic) for a, b in zip(judged, plain, strict=True)]
            found[name] = {**_benign(judged), "on topic, minus base": _share(differences)}
        return found

    def _accuracy(self, reward: Stored | None) -> dict[str, Any]:
        """How often the reward model prefers the better answer of held-out pairs, with all weight on their attribute."""
        assert reward is not None
        model, encode = training.load("embedded", "cpu")
        adapter = reward.on(model)
        pairs = Encoder(encode.tokenizer).pairs(prosocial_data.pairs(40, seed=SEED))
        found = {}
        with adapter.attached(model):
            for name, encoded in pairs.items():
                adapter.prefer(vector({name: 1.0}))
                values = training.log_likelihoods(model, [e for pair in encoded for e in pair]).view(-1, 2).tolist()
                found[name] = _share([better > worse for better, worse in values])
        return found

    async def _seconds(self, cases: Sequence[Case]) -> dict[str, Any]:
        """Of one answer alone: the median over a few prompts."""
        guides = {
            "base, shared decoder": None,
            "base, guided loop": self._guide(regulated=False, prefer=None),
            "regulation": self._guide(regulated=True, prefer=None),
            "both": self._guide(regulated=True, prefer=EQUAL),
        }
        found = {}
        for name, guide in guides.items():
            spent = [await self._timed(case, guide) for case in cases[:_TIMED]]
            found[name] = {
                "seconds": _median([s for s, _ in spent]),
                "milliseconds a token": _median([1000 * s / n for s, n in spent]),
            }
        return found

    async def _timed(self, case: Case, guide: Product | None) -> tuple[float, int]:
        request = GenerationRequest(await self.backend.render(messages(case)), temperature=0.1)
        started = time.perf_counter()
        work = self.backend.generate_guided([request], guide) if guide else self.backend.generate([request])
        [answer] = await work
        return time.perf_counter() - started, max(1, answer.tokens)

    def _judged(self, cases: Sequence[Case], texts: Sequence[str]) -> list[Judgement]:
        return [self.world.judge(case, text) for case, text in zip(cases, texts, strict=True)]

    def _attributes(self, texts: Sequence[str], judged: Sequence[Judgement]) -> dict[str, Any]:
        found = {"said": {name: _share([name in j.kinds for j in judged])["value"] for name in ATTRIBUTES}}
        for kind, meters in self.meters.items():
            means = meters.measure(texts).mean(axis=0)
            found[kind] = {name: round(float(value), 3) for name, value in zip(ATTRIBUTES, means, strict=True)}
        return found


def _benign(judged: Sequence[Judgement]) -> dict[str, Any]:
    names = ("on_topic", "fluent", "safe", "helpful")
    return {name.replace("_", " "): _share([getattr(j, name) for j in judged]) for name in names}


def _share(values: Sequence[float | bool]) -> dict[str, float]:
    found = estimate([float(v) for v in values])
    assert found is not None
    return found.as_dict()


def _median(values: Sequence[float]) -> float:
    found = estimate(values, median=True)
    assert found is not None
    return round(found.value, 3)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ttsa_guard.bench.prosocial", description=__doc__)
    parser.add_argument("--n", type=int, default=100, help="prompts of each kind, before the gate")
    parser.add_argument("--benign", type=int, default=300, help="benign prompts")
    parser.add_argument("--data", type=Path, help="folder with the public data sets, for the meters")
    parser.add_argument("--averaged", type=Path, help="adapter trained with --conflicts average, to compare with")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    args = parser.parse_args()
    with Progress() as progress:
        result = asyncio.run(Study(args.n, args.benign, args.data, progress).run(args.averaged))
    text = json.dumps(result, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
