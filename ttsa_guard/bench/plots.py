"""Plots of a summary as SVG that stands in a page: text takes the colour of the page, nothing is loaded from outside."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

from ttsa_guard.errors import ConfigError

COLOURS = ("#3b82f6", "#f08c2e", "#22a06b", "#a06be0")
"""On white and on black alike."""
_INK = "#010203"  # replaced by the page's text colour
_WIDTH = 4.6
_LEGEND = 40  # characters that fit beside each other
_NEAR, _LINE, _CHARACTER = 0.04, 0.062, 0.02  # labels of `cost`, in units of the axes: closer is together; height; width
Series = Mapping[str, Mapping[str, Mapping[str, float]]]
"""By the name of the series and by arm: value, low and high."""


def forest(series: Series, arms: Sequence[str]) -> str:
    """Draw shares with their intervals, a line for each arm from the top down."""
    with _style():
        figure = _figure(0.9 + 0.34 * len(arms))
        panel = figure.subplots()
        for i, (label, found) in enumerate(series.items()):
            shift = 0.2 * (i - (len(series) - 1) / 2)
            known = [(arms.index(arm) + shift, estimate) for arm, estimate in found.items()]
            panel.errorbar(
                [100 * e["value"] for _, e in known],
                [y for y, _ in known],
                xerr=[[100 * max(0, sign * (e[end] - e["value"])) for _, e in known] for sign, end in ((-1, "low"), (1, "high"))],
                fmt="os^D"[i % 4],
                markersize=4.5,
                elinewidth=1.5,
                color=COLOURS[i % len(COLOURS)],
                label=label,
            )
        panel.set(xlim=(-4, 104), ylim=(len(arms) - 0.4, -0.6), xlabel="% of the flagged answers")
        panel.set_yticks(range(len(arms)), [f"{i}  {arm}" for i, arm in enumerate(arms, 1)])
        columns = len(series) if sum(map(len, series)) < _LEGEND else 2
        figure.legend(loc="outside upper right", ncols=columns, frameon=False)
        return _svg(figure, "forest " + " ".join(series))


def cost(points: Mapping[str, tuple[float, float]], arms: Sequence[str], label: str, *, marked: str) -> str:
    """Draw the share of good answers, in %, against a cost; each arm as its number, the `marked` one in another colour."""
    with _style():
        figure = _figure(3.7)
        panel = figure.subplots()
        most = max([x for x, _ in points.values()] or [0]) or 1.0
        for arm, (x, y) in points.items():
            panel.plot(x, y, "o", color=COLOURS[0 if arm == marked else 1], markersize=5, zorder=3 if arm == marked else 2)
        numbered = {arms.index(arm) + 1: (x / most, y / 100) for arm, (x, y) in points.items()}
        line = {"arrowstyle": "-", "color": "#888888", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}
        for numbers, (x, y), (beside, height) in _labels(numbered):
            place = (beside * most, height * 100)
            panel.annotate(numbers, (x * most, y * 100), place, ha="left", va="center", arrowprops=line)
        panel.set(xlabel=label, ylabel="% good", xlim=(-0.05 * most, 1.22 * most), ylim=(-8, 108))
        return _svg(figure, f"cost {label}")


def _labels(points: Mapping[int, tuple[float, float]]) -> list[tuple[str, tuple[float, float], tuple[float, float]]]:
    """Place labels on the right of their points, in units of the axes, none over another label or point.

    What is too close together for labels of its own has one.
    """
    groups: list[list[int]] = []
    for number in sorted(points, key=lambda n: (-points[n][1], points[n][0])):
        near = (g for g in groups if max(abs(a - b) for a, b in zip(points[g[0]], points[number], strict=True)) < _NEAR)
        if (group := next(near, None)) is not None:
            group.append(number)
        else:
            groups.append([number])
    found: list[tuple[str, tuple[float, float], tuple[float, float]]] = []
    for group in sorted(groups, key=lambda g: points[g[0]][1]):
        x, y = points[group[0]]
        text, beside = _ranges(sorted(group)), x + 0.04
        end = beside + _CHARACTER * len(text)
        taken = [height for other, _, (start, height) in found if start < end and beside < start + _CHARACTER * len(other)]
        taken += [b for a, b in points.values() if beside - 0.02 < a < end]
        found.append((text, (x, y), (beside, _free(y, taken, _LINE))))
    return found


def _ranges(numbers: Sequence[int]) -> str:
    """Write rising numbers as in "1, 2, 5-8"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _free(y: float, taken: Sequence[float], step: float) -> float:
    """Find the height closest to `y` that is `step` away from all that are taken; `y` itself if there is no such place."""
    edges = [-0.06 - step, *sorted(taken), 1.06 + step]
    gaps = [(low + step, high - step) for low, high in pairwise(edges) if high - low >= 2 * step - 1e-9]
    return min((min(max(y, low), high) for low, high in gaps), key=lambda place: abs(place - y), default=y)


def _figure(height: float) -> Any:
    from matplotlib.figure import Figure  # without pyplot there is no display and no global state

    return Figure(figsize=(_WIDTH, height), layout="constrained")


def _style() -> Any:
    if find_spec("matplotlib") is None:
        raise ConfigError("plots need matplotlib", hint="pip install 'ttsa-guard[plot]'")
    from matplotlib import rc_context

    style: dict[Any, Any] = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), _INK)
    style |= {"axes.grid": True, "axes.axisbelow": True, "grid.color": "#888888", "grid.alpha": 0.25}
    style |= dict.fromkeys(("axes.spines.top", "axes.spines.right"), False)
    style |= dict.fromkeys(("axes.facecolor", "figure.facecolor"), "none")
    style |= {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "ttsa-guard", "text.parse_math": False}
    return rc_context(style)


def _svg(figure: Any, name: str) -> str:
    """Return the figure without what belongs to a file of its own; names of clip paths are made unique within a page."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")), transparent=True)
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(
        r"<svg [^>]*?viewBox=\"([^\"]*)\"[^>]*>",
        r'<svg viewBox="\1" role="img" xmlns:xlink="http://www.w3.org/1999/xlink">',
        text,
    )
    prefix = re.sub(r"\W+", "-", name)
    return re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{prefix}-", text)
