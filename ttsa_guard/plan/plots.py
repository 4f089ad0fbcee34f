"""Pictures of plans and of what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ttsa_guard.plan.capacity import LoadPoint
from ttsa_guard.plan.validation import Validation

_COLOURS = {"p50": "#3b82f6", "p95": "#f08c2e", "p99": "#a06be0"}


def draw_plan(points: Sequence[LoadPoint], target: float, path: Path) -> None:
    """Draw latency, and replicas and cost, over the rate; rates at which something breaks are crossed."""
    from matplotlib.figure import Figure  # without pyplot there is no display and no global state

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    rates = [p.rate for p in points]
    for q, colour in _COLOURS.items():
        left.plot(rates, [p.flagged.get(q) for p in points], "o-", color=colour, markersize=4, label=f"flagged, {q}")
    left.plot(rates, [p.unflagged.get("p95") for p in points], "o-", color="grey", markersize=4, label="unflagged, p95")
    left.axhline(target, color="black", linestyle="--", linewidth=1, label="target of the p95")
    left.set(xscale="log", yscale="log", xlabel="answers a second", ylabel="seconds added to an answer")
    right.plot(rates, [p.replicas for p in points], "o-", color="#22a06b", markersize=4, label="replicas")
    cost = [(p.rate, p.cost) for p in points if not p.limit]
    right.plot(
        *zip(*cost, strict=True) if cost else ((), ()), "o-", color="#a06be0", markersize=4, label="cost of a million answers"
    )
    right.set(xscale="log", yscale="log", xlabel="answers a second")
    broken = [p for p in points if p.limit]
    if broken:
        right.plot([p.rate for p in broken], [p.replicas for p in broken], "x", color="tab:red", markersize=9, label="breaks")
    for panel in (left, right):
        panel.grid(alpha=0.25)
        panel.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)


def draw_validation(found: Validation, path: Path) -> None:
    """Draw a panel for each quantity: predicted percentiles over the rate, and those of the runs."""
    from matplotlib.figure import Figure

    quantities = list(dict.fromkeys(row.quantity for row in found.rows))
    figure = Figure(figsize=(3.6 * len(quantities), 3.6), layout="constrained")
    for panel, quantity in zip(figure.subplots(1, len(quantities), squeeze=False)[0], quantities, strict=True):
        rows = [row for row in found.rows if row.quantity == quantity]
        for q in ("p50", "p95"):
            for run in range(len(rows[0].measured)):
                label = (f"{q}, measured", f"{q}, predicted") if not run else ("", "")
                rates = [row.rate for row in rows]
                panel.plot(rates, [r.measured[run][q] for r in rows], "o", color=_COLOURS[q], label=label[0])
                panel.plot(rates, [r.predicted[run][q] for r in rows], "_-", color=_COLOURS[q], linewidth=1, label=label[1])
        panel.set(title=quantity, xlabel="answers a second", ylim=(0, None))
        panel.grid(alpha=0.25)
        panel.legend(frameon=False, fontsize="small")
    figure.supylabel("seconds")
    figure.savefig(path, dpi=150)
