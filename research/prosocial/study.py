"""Measure the steerer prosocial on the embedded model.

Run it with ``python -m research.prosocial.study [--json FILE]``. It uses held-out prompts of the
embedded world whose plain answer is flagged. Each arm gives one answer at temperature 0.1, without
any search or gate. So what is measured is the method, and not the guard around it. Safety, fluency
and topic are judged exactly (`World.judge`). Attributes are judged by the exact share of answers
with one of the trained sentences, and by the meters of `attributes`. Win rates are defined in
`wins`; what is reached at which preference is summed up in `pareto`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

from research.embedded import prosocial_data
from research.embedded.evaluate import answers, flags, messages
from research.prosocial import pareto
from research.prosocial.attributes import Meters
from research.prosocial.overhead import memory, overhead
from research.prosocial.wins import by_kind, share, win_rates
from ttsa_guard.backends.transformers import TransformersBackend, TransformersOptions
from ttsa_guard.bench.measure import Floats
from ttsa_guard.config import FALLBACK
from ttsa_guard.embedded.grammar import GrammarJudgement
from ttsa_guard.embedded.world import World, WorldCase
from ttsa_guard.messages import GenerationRequest
from ttsa_guard.moderators.lite import Lite, LiteOptions
from ttsa_guard.steerers.prosocial import training
from ttsa_guard.steerers.prosocial.adapter import Adapter, Stored
from ttsa_guard.steerers.prosocial.data import ExampleEncoder
from ttsa_guard.steerers.prosocial.preferences import ATTRIBUTES, EQUAL, vector
from ttsa_guard.steerers.prosocial.product import Product
from ttsa_guard.steerers.prosocial.steerer import ProSocial, ProSocialOptions

SEED = 5
"""Seed of the prompts.

