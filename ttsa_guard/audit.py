"""The file of audit records: one JSON object a line, written by the guard and summed up for those
who run it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any, get_args

from ttsa_guard.errors import ConfigError
from ttsa_guard.files import reason
from ttsa_guard.record import SCHEMA, Action, AuditRecord

_ACTIONS: tuple[Action, ...] = get_args(Action)
_LAST_SECOND = datetime(9999, 12, 31, tzinfo=timezone.utc).timestamp()
PHASES = {
    "review": "seconds",
    "gate": "seconds_gate",
    "search": "seconds_search",
    "final check": "seconds_final",
}
"""What is timed, and the field of a record that says how long it took."""
_NUMBERS = ("created", "generations", "moderation_calls", "helpful", *PHASES.values())
"""Fields without which a line is no record."""


class AuditSink:
    """Appends records to a file, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, record: AuditRecord) -> None:
        """Append a record; its folder is made if it is not there."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A lone surrogate cannot be encoded; its backslash form is its JSON escape.
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(record.as_dict(), ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class Spread:
    """Seconds of a phase, over the reviews in which it took place."""

    median: float
    p95: float


@dataclass(frozen=True)
class CountSpread:
    """A count over some reviews."""

    median: float
    total: int

    @classmethod
    def of(cls, counts: Sequence[int]) -> CountSpread:
        """Return median and sum of at least one count."""
        return cls(median(counts), sum(counts))


@dataclass(frozen=True)
class ActionSummary:
    """The reviews that ended in the same way.

    Args:
        share: of all reviews, 0 to 1.
        seconds: by phase, see `PHASES`; a phase that never took place is left out.
    """

    count: int
    share: float
    helpful: int
    generations: CountSpread
    moderation_calls: CountSpread
    seconds: dict[str, Spread]


@dataclass(frozen=True)
class AuditSummary:
    """What a file of audit records says.

    Args:
        skipped: numbers of the lines that are no records.
        first, last: when the first and the last answer were reviewed, in seconds since the epoch.
        reasons, steerers: of the answers that did not pass, how often each, from the most frequent
            one.
    """

    records: int
    skipped: tuple[int, ...]
    first: float
    last: float
    actions: dict[Action, ActionSummary]
    reasons: dict[str, int]
    steerers: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {
            "records": self.records,
            "skipped": len(self.skipped),
            "from": day(self.first),
            "to": day(self.last),
            "actions": {action: asdict(summary) for action, summary in self.actions.items()},
            "reasons": self.reasons,
            "steerers": self.steerers,
        }


@dataclass
class _Reviews:
    """The reviews that ended in the same way, while they are counted."""

    helpful: int = 0
    generations: list[int] = field(default_factory=list)
    moderation_calls: list[int] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in PHASES})

    def add(self, record: AuditRecord) -> None:
        self.helpful += record.helpful
        self.generations.append(record.generations)
        self.moderation_calls.append(record.moderation_calls)
        for name, key in PHASES.items():
            if seconds := getattr(record, key):
                self.seconds[name].append(seconds)

    def summary(self, total: int) -> ActionSummary:
        seconds = {
            name: Spread(round(median(s), 4), round(_p95(s), 4))
            for name, s in self.seconds.items()
            if s
        }
        return ActionSummary(
            count=len(self.generations),
            share=round(len(self.generations) / total, 4),
            helpful=self.helpful,
            generations=CountSpread.of(self.generations),
            moderation_calls=CountSpread.of(self.moderation_calls),
            seconds=seconds,
        )


def summarise(
    file: Path, *, seen: Callable[[int, AuditRecord], object] | None = None
) -> AuditSummary:
    """Sum up a file of audit records; texts are never in the result.

    Args:
        seen: is called with each record and the number of its line, in the order of the file.

    Raises:
        ConfigError: the file cannot be read, has no records, or has one of a newer version.
    """
    reviews: dict[Action, _Reviews] = {}
    reasons: Counter[str] = Counter()
    steerers: Counter[str] = Counter()
    skipped: list[int] = []
    first, last = math.inf, -math.inf
    for number, record in records(file):
        if record is None:
            skipped.append(number)
            continue
        reviews.setdefault(record.action, _Reviews()).add(record)
        if record.action != "pass":
            reasons[record.reason] += 1
            steerers[record.steerer or "none"] += 1
        first, last = min(first, record.created), max(last, record.created)
        if seen:
            seen(number, record)
    total = sum(len(r.generations) for r in reviews.values())
    if not total:
        others = f": none of its {len(skipped)} lines is one" if skipped else "; it is empty"
        raise ConfigError(
            f"{file} has no audit records{others}",
            hint="give the file that audit: {path: FILE} names in the guard's settings",
        )
    actions = {action: reviews[action].summary(total) for action in _ACTIONS if action in reviews}
    return AuditSummary(
        records=total,
        skipped=tuple(skipped),
        first=first,
        last=last,
        actions=actions,
        reasons=dict(reasons.most_common()),
        steerers=dict(steerers.most_common()),
    )


def day(created: float) -> str:
    """Return day and minute of a moment that is given in seconds since the epoch."""
    return datetime.fromtimestamp(created, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def records(file: Path) -> Iterator[tuple[int, AuditRecord | None]]:
    """Return the records with the numbers of their lines; None for a line that is not a record."""
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _record(file, number, line)
    except OSError as error:
        raise ConfigError(
            f"cannot read {file}: {reason(error)}",
            hint="give the file that audit.path names",
        ) from None


def _record(file: Path, number: int, line: str) -> AuditRecord | None:
    try:
        data = json.loads(line, parse_float=_finite, parse_constant=_finite)
        if data["schema"] > SCHEMA:
            hint = "update ttsa-guard: pip install -U ttsa-guard"
            raise ConfigError(
                f"{file}, line {number}: written by a newer version (schema {data['schema']})",
                hint=hint,
            )
        if "\\u" in line:  # a lone surrogate becomes "?": it cannot be encoded
            data = json.loads(json.dumps(data, ensure_ascii=False).encode("utf-8", "replace"))
        record: AuditRecord = _shape().validate_python(data)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return record if 0 <= record.created <= _LAST_SECOND else None


def _finite(number: str) -> float:
    if not math.isfinite(found := float(number)):
        raise ValueError(f"{number} is no number that JSON has")
    return found


@lru_cache(maxsize=1)
def _shape() -> Any:
    from pydantic import TypeAdapter  # here: it takes longer to import than a guard needs

    return TypeAdapter(AuditRecord)


def _p95(values: Sequence[float]) -> float:
    """Return the 95th percentile by nearest rank."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]
