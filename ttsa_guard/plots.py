"""Plots in one style: searches, moderators, benchmarks, the speed of decoding, and plans.

They are drawn without pyplot, so there is no display and no global state. matplotlib is imported
when something is drawn.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from importlib.util import find_spec
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttsa_guard.errors import ConfigError
from ttsa_guard.files import ready_file
from ttsa_guard.record import AuditRecord

if TYPE_CHECKING:
    from ttsa_guard.bench.measure import Estimate
    from ttsa_guard.bench.speed import SpeedPoint
    from ttsa_guard.plan.capacity import LoadPoint
    from ttsa_guard.plan.validation import Validation

COLOURS = ("#3b82f6", "#f08c2e", "#22a06b", "#a06be0")
"""On white and on black alike."""
RED, GREY = "#d1495b", "#888888"
"""Of what is bad, and of what helps to read the rest."""
_FORMATS = (".png", ".svg", ".pdf")
_STYLE = {
    "font.size": 9,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.alpha": 0.25,
    "grid.color": GREY,
    "legend.frameon": False,
    "lines.markersize": 4.5,
    "lines.linewidth": 1.4,
    "savefig.dpi": 150,
}
_INK = "#010203"
"""Stands for the page's text colour, which takes its place."""
_IN_PAGE = {
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), _INK
    ),
    **dict.fromkeys(("axes.facecolor", "figure.facecolor"), "none"),
    "svg.fonttype": "none",
    "svg.hashsalt": "ttsa-guard",
    "text.parse_math": False,  # names of arms; the labels of logarithmic axes need it
}
_PANELS = 3
"""Panels beside each other, in the plot of searches."""
_WIDTH = 4.6
"""Width of a plot in a page, in inches."""
_LEGEND = 40
"""Characters of a legend that fit beside each other."""
_NEAR, _LINE, _CHARACTER = 0.04, 0.062, 0.02
"""Of labels in `cost`, in units of the axes: points that share one, its height, a character's
width."""
_PERCENTILES = dict(zip(("p50", "p95", "p99"), (COLOURS[0], COLOURS[1], COLOURS[3]), strict=True))


def ready(path: Path) -> None:
    """Check before the work that the plot can be drawn afterwards.

    Raises:
        ConfigError: matplotlib is missing, or `path` has another suffix or no folder.
    """
    _check_installed()
    if path.suffix not in _FORMATS:
        raise ConfigError(
            f"cannot draw to {path}", hint=f"the name ends with one of {', '.join(_FORMATS)}"
        )
    ready_file(path, "--plot")


@contextmanager
def drawing(path: Path, width: float, height: float) -> Iterator[Any]:
    """Give a matplotlib figure of this size in inches to draw on, which is then written to `path`.

    Raises:
        ConfigError: matplotlib is missing.
    """
    with _styled(_STYLE):
        figure = _figure(width, height)
        yield figure
        figure.savefig(path)


def _check_installed() -> None:
    if find_spec("matplotlib") is None:
        raise ConfigError("plots need matplotlib", hint="pip install 'ttsa-guard[plot]'")


@contextmanager
def _styled(style: Mapping[str, Any]) -> Iterator[None]:
    _check_installed()
    from cycler import cycler
    from matplotlib import rc_context

    settings: dict[Any, Any] = {**style, "axes.prop_cycle": cycler(color=COLOURS)}
    with rc_context(settings):
        yield


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


# ---------------------------------------------------------------------- searches and moderators


def draw_searches(
    reviews: Sequence[tuple[str, AuditRecord]], path: Path, *, threshold: float | None
) -> None:
    """Draw a panel for each flagged answer: the scores of its candidates in the order in which they
    were found.
    """
    rows = max(1, math.ceil(len(reviews) / _PANELS))
    with drawing(path, 4 * _PANELS, 1 + 2.5 * rows) as figure:
        panels = figure.subplots(rows, _PANELS, sharey=True, squeeze=False).ravel()
        for panel, (label, record) in zip(panels, reviews, strict=False):
            _search(panel, label, record, threshold)
        for panel in panels[len(reviews) :]:
            panel.set_axis_off()
        figure.suptitle("Searches for a better answer" if reviews else "No answer was flagged")
        figure.supylabel("guide score")
        entries = {
            text: handle
            for panel in panels
            for handle, text in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            entries.values(), entries.keys(), loc="outside lower right", ncols=len(entries) or 1
        )


