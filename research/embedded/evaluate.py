"""Measure the embedded chat model on held-out prompts.

Run it with ``python -m research.embedded.evaluate [--json FILE]``. No wordings, wrappers or persona
names of these prompts are in the training text, and half of the topics are not either. The truth
about every prompt is known, so answers are judged exactly (`World.judge`). "flagged" is what the
lite moderator says, as in the product.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from ttsa_guard.backends.transformers import TransformersBackend, TransformersOptions
from ttsa_guard.embedded.grammar import GrammarJudgement
from ttsa_guard.embedded.world import World, WorldCase
from ttsa_guard.messages import GenerationRequest, Message
from ttsa_guard.moderators.base import Moderator
from ttsa_guard.moderators.lite import Lite, LiteOptions

Group = tuple[str, str, str | None]
GROUPS: tuple[Group, ...] = (
    ("benign", "benign", None),
    ("benign under a friendly persona", "benign", "friendly"),
    ("benign under a jailbreak wrapper", "benign", "content"),
    ("unsafe", "unsafe", None),
    ("unsafe, wrapped", "unsafe", "content"),
    ("benign, rude persona", "benign", "tone"),
)
RESAMPLES = 16


def messages(case: WorldCase) -> tuple[Message, ...]:
    """Return the conversation of a case."""
    return Message.conversation(
        [{"role": role, "content": content} for role, content in case.messages]
    )


async def answers(
    backend: TransformersBackend, cases: Sequence[WorldCase], *, temperature: float, seed: int = 0
) -> list[str]:
    """Return the backend's answers to the cases. Case i has the seed `seed` + i."""
    prompts = [await backend.render(messages(case)) for case in cases]
    requests = [
        GenerationRequest(p, temperature=temperature, seed=seed + i) for i, p in enumerate(prompts)
    ]
    return [g.text for g in await backend.generate(requests)]


async def flags(
    moderator: Moderator, cases: Sequence[WorldCase], texts: Sequence[str]
) -> list[bool]:
    """Return, for each case, whether the moderator flags its text."""
    verdicts = await moderator.moderate(texts, prompts=[c.messages[-1][1] for c in cases])
    return [v.flagged for v in verdicts]


async def difficulty(backend: TransformersBackend, moderator: Moderator, case: WorldCase) -> int:
    """Return how many of 16 new samples at temperature 1.0 are flagged.

    16 means that only moving the embeddings can help.
    """
    prompt = await backend.render(messages(case))
    # its own for each prompt: with shared noise all histograms are alike
    seed = zlib.crc32(case.messages[-1][1].encode())
    drawn = await backend.generate(
        [GenerationRequest(prompt, temperature=1.0, seed=seed + i) for i in range(RESAMPLES)]
    )
    return sum(await flags(moderator, [case] * RESAMPLES, [g.text for g in drawn]))


async def evaluate(
    backend: TransformersBackend, moderator: Moderator, *, n: int, progress: Progress
) -> dict[str, Any]:
    """Return all numbers of the model card, with `n` prompts of each kind."""
    world = World.load()
    result: dict[str, Any] = {"n": n, "groups": {}}
    histograms: dict[str, Counter[int]] = {"content": Counter(), "tone": Counter()}
    for name, request, wrapper in GROUPS:
        cases = world.cases(request, wrapper, n)
        texts = await answers(backend, cases, temperature=0.1)
        flagged = await flags(moderator, cases, texts)
        judged = [world.judge(case, text) for case, text in zip(cases, texts, strict=True)]
        result["groups"][name] = {
            split: _rates(
                [(j, f) for c, j, f in zip(cases, judged, flagged, strict=True) if keep(c)]
            )
            for split, keep in (
                ("seen topics", _seen),
                ("unseen topics", _unseen),
                ("all", lambda _: True),
            )
        }
        hard = [case for case, f in zip(cases, flagged, strict=True) if f and case.failure]
        for case in progress.track(hard, description=name) if hard else ():
            histograms[str(case.failure)][await difficulty(backend, moderator, case)] += 1
    result["flagged re-samples of 16"] = {
        kind: [found[i] for i in range(RESAMPLES + 1)] for kind, found in histograms.items()
    }
    return result


def _seen(case: WorldCase) -> bool:
    return case.topic.seen


def _unseen(case: WorldCase) -> bool:
    return not case.topic.seen


def _rates(rows: Sequence[tuple[GrammarJudgement, bool]]) -> dict[str, float]:
    """Return the shares of answers with each property.

    One of them is the share on which the moderator and the exact judge disagree.
    """

    def share(test: Callable[[GrammarJudgement, bool], bool]) -> float:
        return round(sum(test(j, f) for j, f in rows) / max(1, len(rows)), 4)

    return {
        "prompts": len(rows),
        "flagged": share(lambda _, f: f),
        "safe": share(lambda j, _: j.safe),
        "fluent": share(lambda j, _: j.fluent),
        "answered on topic": share(lambda j, _: j.good and j.helpful and not j.refusal),
        "refused": share(lambda j, _: j.refusal),
        "redirected": share(lambda j, _: j.helpful and "help" in j.kinds),
        "moderator disagrees": share(lambda j, f: f == j.safe),
    }


def tables(result: dict[str, Any]) -> str:
    """Return the numbers as the Markdown of the model card."""
    columns = [name for name in next(iter(result["groups"].values()))["all"] if name != "prompts"]
    lines = [f"| prompts | topics | n | {' | '.join(columns)} |", "|" + "---|" * (len(columns) + 3)]
    for group, splits in result["groups"].items():
        for split, rates in splits.items():
            values = " | ".join(f"{100 * rates[c]:.1f} %" for c in columns)
            lines.append(
                f"| {group} | {split.removesuffix(' topics')} | {rates['prompts']} | {values} |"
            )
    histograms = result["flagged re-samples of 16"]
    lines += [
        "",
        f"| flagged of 16 | {' | '.join(map(str, range(RESAMPLES + 1)))} |",
        "|" + "---|" * (RESAMPLES + 2),
    ]
    lines += [f"| {kind} | {' | '.join(map(str, counts))} |" for kind, counts in histograms.items()]
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m research.embedded.evaluate", description=__doc__
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--n", type=int, default=240, help="prompts of each kind")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    args = parser.parse_args()
    backend = TransformersBackend(TransformersOptions(model=args.model, batch_size=64))
    with Progress() as progress:
        result = asyncio.run(evaluate(backend, Lite(LiteOptions()), n=args.n, progress=progress))
    print(tables(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
