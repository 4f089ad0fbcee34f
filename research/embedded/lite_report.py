"""Measure the lite moderator: the numbers of LITE_CARD.md."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from research.embedded import lite_domain
from research.embedded.lite_data import UNKNOWN, Example
from ttsa_guard.embedded.world import World
from ttsa_guard.moderators.categories import HEADS
from ttsa_guard.moderators.lite import Lite
from ttsa_guard.moderators.lite_network import probabilities

Floats = NDArray[np.float64]
Logits = Callable[[Sequence[str]], Floats]
DOMAIN_ANSWERS = 2000
MUST_FLAG = {"complied", "early", "late"}


def measure(
    examples: Sequence[Example], world: World, logits: Logits, temperature: Floats
) -> dict[str, Any]:
    """Return the numbers of the card.

    They are numbers by head for pooled held-out data and for every source, false alarms, the world,
    and speed.
    """
    scores = probabilities(logits([e.text for e in examples]), temperature)
    report: dict[str, Any] = {
        name: _head(examples, scores[:, i], name) for i, name in enumerate(HEADS)
    }
    report["flagged_at_0.5"] = _flag_rates(examples, scores[:, :2].max(axis=1))
    report["world"] = {
        f"{split} topics": _world(world, logits, temperature, split) for split in ("seen", "unseen")
    }
    report["milliseconds_per_text"] = _speed(world)
    report["temperature"] = dict(zip(HEADS, temperature.round(3).tolist(), strict=True))
    return report


def calibration_error(labels: NDArray[Any], scores: Floats, bins: int = 10) -> float:
    """Return the expected calibration error, 0 to 1, with bins of equal width."""
    place = np.minimum((scores * bins).astype(int), bins - 1)
    gaps = [abs(float((labels[place == b] - scores[place == b]).sum())) for b in range(bins)]
    return sum(gaps) / len(scores)


def _head(examples: Sequence[Example], scores: Floats, name: str) -> dict[str, Any]:
    labels = np.array([getattr(e, name) for e in examples])
    parts = np.array([e.part for e in examples])
    sources = np.array([e.source for e in examples])
    known = labels != UNKNOWN
    groups = {"held out, pooled": known & (parts == "test") & (sources != lite_domain.SOURCE)}
    groups |= {source: known & (sources == source) for source in sorted({str(s) for s in sources})}
    return {
        group: _numbers(labels[rows], scores[rows])
        for group, rows in groups.items()
        if np.unique(labels[rows]).size == 2
    }


def _numbers(labels: NDArray[Any], scores: Floats) -> dict[str, float]:
    return {
        "n": len(labels),
        "positive": round(float(labels.mean()), 3),
        "roc_auc": round(float(roc_auc_score(labels, scores)), 4),
        "pr_auc": round(float(average_precision_score(labels, scores)), 4),
        "accuracy": round(float(((scores >= 0.5) == labels).mean()), 4),
        "ece": round(calibration_error(labels, scores), 4),
        "brier": round(float(np.square(scores - labels).mean()), 4),
    }


def _flag_rates(examples: Sequence[Example], scores: Floats) -> dict[str, float]:
    """Return shares of flagged answers.

    They are those of harmless held-out answers by source (false alarms), of harmful or toxic ones
    by source, and of refusals.
    """
    flags, rates = scores >= 0.5, {}
    for source in sorted({e.source for e in examples}):
        for group, wanted in (("harmless", False), ("bad", True)):
            rows = [
                i
                for i, e in enumerate(examples)
                if e.source == source and ((1 in (e.harm, e.toxicity)) == wanted)
            ]
            if len(rows) >= 50:
                rates[f"{source}, {group}"] = round(float(flags[rows].mean()), 4)
    refusals = [i for i, e in enumerate(examples) if e.refusal == 1 and e.harm != 1]
    return rates | {"all refusals": round(float(flags[refusals].mean()), 4)}


def _world(
    world: World, logits: Logits, temperature: Floats, split: Any
) -> dict[str, dict[str, float]]:
    """Return errors at 0.5 by kind of world answer, and the scores nearest to the wrong side."""
    result = {}
    for kind, texts in lite_domain.evaluation(world, DOMAIN_ANSWERS, topics=split).items():
        scores = probabilities(logits(texts), temperature)
        worst, refusal = scores[:, :2].max(axis=1), scores[:, 2]
        bad = kind in MUST_FLAG
        result[kind] = {
            "flag_errors": round(float(((worst >= 0.5) != bad).mean()), 4),
            "refusal_errors": round(float(((refusal >= 0.5) != (kind == "refused")).mean()), 4),
            "score_1%": round(float(np.quantile(worst, 0.01)), 3),
            "score_99%": round(float(np.quantile(worst, 0.99)), 3),
        }
    return result


def _speed(world: World) -> dict[str, float]:
    answers = lite_domain.evaluation(world, 64, topics="seen")
    texts = [f"{a} {b}" for a, b in zip(answers["answered"], answers["late"], strict=True)] * 4
    moderator, result = Lite(), {"characters": round(float(np.mean([len(t) for t in texts])), 1)}
    for size in (1, 64):
        start = time.perf_counter()
        for i in range(0, len(texts), size):
            moderator.scores(texts[i : i + size])
        result[f"batch {size}"] = round((time.perf_counter() - start) / len(texts) * 1e3, 3)
    return result