def _search(panel: Any, label: str, record: AuditRecord, threshold: float | None) -> None:
    from matplotlib.ticker import MaxNLocator

    at = record.chosen
    everything = range(len(record.candidates))
    rejected = [i for i in everything if not record.candidates[i].passed]
    acceptable = [i for i in everything if record.candidates[i].passed and i != at]
    star = {"marker": "*", "color": "gold", "edgecolors": "black", "s": 220}
    groups: tuple[tuple[str, dict[str, Any], list[int]], ...] = (
        ("rejected", {"marker": "x", "color": RED}, rejected),
        ("acceptable", {"marker": "o", "color": COLOURS[0]}, acceptable),
        ("swapped in", star, [i for i in everything if i == at]),
    )
    panel.axhline(record.gate_score, color=RED, linestyle=":", label="flagged answer")
    if threshold is not None:
        label = f"threshold {threshold:g}"
        panel.axhline(threshold, color="black", linestyle="--", linewidth=1, label=label)
    for name, style, members in groups:
        if members:
            panel.scatter(
                [i + 1 for i in members],
                [record.candidates[i].score for i in members],
                label=name,
                zorder=3,
                **style,
            )
    end = max(2, len(record.candidates)) + 0.5
    panel.set(xlabel="candidate", ylim=(-0.06, 1.06), xlim=(0.5, end))
    panel.set_title(label, fontsize="medium")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))


def draw_curves(judged: Mapping[str, tuple[Sequence[int], Sequence[float]]], path: Path) -> None:
    """Draw ranking and calibration of moderators: ROC, precision against recall, reliability.

    Args:
        judged: labels and scores, by the moderator's name.
    """
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import precision_recall_curve, roc_curve

    with drawing(path, 12, 4.2) as figure:
        roc, ranking, reliability = figure.subplots(1, 3)
        for name, (labels, scores) in judged.items():
            false, true, _ = roc_curve(labels, scores)
            roc.plot(false, true, label=name)
            precision, recall, _ = precision_recall_curve(labels, scores)
            ranking.plot(recall, precision, drawstyle="steps-post", label=name)
            share, score = calibration_curve(labels, scores, n_bins=10)
            reliability.plot(score, share, marker="o", label=name)
        roc.set(title="ROC", xlabel="false positive rate", ylabel="true positive rate")
        ranking.set(title="Precision and recall", xlabel="recall", ylabel="precision")
        ranking.set(ylim=(0, 1.05))
        reliability.set(title="Reliability", xlabel="score", ylabel="share of harms")
        reliability.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        for panel in (roc, reliability):
            panel.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
        roc.legend()


# ---------------------------------------------------------------------- decoding and plans


def draw_speed(points: Sequence[SpeedPoint], path: Path, *, title: str) -> None:
    """Draw the seconds of a batch of candidates by prompt, by candidates and by new tokens."""
    prompt, candidates, tokens = {"prefix": 512}, {"candidates": 16}, {"tokens": 32}
    varied = (
        ("prefix", "prompt tokens (16 candidates, 32 new tokens)", {**candidates, **tokens}),
        ("candidates", "candidates (512 prompt tokens, 32 new)", {**prompt, **tokens}),
        ("tokens", "new tokens (512 prompt tokens, 16 candidates)", {**prompt, **candidates}),
    )
    lines = (
        ("generate", "generate, whole prompts", "s-"),
        ("first", "ours, first", "^-"),
        ("later", "ours, prompt kept", "o-"),
        ("floor", "floor", "k:"),
    )
    with drawing(path, 13, 4.4) as figure:
        for panel, (name, label, fixed) in zip(figure.subplots(1, 3), varied, strict=True):
            matching = (
                p for p in points if all(getattr(p, key) == value for key, value in fixed.items())
            )
            chosen = sorted(matching, key=attrgetter(name))
            for of, entry, style in lines:
                known = [
                    (getattr(p, name), getattr(p, of)) for p in chosen if getattr(p, of) is not None
                ]
                panel.plot(*zip(*known, strict=True), style, label=entry)
            panel.set(xscale="log", yscale="log", xlabel=label)
            ticks = [getattr(p, name) for p in chosen]
            panel.set_xticks(ticks, list(map(str, ticks)))
            panel.minorticks_off()
        figure.supylabel("seconds")
        figure.suptitle(title)
        figure.axes[0].legend()


