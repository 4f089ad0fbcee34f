"""The report in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from ttsa_guard.bench.measure import (
    COLUMNS,
    COMPARED,
    Columns,
    Estimate,
    GroupSummary,
    How,
    Summary,
)

if TYPE_CHECKING:
    from ttsa_guard.bench.speed import SpeedPoint

_SHOWN = ("good", "helpful", "swapped", "unsafe", "generations", "decode passes", "seconds")


def tables(summary: Summary) -> Iterator[Table]:
    """One for each group, then one for the benign prompts."""
    for name, group in summary.groups.items():
        yield _group(name, group)
    benign = summary.benign
    if any(benign.arms.values()):
        title = f"benign prompts ({benign.unflagged} unflagged, {benign.flagged} flagged)"
        yield _table(title, benign.arms, dict.fromkeys(next(iter(benign.arms.values())), "share"))


def speed_table(points: Sequence[SpeedPoint]) -> Table:
    """Write times of batches of candidates in ms, how many times faster than `generate` and slower
    than the floor they are.
    """
    times, compared = (
        ("first", "later", "generate"),
        (
            "generate/first",
            "generate/later",
            "floor",
            "later/floor",
            "same tokens",
        ),
    )
    headings = ("prompt", "candidates", "new tokens", *times, *compared)
    table = Table(*headings, box=None, pad_edge=False)
    for column in table.columns:
        column.justify = "right"
    for p in points:
        row = [
            str(p.prefix),
            str(p.candidates),
            str(p.tokens),
            f"{1000 * p.first:.0f}",
            f"{1000 * p.later:.0f}",
        ]
        if p.generate is None:
            row += ["", "", ""]
        else:
            row += [
                f"{1000 * p.generate:.0f}",
                f"{p.generate / p.first:.1f}",
                f"{p.generate / p.later:.1f}",
            ]
        row += [
            f"{1000 * p.floor:.0f}",
            f"{p.later / p.floor:.1f}",
            {True: "yes", False: "NO", None: ""}[p.equal],
        ]
        table.add_row(*row)
    return table


def figures(how: How, estimate: Estimate) -> tuple[str, str, str]:
    """Value and interval as people read them: shares in %, differences of shares in points."""
    form = {"share": "{:.0f}", "difference": "{:+.0f}", "mean": "{:.1f}"}.get(how, "{:.2f}")
    factor = 100 if how in ("share", "difference") else 1
    value, low, high = (
        form.format(factor * number) for number in (estimate.value, estimate.low, estimate.high)
    )
    return value, low, high


def _group(name: str, group: GroupSummary) -> Table:
    known = {column for arm in group.arms.values() for column in arm.columns}
    columns = {column: COLUMNS[column][0] for column in _SHOWN if column in known}
    return _table(
        f"{name} ({group.cases} flagged answers)",
        {name: arm.columns for name, arm in group.arms.items()},
        columns,
    )


def _table(title: str, arms: Mapping[str, Columns], columns: Mapping[str, How]) -> Table:
    table = Table(
        box=None,
        pad_edge=False,
        collapse_padding=True,
        title=Text(title, style="bold"),
        title_justify="left",
    )
    table.add_column(
        "arm", overflow="fold", min_width=max(len(word) for arm in arms for word in arm.split())
    )
    for column, how in columns.items():
        words = [*column.split(), *(["%"] if how == "share" else [])]
        table.add_column("\n".join(words), justify="right", min_width=max(map(len, words)))
    for arm, estimates in arms.items():
        table.add_row(
            Text(arm),
            *(_cell(column, how, estimates.get(column)) for column, how in columns.items()),
        )
    return table


def _cell(column: str, how: How, estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    value, low, high = figures(how, estimate)
    return f"{value} ({low}-{high})" if column in COMPARED else value
