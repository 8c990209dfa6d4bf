"""A collector for tests: a real OTLP/HTTP receiver on the loopback. It keeps what it is sent, and misbehaves when told.

    async with collector() as collected:        # on the test's own event loop
        …
        await collected.until(lambda: len(collected.spans) == 2, "both spans are there")

    with collector_thread() as collected:       # beside a test that is not asynchronous, or that blocks its loop
        collected.wait(lambda: collected.span("embed") is not None, "it was embedded")

Give `collected.endpoint` as `OTEL_EXPORTER_OTLP_ENDPOINT`. As a process it prints a line for each span:
`python -m handler_core.testing_otlp --port 4318`.
"""

import argparse
import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from handler_core.testing import in_thread

TIMEOUT = 20.0

Fault = Literal["unavailable", "hang", "reset", "reject", "refuse", "redirect"]
"""503 with `Retry-After`; no answer; the connection cut; 200 with a partial success; 400; 307."""


@dataclass(frozen=True)
class CollectedSpan:
    """A span as it arrived; ids in hexadecimal, times in Unix seconds."""

    trace_id: str
    span_id: str
    parent_id: str
    """Empty for a root."""
    name: str
    kind: str
    """`internal`, `client`, `server`, `producer` or `consumer`."""
    start: float
    end: float
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    error: bool
    message: str
    """Of its status."""
    state: str
    """The `tracestate`."""
    service: str
    resource: dict[str, Any]


@dataclass(frozen=True)
class CollectedPoint:
    """A metric's point as it arrived."""

    name: str
    kind: str
    """`sum`, `gauge` or `histogram`."""
    labels: dict[str, str]
    value: float
    """A histogram's is its sum."""
    count: int
    """Of a histogram; else 0."""
    buckets: dict[float, int]
    """Of a histogram: counts by upper bound, not added up."""
    unit: str
    monotonic: bool
    start: float
    time: float
    resource: dict[str, Any]