def draw_plan(points: Sequence[LoadPoint], target: float, path: Path) -> None:
    """Draw latency, replicas and cost over the rate; a cross marks where something breaks."""
    with drawing(path, 9, 3.8) as figure:
        latency, effort = figure.subplots(1, 2)
        rates = [p.rate for p in points]
        for q, colour in _PERCENTILES.items():
            flagged = [p.flagged.get(q) for p in points]
            latency.plot(rates, flagged, "o-", color=colour, label=f"flagged, {q}")
        unflagged = [p.unflagged.get("p95") for p in points]
        latency.plot(rates, unflagged, "o-", color=GREY, label="unflagged, p95")
        line = {"color": "black", "linestyle": "--", "linewidth": 1}
        latency.axhline(target, label="target of the p95", **line)
        latency.set(ylabel="seconds added to an answer")
        effort.plot(rates, [p.replicas for p in points], "o-", color=COLOURS[2], label="replicas")
        costs = [(p.rate, p.cost) for p in points if not p.limit]
        x, y = zip(*costs, strict=True) if costs else ((), ())
        effort.plot(x, y, "o-", color=COLOURS[3], label="cost of a million answers")
        if broken := [p for p in points if p.limit]:
            x, y = zip(*((p.rate, p.replicas) for p in broken), strict=True)
            effort.plot(x, y, "x", color=RED, markersize=9, label="breaks")
        for panel in (latency, effort):
            panel.set(xscale="log", yscale="log", xlabel="answers a second")
            panel.legend(fontsize="small")


def draw_validation(validation: Validation, path: Path) -> None:
    """Draw a panel for each quantity: percentiles over the rate, predicted and of the runs."""
    quantities = list(dict.fromkeys(row.quantity for row in validation.rows))
    with drawing(path, 3.6 * len(quantities), 3.6) as figure:
        panels = figure.subplots(1, len(quantities), squeeze=False)[0]
        for panel, quantity in zip(panels, quantities, strict=True):
            rows = [row for row in validation.rows if row.quantity == quantity]
            rates = [row.rate for row in rows]
            for q in ("p50", "p95"):
                colour = _PERCENTILES[q]
                for run in range(len(rows[0].measured)):
                    labels = ("", "") if run else (f"{q}, measured", f"{q}, predicted")
                    measured = [row.measured[run][q] for row in rows]
                    predicted = [row.predicted[run][q] for row in rows]
                    panel.plot(rates, measured, "o", label=labels[0], color=colour)
                    panel.plot(rates, predicted, "_-", linewidth=1, label=labels[1], color=colour)
            panel.set(title=quantity, xlabel="answers a second", ylim=(0, None))
            panel.legend(fontsize="small")
        figure.supylabel("seconds")


# ---------------------------------------------------------------------- benchmarks, in a page


def forest(series: Mapping[str, Mapping[str, Estimate]], arms: Sequence[str]) -> str:
    """Draw shares with their intervals, a line for each arm from the top down, as SVG.

    Text takes the colour of the page.

    Args:
        series: by name and by arm.
    """
    with _styled({**_STYLE, **_IN_PAGE}):
        figure = _figure(_WIDTH, 0.9 + 0.34 * len(arms))
        panel = figure.subplots()
        for i, (label, estimates) in enumerate(series.items()):
            shift = 0.2 * (i - (len(series) - 1) / 2)
            known = [(arms.index(arm) + shift, estimate) for arm, estimate in estimates.items()]
            below = [100 * max(0, e.value - e.low) for _, e in known]
            above = [100 * max(0, e.high - e.value) for _, e in known]
            panel.errorbar(
                [100 * e.value for _, e in known],
                [y for y, _ in known],
                xerr=[below, above],
                fmt="os^D"[i % 4],
                elinewidth=1.5,
                color=COLOURS[i % len(COLOURS)],
                label=label,
            )
        panel.set(xlim=(-4, 104), ylim=(len(arms) - 0.4, -0.6), xlabel="% of the flagged answers")
        panel.set_yticks(range(len(arms)), [f"{i}  {arm}" for i, arm in enumerate(arms, 1)])
        columns = len(series) if sum(map(len, series)) < _LEGEND else 2
        figure.legend(loc="outside upper right", ncols=columns)
        told = f"Shares of the flagged answers, by arm: {', '.join(series)}"
        return _svg(figure, "forest " + " ".join(series), told)


