"""Report OpenTelemetry spans and metrics, made of numbers and names only.

Without the opentelemetry package they cost nothing.

Spans: ``ttsa_guard.review`` with the phases ``ttsa_guard.gate``, ``ttsa_guard.search`` and
``ttsa_guard.final`` in it.

Metrics: ``ttsa_guard.reviews``, ``ttsa_guard.gate_failures``, ``ttsa_guard.generations``,
``ttsa_guard.moderation_calls``, and ``ttsa_guard.duration`` in seconds. All have the attribute
``action`` ("pass", "swap" or "fallback"). The duration also has the attribute ``phase``: the three
phases above, and "review" for the whole. ``ttsa-guard serve`` adds ``ttsa_guard.requests`` and
``ttsa_guard.request_duration`` in seconds, with the attribute ``status``, and
``ttsa_guard.requests_running``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from ttsa_guard.record import AuditRecord

try:
    from opentelemetry import context, metrics, trace
except ImportError:
    context = metrics = trace = None  # type: ignore[assignment]

log = logging.getLogger(__name__)
_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_SHOWN = (
    "action",
    "reason",
    "steerer",
    "gate_score",
    "final_score",
    "generations",
    "decode_passes",
    "moderation_calls",
)


@contextmanager
def span(name: str) -> Iterator[None]:
    """Make the block a span called `name`.

    A fault of telemetry does not reach the block, and a fault of the block is not recorded.
    """
    opened = _safely(lambda: _start(name) if _traced() else None)
    try:
        yield
    finally:
        if opened:
            _safely(lambda: _end(*opened))


def report(record: AuditRecord) -> None:
    """Count a finished review, and describe it on the open span."""
    if trace:
        _safely(lambda: _describe(record))
    if metrics:
        _safely(lambda: _count(record))


def request_begun() -> None:
    """Count a request for an answer that has come in."""
    if metrics:
        _safely(lambda: _requests()["running"].add(1))


def request_ended(status: int, seconds: float) -> None:
    """Count a request that has been answered with an HTTP status; 499 if its client has left."""
    if metrics:
        _safely(lambda: _count_request(status, seconds))


def _traced() -> bool:
    """Whether anybody has said where spans go."""
    return bool(trace) and not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def _start(name: str) -> tuple[Any, Any]:
    before = context.get_current()
    opened = trace.get_tracer("ttsa_guard").start_span(name)
    context.attach(trace.set_span_in_context(opened))
    return opened, before


def _end(opened: Any, before: Any) -> None:
    # The context is set back without its token: work that was left behind may end in another
    # context, where the token is not valid. No exception is recorded: its message may quote a text.
    if trace.get_current_span() is opened:
        context.attach(before)
    opened.end()


def _describe(record: AuditRecord) -> None:
    current = trace.get_current_span()
    for key in _SHOWN:
        if (value := getattr(record, key)) is not None:
            current.set_attribute(f"ttsa_guard.{key}", value)
    current.set_attribute("ttsa_guard.candidates", len(record.candidates))


def _count(record: AuditRecord) -> None:
    counters, duration = _instruments()
    attributes = {"action": record.action}
    counters["reviews"].add(1, attributes)
    counters["gate_failures"].add(record.reason.startswith("gate failed"), attributes)
    counters["generations"].add(record.generations, attributes)
    counters["moderation_calls"].add(record.moderation_calls, attributes)
    for phase, seconds in record.phases.items():
        duration.record(seconds, {**attributes, "phase": phase})


def _count_request(status: int, seconds: float) -> None:
    found, attributes = _requests(), {"status": str(status)}
    found["running"].add(-1)
    found["requests"].add(1, attributes)
    found["duration"].record(seconds, attributes)


@lru_cache(maxsize=1)
def _requests() -> dict[str, Any]:
    meter = metrics.get_meter("ttsa_guard")
    return {
        "requests": meter.create_counter(
            "ttsa_guard.requests", description="Requests for an answer, by HTTP status"
        ),
        "running": meter.create_up_down_counter(
            "ttsa_guard.requests_running", description="Requests that are being answered"
        ),
        "duration": meter.create_histogram(
            "ttsa_guard.request_duration",
            unit="s",
            description="Time of a request, from its first byte to its last",
            explicit_bucket_boundaries_advisory=(*_BUCKETS, 100.0, 300.0),
        ),
    }


@lru_cache(maxsize=1)
def _instruments() -> tuple[dict[str, Any], Any]:
    meter = metrics.get_meter("ttsa_guard")
    texts = {
        "reviews": "Answers reviewed",
        "gate_failures": "Reviews that ended in the fallback because the gate failed",
        "generations": "Answers generated to mend flagged ones",
        "moderation_calls": "Calls of the gate and the guide",
    }
    counters = {
        name: meter.create_counter(f"ttsa_guard.{name}", description=text)
        for name, text in texts.items()
    }
    duration = meter.create_histogram(
        "ttsa_guard.duration",
        unit="s",
        description="Time of a review and of its phases",
        explicit_bucket_boundaries_advisory=_BUCKETS,
    )
    return counters, duration


def _safely(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        log.error("telemetry failed with %s", type(error).__name__)
        return None
