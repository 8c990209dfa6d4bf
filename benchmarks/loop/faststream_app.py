"""The same handler on FastStream, in its quickest form and in the form that its documentation teaches.

Its quickest form for single messages, of those its documentation offers (`README.md` has what the others reached):
pulls of a hundred, a decoder that makes the model, dependency injection off (`apply_types=False`), no logging of
each message, and `faststream run`, which takes uvloop. `BENCH_FASTSTREAM=injected` is the documented form: typed
parameters, the message injected.
"""

import os
from typing import Any

import msgpack
from faststream import FastStream
from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub
from faststream.nats.annotations import NatsMessage as InjectedMessage
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from benchmarks.loop.messages import RESULT_SUBJECT, STREAM, WORK_SUBJECT, Work, compute

INJECTED = os.environ.get("BENCH_FASTSTREAM") == "injected"


def telemetry() -> list[Any]:
    """Its OpenTelemetry middleware, with traces and metrics exported by OTLP over HTTP, where an endpoint is set."""
    if "OTEL_EXPORTER_OTLP_ENDPOINT" not in os.environ:
        return []
    from faststream.nats.opentelemetry import NatsTelemetryMiddleware
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    tracers = TracerProvider()
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    meters = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())])
    return [NatsTelemetryMiddleware(tracer_provider=tracers, meter_provider=meters)]


broker = NatsBroker(os.environ["NATS_URL"], logger=None, apply_types=INJECTED, middlewares=telemetry())
app = FastStream(broker, logger=None)


async def decode(message: NatsMessage) -> object:
    content = msgpack.unpackb(message.body)
    return content if INJECTED else Work.model_validate(content)


subscriber = broker.subscriber(
    WORK_SUBJECT,
    stream=JStream(STREAM, declare=False),
    durable=os.environ["BENCH_CONSUMER"],
    pull_sub=PullSub(batch_size=100),
    decoder=decode,
    no_reply=True,
)


async def answer(work: Work, message: NatsMessage) -> None:
    await broker.publish(
        msgpack.packb(compute(work).model_dump()),
        f"{RESULT_SUBJECT}.{work.user_id}",
        headers={"traceparent": message.headers["traceparent"]},
        correlation_id=message.correlation_id,
    )


if INJECTED:

    @subscriber
    async def handle_injected(work: Work, message: InjectedMessage) -> None:
        await answer(work, message)

else:

    @subscriber
    async def handle(work: Work) -> None:
        await answer(work, broker.context.get_local("message"))
