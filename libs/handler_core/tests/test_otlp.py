"""Spans and metrics on their way to a real OTLP receiver, and what happens when it is not there or misbehaves."""

import asyncio
import contextlib
import logging
import os
import ssl
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trustme
from aiohttp import web
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from structlog.testing import capture_logs

from handler_core import otlp, tracing
from handler_core.config import ServiceSettings, load
from handler_core.context import Context
from handler_core.contract.base import Message
from handler_core.errors import InvalidRequest
from handler_core.jetstream import Api
from handler_core.otlp.encoding import encode
from handler_core.otlp.spans import SpanTracer
from handler_core.service import Service
from handler_core.streams import Consumer, Stream, apply
from handler_core.telemetry import Metrics, made, trace_id
from handler_core.testing import NatsServer, free_port, serving
from handler_core.testing_otlp import Collector, Fault, collector, collector_thread
from handler_core.tracing import Tracer

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = PARENT[:-2] + "00"
Log = list[MutableMapping[str, Any]]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
async def collected() -> AsyncIterator[Collector]:
    async with collector() as receiving:
        yield receiving


@pytest.fixture
def logged() -> Iterator[Log]:
    with capture_logs() as entries:
        yield entries


def settings(endpoint: str, **others: Any) -> ServiceSettings:
    """Spans go out at once, metrics only at the end, unless told otherwise."""
    return load(ServiceSettings, otel_exporter_otlp_endpoint=endpoint, **{"otel_bsp_schedule_delay": 1, **others})


@contextlib.asynccontextmanager
async def tracing_to(endpoint: str, flush_timeout: float = 5.0, **others: Any) -> AsyncIterator[Tracer]:
    others = {"otel_metrics_exporter": "none", **others}
    async with otlp.exporting(settings(endpoint, **others), "tea", Metrics(), flush_timeout=flush_timeout) as telemetry:
        assert telemetry.tracer is not None
        yield telemetry.tracer


def events(logged: Log, name: str) -> Log:
    return [entry for entry in logged if entry["event"] == name]


# -- spans


async def test_a_turn_arrives_as_one_tree_with_all_that_was_told_of_it(collected: Collector) -> None:
    async with tracing_to(collected.endpoint) as tracer:
        turn = tracer.begin("process ai.chat.request", "consumer", {"attempt": 1}, parent=PARENT, state="a=1,b=2")
        call = turn.child("POST /embed", "client", {"server.address": "tei", "cached": False, "cost": 0.5})
        call.event("first_token", {"after": 0.25})
        call.set({"texts": ["one", "two"]})
        call.end()
        turn.end()
    root, child = collected.span("process ai.chat.request"), collected.span("POST /embed")
    assert root is not None
    assert child is not None
    assert (root.trace_id, root.parent_id) == (PARENT[3:35], PARENT[36:52])
    assert (root.kind, root.state, root.attributes, root.error) == ("consumer", "a=1,b=2", {"attempt": 1}, False)
    assert (child.trace_id, child.parent_id, child.kind) == (root.trace_id, root.span_id, "client")
    assert child.attributes == {"server.address": "tei", "cached": False, "cost": 0.5, "texts": ["one", "two"]}
    assert child.events == [("first_token", {"after": 0.25})]
    assert root.start <= child.start <= child.end <= root.end
    assert collected.below(root) == [child]


async def test_a_span_tells_its_own_times_when_it_is_given_them(collected: Collector) -> None:
    async with tracing_to(collected.endpoint) as tracer:
        tracer.begin("queued", start=1_000.5).end(at=1_002.25)
        tracer.begin("the clock was set back", start=1_000.0).end(at=900.0)
    queued, strange = collected.spans
    assert (queued.start, queued.end) == (1_000.5, 1_002.25)
    assert strange.start == strange.end == 1_000.0


async def test_a_failed_span_names_the_type_of_its_error(collected: Collector) -> None:
    async with tracing_to(collected.endpoint) as tracer:
        tracer.begin("invalid").end(error_type="validation_error", message="query: is missing")
        tracer.begin("canceled").end(error_type="canceled")
    invalid, canceled = collected.spans
    assert (invalid.error, invalid.attributes, invalid.message) == (
        True,
        {"error.type": "validation_error"},
        "query: is missing",
    )
    assert (canceled.error, canceled.attributes) == (True, {"error.type": "canceled"})


