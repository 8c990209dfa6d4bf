"""Spans: what a turn did and when, where there is somebody to tell; nothing at all where there is not.

Whoever begins the work of a message makes its span the `active` one; everything below calls `span`, which costs one
look at a context variable when nobody listens. The spans themselves are OpenTelemetry's, made in `handler_core.otlp`,
which is loaded only when an endpoint is set.
"""

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import Literal, Protocol

from handler_core.errors import HandlerError

Kind = Literal["internal", "client", "server", "producer", "consumer"]
Value = str | bool | int | float | Sequence[str]


class Span(Protocol):
    """A running span."""

    @property
    def traceparent(self) -> str:
        """What a call made within it carries on (W3C Trace Context)."""

    def child(
        self,
        name: str,
        kind: Kind = "internal",
        attributes: Mapping[str, Value] | None = None,
        *,
        start: float | None = None,
    ) -> "Span":
        """A span below this one; `start` in Unix seconds, now when absent."""

    def set(self, attributes: Mapping[str, Value]) -> None: ...

    def event(self, name: str, attributes: Mapping[str, Value] | None = None) -> None: ...

    def end(self, *, error_type: str = "", message: str = "", at: float | None = None) -> None:
        """End it, as failed when `error_type` is given; `at` in Unix seconds. A second call does nothing."""


class Tracer(Protocol):
    """Begins spans that are not below another of this process."""

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
        """A span below the remote one that `parent` (a `traceparent`, with its `tracestate`) names; without one, the
        root of the trace `trace_id`, or of a new one."""


active: ContextVar[Span | None] = ContextVar("active_span", default=None)
"""The span within which the current work happens."""


class _Nothing:
    """What `span` gives where nobody listens."""

    __slots__ = ()

    def __enter__(self) -> "_Nothing":
        return self

    def __exit__(self, *_: object) -> None: ...

    def set(self, attributes: Mapping[str, Value]) -> None: ...

    def event(self, name: str, attributes: Mapping[str, Value] | None = None) -> None: ...


class Within:
    """Makes a span the active one for a block, and ends it with the block's outcome."""

    __slots__ = ("_outer", "_span")

    def __init__(self, span: Span) -> None:
        self._span = span

    def __enter__(self) -> "Within":
        self._outer = active.get()
        active.set(self._span)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        # Not by token: an async generator may be closed in another context than it was run in.
        active.set(self._outer)
        end(self._span, error)

    def set(self, attributes: Mapping[str, Value]) -> None:
        self._span.set(attributes)

    def event(self, name: str, attributes: Mapping[str, Value] | None = None) -> None:
        self._span.event(name, attributes)


NOTHING = _Nothing()


def span(name: str, kind: Kind = "internal", attributes: Mapping[str, Value] | None = None) -> Within | _Nothing:
    """A block's span, below the active one; nothing where there is none."""
    above = active.get()
    return NOTHING if above is None else Within(above.child(name, kind, attributes))


def annotate(attributes: Mapping[str, Value]) -> None:
    """Set attributes of the active span, if there is one."""
    if (span := active.get()) is not None:
        span.set(attributes)


def end(span: Span, error: BaseException | None) -> None:
    """End a span as its work ended. Of an error that is not ours only the class is told: its text may hold a secret."""
    if error is None:
        span.end()
    elif isinstance(error, HandlerError):
        span.end(error_type=error.type.value, message=error.message)
    elif isinstance(error, Exception):
        span.end(error_type=type(error).__name__)
    else:
        span.end(error_type="canceled")