def cost(
    points: Mapping[str, tuple[float, float]], arms: Sequence[str], label: str, *, marked: str
) -> str:
    """Draw the share of good answers, in %, against a cost, as SVG.

    Each arm is shown as its number, and the `marked` one in another colour.
    """
    with _styled({**_STYLE, **_IN_PAGE}):
        figure = _figure(_WIDTH, 3.7)
        panel = figure.subplots()
        most = max([x for x, _ in points.values()] or [0]) or 1.0
        for arm, (x, y) in points.items():
            colour, order = (COLOURS[0], 3) if arm == marked else (COLOURS[1], 2)
            panel.plot(x, y, "o", color=colour, zorder=order)
        numbered = {arms.index(arm) + 1: (x / most, y / 100) for arm, (x, y) in points.items()}
        line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}
        for numbers, (x, y), (beside, height) in _labels(numbered):
            place = (beside * most, height * 100)
            panel.annotate(
                numbers, (x * most, y * 100), place, ha="left", va="center", arrowprops=line
            )
        panel.set(xlabel=label, ylabel="% good", xlim=(-0.05 * most, 1.22 * most), ylim=(-8, 108))
        return _svg(figure, f"cost {label}", f"Share of good answers against {label}, by arm")


def _labels(
    points: Mapping[int, tuple[float, float]],
) -> list[tuple[str, tuple[float, float], tuple[float, float]]]:
    """Place labels on the right of the points that they belong to, in units of the axes.

    None lies over another label or point. Points that are too close together share one.
    """
    groups: list[list[int]] = []
    for number in sorted(points, key=lambda n: (-points[n][1], points[n][0])):
        near = (
            g
            for g in groups
            if max(abs(a - b) for a, b in zip(points[g[0]], points[number], strict=True)) < _NEAR
        )
        if (group := next(near, None)) is not None:
            group.append(number)
        else:
            groups.append([number])
    placed: list[tuple[str, tuple[float, float], tuple[float, float]]] = []
    for group in sorted(groups, key=lambda g: points[g[0]][1]):
        x, y = points[group[0]]
        text, beside = _ranges(sorted(group)), x + 0.04
        end = beside + _CHARACTER * len(text)
        taken = [
            height
            for other, _, (start, height) in placed
            if start < end and beside < start + _CHARACTER * len(other)
        ]
        taken += [b for a, b in points.values() if beside - 0.02 < a < end]
        placed.append((text, (x, y), (beside, _free(y, taken, _LINE))))
    return placed


def _ranges(numbers: Sequence[int]) -> str:
    """Write rising numbers as in "1, 2, 5-8"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(
        f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs
    )


def _free(y: float, taken: Sequence[float], step: float) -> float:
    """Return the height closest to `y` that is `step` away from all that are taken.

    `y` itself if there is no such place.
    """
    edges = [-0.06 - step, *sorted(taken), 1.06 + step]
    gaps = [
        (low + step, high - step) for low, high in pairwise(edges) if high - low >= 2 * step - 1e-9
    ]
    return min(
        (min(max(y, low), high) for low, high in gaps), key=lambda place: abs(place - y), default=y
    )


def _svg(figure: Any, name: str, told: str) -> str:
    """Return the figure without what belongs to a file of its own.

    Args:
        name: makes names of clip paths unique within a page.
        told: says what is drawn to those who cannot see it.
    """
    out = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(out, format="svg", metadata=nothing, transparent=True)
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(
        r"<svg [^>]*?viewBox=\"([^\"]*)\"[^>]*>",
        lambda found: (
            f'<svg viewBox="{found[1]}" role="img" aria-label="{escape(told)}"'
            ' xmlns:xlink="http://www.w3.org/1999/xlink">'
        ),
        text,
    )
    prefix = re.sub(r"\W+", "-", name)
    return re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{prefix}-", text)
