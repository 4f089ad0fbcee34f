import asyncio
import logging
import subprocess
import sys

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor

from ttsa_guard.steerers.baselines.resample import Resample, ResampleOptions
from ttsa_guard.testing import ScriptedModerator, scripted_guard

BAD = "a bad answer with SECRET words"
GOOD = "a good answer in plain words"


class Breaks(SpanProcessor):
    """Raises where it is asked to."""

    at = ""
    error: BaseException = RuntimeError(BAD)

    def on_start(self, span, parent_context=None):
        self.fail("start")

    def on_end(self, span):
        self.fail("end")

    def fail(self, where):
        if where == self.at:
            raise self.error


READER, BREAKS = InMemoryMetricReader(), Breaks()


@pytest.fixture(autouse=True, scope="module")
def providers(tracing):
    tracing.add_span_processor(BREAKS)
    metrics.set_meter_provider(MeterProvider([READER]))


@pytest.fixture(autouse=True)
def mended():
    BREAKS.at = ""


def review(answer, *found, **parts):
    guard = scripted_guard(
        list(found), steerers=[Resample(ResampleOptions(n=len(found) or 1))], **parts
    )
    return asyncio.run(guard.review("hello", answer))


def totals():
    """The sums of all points by metric and attributes."""
    found = {}
    for metric in READER.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics:
        for point in metric.data.data_points:
            value = point.value if hasattr(point, "value") else point.count
            found[(metric.name, *sorted(point.attributes.values()))] = value
    return found


@pytest.mark.parametrize(
    ("answer", "found", "names"),
    [
        (GOOD, (), ["gate", "review"]),
        (BAD, (GOOD,), ["gate", "search", "final", "review"]),
        (BAD, (BAD,), ["gate", "search", "review"]),
    ],
    ids=["pass", "swap", "fallback"],
)
def test_spans_of_a_review(spans, answer, found, names):
    with trace.get_tracer("test").start_as_current_span("request") as request:
        outcome = review(answer, *found)
    *inner, outer = spans.get_finished_spans()
    assert [s.name for s in inner] == [f"ttsa_guard.{name}" for name in names]
    assert outer.name == "request"
    assert {s.context.trace_id for s in inner} == {request.get_span_context().trace_id}
    whole = inner[-1]
    assert {s.parent.span_id for s in inner[:-1]} == {whole.context.span_id}
    assert whole.parent.span_id == request.get_span_context().span_id
    assert whole.attributes["ttsa_guard.action"] == outcome.action
    assert whole.attributes["ttsa_guard.generations"] == outcome.record.generations


def test_metrics_of_reviews():
    review(GOOD)
    before = totals()
    review(GOOD)
    review(BAD, BAD, GOOD)
    review(GOOD, gate=ScriptedModerator(error=RuntimeError(BAD)))
    gained = {key: value - before.get(key, 0) for key, value in totals().items()}
    assert {key[1]: gained[key] for key in gained if key[0] == "ttsa_guard.reviews"} == {
        "pass": 1,
        "swap": 1,
        "fallback": 1,
    }
    assert gained[("ttsa_guard.generations", "swap")] == 2
    assert gained[("ttsa_guard.gate_failures", "fallback")] == 1
    assert gained[("ttsa_guard.gate_failures", "pass")] == 0
    phases = {key[1:] for key, count in gained.items() if key[0] == "ttsa_guard.duration" and count}
    assert phases >= {
        ("gate", "pass"),
        ("pass", "review"),
        ("gate", "swap"),
        ("search", "swap"),
        ("final", "swap"),
    }


def test_no_text_gets_into_spans_metrics_or_logs(spans, caplog):
    with caplog.at_level(logging.DEBUG):
        review(BAD, BAD, GOOD)
        review(BAD, gate=ScriptedModerator(error=RuntimeError(BAD)))
        review(BAD, guide=ScriptedModerator(error=RuntimeError(BAD)))
    seen = (
        "".join(span.to_json() for span in spans.get_finished_spans())
        + READER.get_metrics_data().to_json()
    )
    assert "SECRET" not in seen + caplog.text
    assert GOOD not in seen


@pytest.mark.parametrize(
    "error", [RuntimeError(BAD), asyncio.CancelledError(BAD)], ids=lambda e: type(e).__name__
)
@pytest.mark.parametrize("at", ["start", "end"])
def test_telemetry_that_breaks_changes_nothing(at, error, caplog):
    BREAKS.at, BREAKS.error = at, error
    assert review(BAD, GOOD).text == GOOD
    assert f"telemetry failed with {type(error).__name__}" in caplog.text
    assert "SECRET" not in caplog.text


def test_without_opentelemetry_everything_works():
    code = (
        "import sys; sys.modules['opentelemetry'] = None\nimport asyncio; from ttsa_guard.testing"
        " import scripted_guard; from ttsa_guard import telemetry\nassert telemetry.trace is"
        " None\nprint(asyncio.run(scripted_guard([]).review('q', 'a fine answer')).action)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "pass\n"
    )