async def test_what_a_block_raises_ends_its_span_and_nothing_secret_is_told(collected: Collector) -> None:
    async with tracing_to(collected.endpoint) as tracer:
        turn = tracer.begin("turn")
        with contextlib.suppress(InvalidRequest), tracing.Within(turn):
            with contextlib.suppress(ValueError), tracing.span("ours"):
                raise ValueError("password=secret")
            with contextlib.suppress(asyncio.CancelledError), tracing.span("cut off"):
                raise asyncio.CancelledError
            raise InvalidRequest("query: is missing")
    found = {span.name: (span.attributes.get("error.type"), span.message) for span in collected.spans}
    assert found == {
        "ours": ("ValueError", ""),
        "cut off": ("canceled", ""),
        "turn": ("validation_error", "query: is missing"),
    }


async def test_after_its_end_a_span_does_not_change_and_is_not_sent_again(collected: Collector) -> None:
    async with tracing_to(collected.endpoint) as tracer:
        span = tracer.begin("once")
        span.end()
        span.end(error_type="internal")
        span.set({"late": True})
        span.event("late")
    (once,) = collected.spans
    assert (once.error, once.attributes, once.events) == (False, {}, [])


async def test_none_and_text_that_is_no_unicode_cost_no_span(collected: Collector, logged: Log) -> None:
    nothing: Any = None
    async with tracing_to(collected.endpoint) as tracer:
        span = tracer.begin("odd", attributes={"model": nothing, "n": 1})
        span.set({"user": nothing, "broken": "\ud800"})
        span.end(error_type="internal", message="\ud800")
    (odd,) = collected.spans
    assert (odd.attributes, odd.message) == ({"n": 1, "error.type": "internal"}, "?")
    assert [entry["log_level"] for entry in logged if "exc_info" in entry] == []


async def test_attributes_are_taken_as_they_were_when_told(collected: Collector) -> None:
    told: dict[str, tracing.Value] = {"n": 1}
    async with tracing_to(collected.endpoint) as tracer:
        span = tracer.begin("copied", attributes=told)
        told["n"] = 2
        span.end()
    assert collected.spans[0].attributes == {"n": 1}


# -- trace context and sampling


async def test_the_trace_goes_on_with_the_id_of_the_span(collected: Collector) -> None:
    async with tracing_to(collected.endpoint) as tracer:
        span = tracer.begin("root", parent=PARENT)
        child = span.child("child")
        carried = (span.traceparent, child.traceparent)
        child.end()
        span.end()
    root, below = collected.span("root"), collected.span("child")
    assert root is not None
    assert below is not None
    assert carried == (f"00-{PARENT[3:35]}-{root.span_id}-01", f"00-{PARENT[3:35]}-{below.span_id}-01")


@pytest.mark.parametrize("parent", ["", "nonsense", "00-" + "0" * 32 + "-b7ad6b7169203331-01"])
async def test_without_a_parent_a_span_is_the_root_of_the_trace_it_is_told(collected: Collector, parent: str) -> None:
    ids = trace_id(made("AI_CHAT:chat:7"))
    async with tracing_to(collected.endpoint) as tracer:
        for attempt in (1, 2):
            tracer.begin("delivery", attributes={"attempt": attempt}, parent=parent, trace_id=ids).end()
        tracer.begin("another").end()
    first, second, another = collected.spans
    assert first.trace_id == second.trace_id == ids
    assert first.span_id != second.span_id
    assert first.parent_id == second.parent_id == another.parent_id == ""
    assert another.trace_id not in (ids, "0" * 32)


