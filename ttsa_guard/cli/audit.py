"""``ttsa-guard audit summary``: what a file of audit records says."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.table import Table

from ttsa_guard.cli import common
from ttsa_guard.errors import ConfigError
from ttsa_guard.record import SCHEMA

app = typer.Typer(no_args_is_help=True)
_ACTIONS = ("pass", "swap", "fallback")
_SECONDS = {"review": "seconds", "gate": "seconds_gate", "search": "seconds_search", "final check": "seconds_final"}


@dataclass
class _Group:
    """The reviews that ended in the same way."""

    helpful: int = 0
    generations: list[int] = field(default_factory=list)
    moderation_calls: list[int] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in _SECONDS})

    def add(self, record: dict[str, Any]) -> None:
        self.helpful += bool(record["helpful"])
        self.generations.append(record["generations"])
        self.moderation_calls.append(record["moderation_calls"])
        for name, key in _SECONDS.items():
            if seconds := record.get(key):
                self.seconds[name].append(seconds)

    def summary(self, total: int) -> dict[str, Any]:
        count = len(self.generations)
        return {
            "count": count,
            "share": round(count / total, 4),
            "helpful": self.helpful,
            "generations": {"median": median(self.generations), "total": sum(self.generations)},
            "moderation_calls": {"median": median(self.moderation_calls), "total": sum(self.moderation_calls)},
            "seconds": {
                name: {"median": round(median(values), 4), "p95": round(_p95(values), 4)}
                for name, values in self.seconds.items()
                if values
            },
        }


@app.callback()
def _group() -> None:
    """Read what audit: {path: FILE} has written."""


@app.command()
def summary(
    file: Annotated[Path, typer.Argument(help="Audit records, one JSON object a line.", show_default=False)],
    as_json: common.AsJson = False,
) -> None:
    """Count what happened to the answers, what it cost and why; texts are never printed.

    Example: ttsa-guard audit summary audit.jsonl
    """
    found, skipped = _summarised(file)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        _show(found)
    if skipped:
        lines = ", ".join(map(str, skipped[:5])) + (", ..." if len(skipped) > 5 else "")
        common.err.print(f"{common.counted(len(skipped), 'line')} of {file} left out, no audit records: {lines}", markup=False)


def _summarised(file: Path) -> tuple[dict[str, Any], list[int]]:
    groups: dict[str, _Group] = {}
    reasons: Counter[str] = Counter()
    steerers: Counter[str] = Counter()
    skipped: list[int] = []
    first, last = math.inf, -math.inf
    for number, record in _records(file):
        if record is None:
            skipped.append(number)
            continue
        groups.setdefault(record["action"], _Group()).add(record)
        if record["action"] != "pass":
            reasons[record["reason"]] += 1
            steerers[record["steerer"] or "none"] += 1
        first, last = min(first, record["created"]), max(last, record["created"])
    total = sum(len(g.generations) for g in groups.values())
    if not total:
        raise ConfigError(f"{file} has no audit records", hint="set audit: {path: FILE} in the guard's settings")
    found = {
        "records": total,
        "skipped": len(skipped),
        "from": _day(first),
        "to": _day(last),
        "actions": {action: groups[action].summary(total) for action in _ACTIONS if action in groups},
        "reasons": dict(reasons.most_common()),
        "steerers": dict(steerers.most_common()),
    }
    return found, skipped


def _records(file: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Read the records with the numbers of their lines; None for a line that is not a record."""
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _record(file, number, line)
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {type(error).__name__}", hint="give the file that audit.path names") from None


def _record(file: Path, number: int, line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
        if record["schema"] > SCHEMA:
            hint = "update ttsa-guard: pip install -U ttsa-guard"
            raise ConfigError(f"{file}, line {number}: written by a newer version (schema {record['schema']})", hint=hint)
        numbers = [record[key] for key in ("created", "generations", "moderation_calls", "helpful", *_SECONDS.values())]
        known = math.isfinite(math.fsum(numbers)) and record["action"] in _ACTIONS and {"reason", "steerer"} <= record.keys()
    except (ValueError, TypeError, KeyError):
        return None
    return record if known else None


def _show(found: dict[str, Any]) -> None:
    common.out.print(f"{common.counted(found['records'], 'review')}, {found['from']} to {found['to']}", markup=False)
    table = Table(box=None, pad_edge=False)
    seconds = [name for name in _SECONDS if any(name in group["seconds"] for group in found["actions"].values())]
    for heading in ("action", "count", "share", "helpful", "generations", "moderation calls", *(f"{s}, s" for s in seconds)):
        table.add_column(heading, justify="left" if heading == "action" else "right")
    for action, group in found["actions"].items():
        times = (group["seconds"].get(name) for name in seconds)
        table.add_row(
            action,
            str(group["count"]),
            f"{group['share']:.1%}",
            str(group["helpful"]),
            f"{group['generations']['median']:g}",
            f"{group['moderation_calls']['median']:g}",
            *(f"{t['median']:.3f} / {t['p95']:.3f}" if t else "" for t in times),
        )
    common.out.print(table)
    common.out.print("medians; seconds: median / 95th percentile", style="dim")
    for heading, counts in (("why flagged answers ended as they did", found["reasons"]), ("mended by", found["steerers"])):
        if counts:
            common.out.print(f"\n{heading}")
        for name, count in counts.items():
            common.out.print(f"  {count:>6}  {name}", markup=False)


def _p95(values: Sequence[float]) -> float:
    """Return the 95th percentile by the nearest rank."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def _day(created: float) -> str:
    return datetime.fromtimestamp(created, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
