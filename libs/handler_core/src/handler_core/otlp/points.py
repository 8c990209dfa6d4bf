"""Our metrics as OpenTelemetry's, by the names that `/metrics` has."""

from typing import Any

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from handler_core import telemetry
from handler_core.telemetry import Family, Metrics

_CUMULATIVE = AggregationTemporality.CUMULATIVE
_SCOPE = InstrumentationScope("handler_core")


def metrics_data(metrics: Metrics, resource: Resource, start: int, now: int) -> MetricsData:
    """All metrics as they are; `start`, when counting began, and `now` in Unix nanoseconds."""
    found = [_metric(family, start, now) for family in metrics.families()]
    return MetricsData([ResourceMetrics(resource, [ScopeMetrics(_SCOPE, found, "")], "")])


def _metric(family: Family, start: int, now: int) -> Metric:
    unit = "s" if family.name.endswith("_seconds") else ""
    return Metric(family.name, family.help, unit, _data(family, start, now))


def _data(family: Family, start: int, now: int) -> Sum | Gauge | Histogram:
    numbers: list[NumberDataPoint] = []
    histograms: list[HistogramDataPoint] = []
    for labels, metric in family.members:
        if isinstance(metric, telemetry.Histogram):
            histograms.append(_distribution(labels, metric, start, now))
        elif isinstance(metric, telemetry.Counter):
            numbers.append(NumberDataPoint(labels, start, now, metric.value))
        else:
            numbers.append(NumberDataPoint(labels, 0, now, metric.read()))
    if family.kind == "counter":
        return Sum(numbers, _CUMULATIVE, is_monotonic=True)
    return Histogram(histograms, _CUMULATIVE) if family.kind == "histogram" else Gauge(numbers)


def _distribution(labels: dict[str, str], metric: telemetry.Histogram, start: int, now: int) -> HistogramDataPoint:
    counts = list(metric.counts)  # counting goes on while it is encoded
    # Smallest and largest are not kept; the encoder leaves out what is None.
    unknown: Any = None
    return HistogramDataPoint(
        labels, start, now, sum(counts), metric.sum, counts, metric.bounds, min=unknown, max=unknown
    )