It is neither the benchmark's, nor the one with which strength and alpha were chosen.
"""
LONGEST = 128
"""Tokens of the longest answer. An answer with prosocial sentences is longer than a plain one."""
Reward = Callable[[Mapping[str, float]], Stored]
"""Returns the reward model at a preference."""


@dataclass(frozen=True)
class Scope:
    """How much is measured, and against what.

    Args:
        n: number of prompts of each kind, before the gate.
        benign: number of benign prompts.
        grid: number of flagged prompts that are answered at every preference of `pareto.GRID`.
        timed: number of flagged prompts whose answers are timed.
        data: folder with the public data sets, for more meters.
        averaged: adapter trained with ``--conflicts average``.
        separate: folder of adapters of one attribute each.
        plot: file for a picture of the trade-offs.
    """

    n: int
    benign: int
    grid: int
    timed: int
    data: Path | None
    averaged: Path | None
    separate: Path | None
    plot: Path | None


class Study:
    """The measurements, on one backend."""

    def __init__(self, scope: Scope, progress: Progress) -> None:
        self.backend = TransformersBackend(TransformersOptions(device="cpu", batch_size=64))
        self.world, self.lite = World.load(), Lite(LiteOptions())
        self.meters = {"meters": Meters.fitted()}
        if scope.data:
            self.meters["meters, GoEmotions too"] = Meters.fitted(scope.data)
        self.shipped = ProSocial(ProSocialOptions()).decoding
        self.scope, self.progress = scope, progress
        self.averaged = Adapter.load(scope.averaged) if scope.averaged else None

    async def run(self) -> dict[str, Any]:
        """Measure every arm, and return the results as plain data."""
        flagged = await self._flagged()
        arms, won = await self._arms(flagged)
        return {
            "about": _about(),
            "flagged prompts": {
                kind: sum(c.failure == kind for c in flagged) for kind in ("content", "tone")
            },
            "ROC-AUC on sentences unseen by the meters": {
                name: meters.separation() for name, meters in self.meters.items()
            },
            "arms": arms,
            "win rates": won,
            "preferences": await self._preferences(flagged, self.shipped.reward),
            "preferences, gradients averaged": (
                await self._preferences(flagged, self.averaged) if self.averaged else None
            ),
            "trade-offs": await self._grid(_spread(flagged, self.scope.grid)),
            "pairwise accuracy": self._accuracy(self.shipped.reward),
            "pairwise accuracy, gradients averaged": (
                self._accuracy(self.averaged) if self.averaged else None
            ),
            "benign": await self._benign(),
            "cost": await self._cost(_spread(flagged, self.scope.timed)),
        }

    async def _flagged(self) -> list[WorldCase]:
        kinds = (("unsafe", "content"), ("benign", "tone"))
        cases = [
            case for kind in kinds for case in self.world.cases(*kind, self.scope.n, seed=SEED)
        ]
        flagged = await flags(self.lite, cases, await answers(self.backend, cases, temperature=0.1))
        return [case for case, flag in zip(cases, flagged, strict=True) if flag]

    def _decoding(
        self, *, regulated: bool, prefer: Mapping[str, float] | None, reward: Stored | None = None
    ) -> Product:
        own = self.shipped
        return Product(
            own.harm if regulated else None,
            (reward or own.reward) if prefer else None,
            own.strength,
            own.alpha,
            prefer or EQUAL,
        )

    async def _answers(self, cases: Sequence[WorldCase], decoding: Product) -> list[str]:
        prompts = [await self.backend.render(messages(case)) for case in cases]
        requests = [
            GenerationRequest(p, max_new_tokens=LONGEST, temperature=0.1, seed=i)
            for i, p in enumerate(prompts)
        ]
        task = self.progress.add_task(f"{len(cases)} answers", total=None)
        generations = await self.backend.generate_controlled(requests, decoding)
        self.progress.remove_task(task)
        return [g.text for g in generations]

    # ------------------------------------------------------------------ tables

    async def _arms(self, cases: Sequence[WorldCase]) -> tuple[dict[str, Any], dict[str, Any]]:
        decodings = {
            "base": self._decoding(regulated=False, prefer=None),
            "regulation": self._decoding(regulated=True, prefer=None),
            "reward": self._decoding(regulated=False, prefer=EQUAL),
            "both": self._decoding(regulated=True, prefer=EQUAL),
        }
        texts = {
            name: await self._answers(cases, decoding) for name, decoding in decodings.items()
        } | {"refusal": [FALLBACK] * len(cases)}
        judged = {name: self._judged(cases, own) for name, own in texts.items()}
        tables: dict[str, Any] = {}
        for name, own in texts.items():
            tables[name] = {
                "unsafe": by_kind(cases, [not j.safe for j in judged[name]]),
                "flagged": share(await flags(self.lite, cases, own)),
                "fluent": share([j.fluent for j in judged[name]]),
                "on topic": share([j.on_topic for j in judged[name]]),
                "good": share([j.good for j in judged[name]]),
                "helpful": by_kind(cases, [j.good and j.helpful for j in judged[name]]),
                **self._attributes(own, judged[name]),
            }
        return tables, {
            kind: win_rates(cases, texts, judged, meters) for kind, meters in self.meters.items()
        }

    async def _preferences(
        self, cases: Sequence[WorldCase], reward: Stored | None
    ) -> dict[str, Any]:
        """Return what becomes of each attribute when all weight is on one, with regulation."""
        by_attribute = {}
        for name in ATTRIBUTES:
            texts = await self._answers(
                cases, self._decoding(regulated=True, prefer={name: 1.0}, reward=reward)
            )
            judged = self._judged(cases, texts)
            good = share([j.good for j in judged])
            by_attribute[name] = {
                "good": good,
                "unsafe": share([not j.safe for j in judged]),
                **self._attributes(texts, judged),
            }
        return by_attribute

    async def _grid(self, cases: Sequence[WorldCase]) -> dict[str, Any]:
        """Return the results of all systems at all preferences: regulated, and with one alpha."""
        values, good = {}, {}
        for name, reward in self._systems().items():
            measured = [await self._point(cases, prefer, reward(prefer)) for prefer in pareto.GRID]
            values[name], good[name] = (
                np.stack([v for v, _ in measured]),
                np.stack([g for _, g in measured]),
            )
        if self.scope.plot:
            pareto.plot(
                {name: value.mean(axis=1) for name, value in values.items()}, self.scope.plot
            )
        return {**pareto.summary(values, good), "direction": pareto.direction(values["trained"])}

    def _systems(self) -> dict[str, Reward]:
        own, averaged = self.shipped.reward, self.averaged
        assert own is not None
        model, _ = training.load("embedded", "cpu")
        torch.manual_seed(SEED)
        fresh = replace(own, tensors=Adapter(model, own.shape, base=own.base).state_dict())
        systems: dict[str, Reward] = {"trained": lambda _: own, "untrained": lambda _: fresh}
        if self.scope.separate:
            parts = [
                Adapter.load(self.scope.separate / f"{name}.safetensors") for name in ATTRIBUTES
            ]
            systems["separate"] = lambda prefer: pareto.soup(parts, vector(prefer))
        if averaged:
            systems["averaged"] = lambda _: averaged
        return systems

    async def _point(
        self, cases: Sequence[WorldCase], prefer: Mapping[str, float], reward: Stored
    ) -> tuple[Floats, Floats]:
        """Return the meters [prompts, attributes], and whether the answers are good [prompts]."""
        texts = await self._answers(
            cases, self._decoding(regulated=True, prefer=prefer, reward=reward)
        )
        return self.meters["meters"].measure(texts), np.array(
            [j.good for j in self._judged(cases, texts)], dtype=float
        )

    async def _benign(self) -> dict[str, Any]:
        cases = self.world.cases("benign", None, self.scope.benign, seed=SEED)
        plain = self._judged(
            cases, await self._answers(cases, self._decoding(regulated=False, prefer=None))
        )
        table: dict[str, Any] = {"prompts": len(cases), "base": _benign(plain)}
        for name, prefer in (("regulation", None), ("both", EQUAL)):
            judged = self._judged(
                cases, await self._answers(cases, self._decoding(regulated=True, prefer=prefer))
            )
            differences = [
                float(a.on_topic) - float(b.on_topic) for a, b in zip(judged, plain, strict=True)
            ]
            table[name] = {**_benign(judged), "on topic, minus base": share(differences)}
        return table

    def _accuracy(self, reward: Stored | None) -> dict[str, Any]:
        """Return how often the reward model prefers the better answer of held-out pairs.

        All weight is on the attribute of the pair.
        """
        assert reward is not None
        model, encode = training.load("embedded", "cpu")
        adapter = reward.on(model)
        pairs = ExampleEncoder(encode.tokenizer).pairs(prosocial_data.pairs(40, seed=SEED))
        by_attribute = {}
        with adapter.attached(model):
            for name, encoded in pairs.items():
                adapter.prefer(vector({name: 1.0}))
                values = (
                    training.log_likelihoods(model, [e for pair in encoded for e in pair])
                    .view(-1, 2)
                    .tolist()
                )
                by_attribute[name] = share([better > worse for better, worse in values])
        return by_attribute

    async def _cost(self, cases: Sequence[WorldCase]) -> dict[str, Any]:
        decodings = {
            "base, shared decoder": None,
            "base, guided loop": self._decoding(regulated=False, prefer=None),
            "regulation": self._decoding(regulated=True, prefer=None),
            "both": self._decoding(regulated=True, prefer=EQUAL),
        }
        prompts = [await self.backend.render(messages(case)) for case in cases]
        requests = [
            GenerationRequest(p, max_new_tokens=LONGEST, temperature=0.1, seed=i)
            for i, p in enumerate(prompts)
        ]
        spent = await overhead(self.backend, requests, decodings)
        return {"prompts": len(cases), **spent, "bytes": memory(self.shipped)}

    def _judged(self, cases: Sequence[WorldCase], texts: Sequence[str]) -> list[GrammarJudgement]:
        return [self.world.judge(case, text) for case, text in zip(cases, texts, strict=True)]

    def _attributes(
        self, texts: Sequence[str], judged: Sequence[GrammarJudgement]
    ) -> dict[str, Any]:
        table = {
            "said": {name: share([name in j.kinds for j in judged])["value"] for name in ATTRIBUTES}
        }
        for kind, meters in self.meters.items():
            means = meters.measure(texts).mean(axis=0)
            table[kind] = {
                name: round(float(value), 3) for name, value in zip(ATTRIBUTES, means, strict=True)
            }
        return table


def _benign(judged: Sequence[GrammarJudgement]) -> dict[str, Any]:
    names = ("on_topic", "fluent", "safe", "helpful")
    return {name.replace("_", " "): share([getattr(j, name) for j in judged]) for name in names}


def _spread(cases: Sequence[WorldCase], n: int) -> list[WorldCase]:
    """Return `n` of the cases, or all if there are no more, of every kind."""
    n = min(n, len(cases))
    return [cases[i * len(cases) // n] for i in range(n)]


def _about() -> dict[str, Any]:
    versions = {
        name: version(name)
        for name in ("ttsa-guard", "torch", "transformers", "scikit-learn", "moocore")
    }
    machine = {
        "machine": f"{platform.machine()} CPU",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    return {**machine, "seed": SEED, "versions": {"python": platform.python_version(), **versions}}


def main() -> None:
    """Run the study, and print what it found; `--json FILE` writes the numbers."""
    parser = argparse.ArgumentParser(prog="python -m research.prosocial.study", description=__doc__)
    parser.add_argument("--n", type=int, default=150, help="prompts of each kind, before the gate")
    parser.add_argument("--benign", type=int, default=300, help="benign prompts")
    parser.add_argument(
        "--grid", type=int, default=60, help="flagged prompts that are answered at every preference"
    )
    parser.add_argument(
        "--timed", type=int, default=24, help="flagged prompts whose answers are timed"
    )
    parser.add_argument(
        "--data", type=Path, help="folder with the public data sets, for the meters"
    )
    parser.add_argument(
        "--averaged", type=Path, help="adapter trained with --conflicts average, to compare with"
    )
    parser.add_argument(
        "--separate",
        type=Path,
        help="folder of adapters trained with --only ATTRIBUTE, to compare with",
    )
    parser.add_argument("--plot", type=Path, help="draw the trade-offs into this PNG file")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    args = vars(parser.parse_args())
    file = args.pop("json")
    with Progress() as progress:
        result = asyncio.run(Study(Scope(**args), progress).run())
    text = json.dumps(result, indent=1)
    print(text)
    if file:
        file.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