@dataclass
class Collector:
    """What has arrived so far. All of it is kept; nothing is, in the time of a fault, but with `reject`."""

    endpoint: str = ""
    spans: list[CollectedSpan] = field(default_factory=list)
    points: list[CollectedPoint] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Path and headers, names in small letters, of every request, also of those that met a fault."""
    fault: Fault | None = None
    """Set it to misbehave."""
    retry_after: float = 1
    """Seconds, for `unavailable`."""
    heard: Callable[[CollectedSpan], None] = lambda _: None
    _released: asyncio.Event = field(default_factory=asyncio.Event)

    def span(self, name: str) -> CollectedSpan | None:
        """The first span of that name."""
        return next((span for span in self.spans if span.name == name), None)

    def below(self, span: CollectedSpan) -> list[CollectedSpan]:
        """Its children, by their start."""
        return sorted((each for each in self.spans if each.parent_id == span.span_id), key=lambda each: each.start)

    def last(self, name: str, **labels: str) -> CollectedPoint | None:
        """The newest point of a metric that has these labels among its own."""
        found = (p for p in reversed(self.points) if p.name == name and labels.items() <= p.labels.items())
        return next(found, None)

    async def until(self, condition: Callable[[], object], what: str, *, timeout: float = TIMEOUT) -> None:
        """Wait until `condition()` holds; fails saying `what` did not come true."""
        give_up = time.monotonic() + timeout
        while not condition():
            self._check(give_up, what)
            await asyncio.sleep(0.005)

    def wait(self, condition: Callable[[], object], what: str, *, timeout: float = TIMEOUT) -> None:
        """`until`, blocking: for a collector in a thread of its own."""
        give_up = time.monotonic() + timeout
        while not condition():
            self._check(give_up, what)
            time.sleep(0.005)

    def _check(self, give_up: float, what: str) -> None:
        if time.monotonic() > give_up:
            names = [span.name for span in self.spans]
            raise AssertionError(f"not in time: {what}; requests: {len(self.requests)}, spans: {names}")

    async def _take(self, request: web.Request) -> web.StreamResponse:
        data = await request.read()
        self.requests.append((request.path, {name.lower(): value for name, value in request.headers.items()}))
        match self.fault:
            case "unavailable":
                return web.Response(status=503, headers={"Retry-After": f"{self.retry_after:g}"})
            case "refuse":
                return web.Response(status=400)
            case "redirect":
                return web.Response(status=307, headers={"Location": "/elsewhere"})
            case "reset":
                if request.transport is not None:
                    request.transport.abort()
                return web.Response()
            case "hang":
                await self._released.wait()
                return web.Response(status=503)
        return web.Response(body=self._answer(request.path, data), content_type="application/x-protobuf")

    def _answer(self, path: str, data: bytes) -> bytes:
        if path == "/v1/traces":
            spans = list(_spans(ExportTraceServiceRequest.FromString(data)))
            self.spans += spans
            for span in spans:
                self.heard(span)
            traces = ExportTraceServiceResponse()
            if self.fault == "reject":
                traces.partial_success.rejected_spans = len(spans)
                traces.partial_success.error_message = "too many attributes"
            return bytes(traces.SerializeToString())
        self.points += _points(ExportMetricsServiceRequest.FromString(data))
        metrics = ExportMetricsServiceResponse()
        if self.fault == "reject":
            metrics.partial_success.error_message = "too old"
        return bytes(metrics.SerializeToString())


@contextlib.asynccontextmanager
async def collector(port: int = 0) -> AsyncIterator[Collector]:
    """A collector on the running event loop; 0 takes a free port."""
    collected = Collector()
    app = web.Application(client_max_size=1 << 28)
    app.router.add_post("/v1/{signal:traces|metrics}", collected._take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        collected.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield collected
    finally:
        collected._released.set()
        await runner.cleanup()


def collector_thread() -> contextlib.AbstractContextManager[Collector]:
    """A collector in a thread of its own."""
    return in_thread(collector())


def _spans(request: ExportTraceServiceRequest) -> Iterator[CollectedSpan]:
    for group in request.resource_spans:
        resource = _attributes(group.resource.attributes)
        for scope in group.scope_spans:
            for span in scope.spans:
                yield CollectedSpan(
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    name=span.name,
                    kind=span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
                    start=span.start_time_unix_nano / 1e9,
                    end=span.end_time_unix_nano / 1e9,
                    attributes=_attributes(span.attributes),
                    events=[(event.name, _attributes(event.attributes)) for event in span.events],
                    error=span.status.code == span.status.STATUS_CODE_ERROR,
                    message=span.status.message,
                    state=span.trace_state,
                    service=resource.get("service.name", ""),
                    resource=resource,
                )


def _points(request: ExportMetricsServiceRequest) -> Iterator[CollectedPoint]:
    for group in request.resource_metrics:
        resource = _attributes(group.resource.attributes)
        for metric in (metric for scope in group.scope_metrics for metric in scope.metrics):
            kind = metric.WhichOneof("data") or "gauge"
            data = getattr(metric, kind)
            for point in data.data_points:
                histogram = kind == "histogram"
                bounds = (*point.explicit_bounds, float("inf")) if histogram else ()
                yield CollectedPoint(
                    name=metric.name,
                    kind=kind,
                    labels=_attributes(point.attributes),
                    value=point.sum if histogram else getattr(point, point.WhichOneof("value")),
                    count=point.count if histogram else 0,
                    buckets=dict(zip(bounds, point.bucket_counts, strict=True)) if histogram else {},
                    unit=metric.unit,
                    monotonic=kind == "sum" and data.is_monotonic,
                    start=point.start_time_unix_nano / 1e9,
                    time=point.time_unix_nano / 1e9,
                    resource=resource,
                )


def _attributes(pairs: Sequence[Any]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    found = getattr(value, kind)
    return [_value(each) for each in found.values] if kind == "array_value" else found


def _print(span: CollectedSpan) -> None:
    outcome = f"  {span.attributes.get('error.type', 'error')}: {span.message}" if span.error else ""
    milliseconds = (span.end - span.start) * 1000
    print(f"{span.trace_id[:8]} {span.service}  {span.name}  {milliseconds:.1f} ms{outcome}", flush=True)


async def _main(port: int) -> None:
    async with collector(port) as collected:
        collected.heard = _print
        print(f"OTEL_EXPORTER_OTLP_ENDPOINT={collected.endpoint}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print the spans that are sent here.")
    parser.add_argument("--port", type=int, default=4318)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(parser.parse_args().port))