async def test_what_the_parent_does_not_sample_carries_on_but_is_not_sent(collected: Collector) -> None:
    async with tracing_to(collected.endpoint) as tracer:
        span = tracer.begin("hidden", parent=UNSAMPLED)
        child = span.child("hidden too", attributes={"n": 1})
        child.set({"n": 2})
        child.event("nothing")
        child.end(error_type="internal")
        span.end()
        assert child.traceparent.startswith(PARENT[:36])
        assert child.traceparent.endswith("-00")
        assert child.traceparent[36:52] != PARENT[36:52]
        tracer.begin("seen").end()
    assert [span.name for span in collected.spans] == ["seen"]


async def test_the_flag_that_says_the_id_is_random_is_passed_on(collected: Collector) -> None:
    async with tracing_to(collected.endpoint) as tracer:
        assert tracer.begin("sampled", parent=PARENT[:-2] + "03").traceparent.endswith("-03")
        assert tracer.begin("unsampled", parent=PARENT[:-2] + "02").traceparent.endswith("-02")


async def test_all_deliveries_of_a_message_are_sampled_alike(collected: Collector) -> None:
    ids = [trace_id(made(f"message {number}")) for number in range(200)]
    ratio: dict[str, Any] = {"otel_traces_sampler": "parentbased_traceidratio", "otel_traces_sampler_arg": 0.5}
    for _ in range(2):
        async with tracing_to(collected.endpoint, **ratio) as tracer:
            for each in ids:
                tracer.begin("delivery", trace_id=each).end()
    seen = [span.trace_id for span in collected.spans]
    assert 50 < len(set(seen)) < 150
    assert sorted(seen) == sorted([*set(seen)] * 2)


@pytest.mark.parametrize(
    ("sampler", "sent"),
    [
        ("always_on", ["below sampled", "below unsampled", "root"]),
        ("always_off", []),
        ("parentbased_always_off", ["below sampled"]),
        ("parentbased_always_on", ["below sampled", "root"]),
        ("traceidratio", ["below sampled", "below unsampled", "root"]),
    ],
)
async def test_the_sampler_is_the_one_asked_for(collected: Collector, sampler: str, sent: list[str]) -> None:
    async with tracing_to(collected.endpoint, otel_traces_sampler=sampler) as tracer:
        tracer.begin("root").end()
        tracer.begin("below sampled", parent=PARENT).end()
        tracer.begin("below unsampled", parent=UNSAMPLED).end()
    assert sorted(span.name for span in collected.spans) == sent


# -- who speaks, and how


async def test_the_resource_says_who_speaks(collected: Collector) -> None:
    more = {"otel_resource_attributes": "deployment.environment.name=prod,team=r%26d,service.name=not this"}
    async with tracing_to(collected.endpoint, **more, otel_service_name="tearoom") as tracer:
        tracer.begin("x").end()
    resource = collected.spans[0].resource
    assert (resource["service.name"], resource["deployment.environment.name"], resource["team"]) == (
        "tearoom",
        "prod",
        "r&d",
    )
    assert resource["service.instance.id"].endswith(f"-{os.getpid()}")
    assert resource["telemetry.sdk.language"] == "python"


async def test_an_installed_service_tells_its_version(collected: Collector) -> None:
    async with otlp.exporting(settings(collected.endpoint), "handler_core", Metrics()) as telemetry:
        assert telemetry.tracer is not None
        telemetry.tracer.begin("x").end()
    assert collected.spans[0].service == "handler_core"
    assert collected.spans[0].resource["service.version"]


@pytest.mark.parametrize("compression", ["none", "gzip", "deflate"])
async def test_headers_and_compression_are_those_asked_for(collected: Collector, compression: str) -> None:
    options: dict[str, Any] = {
        "otel_exporter_otlp_compression": compression,
        "otel_exporter_otlp_headers": "api-key=top%20secret,tenant=a",
        "otel_exporter_otlp_traces_headers": "tenant=b",
    }
    async with otlp.exporting(settings(collected.endpoint, **options), "tea", Metrics()) as telemetry:
        assert telemetry.tracer is not None
        telemetry.tracer.begin("x").end()
    headers = dict(collected.requests)
    assert (headers["/v1/traces"]["api-key"], headers["/v1/traces"]["tenant"]) == ("top secret", "b")
    assert headers["/v1/metrics"]["tenant"] == "a"
    assert headers["/v1/traces"].get("content-encoding", "none") == compression
    assert [span.name for span in collected.spans] == ["x"]


