"""Measure the moderators in this package, and print the tables of MODERATORS_CARD.md.

Run it with ``python -m research.embedded.moderators_report --data DIR``.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from research.embedded import encoder_data, lite_data, lite_domain
from research.embedded.encoder_data import labels
from research.embedded.lite_data import UNKNOWN, Example
from research.embedded.lite_report import MUST_FLAG, calibration_error
from ttsa_guard.embedded.world import World
from ttsa_guard.moderators import minilm
from ttsa_guard.moderators.encoder import Encoder, cut, tokenised
from ttsa_guard.moderators.encoder_judge import EncoderHeads
from ttsa_guard.moderators.lite import Lite
from ttsa_guard.moderators.second_opinion import SecondOpinion

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]
Scorer = Callable[[Sequence[str], Sequence[str]], NDArray[Any]]
WITHIN = 5000
"""Number of held-out rows that are drawn, so that a run takes minutes."""
BENIGN = {"dolly": 700, "self-dialogue": 700, "clinc": 600}
"""Number of benign turns of chat, by source."""
WORLD = 150
"""Number of answers of the embedded world of each kind."""
LENGTHS = (0, 20, 60, 150, 10**9)
"""Bounds of the groups by length, in words."""
SMALLEST = 40
UNRELATED = ("XSTest", "JailbreakBench")
RUNS = 5
"""Of each measurement of speed."""
TIMED = 64
"""Texts of it."""
BINS = 10
_HARM, _TOXICITY, _REFUSAL, _SELF_HARM = range(4)


def scorers(names: Iterable[str]) -> dict[str, Scorer]:
    """Load the named moderators as functions of texts and prompts."""
    lite, second = Lite(), SecondOpinion()
    made: dict[str, Callable[[], Scorer]] = {
        "lite": lambda: lite.scores,
        "second_opinion": lambda: lambda texts, _: second.scores(texts),
        "encoder": lambda: Encoder().scores,
        "encoder_judge": lambda: EncoderHeads().scores,
    }
    return {name: made[name]() for name in names}


def drawn(data: Path) -> list[Example]:
    """Return held-out rows, those of the unrelated sources, and benign turns.

    The source of benign turns begins with "benign".
    """
    found, rng = encoder_data.examples(data), random.Random(5)
    test = [e for e in found if e.part == "test"]
    rows = rng.sample(test, min(WITHIN, len(test))) + [e for e in found if e.part == "unrelated"]
    turns = {
        source: [e for e in test if e.source == source] for source in ("dolly", "self-dialogue")
    }
    turns["clinc"] = [
        Example(text, "clinc", "test", 0, 0, 0)
        for text in encoder_data.clinc(data / "clinc150" / "test.tsv")
    ]
    return rows + [
        replace(e, source=f"benign {s}") for s, n in BENIGN.items() for e in rng.sample(turns[s], n)
    ]


def categories(data: Path) -> dict[str, str]:
    """Return the categories of answers of two sources, by answer."""
    rows = lite_data.read_json(data / "DiaSafety" / "test.json")
    found = {row["response"]: f"DiaSafety: {row['category']}" for row in rows}
    for path in sorted(
        (data / "refusal_direction" / "completions").glob("*/jailbreakbench_*.json")
    ):
        found |= {
            r["response"]: f"JailbreakBench: {r['category']}"
            for r in lite_data.read_json(path)["completions"]
        }
    return found


def bad(examples: Sequence[Example]) -> Flags:
    """Return which examples are harmful or abusive, [n]."""
    return np.array([1 in (e.harm, e.toxicity) for e in examples])


def worst(scores: NDArray[Any]) -> Floats:
    """Return the higher of harm and toxicity, [n], of scores [n, heads]."""
    return np.asarray(scores[:, :2].max(1), np.float64)


def at_false_alarms(score: Floats, truth: Flags, rate: float) -> float:
    """Return the recall at the threshold that has the false-alarm rate `rate`."""
    return float((score[truth] > np.quantile(score[~truth], 1 - rate)).mean())


def row(name: str, cells: Iterable[object]) -> str:
    """Return a row of a Markdown table."""
    return (
        f"| {name} | "
        + " | ".join(f"{c:.3f}" if isinstance(c, float) else str(c) for c in cells)
        + " |"
    )


def pair(score: Floats, truth: Flags) -> str:
    """Return recall and false alarms at 0.5, as text."""
    flagged = score >= 0.5
    recall = f"{flagged[truth].mean():.0%}" if truth.any() else "-"
    return f"{recall} / " + (f"{flagged[~truth].mean():.1%}" if (~truth).any() else "-")


def whole(examples: Sequence[Example], scores: dict[str, NDArray[Any]]) -> list[str]:
    """Return the main table, with a row for each moderator."""
    truth, source = bad(examples), np.array([e.source for e in examples])
    unrelated = np.isin(source, UNRELATED)
    benign = np.char.startswith(source, "benign")
    within = ~unrelated & ~benign
    lines = []
    for name, found in scores.items():
        score = worst(found)
        cells: list[object] = [
            float(roc_auc_score(truth[within], score[within])),
            pair(score[within], truth[within]),
        ]
        cells.append(f"{at_false_alarms(score[within], truth[within], 0.02):.0%}")
        for one in UNRELATED:
            own = source == one
            cells += [float(roc_auc_score(truth[own], score[own])), pair(score[own], truth[own])]
        cells += [
            float(calibration_error(truth[within], score[within])),
            f"{(score[benign] >= 0.5).mean():.2%}",
        ]
        lines.append(row(name, cells))
    return lines


def heads(examples: Sequence[Example], scores: dict[str, NDArray[Any]]) -> list[str]:
    """Return a table of ROC-AUC and calibration error of each head, for both kinds of sources."""
    truth = np.array([labels(e) for e in examples])
    apart = np.isin([e.source for e in examples], UNRELATED)
    lines = []
    for k, head in enumerate(encoder_data.HEADS):
        for where, rows in (("within", ~apart), ("unrelated", apart)):
            known = rows & (truth[:, k] != UNKNOWN)
            if len(set(truth[known, k].tolist())) == 2:
                cells = [
                    told(truth[known, k], found[known, k]) if k < found.shape[1] else ""
                    for found in scores.values()
                ]
                lines.append(row(f"{head}, {where}", cells))
    return lines


def told(truth: NDArray[Any], score: NDArray[Any]) -> str:
    """Return ROC-AUC and calibration error, as text."""
    return f"{roc_auc_score(truth, score):.3f} / {calibration_error(truth, score):.3f}"


def groups(examples: Sequence[Example], scores: dict[str, NDArray[Any]], data: Path) -> list[str]:
    """Return a table of recall and false alarms by source, category and length."""
    truth, named = bad(examples), categories(data)
    words = np.array([len(e.text.split()) for e in examples])
    source = np.array([e.source for e in examples])
    found = {one: source == one for one in sorted(set(source.tolist()))}
    category = np.array(
        [
            named.get(e.text, "") if e.source in ("DiaSafety", "JailbreakBench") else ""
            for e in examples
        ]
    )
    found |= {one: category == one for one in sorted(set(category.tolist()) - {""})}
    for low, high in pairwise(LENGTHS):
        found[f"{low} to {high} words" if high < LENGTHS[-1] else f"more than {low} words"] = (
            words > low
        ) & (words <= high)
    lines = []
    for name, rows in found.items():
        if rows.sum() >= SMALLEST:
            cells = [
                f"{rows.sum()}, {(rows & truth).sum()}",
                *(pair(worst(s[rows]), truth[rows]) for s in scores.values()),
            ]
            lines.append(row(name, cells))
    return lines


def world(scorer: Scorer) -> str:
    """Return the shares of bad answers and of safe answers that are flagged, as text.

    They are answers of the embedded world with unseen wordings and topics.
    """
    rng, texts, prompts, truth = random.Random("moderators"), [], [], []
    made = World.load()
    for kind in lite_domain.KINDS:
        for _ in range(WORLD):
            answer = lite_domain.draw(made, rng, kind, "unseen", "unseen")
            texts.append(answer.text)
            prompts.append(answer.case.messages[-1][1])
            truth.append(kind in MUST_FLAG)
    return pair(worst(scorer(texts, prompts)), np.array(truth))


def speed(scorer: Scorer, rows: Sequence[Example], batch: int) -> float:
    """Return the number of texts per second on one core."""
    scorer([rows[0].text], [rows[0].prompt])
    taken = []
    for _ in range(RUNS):
        begin = time.process_time()
        for i in range(0, len(rows), batch):
            scorer([e.text for e in rows[i : i + batch]], [e.prompt for e in rows[i : i + batch]])
        taken.append(time.process_time() - begin)
    return len(rows) / median(taken)


def speeds(known: dict[str, Scorer], rows: Sequence[Example]) -> Iterator[str]:
    """Texts a second one at a time and in batches of 32, and how long the texts are."""
    yield from (
        row(name, [f"{speed(scorer, rows, batch):.0f}" for batch in (1, 32)])
        for name, scorer in known.items()
    )
    yield (
        f"{len(rows)} texts of {sum(len(e.text) for e in rows) / len(rows):.0f} characters on"
        " average"
    )
    if minilm.installed():
        pairs = tokenised(minilm.untuned()[0], [e.prompt for e in rows], [e.text for e in rows])
        windows = [window for pair in pairs for window in cut(*pair)]
        answers, read = (
            sum(len(ids) for _, ids in pairs),
            sum(len(head) + len(rest) for head, rest in windows),
        )
        yield (
            f"{answers / len(rows):.0f} tokens of MiniLM, {read / len(rows):.0f} with prompts,"
            " marks and overlaps"
        )


def drawn_curves(examples: Sequence[Example], scores: dict[str, NDArray[Any]], path: Path) -> None:
    """A picture of the share of bad answers at each score, within."""
    from matplotlib.figure import Figure

    within = np.array(
        [e.source not in UNRELATED and not e.source.startswith("benign") for e in examples]
    )
    truth = bad(examples)[within]
    figure = Figure(figsize=(4.5, 4.2), layout="constrained")
    axes = figure.add_subplot(
        xlabel="score", ylabel="share of bad answers", xlim=(0, 1), ylim=(0, 1), aspect="equal"
    )
    axes.plot([0, 1], [0, 1], ":", color="grey")
    for name, found in scores.items():
        score = worst(found)[within]
        place = np.minimum((score * BINS).astype(int), BINS - 1)
        points = [
            (score[place == b].mean(), truth[place == b].mean())
            for b in range(BINS)
            if (place == b).any()
        ]
        axes.plot(
            *zip(*points, strict=True),
            "o-",
            label=f"{name}, ECE {calibration_error(truth, score):.3f}",
        )
    axes.legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure the moderators in this package.")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with one folder for each data set"
    )
    parser.add_argument("--moderators", nargs="+", default=["lite", "second_opinion", "encoder"])
    parser.add_argument(
        "--curves", type=Path, help="where a picture of the calibration goes: an SVG or PNG file"
    )
    parser.add_argument(
        "--speed-only", action="store_true", help="measure the speed and nothing else"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    examples, known = drawn(args.data), scorers(args.moderators)
    if args.speed_only:
        print(*speeds(known, examples[:TIMED]), sep="\n")
        return
    texts, prompts = [e.text for e in examples], [e.prompt for e in examples]
    scores = {name: scorer(texts, prompts) for name, scorer in known.items()}
    print(f"{len(texts)} texts of {sum(map(len, texts)) / len(texts):.0f} characters on average")
    for title, lines in (
        ("moderators", whole(examples, scores)),
        ("heads", heads(examples, scores)),
        ("groups", groups(examples, scores, args.data)),
        ("world", [row(name, [world(scorer)]) for name, scorer in known.items()]),
        ("speed", speeds(known, examples[:TIMED])),
    ):
        print(f"\n{title}", *lines, sep="\n", flush=True)
    if args.curves:
        drawn_curves(examples, scores, args.curves)


if __name__ == "__main__":
    main()
