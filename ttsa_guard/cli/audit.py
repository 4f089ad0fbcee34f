"""``ttsa-guard audit summary``: what a file of audit records says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ttsa_guard.audit import PHASES, AuditSummary, day, summarise
from ttsa_guard.cli import common

app = typer.Typer(no_args_is_help=True)
_NAMED = 5
"""Most lines without a record whose numbers are told."""


@app.callback()
def _group() -> None:
    """Read what audit: {path: FILE} has written."""


@app.command()
def summary(
    file: Annotated[
        Path, typer.Argument(help="Audit records, one JSON object a line.", show_default=False)
    ],
    as_json: common.AsJson = False,
) -> None:
    """Count what happened to the answers, what it cost and why; texts are never printed.

    Example: ttsa-guard audit summary audit.jsonl
    """
    audited = summarise(file)
    if as_json:
        typer.echo(json.dumps(audited.as_dict(), indent=1))
    else:
        _show(audited)
    tell_skipped(file, audited)


def tell_skipped(file: Path, audited: AuditSummary) -> None:
    """Say which lines of the file were left out, if any were."""
    if audited.skipped:
        count = common.counted(len(audited.skipped), "line")
        numbers = [*map(str, audited.skipped[:_NAMED]), *["..."][: len(audited.skipped) > _NAMED]]
        told = f"{count} of {file} left out, no audit records: {', '.join(numbers)}"
        common.err.print(told, markup=False)


def _show(audited: AuditSummary) -> None:
    reviews = common.counted(audited.records, "review")
    common.out.print(f"{reviews}, {day(audited.first)} to {day(audited.last)}", markup=False)
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    timed = {name for summary in audited.actions.values() for name in summary.seconds}
    phases = [name for name in PHASES if name in timed]
    counts = ("count", "share", "helpful", "generations", "moderation calls")
    table.add_column("action")
    for heading in (*counts, *phases):
        table.add_column(heading, justify="right")
    for action, summary in audited.actions.items():
        spreads = (summary.seconds.get(name) for name in phases)
        table.add_row(
            action,
            str(summary.count),
            f"{summary.share:.1%}",
            str(summary.helpful),
            f"{summary.generations.median:g}",
            f"{summary.moderation_calls.median:g}",
            *(f"{s.median:.3f} /{s.p95:.3f}" if s else "" for s in spreads),
        )
    common.show_numbers(table)
    common.out.print("medians; phases: seconds, median /95th percentile", style="dim")
    _show_counts("why flagged answers ended as they did", audited.reasons)
    _show_counts("mended by", audited.steerers)


def _show_counts(heading: str, counts: Mapping[str, int]) -> None:
    if counts:
        common.out.print(f"\n{heading}")
    for name, count in counts.items():
        common.out.print(f"  {count:>6}  {name}", markup=False)
