"""What a handler is given with a message."""

from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import structlog

from handler_core.codec import encode
from handler_core.connection import Connection, trace_block
from handler_core.contract.answer import StreamEvent
from handler_core.contract.base import Message
from handler_core.deadline import Deadline
from handler_core.delivery import Incoming
from handler_core.jetstream import Api
from handler_core.telemetry import carried, carried_state, made, trace_id
from handler_core.timings import Timings
from handler_core.tracing import active

C = TypeVar("C")

_log = structlog.get_logger("handler")


def _unheard(_: str | Message) -> None:
    pass


async def _nothing() -> list[StreamEvent]:
    return []


class Context(Generic[C]):
    """One message's surroundings; `C` is the type of what the service's lifespan yields.

    A handler stops by itself when it is cancelled: the deadline of an upstream call, a shutdown past its limit, a
    lost turn and `handler_timeout` all arrive as exceptions at its next `await`.
    """

    __slots__ = ("_headers", "_log", "_nc", "_timings", "_trace", "clients", "deadline", "earlier",
                 "known", "message", "request_id", "write")  # fmt: skip

    def __init__(
        self, nc: Connection, clients: C, message: Incoming, request_id: str, deadline: Deadline | None = None
    ) -> None:
        self.clients = clients
        """What the service's lifespan built."""
        self.message = message
        """The message as it arrived: subject, headers, attempt."""
        self.request_id = request_id
        self.deadline = deadline or Deadline.never()
        """When the answer is of no more use; hand it to every client call."""
        self.write: Callable[[str | Message], None] = _unheard
        """Streams a piece of the answer: text, or a message of the family's own that becomes an event. It returns at
        once, and does nothing where nobody follows: in a request/reply, or a request that does not ask for it."""
        self.earlier: Callable[[], Awaitable[list[StreamEvent]]] = _nothing
        """Reads the events that earlier attempts at this request have streamed, the oldest first."""
        self.known: dict[str, Any] = {}
        """Fields that a response which tells of an error has as well: what was found out before it."""
        self._nc = nc
        self._timings: Timings | None = None
        self._log: structlog.stdlib.BoundLogger | None = None
        self._trace = ""
        self._headers = b""

    @property
    def attempt(self) -> int:
        """How many times the message has been delivered, from 1."""
        return self.message.attempt

    @property
    def traceparent(self) -> str:
        """The W3C trace context of what is done now: the running span's, or else the request's, or one of its own
        when it came without."""
        if (span := active.get()) is not None:
            return span.traceparent
        if not self._trace:
            self._trace = carried(self.message.header(b"traceparent")) or made(self.message.identity)
        return self._trace

    @property
    def trace_id(self) -> str:
        """The trace that this message belongs to, 32 hexadecimal digits."""
        return trace_id(self.traceparent)

    @property
    def trace_headers(self) -> dict[str, str]:
        """The headers that carry the trace on, to upstreams and in messages."""
        headers = {"traceparent": self.traceparent}
        if state := carried_state(self.message.header(b"tracestate")):
            headers["tracestate"] = state
        return headers

    @property
    def timings(self) -> Timings:
        """Where the time goes; `with ctx.timings.stage("embed"): …`."""
        if self._timings is None:
            self._timings = Timings()
        return self._timings

    @property
    def log(self) -> "structlog.stdlib.BoundLogger":
        """A logger whose lines carry the request's and the trace's id."""
        if self._log is None:
            self._log = _log.bind(request_id=self.request_id, trace_id=self.trace_id)
        return self._log

    async def store(self, subject: str, message: Message) -> int:
        """Publish to a stream and wait until it is stored; returns the stream sequence.

        Raises:
            BadSubject, MessageTooLarge: refused before it is sent.
            JetStreamError, Transient: not stored, or not known to be; either makes the message come back.
        """
        return await Api(self._nc).publish(subject, encode(message), self.trace_headers)

    async def publish(self, subject: str, message: Message) -> None:
        """Publish on core NATS with the request's trace context, and do not wait: nobody says whether it arrived.

        For a result that must not be lost, use `store`.

        Raises:
            BadSubject, MessageTooLarge: refused before it is sent.
        """
        if not self._headers:
            self._headers = trace_block(**self.trace_headers)
        headers = self._headers if active.get() is None else trace_block(**self.trace_headers)
        self._nc.send(subject, encode(message), headers=headers)
        if self._nc.congested:
            await self._nc.drained()
