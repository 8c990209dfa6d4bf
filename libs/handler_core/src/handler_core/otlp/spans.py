"""Spans, begun and ended on the event loop at little cost; OpenTelemetry's SDK samples, batches and encodes them.

The SDK's own spans are not used: they lock, copy and check for use from many threads and for whatever a user passes,
which costs several times as much as all that is needed here.
"""

import random
import time
from collections.abc import Callable, Mapping

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_OFF,
    DEFAULT_ON,
    Decision,
    ParentBasedTraceIdRatio,
    Sampler,
    TraceIdRatioBased,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from handler_core.config import OtelSettings
from handler_core.telemetry import carried
from handler_core.tracing import Kind, Span, Value

_KINDS: dict[Kind, SpanKind] = {
    "internal": SpanKind.INTERNAL,
    "client": SpanKind.CLIENT,
    "server": SpanKind.SERVER,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}
_SAMPLERS: dict[str, Callable[[float], Sampler]] = {
    "always_on": lambda _: ALWAYS_ON,
    "always_off": lambda _: ALWAYS_OFF,
    "traceidratio": TraceIdRatioBased,
    "parentbased_always_on": lambda _: DEFAULT_ON,
    "parentbased_always_off": lambda _: DEFAULT_OFF,
    "parentbased_traceidratio": ParentBasedTraceIdRatio,
}
_EMPTY = Context()
# What the samplers look at: whether there is a parent, and whether that one is sampled.
_ABOVE = tuple(
    set_span_in_context(NonRecordingSpan(SpanContext(1, 1, is_remote=True, trace_flags=TraceFlags(flags))), _EMPTY)
    for flags in (TraceFlags.DEFAULT, TraceFlags.SAMPLED)
)
_UNSET = Status(StatusCode.UNSET)
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_SCOPE = InstrumentationScope("handler_core")

Emit = Callable[[ReadableSpan], None]


def sampler(settings: OtelSettings) -> Sampler:
    """What `OTEL_TRACES_SAMPLER` and its argument ask for."""
    return _SAMPLERS[settings.otel_traces_sampler](settings.otel_traces_sampler_arg)


class SpanTracer:
    """The `Tracer` that gives each ended, sampled span to `emit`."""

    def __init__(self, sampler: Sampler, resource: Resource, emit: Emit) -> None:
        self.resource = resource
        self.emit = emit
        self._sampler = sampler

    def begin(
        self,
        name: str,
        kind: Kind = "internal",
        attributes: Mapping[str, Value] | None = None,
        *,
        parent: str = "",
        state: str = "",
        trace_id: str = "",
        start: float | None = None,
    ) -> Span:
        """See `Tracer.begin`. A `parent` that is not well formed counts as none."""
        above = _remote(parent, state) if carried(parent) else None
        if above is None:
            trace, seen = int(trace_id, 16) if trace_id else _random_id(128), _EMPTY
        else:
            trace, seen = above.trace_id, _ABOVE[above.trace_flags & TraceFlags.SAMPLED]
        decision = self._sampler.should_sample(seen, trace, name).decision
        # Of the parent's flags only "the id is random" is true below it whatever is decided here.
        flags = (above.trace_flags & TraceFlags.RANDOM_TRACE_ID) if above is not None else 0
        if decision is not Decision.RECORD_AND_SAMPLE:
            return UnsampledSpan(f"00-{trace:032x}-{_random_id(64):016x}-{flags:02x}")
        own = TraceFlags(flags | _SAMPLED) if flags else _SAMPLED
        states = above.trace_state if above is not None else None
        context = SpanContext(trace, _random_id(64), False, own, states)
        return RecordedSpan(self, name, kind, _without_none(attributes), context, above, _nanoseconds(start))


class UnsampledSpan:
    """A span that nobody will see, and all below it: they only carry the trace on, with the decision."""

    __slots__ = ("traceparent",)

    def __init__(self, traceparent: str) -> None:
        self.traceparent = traceparent

    def child(
        self,
        name: str,
        kind: Kind = "internal",
        attributes: Mapping[str, Value] | None = None,
        *,
        start: float | None = None,
    ) -> "UnsampledSpan":
        return self

    def set(self, attributes: Mapping[str, Value]) -> None: ...

    def event(self, name: str, attributes: Mapping[str, Value] | None = None) -> None: ...

    def end(self, *, error_type: str = "", message: str = "", at: float | None = None) -> None: ...


class RecordedSpan:
    """A span that is exported when it has ended. What comes after its end is ignored."""

    __slots__ = (
        "_attributes",
        "_context",
        "_ended",
        "_events",
        "_kind",
        "_name",
        "_parent",
        "_start",
        "_traceparent",
        "_tracer",
    )

    def __init__(
        self,
        tracer: SpanTracer,
        name: str,
        kind: Kind,
        attributes: dict[str, Value],
        context: SpanContext,
        parent: SpanContext | None,
        start: int,
    ) -> None:
        self._tracer = tracer
        self._name = name
        self._kind = kind
        self._attributes = attributes
        self._events: list[Event] = []
        self._context = context
        self._parent = parent
        self._start = start
        self._traceparent = ""
        self._ended = False

    @property
    def traceparent(self) -> str:
        if not self._traceparent:
            context = self._context
            self._traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        return self._traceparent

    def child(
        self,
        name: str,
        kind: Kind = "internal",
        attributes: Mapping[str, Value] | None = None,
        *,
        start: float | None = None,
    ) -> "RecordedSpan":
        # Every sampler that can be chosen decides for a child as for its parent in the same process.
        above = self._context
        own = SpanContext(above.trace_id, _random_id(64), False, above.trace_flags, above.trace_state)
        return RecordedSpan(self._tracer, name, kind, _without_none(attributes), own, above, _nanoseconds(start))

    def set(self, attributes: Mapping[str, Value]) -> None:
        if not self._ended:
            self._attributes.update(_without_none(attributes))

    def event(self, name: str, attributes: Mapping[str, Value] | None = None) -> None:
        if not self._ended:
            self._events.append(Event(name, _without_none(attributes), time.time_ns()))

    def end(self, *, error_type: str = "", message: str = "", at: float | None = None) -> None:
        if self._ended:
            return
        self._ended = True
        status = _UNSET
        if error_type:
            self._attributes["error.type"] = error_type
            # One character that is no Unicode would cost the whole batch.
            status = Status(StatusCode.ERROR, message.encode(errors="replace").decode() if message else None)
        self._tracer.emit(
            ReadableSpan(
                name=self._name,
                context=self._context,
                parent=self._parent,
                resource=self._tracer.resource,
                attributes=self._attributes,
                events=self._events,
                kind=_KINDS[self._kind],
                status=status,
                start_time=self._start,
                # The wall clock may have been set back meanwhile.
                end_time=max(self._start, _nanoseconds(at)),
                instrumentation_scope=_SCOPE,
            )
        )


def _remote(traceparent: str, state: str) -> SpanContext:
    return SpanContext(
        int(traceparent[3:35], 16),
        int(traceparent[36:52], 16),
        True,
        TraceFlags(int(traceparent[53:], 16)),
        TraceState.from_header([state]) if state else None,
    )


def _random_id(bits: int) -> int:
    return random.getrandbits(bits) or 1  # 0 is no id


def _without_none(attributes: Mapping[str, Value] | None) -> dict[str, Value]:
    return {name: value for name, value in attributes.items() if value is not None} if attributes else {}


def _nanoseconds(seconds: float | None) -> int:
    return time.time_ns() if seconds is None else int(seconds * 1e9)