async def test_a_signal_of_its_own_endpoint_goes_there_as_it_is(collected: Collector) -> None:
    own = {"otel_exporter_otlp_traces_endpoint": f"{collected.endpoint}/v1/traces"}
    async with tracing_to("http://127.0.0.1:1/nowhere", **own) as tracer:
        tracer.begin("x").end()
    assert len(collected.spans) == 1


async def test_a_signal_can_be_off(collected: Collector) -> None:
    off = settings(collected.endpoint, otel_traces_exporter="none")
    async with otlp.exporting(off, "tea", Metrics()) as telemetry:
        assert telemetry.tracer is None
    assert {path for path, _ in collected.requests} == {"/v1/metrics"}


async def test_nothing_global_is_set_and_nothing_is_left_behind(collected: Collector) -> None:
    provider, before = trace.get_tracer_provider(), set(threading.enumerate())
    logger = logging.getLogger("opentelemetry")
    handlers, propagates = list(logger.handlers), logger.propagate
    async with tracing_to(collected.endpoint) as tracer:
        tracer.begin("x").end()
    assert trace.get_tracer_provider() is provider
    assert (logger.handlers, logger.propagate) == (handlers, propagates)
    assert [thread for thread in threading.enumerate() if thread not in before and thread.is_alive()] == []


# -- a collector that is not there, or misbehaves


async def flushed(tracer: Tracer, collected: Collector, requests: int = 1) -> None:
    tracer.begin("x").end()
    await collected.until(lambda: len(collected.requests) >= requests, "it was tried")


async def test_with_no_collector_the_end_comes_at_once_and_is_told_once(logged: Log) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    quick = settings(nowhere, otel_metric_export_interval=100)
    async with asyncio.timeout(4), otlp.exporting(quick, "tea", Metrics()) as telemetry:
        assert telemetry.tracer is not None
        for _ in range(5):
            telemetry.tracer.begin("x").end()
    failed = events(logged, "telemetry_export_failed")
    assert [entry["signal"] for entry in failed] in (["traces", "metrics"], ["metrics", "traces"], ["metrics"])
    assert {entry["error"] for entry in failed} == {"ConnectionError"}
    assert {entry["endpoint"] for entry in failed} <= {f"{nowhere}/v1/traces", f"{nowhere}/v1/metrics"}


async def test_a_collector_that_hangs_holds_up_neither_the_loop_nor_the_end(collected: Collector, logged: Log) -> None:
    collected.fault = "hang"
    ticks = 0
    async with asyncio.timeout(10), tracing_to(collected.endpoint, flush_timeout=0.2) as tracer:
        await flushed(tracer, collected)
        tracer.begin("y").end()
        for _ in range(10):
            await asyncio.sleep(0)
            ticks += 1
    assert ticks == 10
    assert [entry["spans"] for entry in events(logged, "spans_left_unsent")] == [2]


async def test_a_collector_that_is_full_is_tried_again_when_it_says(collected: Collector, logged: Log) -> None:
    collected.fault, collected.retry_after = "unavailable", 0.05
    async with tracing_to(collected.endpoint) as tracer:
        await flushed(tracer, collected)
        collected.fault = None
        await collected.until(lambda: collected.spans, "the same span arrives")
    assert [span.name for span in collected.spans] == ["x"]
    assert events(logged, "telemetry_export_failed") == []


async def test_a_cut_connection_is_made_anew(collected: Collector) -> None:
    async with tracing_to(collected.endpoint) as tracer:
        await flushed(tracer, collected)
        await collected.until(lambda: collected.spans, "the first arrives")
        collected.fault = "reset"
        tracer.begin("y").end()
        await collected.until(lambda: len(collected.requests) > 1, "it was tried")
        collected.fault = None
        await collected.until(lambda: len(collected.spans) == 2, "the second arrives")


