"""The demo's plot: the guide's score of every candidate."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ttsa_guard.errors import ConfigError
from ttsa_guard.record import AuditRecord

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
    """One line for each flagged answer, from its own score over those of its candidates; the swapped one is marked."""
    from matplotlib.figure import Figure  # without pyplot there is no display and no global state
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    for index, (label, record) in enumerate(reviews):
        scores = [record.gate_score, *(c.score for c in record.candidates)]
        colour = f"C{index % 10}"
        axes.plot(scores, color=colour, marker="o", markersize=4, linewidth=0.8, alpha=0.7, label=label)
        at = chosen(record)
        if at is not None:
            axes.plot(at + 1, scores[at + 1], marker="*", markersize=17, color=colour, markeredgecolor="black", linestyle="none")
    if threshold is not None:
        axes.axhline(threshold, color="black", linestyle="--", linewidth=1, label=f"threshold {threshold:g}")
    axes.plot([], [], marker="*", markersize=13, color="white", markeredgecolor="black", linestyle="none", label="swapped in")
    axes.set(xlabel="candidate (0: the flagged answer)", ylabel="guide score", ylim=(-0.03, 1.03))
    axes.set_title("Search for a better answer" if reviews else "No answer was flagged")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=150)


def chosen(record: AuditRecord) -> int | None:
    """Which candidate was swapped in: the guard takes the best of the passing ones."""
    passing = [i for i, c in enumerate(record.candidates) if c.passed]
    if record.action != "swap" or not passing:
        return None

    def rank(i: int) -> tuple[bool, float]:
        candidate = record.candidates[i]
        likelihood = candidate.log_likelihood
        return candidate.helpful, likelihood if likelihood is not None else -candidate.score

    return max(passing, key=rank)
