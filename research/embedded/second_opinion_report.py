"""Measure the second opinion beside lite: the numbers of SECOND_OPINION_CARD.md."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    average_precision_score,
    cohen_kappa_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from research.embedded import lite_domain
from research.embedded.lite_data import UNKNOWN, Example
from research.embedded.lite_domain import KINDS, Answer
from research.embedded.lite_report import DOMAIN_ANSWERS, MUST_FLAG, calibration_error
from ttsa_guard.embedded.world import Split, World
from ttsa_guard.moderators.categories import HEADS
from ttsa_guard.moderators.lite import Lite
from ttsa_guard.moderators.second_opinion_network import SecondOpinionNetwork

Floats = NDArray[np.float64]
Scorer = Callable[[Sequence[str]], Floats]
BROKEN_ANSWERS = 500
"""Number of world answers of each kind, for each way of breaking them."""
SMALLEST_GROUP = 50


def measure(examples: Sequence[Example], network: SecondOpinionNetwork) -> dict[str, Any]:
    """Return the numbers of the card.

    Both moderators are measured on rows that neither was trained on. There are their agreement, the
    world, and broken answers, too.
    """
    world = World.load()
    scorers: dict[str, Scorer] = {"second_opinion": network.scores, "lite": Lite().literal_scores}
    scores = {name: scorer([e.text for e in examples]) for name, scorer in scorers.items()}
    report: dict[str, Any] = {}
    for column, head in enumerate(HEADS):
        report[head] = _head(examples, {name: s[:, column] for name, s in scores.items()}, head)
    report["flagged"] = _flagged(examples, {name: _flags(s) for name, s in scores.items()})
    report["kappa"] = _agreement(examples, *(_flags(s) for s in scores.values()))
    report["world"] = {
        f"{split} topics": _world(world, network.scores, split) for split in ("seen", "unseen")
    }
    report["broken"] = {name: _broken(world, scorer) for name, scorer in scorers.items()}
    report["temperature"] = dict(
        zip(HEADS, network.temperature.astype(np.float64).round(3).tolist(), strict=True)
    )
    return report


def _flags(scores: Floats) -> NDArray[np.bool_]:
    return np.asarray(scores[:, :2].max(axis=1) >= 0.5)


def _groups(examples: Sequence[Example], wanted: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
    sources = np.array([e.source for e in examples])
    groups = {"pooled": wanted} | {
        source: wanted & (sources == source) for source in sorted(set(sources.tolist()))
    }
    return {name: rows for name, rows in groups.items() if rows.sum() >= SMALLEST_GROUP}


def _head(examples: Sequence[Example], scores: dict[str, Floats], head: str) -> dict[str, Any]:
    labels = np.array([getattr(e, head) for e in examples])
    result: dict[str, Any] = {}
    for group, rows in _groups(examples, labels != UNKNOWN).items():
        if np.unique(labels[rows]).size == 2:
            shape = {"n": int(rows.sum()), "positive": round(float(labels[rows].mean()), 3)}
            result[group] = shape | {
                name: _numbers(labels[rows], s[rows]) for name, s in scores.items()
            }
    return result


def _numbers(labels: NDArray[Any], scores: Floats) -> dict[str, float]:
    numbers = {
        "roc_auc": roc_auc_score(labels, scores),
        "pr_auc": average_precision_score(labels, scores),
        "precision": precision_score(labels, scores >= 0.5, zero_division=0.0),
        "recall": recall_score(labels, scores >= 0.5),
        "ece": calibration_error(labels, scores),
    }
    return {name: round(float(value), 3) for name, value in numbers.items()}


def _flagged(examples: Sequence[Example], flags: dict[str, NDArray[np.bool_]]) -> dict[str, Any]:
    """Return the share of flagged answers by source.

    Those of harmless ones are false alarms; those of harmful or toxic ones are the recall.
    """
    bad = np.array([1 in (e.harm, e.toxicity) for e in examples])
    result = {}
    for name, wanted in (("harmless", ~bad), ("bad", bad)):
        for group, rows in _groups(examples, wanted).items():
            shares = {
                moderator: round(float(flag[rows].mean()), 4) for moderator, flag in flags.items()
            }
            result[f"{group}, {name}"] = {"n": int(rows.sum())} | shares
    return result


def _agreement(
    examples: Sequence[Example], mine: NDArray[np.bool_], other: NDArray[np.bool_]
) -> dict[str, float]:
    """Return Cohen's kappa of the two moderators' flags."""
    groups = _groups(examples, np.ones(len(examples), bool))
    both = {name: rows for name, rows in groups.items() if mine[rows].any() and other[rows].any()}
    return {
        name: round(float(cohen_kappa_score(mine[rows], other[rows])), 3)
        for name, rows in both.items()
    }


def _world(world: World, scorer: Scorer, split: Split) -> dict[str, dict[str, float]]:
    """Return the disagreement with `World.judge` by kind of answer.

    The scores nearest to the wrong side are given, too.
    """
    rng = random.Random(f"second opinion/evaluation/{split}")
    result = {}
    for kind in KINDS:
        answers = [
            lite_domain.draw(world, rng, kind, split, "unseen") for _ in range(DOMAIN_ANSWERS)
        ]
        judged = [world.judge(answer.case, answer.text) for answer in answers]
        scores = scorer([answer.text for answer in answers])
        worst = scores[:, :2].max(axis=1)
        result[kind] = {
            "flag_errors": round(float(np.mean(_flags(scores) == [j.safe for j in judged])), 4),
            "refusal_errors": round(
                float(np.mean((scores[:, 2] >= 0.5) != [j.refusal for j in judged])), 4
            ),
            "score_1%": round(float(np.quantile(worst, 0.01)), 3),
            "score_99%": round(float(np.quantile(worst, 0.99)), 3),
        }
    return result


def _broken(world: World, scorer: Scorer) -> dict[str, dict[str, float]]:
    """Return the share of flagged broken answers, those with and those without bad parts."""
    rng = random.Random("second opinion/broken")
    draws = {
        kind: [
            lite_domain.draw(world, rng, kind, "unseen", "unseen") for _ in range(BROKEN_ANSWERS)
        ]
        for kind in KINDS
    }
    result = {}
    for name, damage in DAMAGES.items():
        shares = {}
        for group, kinds in (("decent", set(KINDS) - MUST_FLAG), ("bad", MUST_FLAG)):
            texts = [
                damage(rng, answer) for kind in KINDS if kind in kinds for answer in draws[kind]
            ]
            shares[group] = round(float(_flags(scorer(texts)).mean()), 4)
        result[name] = shares
    return result


def _shuffled(rng: random.Random, answer: Answer) -> str:
    return " ".join(s for s, _ in rng.sample(answer.sentences, len(answer.sentences)))


def _truncated(rng: random.Random, answer: Answer) -> str:
    """Return an answer that ends too early.

    It ends within the sentence after the first bad one, or anywhere if there is none.
    """
    bad = [
        i for i, (_, kind) in enumerate(answer.sentences) if kind.startswith(("comply", "abuse"))
    ]
    kept = [s for s, _ in answer.sentences[: bad[0] + 1]] if bad else []
    rest = " ".join(s for s, _ in answer.sentences[len(kept) :]).split()
    return " ".join([*kept, *rest[: rng.randint(0 if kept else 1, max(len(rest), 1))]])


def _repeated(rng: random.Random, answer: Answer) -> str:
    return " ".join(w for word in answer.text.split() for w in [word] * rng.choice((1, 1, 1, 2, 3)))


def _stuck(rng: random.Random, answer: Answer) -> str:
    """Return an answer that ends with one word over and over.

    That is what a model does that is pushed too far.
    """
    tokens = answer.text.split()
    return " ".join([*tokens, *[rng.choice(tokens)] * rng.randint(10, 60)])


def _thinned(rng: random.Random, answer: Answer) -> str:
    return " ".join(word for word in answer.text.split() if rng.random() > 0.1)


DAMAGES: dict[str, Callable[[random.Random, Answer], str]] = {
    "sentences shuffled": _shuffled,
    "cut off": _truncated,
    "words repeated": _repeated,
    "stuck on a word": _stuck,
    "a tenth of the words lost": _thinned,
}
