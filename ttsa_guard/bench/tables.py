"""The report in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from ttsa_guard.bench.measure import COLUMNS

_SHOWN = ("good", "helpful", "swapped", "unsafe", "generations", "decode passes", "seconds")
_WITH_INTERVAL = ("good", "helpful")


def tables(summary: Mapping[str, Any]) -> Iterator[Table]:
    """One for each group, then one for the benign prompts."""
    for name, group in summary["groups"].items():
        yield _group(name, group)
    benign = summary["benign"]
    if any(benign["arms"].values()):
        title = f"benign prompts ({benign['unflagged']} unflagged, {benign['flagged']} flagged)"
        yield _table(title, benign["arms"], dict.fromkeys(next(iter(benign["arms"].values())), "share"))


def value(how: str, found: Mapping[str, float] | None, *, interval: bool = False) -> str:
    """An estimate as people read it; empty if there is none."""
    if found is None:
        return ""
    if how == "share":
        low, high = (f"{100 * found[key]:.0f}" for key in ("low", "high"))
        return f"{100 * found['value']:.0f} %" + (f" ({low}-{high})" if interval else "")
    text = "{:.2f}" if how in ("number", "median") else "{:.1f}"
    limits = f" ({text.format(found['low'])}-{text.format(found['high'])})" if interval else ""
    return text.format(found["value"]) + limits


def _group(name: str, group: Mapping[str, Any]) -> Table:
    known = {column for arm in group["arms"].values() for column in arm}
    columns = {column: COLUMNS[column][0] for column in _SHOWN if column in known}
    return _table(f"{name} ({group['cases']} flagged answers)", group["arms"], columns)


def _table(title: str, arms: Mapping[str, Any], columns: Mapping[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, collapse_padding=True, title=Text(title, style="bold"), title_justify="left")
    table.add_column("arm", overflow="fold", min_width=max(len(word) for arm in arms for word in arm.split()))
    for column, how in columns.items():
        words = [*column.split(), *(["%"] if how == "share" else [])]
        table.add_column("\n".join(words), justify="right", min_width=max(map(len, words)))
    for arm, found in arms.items():
        cells = (value(how, found.get(c), interval=c in _WITH_INTERVAL) for c, how in columns.items())
        table.add_row(Text(arm), *(cell.replace(" %", "") for cell in cells))
    return table
