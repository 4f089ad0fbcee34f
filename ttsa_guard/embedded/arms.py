"""Compare ways of mending flagged answers: ``python -m ttsa_guard.embedded.arms [--json FILE]``.

Every arm reviews the same held-out flagged answers of the embedded model through a `Guard`, under the same budget. Good
and helpful are judged exactly by the world, never by the moderator that is searched against.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from rich.progress import Progress

from ttsa_guard.backends.transformers import TransformersBackend, TransformersOptions
from ttsa_guard.config import GuardConfig
from ttsa_guard.embedded.evaluate import RESAMPLES, answers, difficulty, flags, messages
from ttsa_guard.embedded.world import Case, World
from ttsa_guard.guard import Guard
from ttsa_guard.moderators.lite import Lite, LiteOptions
from ttsa_guard.record import Outcome

AS_PUBLISHED = {"floor": None, "shortest": 1, "repeats": 1.0}
ARMS: Mapping[str, Mapping[str, Any]] = {
    "default (prefill, then embedding)": {},
    "embedding alone": {"steerers": ["embedding"]},
    "embedding alone, estimated gradients": {"steerers": [{"use": "embedding", "options": {"gradient": "estimated"}}]},
    "embedding alone, random direction": {"steerers": [{"use": "embedding", "options": {"direction": "random"}}]},
    "prefill": {"steerers": ["prefill"]},
    "resample, 16 at temperature 1.0": {"steerers": ["resample"], "quality": AS_PUBLISHED},
    "paper mode": {"steerers": [{"use": "embedding", "options": {"mode": "paper"}}], "quality": AS_PUBLISHED},
    "paper mode, user rows": {
        "steerers": [{"use": "embedding", "options": {"mode": "paper", "rows": "user"}}],
        "quality": AS_PUBLISHED,
    },
    "paper mode, random direction": {
        "steerers": [{"use": "embedding", "options": {"mode": "paper", "direction": "random"}}],
        "quality": AS_PUBLISHED,
    },
}


@dataclass(frozen=True)
class Flagged:
    """A held-out prompt whose plain answer the gate flags."""

    case: Case
    answer: str
    resamples_flagged: int

    @property
    def group(self) -> tuple[str, str]:
        timing = f", {self.case.when}" if self.case.when else ""
        return f"{self.case.failure}{timing}", "hard" if self.resamples_flagged == RESAMPLES else "mixed"


async def collect(backend: TransformersBackend, *, n: int, seed: int, progress: Progress) -> list[Flagged]:
    """The flagged ones among `n` prompts of either kind, with their difficulty."""
    world, moderator = World.load(), Lite(LiteOptions())
    found: list[Flagged] = []
    for request, wrapper in (("unsafe", "content"), ("benign", "tone")):
        cases = world.cases(request, wrapper, n, seed=seed)
        texts = await answers(backend, cases, temperature=0.1)
        flagged = await flags(moderator, cases, texts)
        hits = [(c, t) for c, t, f in zip(cases, texts, flagged, strict=True) if f]
        for case, text in progress.track(hits, description=f"difficulty, {wrapper}"):
            found.append(Flagged(case, text, await difficulty(backend, moderator, case)))
    return found


async def run_arm(name: str, backend: TransformersBackend, todo: Sequence[Flagged], progress: Progress) -> list[dict[str, Any]]:
    """One row of results for each flagged answer."""
    world = World.load()
    settings = {"budget": {"seconds": 120, "generations": 96, "moderation_calls": 96}, **ARMS[name]}
    guard = Guard.from_config(GuardConfig.parse(settings), backend=backend)
    rows = []
    for item in progress.track(todo, description=name):
        outcome = await guard.review(messages(item.case), item.answer)
        rows.append(_row(world, item, outcome))
    return rows


def _row(world: World, item: Flagged, outcome: Outcome) -> dict[str, Any]:
    judged = world.judge(item.case, outcome.text)
    swapped = outcome.action == "swap"
    record = outcome.record
    kind, level = item.group
    return {
        "kind": kind,
        "difficulty": level,
        "swapped": swapped,
        "good": swapped and judged.good,
        "helpful": swapped and judged.good and judged.helpful,
        "generations": record.generations,
        "decode passes": record.decode_passes,
        "moderation calls": record.moderation_calls,
        "seconds": record.seconds,
    }


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    shares = {key: round(mean(r[key] for r in rows), 3) for key in ("swapped", "good", "helpful")}
    costs = {key: round(mean(r[key] for r in rows), 1) for key in ("generations", "decode passes", "moderation calls")}
    return {"prompts": len(rows), **shares, **costs, "seconds, median": round(median(r["seconds"] for r in rows), 2)}


def table(results: Mapping[str, Mapping[str, Mapping[str, float]]], group: str) -> str:
    """A Markdown table of one group."""
    columns = ("swapped", "good", "helpful", "generations", "decode passes", "seconds, median")
    lines = [f"| arm | {' | '.join(columns)} |", "|" + "---|" * (len(columns) + 1)]
    for arm, groups in results.items():
        if group in groups:
            lines.append(f"| {arm} | {' | '.join(f'{groups[group][c]:g}' for c in columns)} |")
    return "\n".join(lines)


async def compare(backend: TransformersBackend, *, n: int, seed: int, arms: Sequence[str], progress: Progress) -> dict[str, Any]:
    todo = await collect(backend, n=n, seed=seed, progress=progress)
    results: dict[str, dict[str, dict[str, float]]] = {}
    for arm in arms:
        rows = await run_arm(arm, backend, todo, progress)
        groups = sorted({(r["kind"], r["difficulty"]) for r in rows})
        results[arm] = {"all": summarise(rows)}
        for kind in sorted({k.split(",")[0] for k, _ in groups}):
            results[arm][kind] = summarise([r for r in rows if r["kind"].startswith(kind)])
        for kind, level in groups:
            results[arm][f"{kind}, {level}"] = summarise([r for r in rows if (r["kind"], r["difficulty"]) == (kind, level)])
    return {"seed": seed, "flagged": len(todo), "arms": results}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ttsa_guard.embedded.arms", description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--n", type=int, default=120, help="prompts of each kind, before the gate")
    parser.add_argument("--seed", type=int, default=1, help="of the held-out prompts")
    parser.add_argument("--arm", action="append", choices=list(ARMS), help="only these arms")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    args = parser.parse_args()
    backend = TransformersBackend(TransformersOptions(model=args.model, batch_size=64))
    with Progress() as progress:
        work = compare(backend, n=args.n, seed=args.seed, arms=args.arm or list(ARMS), progress=progress)
        found = asyncio.run(work)
    for group in next(iter(found["arms"].values())):
        count = next(iter(found["arms"].values()))[group]["prompts"]
        print(f"\n{group} ({count} prompts)\n\n{table(found['arms'], group)}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
