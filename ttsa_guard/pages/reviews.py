"""The reviews of an audit file as one page of HTML: counts, trends, and each review by itself.

It loads nothing. The table and its filters are made in the browser, of data in the page.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ttsa_guard.audit import AuditSummary, day, summarise
from ttsa_guard.pages.render import render
from ttsa_guard.pages.trends import Trends
from ttsa_guard.record import AuditRecord, CandidateRecord

_DIGITS = 5


@dataclass(frozen=True)
class Audit:
    """What a page of reviews shows.

    Args:
        reviews: the latest ones, with the numbers of their lines in the file.
    """

    file: str
    summary: AuditSummary
    trends: Trends
    reviews: tuple[tuple[int, AuditRecord], ...]

    @property
    def has_texts(self) -> bool:
        """Whether the reviews hold moderated texts."""
        return any(r.texts or any(c.text for c in r.candidates) for _, r in self.reviews)

    def as_dict(self) -> dict[str, Any]:
        """Return all counts as plain data; texts are not among them."""
        return {**self.summary.as_dict(), "hours": self.trends.as_list()}


def read(file: Path, *, last: int) -> Audit:
    """Read a file of audit records, of which the `last` ones are kept.

    Raises:
        ConfigError: the file cannot be read, has no records, or has one of a newer version.
    """
    trends = Trends()
    reviews: deque[tuple[int, AuditRecord]] = deque(maxlen=last)

    def keep(line: int, record: AuditRecord) -> None:
        trends.add(record)
        reviews.append((line, record))

    summary = summarise(file, seen=keep)
    return Audit(file.name, summary, trends, tuple(reviews))


def page(audit: Audit) -> str:
    """Return the page. Texts are in it if the records have them."""
    records = [record for _, record in audit.reviews]
    return render(
        "reviews.html",
        script="reviews.js",
        file=audit.file,
        summary=audit.summary,
        first=day(audit.summary.first),
        last=day(audit.summary.last),
        trends=audit.trends.charted(),
        has_texts=audit.has_texts,
        shown=len(records),
        choices={
            "action": _frequent(record.action for record in records),
            "reason": _frequent(record.reason for record in records),
            "steerer": _frequent(record.steerer or "" for record in records),
            "flaw": _frequent(flaw for record in records for flaw in _flaws(record)),
        },
        data=[{"line": line, **_compact(record)} for line, record in audit.reviews],
    )


def _frequent(names: Iterable[str]) -> dict[str, int]:
    """Count names, from the most frequent one."""
    return dict(Counter(names).most_common())


def _flaws(record: AuditRecord) -> set[str]:
    return {flaw for candidate in record.candidates for flaw in candidate.flaws}


def _compact(found: AuditRecord | CandidateRecord) -> dict[str, Any]:
    """Return plain data without what has its default, and with no more digits than readers need."""
    values = ((f.name, f.default, getattr(found, f.name)) for f in fields(found))
    return {
        name: _plain(value) for name, default, value in values if value != default and value != {}
    }


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, tuple):
        return [_compact(v) if isinstance(v, CandidateRecord) else v for v in value]
    return value
