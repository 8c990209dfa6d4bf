"""Spans as OTLP's protobuf messages, several times as fast as OpenTelemetry's own encoder makes them.

Most attributes are the same from span to span: each is made once and copied from then on. The encoder holds the
interpreter while it works, so what it costs, the event loop waits for.
"""

import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, SpanFlags, Status
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, SpanKind

SLICE = 128
PAUSE = 1e-5
"""After so many spans the event loop's thread is let run. By itself the interpreter would switch to it only after
5 ms, each time it comes back from a system call."""

_KINDS = {
    SpanKind.INTERNAL: Span.SPAN_KIND_INTERNAL,
    SpanKind.SERVER: Span.SPAN_KIND_SERVER,
    SpanKind.CLIENT: Span.SPAN_KIND_CLIENT,
    SpanKind.PRODUCER: Span.SPAN_KIND_PRODUCER,
    SpanKind.CONSUMER: Span.SPAN_KIND_CONSUMER,
}
_LOCAL = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_REMOTE = _LOCAL | SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK


def encode(spans: Sequence[ReadableSpan]) -> bytes:
    """An export request; all spans have the resource and the scope of the first."""
    first = spans[0]
    resource = Resource(attributes=_attributes(first.resource.attributes))
    scope = first.instrumentation_scope
    scoped = ScopeSpans(scope=InstrumentationScope(name=scope.name if scope is not None else ""))
    for start in range(0, len(spans), SLICE):
        time.sleep(PAUSE)
        scoped.spans.extend([_span(span) for span in spans[start : start + SLICE]])
    request = ExportTraceServiceRequest(resource_spans=[ResourceSpans(resource=resource, scope_spans=[scoped])])
    return bytes(request.SerializeToString())


def _span(span: ReadableSpan) -> Span:
    context: SpanContext = span.context
    parent = span.parent
    encoded = Span(
        trace_id=context.trace_id.to_bytes(16, "big"),
        span_id=context.span_id.to_bytes(8, "big"),
        parent_span_id=parent.span_id.to_bytes(8, "big") if parent is not None else b"",
        trace_state=context.trace_state.to_header() if context.trace_state else "",
        name=span.name,
        kind=_KINDS[span.kind],
        start_time_unix_nano=span.start_time or 0,
        end_time_unix_nano=span.end_time or 0,
        flags=_REMOTE if parent is not None and parent.is_remote else _LOCAL,
        attributes=_attributes(span.attributes),
        status=_status(span.status.status_code.value, span.status.description),
    )
    for event in span.events:
        encoded.events.add(name=event.name, time_unix_nano=event.timestamp, attributes=_attributes(event.attributes))
    return encoded


@lru_cache(64)
def _status(code: int, message: str | None) -> Status:
    return Status(code=code, message=message)  # type: ignore[arg-type]  # the numbers are the same


def _attributes(attributes: Mapping[str, Any] | None) -> list[KeyValue]:
    encoded = []
    for name, value in (attributes or {}).items():
        try:
            encoded.append(_repeated(name, value) if isinstance(value, str | bool) else _pair(name, value))
        except (TypeError, ValueError):  # text that is no Unicode, a number of more than 64 bits, an object
            continue
    return encoded


def _pair(name: str, value: Any) -> KeyValue:
    return KeyValue(key=name, value=_value(value))


_repeated = lru_cache(2048, typed=True)(_pair)


def _value(value: Any) -> AnyValue:
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    return AnyValue(array_value=ArrayValue(values=[_value(each) for each in value]))
