"""From begin to end of an export: what is built, what runs beside the service, what is flushed at its end."""

import asyncio
import contextlib
import importlib.metadata
import logging
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass

import structlog
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.version import __version__ as sdk_version

from handler_core.config import OtelSettings, masked, pairs
from handler_core.otlp.encoding import encode
from handler_core.otlp.http import Channel, Seldom, Seldomly
from handler_core.otlp.points import metrics_data
from handler_core.otlp.spans import SpanTracer, sampler
from handler_core.tasks import background
from handler_core.telemetry import Metrics
from handler_core.tracing import Tracer

log = structlog.get_logger("handler_core.otlp")

FLUSH_TIMEOUT = 5.0
"""Seconds that the end waits for what is still to be sent."""


@dataclass(frozen=True)
class Telemetry:
    """What a service is given while it exports."""

    tracer: Tracer | None
    """None where traces are off."""


@contextlib.asynccontextmanager
async def exporting(
    settings: OtelSettings, service_name: str, metrics: Metrics, *, flush_timeout: float = FLUSH_TIMEOUT
) -> AsyncIterator[Telemetry]:
    """Export spans and push metrics until the block ends, then what is left, within `flush_timeout` seconds.

    A collector that is down, slow or wrong is logged now and then, and never raises.
    """
    described = resource(settings, service_name)
    with _quietened() as seldom:
        spans = _Spans(settings, described, metrics, seldom) if settings.traces_url else None
        pushes = _Pushes(settings, described, metrics, seldom) if settings.metrics_url else None
        log.info("telemetry_on", traces=masked(settings.traces_url), metrics=masked(settings.metrics_url))
        parts = [part for part in (spans, pushes) if part is not None]
        async with contextlib.AsyncExitStack() as stack:
            if pushes is not None:
                await stack.enter_async_context(background(pushes.run()))
            try:
                yield Telemetry(spans.tracer if spans is not None else None)
            finally:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(flush_timeout), asyncio.TaskGroup() as tasks:
                        for part in parts:
                            tasks.create_task(part.flush())
                for part in parts:
                    part.close()


class _Sender(OTLPSpanExporter):
    """OpenTelemetry's exporter with another encoder; `_client` is its own way to send what is encoded."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        sent = not self._shutdown and self._client.export(encode(spans)).success
        return SpanExportResult.SUCCESS if sent else SpanExportResult.FAILURE


class _Spans(SpanExporter):
    """From a span's end to the collector, over the SDK's queue and thread."""

    def __init__(self, settings: OtelSettings, described: Resource, metrics: Metrics, seldom: Seldom) -> None:
        headers = settings.otel_exporter_otlp_traces_headers
        self.channel = Channel(
            "traces", settings.traces_url, headers, settings, _Sender, ExportTraceServiceResponse, seldom
        )
        self.tracer = SpanTracer(sampler(settings), described, self._emit)
        self._limit = settings.otel_bsp_max_queue_size
        self._ended = self._taken = 0
        help = "Spans by what became of them."
        self._exported, self._lost, self._dropped = (
            metrics.counter("handler_spans_total", help, outcome=outcome) for outcome in ("exported", "lost", "dropped")
        )
        self._processor = BatchSpanProcessor(
            self,
            max_queue_size=self._limit,
            schedule_delay_millis=settings.otel_bsp_schedule_delay,
            max_export_batch_size=settings.otel_bsp_max_export_batch_size,
        )

    def _emit(self, span: ReadableSpan) -> None:
        # Asked here, since the SDK's queue logs a line for each span it has no room for.
        if self._ended - self._taken >= self._limit:
            self._dropped.value += 1
            return
        self._ended += 1
        self._processor.on_end(span)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Called in the SDK's thread with each batch."""
        sent = self.channel.send(spans, len(spans))
        self._taken += len(spans)
        (self._exported if sent else self._lost).value += len(spans)
        return SpanExportResult.SUCCESS if sent else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self.channel.close()

    async def flush(self) -> None:
        self.channel.close_soon()
        await _in_thread(self._processor.shutdown)

    def close(self) -> None:
        self.channel.close()
        if left := self._ended - self._exported.value - self._lost.value:
            log.warning("spans_left_unsent", spans=left)


class _Pushes:
    """The metrics as they are, to the collector at each interval."""

    def __init__(self, settings: OtelSettings, described: Resource, metrics: Metrics, seldom: Seldom) -> None:
        headers = settings.otel_exporter_otlp_metrics_headers
        self.channel = Channel(
            "metrics", settings.metrics_url, headers, settings, OTLPMetricExporter, ExportMetricsServiceResponse, seldom
        )
        self._interval = settings.otel_metric_export_interval / 1000
        self._metrics = metrics
        self._resource = described
        self._start = time.time_ns()
        self._idle = asyncio.Lock()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            await self._push()

    async def flush(self) -> None:
        self.channel.close_soon()
        await self._push()

    def close(self) -> None:
        self.channel.close()

    async def _push(self) -> None:
        async with self._idle:
            # Read on the event loop, where they are written; encoded and sent in the thread.
            try:
                data = metrics_data(self._metrics, self._resource, self._start, time.time_ns())
            except Exception as error:  # a gauge may read what the end of the service has taken away
                log.warning("telemetry_failed", error=type(error).__name__)
                return
            count = len(data.resource_metrics[0].scope_metrics[0].metrics)
            await _in_thread(lambda: self.channel.send(data, count))


async def _in_thread(work: Callable[[], object]) -> None:
    """Wait for `work` in a thread that, unlike an executor's, keeps no process from ending."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def run() -> None:
        try:
            work()
        except Exception as error:
            log.warning("telemetry_failed", error=type(error).__name__)
        with contextlib.suppress(RuntimeError):  # the loop may have been closed meanwhile
            loop.call_soon_threadsafe(done.set)

    thread = threading.Thread(target=run, name="telemetry", daemon=True)
    thread.start()
    await done.wait()
    thread.join()  # it has nothing left to do but end


@contextlib.contextmanager
def _quietened() -> Iterator[Seldom]:
    """OpenTelemetry's own log lines, in the block, in our form and seldom."""
    seldom = Seldom()
    logger, handler = logging.getLogger("opentelemetry"), Seldomly(seldom)
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield seldom
    finally:
        logger.propagate = before
        logger.removeHandler(handler)


def resource(settings: OtelSettings, service_name: str) -> Resource:
    """Who speaks: what `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_SERVICE_NAME` say counts before what is found out."""
    host = socket.gethostname()
    attributes = {
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "opentelemetry",
        "telemetry.sdk.version": sdk_version,
        "service.name": service_name,
        "service.instance.id": f"{host}-{os.getpid()}",
        "host.name": host,
    }
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        attributes["service.version"] = importlib.metadata.version(service_name)
    attributes |= pairs(settings.otel_resource_attributes or "")
    if settings.otel_service_name:
        attributes["service.name"] = settings.otel_service_name
    return Resource(attributes)
