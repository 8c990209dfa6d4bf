"""Continuous pull from a JetStream consumer: the loop under every handler.

One inbox subscription takes all messages; pull requests overlap so that the server never waits for us, and ask for
free slots only so that a slow worker hoards nothing. The protocol is the server's (ADR-37 describes the client side):
statuses arrive as messages with a code and no body. What each does to the loop is in `_status`.

Guarantees: a message is acknowledged after its handler returned, is kept from redelivery by in-progress while it runs
or waits here, and is either acknowledged, handed back or dead-lettered; never forgotten. When the process dies, the
server redelivers after `ack_wait`.
"""

import asyncio
import contextlib
import json
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

import structlog

from handler_core.connection import Connection, parse_headers
from handler_core.deadletter import dead_letter
from handler_core.delivery import Delivery
from handler_core.errors import Abandoned, HandlerError, Internal, Transient
from handler_core.jetstream import Api, JetStreamError
from handler_core.streams import NANOSECONDS, Consumer, diff_consumer
from handler_core.telemetry import Metrics

log = structlog.get_logger("handler_core.consumer")

RETRY_AFTER_MAX = 3600.0
"""Seconds; an upstream that asks for more is tried again all the same."""
SLICE = 0.005
"""Seconds that one worker may run handlers that never wait before it lets the event loop breathe."""


@dataclass(frozen=True)
class Limits:
    """How much a worker takes on, and for how long."""

    max_in_flight: int = 64
    """Handlers running at once."""
    prefetch: int = 0
    """Messages buffered beyond those; 0 for slow work, large for light work."""
    handler_timeout: float = 300.0
    """Seconds after which a handler is taken to hang: it is cancelled and its message retried."""
    max_deliveries: int = 10
    """Attempts; a message that arrives once more is dead-lettered before its handler runs."""
    retry_base: float = 1.0
    """Seconds; the delay before attempt n + 1 is drawn from the upper half of `retry_base` * 2 ** (n - 1)."""
    retry_max: float = 60.0
    """Seconds; the longest delay."""
    expires: float = 30.0
    """Seconds that one pull request stays at the server."""
    idle_heartbeat: float = 5.0
    """Seconds; after twice this without a sign of life from the server, messages are pulled anew."""

    def retry_delay(self, attempt: int, retry_after: float | None = None) -> float:
        """Seconds until a failed message comes back: exponential with jitter, no less than the upstream asked for
        (`RETRY_AFTER_MAX` at most)."""
        ceiling = min(self.retry_max, self.retry_base * 2.0 ** min(attempt - 1, 30))
        return max(ceiling * (0.5 + random.random() / 2), min(retry_after or 0.0, RETRY_AFTER_MAX))


Process = Callable[[Delivery], Awaitable[None]]
"""Handles one message: returning acknowledges it, a `HandlerError` settles it as its `retryable` says."""
Refuse = Callable[[Delivery, HandlerError], Awaitable[None]]
"""Answers a message that is about to be dead-lettered, where it can be answered."""


