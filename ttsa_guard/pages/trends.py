"""What happened to answers over time: counts by hour or by day, and charts of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ttsa_guard.audit import day
from ttsa_guard.record import AuditRecord

HOUR, DAY = 3600, 86400
"""Seconds."""
_HOURS, _DAYS = 14 * 24, 366  # that are charted
_HEIGHT = 40  # of a chart; a bar is one unit wide


@dataclass
class Counts:
    """What happened within an hour or a day."""

    reviews: int = 0
    flagged: int = 0
    swapped: int = 0
    fallback: int = 0

    def add(self, other: Counts) -> None:
        """Count what the other one has counted, too."""
        self.reviews += other.reviews
        self.flagged += other.flagged
        self.swapped += other.swapped
        self.fallback += other.fallback


@dataclass(frozen=True)
class Bar:
    """One bar of a chart, in its units: the `at`-th place from the left."""

    at: int
    count: int
    when: str
    height: float


@dataclass(frozen=True)
class Chart:
    """Bars of one count over time.

    Args:
        most: the highest count.
        width: how many places there are.
        bars: where the count is not 0.
    """

    name: str
    total: int
    most: int
    width: int
    bars: tuple[Bar, ...]
    height: int = _HEIGHT


@dataclass(frozen=True)
class Charted:
    """Charts over the same time, and their numbers.

    Args:
        unit: what a bar stands for, ``"hour"`` or ``"day"``.
        rows: the times at which there was a review.
        whole: whether all reviews are within the time of the charts.
    """

    unit: str
    first: str
    last: str
    charts: tuple[Chart, ...]
    rows: tuple[tuple[str, Counts], ...]
    whole: bool


class Trends:
    """Counts of reviews by hour."""

    def __init__(self) -> None:
        self._hours: dict[int, Counts] = {}

    def add(self, record: AuditRecord) -> None:
        """Count a review in its hour."""
        counts = self._hours.setdefault(int(record.created // HOUR), Counts())
        flagged = record.action != "pass"
        counts.add(Counts(1, flagged, record.action == "swap", record.action == "fallback"))

    def as_list(self) -> list[dict[str, Any]]:
        """Return the hours in which there was a review, as plain data."""
        return [
            {"hour": day(hour * HOUR), **asdict(self._hours[hour])} for hour in sorted(self._hours)
        ]

    def charted(self) -> Charted:
        """Chart the last two weeks by hour if that is all, or else the last year by day.

        There has to be a review.
        """
        by_hour = max(self._hours) - min(self._hours) < _HOURS
        unit, most = (HOUR, _HOURS) if by_hour else (DAY, _DAYS)
        counts: dict[int, Counts] = {}
        for hour, found in self._hours.items():
            counts.setdefault(hour * HOUR // unit, Counts()).add(found)
        end = max(counts)
        begin = max(min(counts), end - most + 1)
        times = range(begin, end + 1)
        return Charted(
            unit="hour" if by_hour else "day",
            first=_name(begin, unit),
            last=_name(end, unit),
            charts=tuple(
                _chart(name, [getattr(counts.get(t, Counts()), name) for t in times], begin, unit)
                for name in ("reviews", "flagged", "swapped", "fallback")
            ),
            rows=tuple((_name(t, unit), counts[t]) for t in times if t in counts),
            whole=begin == min(counts),
        )


def _chart(name: str, counts: Sequence[int], begin: int, unit: int) -> Chart:
    most = max(counts)
    bars = tuple(
        # what stands for something can be seen
        Bar(i, count, _name(begin + i, unit), max(1.5, round(_HEIGHT * count / most, 2)))
        for i, count in enumerate(counts)
        if count
    )
    return Chart(name, sum(counts), most, max(len(counts), 8), bars)


def _name(time: int, unit: int) -> str:
    return day(time * unit) if unit == HOUR else day(time * unit)[:10]
