"""The report of a benchmark as one page of HTML: tables, plots and how to read them.

It loads nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ttsa_guard.bench.measure import (
    COLUMNS,
    COMPARED,
    ArmSummary,
    Columns,
    Estimate,
    GroupSummary,
    How,
    Summary,
)
from ttsa_guard.bench.tables import figures
from ttsa_guard.pages.render import render
from ttsa_guard.plots import cost, forest

_COSTS = {
    "generations": "generations, mean",
    "decode passes": "decode passes, mean",
    "seconds": "seconds, median",
}
_LEVELS = ("hard", "mixed")
_KINDS = 3
"""Most kinds of failure in one plot."""


@dataclass(frozen=True)
class PageFigure:
    """A plot.

    Args:
        svg: drawn by us, with every text in it escaped.
    """

    caption: str
    svg: Markup


@dataclass(frozen=True)
class PageTable:
    """A table of arms.

    Args:
        columns: headings.
        arms: by name, a cell for each column; None: the column does not apply.
        shown: from the beginning, not only when it is unfolded.
    """

    title: str
    columns: list[str]
    arms: dict[str, list[PageCell | None]]
    shown: bool


@dataclass(frozen=True)
class PageCell:
    """A value with its unit, and its interval."""

    value: str
    interval: str


def page(summary: Summary) -> str:
    """Return the page of a `Results.summary`.

    Raises:
        ConfigError: matplotlib is missing.
    """
    meta, groups = summary.meta, summary.groups
    arms = list(next(iter(groups.values())).arms) if groups else []
    return render(
        "benchmark.html",
        facts=_facts(summary),
        command=meta.command,
        budget=meta.budget,
        some_exact=any(meta.exact),
        all_exact=all(meta.exact),
        judge=None if all(meta.exact) else meta.judge,
        reference=meta.reference,
        quality=list(_quality(groups, arms)),
        costs=list(_costs(groups, arms, meta.reference)),
        tables=list(_tables(summary)),
        settings={arm: json.dumps(meta.arms[arm]) for arm in arms},
    )


def _facts(summary: Summary) -> str:
    meta = summary.meta
    flagged = summary.groups["all"].cases if summary.groups else 0
    versions = ", ".join(f"{name} {v}" for name, v in meta.versions.items() if v)
    lacking = f". Not finished: {'; '.join(summary.missing)}" if summary.missing else ""
    model = meta.model or "the embedded model"
    return (
        f"{flagged} flagged answers of {model}, seed {meta.seed}, on {meta.device};"
        f" {versions}{lacking}"
    )


def _quality(groups: Mapping[str, GroupSummary], arms: Sequence[str]) -> Iterator[PageFigure]:
    if not groups:
        return
    everything = {name: _series(groups["all"].arms, name) for name in COMPARED}
    yield _figure("All flagged answers", forest(everything, arms))
    levels = [level for level in _LEVELS if level in groups]
    yield _figure("Good, by difficulty", forest(_by_group(groups, levels), arms))
    kinds = [name for name in groups if name not in ("all", *_LEVELS)]
    for start in range(0, len(kinds), _KINDS):
        shown = _by_group(groups, kinds[start : start + _KINDS])
        yield _figure("Good, by kind of failure", forest(shown, arms))


def _by_group(groups: Mapping[str, GroupSummary], names: Sequence[str]) -> dict[str, Columns]:
    return {f"{name} ({groups[name].cases})": _series(groups[name].arms, "good") for name in names}


def _series(arms: Mapping[str, ArmSummary], column: str) -> Columns:
    return {name: arm.columns[column] for name, arm in arms.items() if column in arm.columns}


def _costs(
    groups: Mapping[str, GroupSummary], arms: Sequence[str], reference: str
) -> Iterator[PageFigure]:
    if not groups:
        return
    known = {arm: groups["all"].arms[arm].columns for arm in arms}
    for column, label in _COSTS.items():
        points = {
            arm: (c[column].value, 100 * c["good"].value) for arm, c in known.items() if column in c
        }
        yield _figure(f"Good against {column}", cost(points, arms, label, marked=reference))


def _figure(caption: str, svg: str) -> PageFigure:
    return PageFigure(caption, Markup(svg))


def _tables(summary: Summary) -> Iterator[PageTable]:
    for name, group in summary.groups.items():
        against = {column: f"{column} against {summary.meta.reference}" for column in COMPARED}
        arms = {
            arm: {
                **known.columns,
                **{against[column]: value for column, value in known.difference.items()},
            }
            for arm, known in group.arms.items()
        }
        columns: dict[str, How] = {
            **dict.fromkeys(COMPARED, "share"),
            **dict.fromkeys(against.values(), "difference"),
        }
        columns |= {
            column: how
            for column, (how, _) in COLUMNS.items()
            if any(column in known for known in arms.values())
        }
        yield _table(f"{name} ({group.cases} flagged answers)", columns, arms, shown=name == "all")
    benign = summary.benign
    shares: dict[str, How] = dict.fromkeys(
        (column for known in benign.arms.values() for column in known), "share"
    )
    if shares:
        title = f"benign prompts ({benign.unflagged} unflagged, {benign.flagged} flagged)"
        yield _table(title, shares, benign.arms, shown=True)


def _table(
    title: str, columns: Mapping[str, How], arms: Mapping[str, Columns], *, shown: bool
) -> PageTable:
    headings = [
        f"{column}, {how}" if how in ("mean", "median") else column
        for column, how in columns.items()
    ]
    cells = {
        arm: [
            _cell(how, known[column]) if column in known else None
            for column, how in columns.items()
        ]
        for arm, known in arms.items()
    }
    return PageTable(title, headings, cells, shown)


def _cell(how: How, estimate: Estimate) -> PageCell:
    value, low, high = figures(how, estimate)
    return PageCell(f"{value}{' %' if how == 'share' else ''}", f"{low} to {high}")