class PullConsumer:
    """Pulls from one declared consumer and runs its processor; see the module's text.

    Args:
        nc: a connection; the consumer adds itself to its `on_reconnect`.
        config: the declaration, which the server's consumer has to match.
        process: called for each message.
        refuse: called before a message is dead-lettered.
        limits: concurrency, timeouts and retries.
        metrics: where to count.
    """

    def __init__(
        self,
        nc: Connection,
        config: Consumer,
        process: Process,
        limits: Limits | None = None,
        *,
        refuse: Refuse | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.config = config
        self.limits = limits or Limits()
        self.bound = False
        """Whether the server's consumer exists and fits, and messages are being pulled."""
        self.problem = "not started"
        """Why it is not bound."""
        self._nc = nc
        self._api = Api(nc)
        self._process = process
        self._refuse = refuse
        self._ack_wait = config.ack_wait
        self._ack_wait_changed = asyncio.Event()
        self._sid: int | None = None
        self._inbox = ""
        self._pending = 0
        self._uncovered = 0
        """Free slots for which nothing has been asked; arrivals leave the number as it is."""
        self._last_sign = 0.0
        self._silences = 0
        self._fruitless = 0
        self._fault = ""
        self._attention = asyncio.Event()
        self._stopping = False
        self._said: str | None = None
        self._buffer: deque[Delivery] = deque()
        # The task that runs the handler; None once the handler has ended and its message is being settled.
        self._running: dict[Delivery, asyncio.Task[None] | None] = {}
        self._drained = asyncio.Event()
        self._workers: set[asyncio.Task[None]] = set()
        self._idle: list[asyncio.Future[None]] = []
        self._waking = False
        self._tasks: asyncio.TaskGroup | None = None
        self._count = _Counters(metrics or Metrics(), self)

    @property
    def name(self) -> str:
        return f"{self.config.stream}/{self.config.name}"

    @property
    def in_flight(self) -> int:
        """Handlers running now."""
        return len(self._running)

    @property
    def buffered(self) -> int:
        """Messages received whose handler has not started."""
        return len(self._buffer)

    # -- life

    async def run(self) -> None:
        """Pull and process until `stop` is called, then finish what runs; cancel it to end at once."""
        self._nc.on_reconnect.append(self._reconnected)
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                keepers = [tasks.create_task(self._keep_alive()), tasks.create_task(self._watch_handlers())]
                try:
                    while not self._stopping:
                        if await self._bind():
                            await self._pull_until_trouble()
                    await self._finish()
                finally:
                    self.stop()  # when cancelled: before the workers are, so that no more work is begun
                for task in (*keepers, *self._workers):
                    task.cancel()
        finally:
            self._nc.on_reconnect.remove(self._reconnected)
            await self._unsubscribe()

    def stop(self) -> None:
        """Pull no more; buffered messages go back, running handlers finish, then `run` returns."""
        self._stopping = True
        self.bound, self.problem = False, "stopping"
        if self._sid is not None:
            self._nc.mute(self._sid)  # first, or what is handed back would come here again
        while self._buffer:
            self._hand_back(self._buffer.popleft())
        self._attention.set()

    def _hand_back(self, delivery: Delivery) -> None:
        delivery.nak()
        self._count.handed_back.value += 1

    def _reconnected(self) -> None:
        self._report_progress()
        self._fault = self._fault or "reconnected"
        self._attention.set()

    async def _finish(self) -> None:
        await self._unsubscribe()
        while self._running:
            self._drained.clear()
            await self._drained.wait()

    # -- binding to the server's consumer

    async def _bind(self) -> bool:
        """Make sure that the server's consumer is there and fits, saying once what is wrong until it is."""
        delay = 0.25
        while not self._stopping:
            self._attention.clear()  # a reconnect from here on cuts the pause below short
            try:
                differences, actual = await diff_consumer(self._api, self.config)
            except (Transient, JetStreamError) as error:
                problem, fits = f"consumer {self.name}: {error}", False
            else:
                problem = "; ".join(map(str, differences))
                fits = not any(d.unsafe for d in differences)
                if fits and (ack_wait := actual.get("ack_wait", 0) / NANOSECONDS) and ack_wait != self._ack_wait:
                    self._ack_wait = ack_wait
                    self._ack_wait_changed.set()
            if self._stopping:
                return False
            self._say(problem, fits)
            if fits:
                await self._subscribe()
                self.bound, self.problem = True, ""
                return True
            self.bound, self.problem = False, problem
            await self._pause(delay)
            delay = min(delay * 2, 15.0)
        return False

    async def _pause(self, seconds: float) -> None:
        """Wait with jitter, or until something happens: a reconnect, `stop`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._attention.wait(), seconds * (0.75 + random.random() / 2))

    def _say(self, problem: str, fits: bool) -> None:
        if problem == self._said:
            return
        if problem:
            log.warning("consumer_differs" if fits else "consumer_unusable", problem=problem,
                        remedy="handlers streams apply", waiting=not fits)  # fmt: skip
        elif self._said:
            log.info("consumer_ready", consumer=self.name)
        self._said = problem

    async def _subscribe(self) -> None:
        await self._unsubscribe()
        self._inbox = self._nc.new_inbox()
        self._sid = await self._nc.attach(self._inbox, self._receive)
        self._pending = 0
        self._last_sign = time.monotonic()
        self._fault = ""

    async def _unsubscribe(self) -> None:
        # Pull requests of an inbox that nobody listens to are dropped by the server: no stale one can deliver to us.
        if self._sid is not None:
            sid, self._sid = self._sid, None
            await self._nc.detach(sid)

    # -- pulling

    async def _pull_until_trouble(self) -> None:
        """Pull until the subscription has to be set up anew: a fault, a reconnect, silence, or `stop`."""
        self._pull()
        while not self._stopping and not self._fault:
            self._attention.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._attention.wait(), self.limits.idle_heartbeat / 2)
            if not self._fault and not self._stopping:
                await self._check_heartbeat()
        if self._fault and not self._stopping:
            level = "info" if self._fault in ("reconnected", "leadership change") else "warning"
            getattr(log, level)("pull_restarted", consumer=self.name, reason=self._fault)
            self._count.restarts.value += 1
            self._fruitless += self._fault != "reconnected"
            if self._fruitless > 1:
                self.bound, self.problem = False, f"consumer {self.name}: {self._fault}"
                self._attention.clear()
                await self._pause(min(0.25 * 2.0 ** min(self._fruitless, 6), 15.0))

    async def _check_heartbeat(self) -> None:
        silent = time.monotonic() - self._last_sign
        if self._pending <= 0 or not self._nc.is_connected or silent < 2 * self.limits.idle_heartbeat:
            return
        self._silences += 1
        self._fault = f"no heartbeat for {silent:.1f} s"
        if self._silences > 1 or not await self._nc.responds(self.limits.idle_heartbeat):
            self._fault += ", reconnecting"
            await self._nc.force_reconnect()

    def _pull(self) -> None:
        """Ask for the free slots that no pending request covers, once those are half of all free ones."""
        limits = self.limits
        free = limits.max_in_flight + limits.prefetch - len(self._running) - len(self._buffer)
        self._uncovered = uncovered = free - self._pending
        if uncovered <= 0 or self._pending > uncovered or self._stopping or self._fault or not self._nc.is_connected:
            return
        if self._pending == 0:
            self._last_sign = time.monotonic()
        self._pending = free
        self._uncovered = 0
        request = {
            "batch": uncovered,
            "expires": int(limits.expires * NANOSECONDS),
            "idle_heartbeat": int(min(limits.idle_heartbeat, limits.expires / 2) * NANOSECONDS),
        }
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self.config.stream}.{self.config.name}"
        self._nc.send(subject, json.dumps(request).encode(), reply=self._inbox)

    def _receive(self, subject: bytes, reply: bytes, data: bytes, raw_headers: bytes | None) -> None:
        """The subscription's sink: called from the parser, so it only sorts and queues."""
        self._last_sign = time.monotonic()
        if not reply.startswith(b"$JS.ACK.") or reply.count(b".") < 8:
            # A status has no reply subject; by its headers alone it could be told from no one's empty message.
            self._status(raw_headers or b"")
            return
        self._silences = self._fruitless = 0
        delivery = Delivery(self._nc, subject, reply, data, raw_headers)
        if self._pending > 0:
            self._pending -= 1
        self._count.received.value += 1
        if self._stopping:
            self._hand_back(delivery)
            return
        self._buffer.append(delivery)
        if self._pending <= self._uncovered:
            self._pull()  # handlers that end ask too, but none may end for long
        if not self._waking:
            self._wake()

    def _status(self, raw: bytes) -> None:
        line, _, _ = raw.partition(b"\r\n")
        if len(digits := line[9:12]) < 3 or not digits.isdigit():
            return  # no status, and no message that could be settled
        code = int(digits)
        text = line[13:].decode("utf-8", "replace").strip()
        lower = text.lower()
        if code == 100:
            self._silences = self._fruitless = 0
            return
        if self._sid is None:
            return  # the answer to a pull that has been given up
        left = parse_headers(raw).get("Nats-Pending-Messages", "")
        remaining = int(left) if left.isdecimal() else None
        if (
            code == 408 or (code == 409 and ("batch completed" in lower or "maxbytes" in lower))
        ) and remaining is not None:
            self._pending = max(0, self._pending - remaining)
            self._pull()
        elif code == 409 and "leadership change" in lower:
            self._trouble("leadership change")
        else:
            # 400 bad request, 404, 503 no responders, 409 consumer deleted / push based / server shutdown / exceeded …:
            # this pull is over, and whether another can succeed has to be looked up.
            self._trouble(f"{code} {text or 'no responders'}")

    def _trouble(self, fault: str) -> None:
        if not self._fault:
            self._fault = fault
            self._attention.set()

    # -- processing

    def _wake(self) -> None:
        """Get one more worker going; it wakes the next itself when there is more to do."""
        while self._idle:
            idle = self._idle.pop()
            if not idle.done():
                self._waking = True
                idle.set_result(None)
                return
        if len(self._workers) < self.limits.max_in_flight and self._tasks is not None:
            self._waking = True
            worker = self._tasks.create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    async def _work(self) -> None:
        try:
            await self._take_messages(cast("asyncio.Task[None]", asyncio.current_task()))
        except Exception:
            self.stop()  # a fault of this module: end `run`, so that somebody notices
            raise

    async def _take_messages(self, task: asyncio.Task[None]) -> None:
        loop = asyncio.get_running_loop()
        buffer = self._buffer
        self._waking = False
        slice_end = time.monotonic() + SLICE
        while True:
            if not buffer:
                idle = loop.create_future()
                self._idle.append(idle)
                try:
                    await idle
                except asyncio.CancelledError:
                    if idle in self._idle:
                        self._idle.remove(idle)
                    raise
                self._waking = False
                slice_end = time.monotonic() + SLICE
                continue
            delivery = buffer.popleft()
            if buffer and not self._waking:
                self._wake()
            self._running[delivery] = task
            delivery.started = time.monotonic()
            try:
                await self._handle(delivery, task)
            finally:
                if not delivery.settled:
                    self._hand_back(delivery)
                del self._running[delivery]
                if not self._running:
                    self._drained.set()
            ended = time.monotonic()
            self._count.duration.observe(ended - delivery.started)
            if task.cancelling():
                if self._stopping:
                    return  # told to end, although the handler would not hear of it
                while task.uncancel():
                    pass
            self._pull()
            if ended > slice_end:
                await asyncio.sleep(0)
                slice_end = time.monotonic() + SLICE

    def _stopped(self, task: asyncio.Task[None]) -> bool:
        """Whether a cancellation of this worker means the worker, not its handler."""
        return self._stopping and task.cancelling() > 0

    async def _handle(self, delivery: Delivery, task: asyncio.Task[None]) -> None:
        """Run the processor on one message and settle it; cancelled, it leaves it to be handed back."""
        error: HandlerError
        try:
            if delivery.attempt > self.limits.max_deliveries:
                raise Internal(f"given up after {self.limits.max_deliveries} deliveries", stage="max_deliveries")
            await self._process(delivery)
        except Abandoned as abandoned:
            log.info("message_abandoned", consumer=self.name, sequence=delivery.sequence, reason=abandoned.message)
            self._count.abandoned.value += 1
            delivery.settled = "abandoned"
            return
        except HandlerError as raised:
            error = raised
        except asyncio.CancelledError:
            if delivery.timeouts:
                error = Transient(f"the handler did not finish within {self.limits.handler_timeout:g} s")
            elif self._stopped(task):
                raise
            else:
                error = Transient("the handler was cancelled from within")
        except (Exception, SystemExit) as raised:
            log.exception("handler_failed", consumer=self.name, sequence=delivery.sequence, attempt=delivery.attempt)
            error = Internal(f"{type(raised).__name__} in the handler", retryable=True)
        else:
            delivery.ack()
            self._count.acked.value += 1
            return
        self._running[delivery] = None
        await self._failed(delivery, error, task)

    async def _failed(self, delivery: Delivery, error: HandlerError, task: asyncio.Task[None]) -> None:
        if error.retryable:
            delay = self.limits.retry_delay(delivery.attempt, error.retry_after)
            log.warning("message_retried", consumer=self.name, sequence=delivery.sequence, attempt=delivery.attempt,
                        error=error.message, stage=error.stage, delay=round(delay, 3))  # fmt: skip
            delivery.nak(delay)
            self._count.retried.value += 1
            return
        try:
            if self._refuse is not None:
                await self._refuse(delivery, error)
            await dead_letter(self._api, self._nc, delivery, error)
        except (Exception, asyncio.CancelledError):
            if self._stopped(task):
                raise
            # The letter is not stored yet: keep the message and try to bury it again.
            log.exception("dead_letter_failed", consumer=self.name, sequence=delivery.sequence)
            delivery.nak(self.limits.retry_delay(delivery.attempt))
            self._count.retried.value += 1
            return
        log.error("message_dead_lettered", consumer=self.name, sequence=delivery.sequence, attempt=delivery.attempt,
                  error=error.message, type=error.type.value, stage=error.stage)  # fmt: skip
        delivery.term(error.message)
        self._count.dead.value += 1

    # -- keeping alive

    async def _keep_alive(self) -> None:
        """Tell the server every third of `ack_wait` that what is held here is in progress."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ack_wait_changed.wait(), self._ack_wait / 3)
            self._ack_wait_changed.clear()
            self._report_progress()

    def _report_progress(self) -> None:
        if not self._nc.is_connected:
            return  # or a long outage would fill the room that acknowledgements need
        for delivery in (*self._running, *self._buffer):
            if not delivery.settled and not delivery.timeouts:
                delivery.in_progress()

    async def _watch_handlers(self) -> None:
        """Cancel handlers that run longer than `handler_timeout`, and again for each further one that they outlast."""
        timeout = self.limits.handler_timeout
        while True:
            await asyncio.sleep(min(1.0, timeout / 4))
            now = time.monotonic()
            for delivery, task in list(self._running.items()):
                if task is not None and now - delivery.started > timeout * (delivery.timeouts + 1):
                    if delivery.timeouts == 1:
                        log.error("handler_ignores_cancellation", consumer=self.name, sequence=delivery.sequence)
                    delivery.timeouts += 1
                    task.cancel()


class _Counters:
    """This consumer's metrics, each made once so that counting is one addition."""

    def __init__(self, metrics: Metrics, consumer: PullConsumer) -> None:
        labels: dict[str, Any] = {"stream": consumer.config.stream, "consumer": consumer.config.name}
        settled = ("handler_messages_settled_total", "Messages settled, by outcome.")
        self.received = metrics.counter(
            "handler_messages_received_total", "Messages delivered to this worker.", **labels
        )
        self.acked = metrics.counter(*settled, **labels, outcome="ack")
        self.retried = metrics.counter(*settled, **labels, outcome="nak")
        self.dead = metrics.counter(*settled, **labels, outcome="dead_letter")
        self.handed_back = metrics.counter(*settled, **labels, outcome="handed_back")
        self.abandoned = metrics.counter(*settled, **labels, outcome="abandoned")
        self.restarts = metrics.counter("handler_pull_restarts_total", "Times that pulling was set up anew.", **labels)
        self.duration = metrics.histogram("handler_duration_seconds", "Time from start to settlement.", **labels)
        metrics.gauge("handler_in_flight", "Handlers running.", lambda: consumer.in_flight, **labels)
        metrics.gauge("handler_buffered", "Messages waiting in this worker.", lambda: consumer.buffered, **labels)
