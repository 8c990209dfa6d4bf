"""Calls: requests that wait for a reply, what comes of them, how that looks on the wire, and the count of them."""

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from handler_core.codec import encode, encode_json, is_text
from handler_core.connection import BadSubject, Connection, header_block
from handler_core.contract.answer import Response
from handler_core.contract.errors import ErrorInfo, ErrorType
from handler_core.delivery import Incoming
from handler_core.errors import DeadlineExceeded, HandlerError, Internal, Transient
from handler_core.telemetry import Counter, Metrics

log = structlog.get_logger("handler_core.calls")

CODES: Final = {
    ErrorType.VALIDATION_ERROR: "400",
    ErrorType.NOT_FOUND: "404",
    ErrorType.BUSY: "429",
    ErrorType.CANCELED: "499",
    ErrorType.INTERNAL: "500",
    ErrorType.DOWNSTREAM_UNAVAILABLE: "503",
    ErrorType.TRANSIENT: "503",
    ErrorType.DEADLINE_EXCEEDED: "504",
}
"""`Nats-Service-Error-Code` by error type."""
MAX_MESSAGE = 4096
"""Characters of an error's message that are sent."""
MAX_HEADER = 256
"""Characters of it that `Nats-Service-Error` and the statistics repeat."""
RETRY_AFTER_MIN = 0.05
"""Seconds; the shortest wait that a busy endpoint asks for."""
RETRY_AFTER_UNKNOWN = 1.0
"""Seconds; how long a call is thought to take before one has ended."""
SMOOTHING = 0.1
"""The weight of the newest call in the mean duration."""
OK: Final = "ok"
UNANSWERABLE: Final = "unanswerable"
"""The outcome of a call that nobody heard the reply of: it named no reply subject, or the connection is gone."""

# Where a reply must not go: our permissions are wider than a caller's, who could command the server this way or put
# words into another user's answer.
_FORBIDDEN = ("$", "ai.", "evt.", "dlq.", "voice.")


class Call(Incoming):
    """A request that waits for its reply."""

    __slots__ = ("attempt", "identity", "reply", "started", "text", "timestamp")

    def __init__(self, subject: bytes, reply: bytes, data: bytes, raw_headers: bytes | None, identity: str) -> None:
        super().__init__(subject.decode("utf-8", "replace"), data, raw_headers)
        self.reply = reply.decode("utf-8", "replace")
        self.identity = identity
        self.attempt = 1
        self.timestamp = time.time()
        self.started = time.perf_counter_ns()
        self.text = is_text(data)
        """Whether it came in JSON, and is answered in it."""

    def unanswerable(self, nc: Connection) -> str:
        """Why no reply can be sent to it, or nothing."""
        if not self.reply:
            return "a request without a reply subject"
        try:
            nc.check(self.reply, 0)
        except BadSubject:
            return "a request whose reply subject is none"
        forbidden = self.reply.startswith(_FORBIDDEN) or nc.owns(self.reply)
        return "a request whose reply subject is no inbox" if forbidden else ""

    def send(self, nc: Connection, response: Response) -> None:
        """Send its reply, in the request's own format, with `nats.micro`'s error headers where it tells an error.

        Raises:
            MessageTooLarge, nats.errors.Error: as `Connection.send`.
            TypeError, ValueError: the response cannot be encoded.
        """
        payload = encode_json(response) if self.text else encode(response)
        nc.send(self.reply, payload, headers=b"" if response.error is None else _error_headers(response.error))


Answer = Callable[[Call], Awaitable[Response]]
"""Answers a call. A response with its `error` set counts as an error, as a raised `HandlerError` does; any other
exception is logged and answered as `internal`."""


async def outcome_of(answer: Answer, call: Call, timeout: float) -> Response | HandlerError:
    """What comes of a call within `timeout` seconds; only a cancellation of this task is raised."""
    try:
        async with asyncio.timeout(timeout) as limit:
            return await answer(call)
    except HandlerError as error:
        return error
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return Transient("the handler was cancelled from within")
    except (Exception, SystemExit) as raised:
        if isinstance(raised, TimeoutError) and limit.expired():
            return DeadlineExceeded(f"the handler did not finish within {timeout:g} s")
        log.exception("request_failed", subject=call.subject, call=call.identity)
        return Internal(f"{type(raised).__name__} in the handler", retryable=True)


def _error_headers(info: ErrorInfo) -> bytes:
    return header_block({"Nats-Service-Error": info.message[:MAX_HEADER], "Nats-Service-Error-Code": CODES[info.type]})


def told(info: ErrorInfo, retry_after: float) -> ErrorInfo:
    """An error as the caller is told: of bounded length, and always with a time to wait when it is `busy`.

    Args:
        retry_after: that time, in seconds, where the error does not say.
    """
    wait = info.retry_after_ms
    if info.type is ErrorType.BUSY:
        wait = max(1, wait or math.ceil(1000 * retry_after))
    return info.model_copy(update={"message": info.message[:MAX_MESSAGE], "retry_after_ms": wait})


class Counts:
    """An endpoint's statistics, as `$SRV.STATS` and the metrics tell them."""

    def __init__(self, metrics: Metrics, endpoint: str, in_flight: Callable[[], int]) -> None:
        self.requests = 0
        self.errors = 0
        self.last_error: str | None = None
        """Code and message, as in `404:no such session`."""
        self.processing_time = 0
        """Nanoseconds, of all calls together."""
        self.by_outcome: dict[str, int] = {}
        self._mean: float | None = None
        outcomes = (OK, *(error.value for error in ErrorType), UNANSWERABLE)
        self._totals: dict[str, Counter] = {
            outcome: metrics.counter(
                "handler_requests_total", "Requests, by outcome.", endpoint=endpoint, outcome=outcome
            )
            for outcome in outcomes
        }
        self._duration = metrics.histogram(
            "handler_request_duration_seconds", "Time from a request's arrival to its reply.", endpoint=endpoint
        )
        metrics.gauge("handler_requests_in_flight", "Requests running.", in_flight, endpoint=endpoint)

    def answered(self, call: Call, info: ErrorInfo | None, *, ran: bool) -> None:
        """Count a call that was answered; one that never `ran` says nothing of how long calls take."""
        if info is None:
            self._ended(call, OK, ran)
        else:
            self._failed(f"{CODES[info.type]}:{info.message[:MAX_HEADER]}")
            self._ended(call, info.type.value, ran)

    def unanswered(self, call: Call, problem: str, *, ran: bool) -> None:
        """Count a call whose reply nobody hears."""
        self._failed(f"400:{problem}")
        self._ended(call, UNANSWERABLE, ran)

    def retry_after(self, places: int, of: int) -> float:
        """Seconds until as many `places` are free as a full endpoint with `of` of them waits for: drawn from between
        once and twice the mean, so that callers refused together do not come back together."""
        mean = RETRY_AFTER_UNKNOWN if self._mean is None else self._mean
        return max(RETRY_AFTER_MIN, mean * places / of) * (1 + random.random())

    def _failed(self, text: str) -> None:
        self.errors += 1
        self.last_error = text

    def _ended(self, call: Call, outcome: str, ran: bool) -> None:
        elapsed = time.perf_counter_ns() - call.started
        self.requests += 1
        self.processing_time += elapsed
        self.by_outcome[outcome] = self.by_outcome.get(outcome, 0) + 1
        self._totals[outcome].value += 1
        if ran:
            seconds = elapsed / 1e9
            self._duration.observe(seconds)
            self._mean = seconds if self._mean is None else self._mean + SMOOTHING * (seconds - self._mean)
