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
_EQUAL = {True: "yes", False: "NO", None: ""}


def tables(summary: Summary) -> Iterator[Table]:
    """Yield a table for each group, then one for the benign prompts."""
    for name, group in summary.groups.items():
        yield _group(name, group)
    benign = summary.benign
    if any(benign.arms.values()):
        title = f"benign prompts ({benign.unflagged} unflagged, {benign.flagged} flagged)"
        yield _table(title, benign.arms, dict.fromkeys(next(iter(benign.arms.values())), "share"))


def speed_table(points: Sequence[SpeedPoint]) -> Table:
    """Write the times of batches of candidates in ms.

    Beside them stand how many times faster than `generate`, and slower than the floor, they are.
    """
    times = ("first", "later", "generate")
    compared = ("generate/first", "generate/later", "floor", "later/floor", "same tokens")
    headings = ("prompt", "candidates", "new tokens", *times, *compared)
    table = Table(*headings, box=None, pad_edge=False)
    for column in table.columns:
        column.justify = "right"
    for p in points:
        sizes = (str(p.prefix), str(p.candidates), str(p.tokens))
        ours = (_ms(p.first), _ms(p.later))
        theirs = ("", "", "")
        if p.generate is not None:
            faster = (p.generate / p.first, p.generate / p.later)
            theirs = (_ms(p.generate), f"{faster[0]:.1f}", f"{faster[1]:.1f}")
        floor = (_ms(p.floor), f"{p.later / p.floor:.1f}")
        table.add_row(*sizes, *ours, *theirs, *floor, _EQUAL[p.equal])
    return table


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f}"


def figures(how: How, estimate: Estimate) -> tuple[str, str, str]:
    """Return value, low and high end as people read them.

    Shares are in %, differences of shares in points.
    """
    form = {"share": "{:.0f}", "difference": "{:+.0f}", "mean": "{:.1f}"}.get(how, "{:.2f}")
    factor = 100 if how in ("share", "difference") else 1
    value, low, high = (
        form.format(factor * number) for number in (estimate.value, estimate.low, estimate.high)
    )
    return value, low, high


def _group(name: str, group: GroupSummary) -> Table:
    known = {column for arm in group.arms.values() for column in arm.columns}
    columns = {column: COLUMNS[column][0] for column in _SHOWN if column in known}
    arms = {name: arm.columns for name, arm in group.arms.items()}
    return _table(f"{name} ({group.cases} flagged answers)", arms, columns)


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