async def test_refusals_without_end_are_told_once_and_the_recovery_too(collected: Collector, logged: Log) -> None:
    collected.fault = "refuse"
    secret = f"{collected.endpoint}/v1/traces"
    metrics = Metrics()
    off = {"otel_exporter_otlp_traces_endpoint": f"{secret}?key=hunter2", "otel_metrics_exporter": "none"}
    async with otlp.exporting(settings(collected.endpoint, **off), "tea", metrics) as telemetry:
        assert telemetry.tracer is not None
        for number in range(1, 4):
            await flushed(telemetry.tracer, collected, number)
        collected.fault = None
        telemetry.tracer.begin("at last").end()
        await collected.until(lambda: collected.spans, "a span arrives")
    (failed,) = events(logged, "telemetry_export_failed")
    assert (failed["signal"], failed["error"], failed["endpoint"]) == ("traces", "http_400", f"{secret}?…")
    assert len(events(logged, "telemetry_export_recovered")) == 1
    assert "hunter2" not in str(logged)
    assert 'handler_spans_total{outcome="lost"} 3' in metrics.render()
    assert 'handler_spans_total{outcome="exported"} 1' in metrics.render()


async def test_a_redirect_is_no_success(collected: Collector, logged: Log) -> None:
    collected.fault = "redirect"
    async with tracing_to(collected.endpoint) as tracer:
        tracer.begin("x").end()
    assert [entry["error"] for entry in events(logged, "telemetry_export_failed")] == ["http_307"]


async def test_a_wrong_path_is_told(collected: Collector, logged: Log) -> None:
    async with tracing_to(collected.endpoint, otel_exporter_otlp_traces_endpoint=f"{collected.endpoint}/no") as tracer:
        tracer.begin("x").end()
    assert [entry["error"] for entry in events(logged, "telemetry_export_failed")] == ["http_404"]


async def test_what_the_collector_rejects_is_told(collected: Collector, logged: Log) -> None:
    collected.fault = "reject"
    async with tracing_to(collected.endpoint) as tracer:
        await flushed(tracer, collected)
        await flushed(tracer, collected, 2)
    assert [entry["reason"] for entry in events(logged, "telemetry_rejected")] == ["too many attributes"]


async def test_more_spans_than_may_wait_are_dropped_and_counted(collected: Collector) -> None:
    collected.fault = "hang"
    metrics = Metrics()
    small = {"otel_bsp_max_queue_size": 4, "otel_bsp_max_export_batch_size": 2, "otel_metrics_exporter": "none"}
    async with otlp.exporting(settings(collected.endpoint, **small), "tea", metrics, flush_timeout=0.05) as telemetry:
        assert telemetry.tracer is not None
        for _ in range(10):
            telemetry.tracer.begin("x").end()
        assert 'handler_spans_total{outcome="dropped"} 6' in metrics.render()


@pytest.mark.parametrize("fault", ["unavailable", "hang", "reset", "reject", "refuse"])
async def test_the_end_comes_whatever_the_collector_does(collected: Collector, logged: Log, fault: Fault) -> None:
    collected.fault = fault
    async with (
        asyncio.timeout(10),
        otlp.exporting(settings(collected.endpoint), "tea", Metrics(), flush_timeout=0.3) as telemetry,
    ):
        assert telemetry.tracer is not None
        await flushed(telemetry.tracer, collected)
    assert all("exc_info" not in entry for entry in logged)


# -- metrics


async def test_metrics_are_pushed_by_the_names_that_scrapes_have(collected: Collector) -> None:
    metrics = Metrics()
    metrics.counter("cups_total", "Cups poured.", kind='"black"').value += 3
    metrics.counter("cups_total", "Cups poured.", kind="green").value += 1
    metrics.gauge("kettle_celsius", "How hot.", lambda: 92.5)
    pours = metrics.histogram("pour_seconds", "How long.", (0.5, 1.0))
    for seconds in (0.5, 0.75, 9.0):
        pours.observe(seconds)
    before = time.time()
    async with otlp.exporting(settings(collected.endpoint), "tea", metrics):
        pass
    black = collected.last("cups_total", kind='"black"')
    kettle, pour = collected.last("kettle_celsius"), collected.last("pour_seconds")
    assert black is not None
    assert kettle is not None
    assert pour is not None
    assert (black.kind, black.monotonic, black.value) == ("sum", True, 3)
    assert before <= black.start <= black.time <= time.time()
    assert (kettle.kind, kettle.value) == ("gauge", 92.5)
    assert (pour.kind, pour.unit, pour.count, pour.value) == ("histogram", "s", 3, 10.25)
    assert pour.buckets == {0.5: 1, 1.0: 1, float("inf"): 1}
    assert pour.resource["service.name"] == "tea"


