"""Pictures: how searches went, and what moderators are worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import Any

from ttsa_guard.errors import ConfigError
from ttsa_guard.record import AuditRecord

_COLUMNS = 3
_FORMATS = (".png", ".svg", ".pdf")


def ready(path: Path) -> None:
    """Check before the work that the plot can be drawn afterwards.

    Raises:
        ConfigError: matplotlib is missing, or `path` has another suffix or no folder.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError("plots need matplotlib", hint="pip install 'ttsa-guard[plot]'")
    if path.suffix not in _FORMATS:
        raise ConfigError(f"cannot draw to {path}", hint=f"the name ends with one of {', '.join(_FORMATS)}")
    if not path.parent.is_dir():
        raise ConfigError(f"there is no folder {path.parent}", hint="make it first")


def draw(reviews: Sequence[tuple[str, AuditRecord]], path: Path, *, threshold: float | None) -> None:
    """Draw a panel for each flagged answer: the scores of its candidates in the order in which they were found."""
    from matplotlib.figure import Figure  # without pyplot there is no display and no global state

    rows = max(1, math.ceil(len(reviews) / _COLUMNS))
    figure = Figure(figsize=(4 * _COLUMNS, 1 + 2.5 * rows), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, sharey=True, squeeze=False).ravel()
    for panel, (label, record) in zip(panels, reviews, strict=False):
        _panel(panel, label, record, threshold)
    for panel in panels[len(reviews) :]:
        panel.set_axis_off()
    figure.suptitle("Searches for a better answer" if reviews else "No answer was flagged")
    figure.supylabel("guide score")
    entries = {text: handle for panel in panels for handle, text in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside lower right", ncols=len(entries) or 1, frameon=False)
    figure.savefig(path, dpi=150)


def _panel(panel: Any, label: str, record: AuditRecord, threshold: float | None) -> None:
    from matplotlib.ticker import MaxNLocator

    at = record.chosen
    everything = range(len(record.candidates))
    groups: tuple[tuple[str, dict[str, Any], list[int]], ...] = (
        ("rejected", {"marker": "x", "color": "tab:red"}, [i for i in everything if not record.candidates[i].passed]),
        ("acceptable", {"marker": "o", "color": "tab:blue"}, [i for i in everything if record.candidates[i].passed and i != at]),
        ("swapped in", {"marker": "*", "color": "gold", "edgecolors": "black", "s": 220}, [i for i in everything if i == at]),
    )
    panel.axhline(record.gate_score, color="tab:red", linestyle=":", label="flagged answer")
    if threshold is not None:
        panel.axhline(threshold, color="black", linestyle="--", linewidth=1, label=f"threshold {threshold:g}")
    for name, style, members in groups:
        if members:
            panel.scatter([i + 1 for i in members], [record.candidates[i].score for i in members], label=name, zorder=3, **style)
    panel.set(xlabel="candidate", ylim=(-0.06, 1.06), xlim=(0.5, max(2, len(record.candidates)) + 0.5))
    panel.set_title(label, fontsize="medium")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))


def curves(judged: Mapping[str, tuple[Sequence[int], Sequence[float]]], path: Path) -> None:
    """Draw ranking and calibration of moderators, given (labels, scores) by name: ROC, precision against recall, reliability."""
    from matplotlib.figure import Figure
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import precision_recall_curve, roc_curve

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    roc, ranking, reliability = figure.subplots(1, 3)
    for name, (labels, scores) in judged.items():
        false, true, _ = roc_curve(labels, scores)
        roc.plot(false, true, label=name)
        precision, recall, _ = precision_recall_curve(labels, scores)
        ranking.plot(recall, precision, drawstyle="steps-post", label=name)
        share, score = calibration_curve(labels, scores, n_bins=10)
        reliability.plot(score, share, marker="o", label=name)
    roc.set(title="ROC", xlabel="false positive rate", ylabel="true positive rate")
    ranking.set(title="Precision and recall", xlabel="recall", ylabel="precision", ylim=(0, 1.05))
    reliability.set(title="Reliability", xlabel="score", ylabel="share of harms", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    for panel in (roc, reliability):
        panel.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    roc.legend(frameon=False)
    figure.savefig(path, dpi=150)


def draw_speed(points: Sequence[Any], path: Path, *, title: str) -> None:
    """Draw the seconds of a batch of candidates by prompt, by candidates and by new tokens, given `bench.speed.Point` values."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.4), layout="constrained")
    varied = (
        ("prefix", "prompt tokens (16 candidates, 32 new tokens)", {"candidates": 16, "tokens": 32}),
        ("candidates", "candidates (512 prompt tokens, 32 new)", {"prefix": 512, "tokens": 32}),
        ("tokens", "new tokens (512 prompt tokens, 16 candidates)", {"prefix": 512, "candidates": 16}),
    )
    lines = (
        ("generate", "generate, whole prompts", "s-"),
        ("first", "ours, first", "^-"),
        ("later", "ours, prompt kept", "o-"),
        ("floor", "floor", "k:"),
    )
    for panel, (name, label, fixed) in zip(figure.subplots(1, 3), varied, strict=True):
        found = (p for p in points if all(getattr(p, key) == value for key, value in fixed.items()))
        chosen = sorted(found, key=attrgetter(name))
        for of, entry, style in lines:
            known = [(getattr(p, name), getattr(p, of)) for p in chosen if getattr(p, of) is not None]
            panel.plot(*zip(*known, strict=True), style, markersize=4, label=entry)
        panel.set(xscale="log", yscale="log", xlabel=label)
        panel.set_xticks([getattr(p, name) for p in chosen], [str(getattr(p, name)) for p in chosen])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    figure.supylabel("seconds")
    figure.suptitle(title)
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, dpi=150)
