"""Measure trade-offs between the prosocial attributes.

Answers are drawn at many preferences, and what is reached is summed up by the volume that the best
of it dominates. A *point* is the mean of the five meters (`attributes`) over the answers to some
prompts, drawn at one preference. The hypervolume of a set of points is the volume of everything
between the origin and one of them. It is 1 if all meters could be 1 at once. An answer shows only
one or two of five attributes, so the hypervolume is tiny. Therefore the mean *area* over the ten
pairs of attributes is given, too; it is the same in two dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import torch

from research.prosocial.wins import share
from ttsa_guard.bench.measure import Floats
from ttsa_guard.plots import COLOURS, drawing
from ttsa_guard.steerers.prosocial.adapter import Stored
from ttsa_guard.steerers.prosocial.preferences import ATTRIBUTES, EQUAL, vector

PAIRS = tuple(combinations(range(len(ATTRIBUTES)), 2))
GRID: tuple[Mapping[str, float], ...] = (
    *({name: 1.0} for name in ATTRIBUTES),
    *({ATTRIBUTES[i]: 0.5, ATTRIBUTES[j]: 0.5} for i, j in PAIRS),
    EQUAL,
)
"""The preferences: the corners, the middles of the edges, and the middle of all."""
_WEIGHTS = np.array([vector(prefer) for prefer in GRID])
_KINDS = {
    "all": slice(None),
    "corners": slice(5),
    "even pairs": slice(5, 15),
    "equal weights": slice(15, 16),
}
_DRAWS = 1000
_MARKS = "os^D"


def hypervolume(points: Floats) -> float:
    """Return the volume that points dominate over the origin; more is better.

    Args:
        points: [n, dimensions], not negative.
    """
    best = moocore.filter_dominated(points, maximise=True)
    return float(moocore.hypervolume(best, ref=np.zeros(points.shape[1]), maximise=True))


def area(points: Floats) -> float:
    """Return the mean area that points [n, dimensions] dominate, over all pairs of dimensions."""
    return float(np.mean([hypervolume(points[:, pair]) for pair in PAIRS]))


def front(points: Floats) -> int:
    """Return how many of the points [n, dimensions] no other point dominates."""
    return int(moocore.is_nondominated(points, maximise=True).sum())


def summary(values: Mapping[str, Floats], good: Mapping[str, Floats]) -> dict[str, Any]:
    """Return points, fronts and volumes of each system.

    They are also given with the value zero for answers that are not good.

    Args:
        values: of each system, [points of `GRID`, prompts, attributes]. The others are compared
            with the first.
        good: of each system, [points, prompts], 1 or 0.
    """
    points = {name: value.mean(axis=1) for name, value in values.items()}
    of_good = {name: value * good[name][..., None] for name, value in values.items()}
    return {
        "prompts": next(iter(values.values())).shape[1],
        "preferences": [vector(prefer) for prefer in GRID],
        "points": {name: own.round(3).tolist() for name, own in points.items()},
        "good": {
            name: {kind: share(own[at].mean(axis=0).tolist()) for kind, at in _KINDS.items()}
            for name, own in good.items()
        },
        "on the front": {name: front(own) for name, own in points.items()},
        "hypervolume": volumes(values, hypervolume),
        "hypervolume, good answers alone": volumes(of_good, hypervolume),
        "area": volumes(values, area),
        "area, good answers alone": volumes(of_good, area),
    }


def volumes(values: Mapping[str, Floats], measure: Callable[[Floats], float]) -> dict[str, Any]:
    """Return `measure` of each system, and of each minus the first, paired, with 95 % intervals.

    Intervals are by bootstrap over the prompts. The best of several points takes noise for merit,
    and takes it anew in each draw, so intervals of few prompts lie too high.

    Args:
        values: of each system, [points, prompts, attributes].
    """
    prompts = next(iter(values.values())).shape[1]
    chosen = np.random.default_rng(0).integers(prompts, size=(_DRAWS, prompts))
    samples = [np.arange(prompts), *chosen]  # first the prompts themselves
    drawn = {
        name: np.array([measure(value[:, rows].mean(axis=1)) for rows in samples])
        for name, value in values.items()
    }
    first = next(iter(drawn))
    return {
        name: {
            **_interval(own),
            **({f"minus {first}": _interval(own - drawn[first])} if name != first else {}),
        }
        for name, own in drawn.items()
    }


def direction(values: Floats) -> dict[str, Any]:
    """Return what each attribute's own meter shows at different weights of the attribute.

    The weights are none (the other corners), half and all. The difference between all and none is
    given, too.

    Args:
        values: [points of `GRID`, prompts, attributes].
    """
    by_attribute = {}
    corner = _WEIGHTS.max(axis=1) == 1
    for i, name in enumerate(ATTRIBUTES):
        own, weight = values[:, :, i], _WEIGHTS[:, i]
        none, half, whole = (
            own[at].mean(axis=0) for at in (corner & (weight == 0), weight == 0.5, weight == 1)
        )
        named = {"at 0": none, "at 0.5": half, "at 1": whole, "rise": whole - none}
        by_attribute[name] = {key: share(v.tolist()) for key, v in named.items()}
    return by_attribute


def soup(parts: Sequence[Stored], weights: Sequence[float]) -> Stored:
    """Join adapters without objectives into one whose update is the weighted sum of theirs.

    Source: *Rewarded soups* (NeurIPS 2023).
    """
    joined: dict[str, Callable[[list[torch.Tensor]], torch.Tensor]] = {
        "a1": torch.cat,
        "b1": lambda own: torch.cat(own, 1),
        "w1": lambda own: torch.block_diag(*(w * t for w, t in zip(weights, own, strict=True))),  # type: ignore[no-untyped-call]
    }
    tensors = {
        n: joined[n.rsplit(".", 1)[-1]]([part.tensors[n].float() for part in parts])
        for n in parts[0].tensors
    }
    return replace(
        parts[0],
        tensors=tensors,
        shape=replace(parts[0].shape, rank=sum(part.shape.rank for part in parts)),
    )


def plot(points: Mapping[str, Floats], path: Path) -> None:
    """Plot helpfulness against each other attribute.

    Lines lead from all weight on the one, through an even pair, to all weight on the other.

    Args:
        points: of each system, [points of `GRID`, attributes].
    """
    across = ATTRIBUTES.index("helpfulness")
    others = [i for i in range(len(ATTRIBUTES)) if i != across]
    with drawing(path, 8.4, 7.2) as figure:
        for panel, up in zip(figure.subplots(2, 2).flat, others, strict=True):
            weight = _WEIGHTS[:, across] + _WEIGHTS[:, up]
            edge = np.flatnonzero(weight == 1)
            edge = edge[np.argsort(_WEIGHTS[edge, up])]
            for (name, values), colour, mark in zip(points.items(), COLOURS, _MARKS, strict=False):
                x, y = values[:, across], values[:, up]
                panel.scatter(x, y, s=14, color=colour, marker=mark, alpha=0.35, linewidths=0)
                panel.plot(x[edge], y[edge], color=colour, marker=mark, markersize=6, label=name)
            panel.set(
                xlabel="helpfulness",
                ylabel=ATTRIBUTES[up].replace("_", "-"),
                xlim=(-0.03, 1.03),
                ylim=(-0.03, 1.03),
            )
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(points))


def _interval(drawn: Floats) -> dict[str, float]:
    low, high = np.percentile(drawn[1:], (2.5, 97.5))
    return {
        key: float(f"{value:.3g}")
        for key, value in (("value", drawn[0]), ("low", low), ("high", high))
    }