async def test_metrics_are_pushed_at_each_interval_and_once_more_at_the_end(collected: Collector) -> None:
    metrics = Metrics()
    cups = metrics.counter("cups_total", "Cups poured.")
    often = settings(collected.endpoint, otel_metric_export_interval=100)
    async with otlp.exporting(often, "tea", metrics):
        cups.value = 1
        await collected.until(lambda: (p := collected.last("cups_total")) and p.value == 1, "the first push")
        cups.value = 2
        await collected.until(lambda: (p := collected.last("cups_total")) and p.value == 2, "another")
        cups.value = 3
    last = collected.last("cups_total")
    assert last is not None
    assert last.value == 3


async def test_a_gauge_that_cannot_be_read_is_told_and_stops_nothing(collected: Collector, logged: Log) -> None:
    metrics = Metrics()
    metrics.gauge("gone", "Nobody knows.", lambda: 1 / 0)
    async with otlp.exporting(settings(collected.endpoint), "tea", metrics):
        pass
    assert [entry["error"] for entry in events(logged, "telemetry_failed")] == ["ZeroDivisionError"]


# -- the rest


def test_a_collector_in_a_thread_serves_code_that_blocks() -> None:
    async def work(endpoint: str) -> None:
        async with tracing_to(endpoint) as tracer:
            tracer.begin("x").end()

    with collector_thread() as collected:
        asyncio.run(work(collected.endpoint))
        collected.wait(lambda: collected.spans, "the span has arrived")


SERVES_WITHOUT = """
    import asyncio, os, sys
    from handler_core.config import ServiceSettings
    from handler_core.context import Context
    from handler_core.contract.base import Message
    from handler_core.jetstream import Api
    from handler_core.service import Service
    from handler_core.streams import Consumer, Stream, apply
    from handler_core.testing import connection, serving

    class Work(Message):
        n: int

    STREAM = Stream("NOTELEMETRY", ("notelemetry",), retention="workqueue", max_bytes=1 << 20, max_age=60)
    CONSUMER = Consumer("NOTELEMETRY", "worker", ("notelemetry",))
    service = Service("quiet", ServiceSettings)
    done = asyncio.Event()

    @service.consumes(CONSUMER)
    async def handle(work: Work, ctx: Context[None]) -> None:
        ctx.log.debug("seen")
        if work.n == 9:
            done.set()

    async def main() -> None:
        settings = ServiceSettings(nats_url=os.environ["NATS_URL"], health_host="127.0.0.1", health_port=0)
        async with connection(settings.nats_url) as nc:
            await apply(Api(nc), [STREAM], [CONSUMER])
            async with serving(service, settings):
                for n in range(10):
                    await nc.publish("notelemetry", b"\\x81\\xa1n" + bytes([n]))
                await done.wait()
        print(sorted(name for name in sys.modules if name.partition(".")[0] == "opentelemetry"))

    asyncio.run(main())
"""


async def test_without_an_endpoint_a_service_that_serves_loads_nothing_of_opentelemetry(nats: NatsServer) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        textwrap.dedent(SERVES_WITHOUT),
        env={**os.environ, "NATS_URL": nats.url},
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    assert (process.returncode, said.decode().splitlines()[-1]) == (0, "[]")


