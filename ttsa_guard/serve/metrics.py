"""The metrics of `ttsa_guard.telemetry` as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Callable


def exporter() -> Callable[[], bytes] | None:
    """Collect this process's metrics, and return what writes them as text.

    Returns:
        None without the extra ``telemetry``.
    """
    try:
        from opentelemetry import metrics
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from opentelemetry.sdk.metrics import MeterProvider
        from prometheus_client import generate_latest
    except ImportError:
        return None
    metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()]))
    return generate_latest
