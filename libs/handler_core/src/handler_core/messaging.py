"""The spans of messages: OpenTelemetry's conventions for messaging, applied to JetStream and to requests.

Only services with an exporter wrap their work in these; without one no message passes here.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from handler_core.delivery import Delivery, Incoming
from handler_core.streams import Consumer, declared
from handler_core.telemetry import carried, carried_state, made, trace_id
from handler_core.tracing import Kind, Span, Tracer, Value, Within
from handler_core.workers import Process

M = TypeVar("M", bound=Incoming)
R = TypeVar("R")


def traced(tracer: Tracer, consumer: Consumer, process: Process) -> Process:
    """`process` in a span below its sender's; each delivery of a message gets one, all in the same trace."""
    constant: dict[str, Value] = {
        "messaging.system": "nats",
        "messaging.consumer.group.name": consumer.name,
        "messaging.nats.stream": consumer.stream,
    }

    async def with_span(delivery: Delivery) -> None:
        attributes: dict[str, Value] = {
            **constant,
            "messaging.destination.name": delivery.subject,
            "messaging.message.body.size": len(delivery.data),
            "messaging.nats.stream.sequence": delivery.sequence,
            "messaging.nats.delivery.attempt": delivery.attempt,
        }
        # The wait in the stream. It ends here, and so is exported even if the process dies of what follows.
        _begin(tracer, "receive", "client", delivery, attributes, start=delivery.timestamp).end()
        with Within(_begin(tracer, "process", "consumer", delivery, attributes)):
            await process(delivery)

    return with_span


def served(tracer: Tracer, answer: Callable[[M], Awaitable[R]]) -> Callable[[M], Awaitable[R]]:
    """A request's answering in a span below its caller's."""

    async def with_span(call: M) -> R:
        attributes: dict[str, Value] = {"messaging.system": "nats", "messaging.destination.name": call.subject}
        with Within(_begin(tracer, "process", "server", call, attributes)):
            return await answer(call)

    return with_span


def _begin(
    tracer: Tracer,
    operation: str,
    kind: Kind,
    message: Incoming,
    attributes: dict[str, Value],
    *,
    start: float | None = None,
) -> Span:
    """A span below the sender's, or a root of the message's own trace."""
    parent, name = carried(message.header(b"traceparent")), template(message.subject)
    return tracer.begin(
        f"{operation} {name}",
        kind,
        {
            **attributes,
            "messaging.destination.template": name,
            "messaging.operation.name": operation,
            "messaging.operation.type": operation,
        },
        parent=parent,
        state=carried_state(message.header(b"tracestate")) if parent else "",
        trace_id="" if parent else trace_id(made(message.identity)),
        start=start,
    )


def template(subject: str) -> str:
    """A subject with its ids as wildcards: as a span's name, it must not be different for each user or session.

    >>> template("ai.chat.user.alice.message")
    'ai.chat.user.*.message'
    >>> template("ai.voice.tts.request.s1")
    'ai.voice.tts.request.*'
    """
    if (known := declared(subject)) is not None:
        return known[1]
    tokens = subject.split(".")
    if len(tokens) > 4 and tokens[2] == "user":
        tokens[3] = "*"
    return ".".join(tokens)