async def test_a_worker_that_is_killed_has_told_what_it_did(nats: NatsServer, api: Api, collected: Collector) -> None:
    stream = Stream("TOLD", ("told.work",), retention="workqueue", max_bytes=1 << 20, max_age=60)
    await apply(api, [stream], [Consumer("TOLD", "worker")])
    environment = {
        "NATS_URL": nats.url,
        "STREAM": "TOLD",
        "CONSUMER": "worker",
        "HEALTH_HOST": "127.0.0.1",
        "HEALTH_PORT": "0",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collected.endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "1",
    }
    worker = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__).parent / "consumer" / "tiny_service.py"), env={**os.environ, **environment}
    )
    try:
        await api.publish("told.work", msgpack.packb({"name": "long"}), {"traceparent": PARENT})
        # Its handler never ends: what has ended by then is all that can be told.
        await collected.until(lambda: collected.spans, "a span of the message that is being worked on")
    finally:
        worker.kill()
        await worker.wait()
    assert {span.trace_id for span in collected.spans} == {PARENT[3:35]}
    assert {span.service for span in collected.spans} == {"tiny_service"}


async def test_a_service_tells_of_each_message_and_of_its_counts(
    nats: NatsServer, api: Api, collected: Collector
) -> None:
    class Work(Message):
        n: int

    stream = Stream("TOLD", ("told.work",), retention="workqueue", max_bytes=1 << 20, max_age=60)
    consumer = Consumer("TOLD", "worker", ("told.work",))
    await apply(api, [stream], [consumer])
    service = Service("teller", ServiceSettings)

    @service.consumes(consumer)
    async def handle(work: Work, ctx: Context[None]) -> None:
        with tracing.span("brew", "client", {"n": work.n}):
            assert tracing.active.get() is not None

    told = settings(collected.endpoint, nats_url=nats.url, health_host="127.0.0.1", health_port=0)
    async with serving(service, told):
        for n in range(2):
            await api.publish("told.work", msgpack.packb({"n": n}), {})
        await collected.until(lambda: sum(span.name == "brew" for span in collected.spans) == 2, "both were handled")
    brewed = [span for span in collected.spans if span.name == "brew"]
    assert len({span.trace_id for span in brewed}) == 2
    for span in brewed:
        (message,) = [each for each in collected.spans if each.span_id == span.parent_id]
        assert (message.kind, message.parent_id, message.service) == ("consumer", "", "teller")
    settled = collected.last("handler_messages_settled_total", consumer="worker", outcome="ack")
    assert settled is not None
    assert settled.value == 2


def test_spans_are_encoded_as_opentelemetry_encodes_them() -> None:
    ended: list[ReadableSpan] = []
    tracer = SpanTracer(ALWAYS_ON, Resource({"service.name": "tea", "n": 1}), ended.append)
    root = tracer.begin("root", "server", {"s": "x", "i": -1, "b": True, "one": 1, "f": 1.0, "l": ["a", "b"]})
    root.event("e", {"b": False, "i": 0})
    kinds: tuple[tracing.Kind, ...] = ("internal", "client", "producer", "consumer")
    for kind in kinds:
        root.child("child", kind, {"s": "x", "b": 1}).end(at=time.time())
    root.end(error_type="internal", message="why")
    tracer.begin("remote", parent=PARENT, state="a=1,b=2").end(error_type="canceled")
    theirs = encode_spans(ended)
    assert ExportTraceServiceRequest.FromString(encode(ended)) == theirs


# -- TLS


@pytest.mark.parametrize(("named", "arrives"), [("ca.pem", True), ("no.pem", False), ("", False)])
async def test_an_authority_of_ones_own_is_known_by_ssl_cert_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, logged: Log, named: str, arrives: bool
) -> None:
    authority, taken = trustme.CA(), list[str]()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async def take(request: web.Request) -> web.Response:
        taken.append(request.path)
        return web.Response()

    app, port = web.Application(), free_port()
    app.router.add_post("/v1/traces", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # which count before all else with requests
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / named) if named else "")
    try:
        async with tracing_to(f"https://127.0.0.1:{port}", otel_exporter_otlp_timeout=500) as tracer:
            tracer.begin("turn").end()
    finally:
        await runner.cleanup()
    assert (taken == ["/v1/traces"]) is arrives
    assert [entry["error"] for entry in events(logged, "telemetry_export_failed")] == ([] if arrives else ["SSLError"])
