"""Workers: the tasks that run handlers over delivered messages, and settle what comes of it.

A message is acknowledged after its handler returned, kept from redelivery by in-progress while it runs or waits here,
and is either acknowledged, handed back or dead-lettered; never forgotten.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import cast

import structlog

from handler_core.connection import Connection
from handler_core.deadletter import dead_letter
from handler_core.delivery import Delivery
from handler_core.errors import Abandoned, Busy, HandlerError, Internal, Transient
from handler_core.fairness import RETRY_MAX
from handler_core.jetstream import Api
from handler_core.limits import Limits
from handler_core.telemetry import SECONDS, Metrics, current

log = structlog.get_logger("handler_core.workers")

SLICE = 0.005
"""Seconds that one worker may run handlers that never wait before it lets the event loop breathe."""

Process = Callable[[Delivery], Awaitable[None]]
"""Handles one message: returning acknowledges it, a `HandlerError` settles it as its `retryable` says."""
Refuse = Callable[[Delivery, HandlerError], Awaitable[None]]
"""Answers a message that is about to be dead-lettered, where it can be answered."""


class Workers:
    """Up to `max_in_flight` tasks and the messages that wait for them.

    Args:
        name: the consumer's, for logs.
        broke: called when a worker itself fails, which is a fault of this module.
    """

    def __init__(
        self,
        nc: Connection,
        name: str,
        process: Process,
        limits: Limits,
        counts: "Counts",
        *,
        refuse: Refuse | None,
        broke: Callable[[], None],
    ) -> None:
        self.name = name
        self.freed: Callable[[], None] = lambda: None
        """Called after a message is settled: there is room for another."""
        self.buffer: deque[Delivery] = deque()
        """Messages whose handler has not started."""
        # The task that runs the handler; None once the handler has ended and its message is being settled.
        self.running: dict[Delivery, asyncio.Task[None] | None] = {}
        self._nc = nc
        self._api = Api(nc)
        self._process = process
        self._refuse = refuse
        self._limits = limits
        self._counts = counts
        self._broke = broke
        self._stopping = False
        self._drained = asyncio.Event()
        self._workers: set[asyncio.Task[None]] = set()
        self._idle: list[asyncio.Future[None]] = []
        self._waking = False
        self._tasks: asyncio.TaskGroup | None = None

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Run workers, as they are needed, in this group."""
        self._tasks = tasks

    def room(self) -> int:
        """How many more messages can be taken."""
        return self._limits.max_in_flight + self._limits.prefetch - len(self.running) - len(self.buffer)

    def accept(self, delivery: Delivery) -> None:
        """Take a message; handed back at once when stopping, and one with the other if it is held here already."""
        self._counts.received.value += 1
        held = None
        if delivery.redelivered:
            self._counts.redelivered.value += 1
            held = self._held(delivery)
        if held is not None:
            # The connection was away, or this process asleep, for longer than `ack_wait`. Run twice at a time, the
            # second would at best fence off the first, and each such pause would cost one more place.
            log.info("redelivered_while_held", consumer=self.name, sequence=held.sequence, attempt=delivery.attempt)
            held.renew(delivery)
        elif self._stopping:
            self._hand_back(delivery)
        else:
            self.buffer.append(delivery)
            if not self._waking:
                self._wake()

    def _held(self, delivery: Delivery) -> Delivery | None:
        """The same message of an earlier delivery, if it waits or runs here and was not given up."""
        return next((d for d in (*self.running, *self.buffer) if d.same_as(delivery) and not d.timeouts), None)

    def stop(self) -> None:
        """Begin no more work: what waits goes back, what runs goes on unless it `hands_over`."""
        stopped, self._stopping = self._stopping, True
        while self.buffer:
            self._hand_back(self.buffer.popleft())
        if self._limits.hands_over and not stopped:
            for task in self.running.values():
                if task is not None:
                    task.cancel()

    async def finish(self) -> None:
        """Wait until nothing runs any more, and end the workers."""
        while self.running:
            self._drained.clear()
            await self._drained.wait()
        for worker in self._workers:
            worker.cancel()

    def report_progress(self) -> None:
        """Tell the server that what is held here is in progress."""
        if not self._nc.is_connected:
            return  # or a long outage would fill the room that acknowledgements need
        for delivery in (*self.running, *self.buffer):
            if not delivery.settled and not delivery.timeouts:
                delivery.in_progress()

    async def watch_handlers(self) -> None:
        """Cancel handlers that run longer than `handler_timeout`, and again for each further one that they outlast."""
        timeout = self._limits.handler_timeout
        while True:
            await asyncio.sleep(min(1.0, timeout / 4))
            now = time.monotonic()
            for delivery, task in list(self.running.items()):
                if task is not None and now - delivery.started > timeout * (delivery.timeouts + 1):
                    if delivery.timeouts == 1:
                        log.error("handler_ignores_cancellation", consumer=self.name, sequence=delivery.sequence)
                    delivery.timeouts += 1
                    task.cancel()

    # -- one message after another

    def _wake(self) -> None:
        """Get one more worker going; it wakes the next itself when there is more to do."""
        while self._idle:
            idle = self._idle.pop()
            if not idle.done():
                self._waking = True
                idle.set_result(None)
                return
        if len(self._workers) < self._limits.max_in_flight and self._tasks is not None:
            self._waking = True
            worker = self._tasks.create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    async def _work(self) -> None:
        try:
            await self._take_messages(cast("asyncio.Task[None]", asyncio.current_task()))
        except Exception:
            self._broke()
            raise

    async def _take_messages(self, task: asyncio.Task[None]) -> None:
        loop = asyncio.get_running_loop()
        buffer = self.buffer
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
            self.running[delivery] = task
            delivery.started = time.monotonic()
            try:
                await self._handle(delivery, task)
            finally:
                if not delivery.settled:
                    self._hand_back(delivery)
                del self.running[delivery]
                if not self.running:
                    self._drained.set()
            ended = time.monotonic()
            self._counts.duration.observe(ended - delivery.started)
            if task.cancelling():
                if self._stopping:
                    return  # told to end, although the handler would not hear of it
                while task.uncancel():
                    pass
            self.freed()
            if ended > slice_end:
                await asyncio.sleep(0)
                slice_end = time.monotonic() + SLICE

    def _stopped(self, task: asyncio.Task[None]) -> bool:
        """Whether a cancellation of this worker means the worker, not its handler."""
        return self._stopping and task.cancelling() > 0

    async def _handle(self, delivery: Delivery, task: asyncio.Task[None]) -> None:
        """Run the processor on one message and settle it; cancelled, it leaves it to be handed back."""
        error: HandlerError
        current.set(None)
        try:
            if delivery.attempt > self._limits.max_deliveries:
                raise Internal(f"given up after {self._limits.max_deliveries} deliveries", stage="max_deliveries")
            await self._process(delivery)
        except Abandoned as abandoned:
            log.info("message_abandoned", consumer=self.name, sequence=delivery.sequence, reason=abandoned.message)
            self._counts.abandoned.value += 1
            if delivery.renewed:  # whoever had it lost it again, to this worker
                delivery.nak()
            else:
                delivery.settled = "abandoned"
            return
        except HandlerError as raised:
            error = raised
        except asyncio.CancelledError:
            if delivery.timeouts:
                error = Transient(f"the handler did not finish within {self._limits.handler_timeout:g} s")
            elif self._stopped(task):
                raise
            else:
                error = Transient("the handler was cancelled from within")
        except (Exception, SystemExit) as raised:
            log.exception("handler_failed", consumer=self.name, sequence=delivery.sequence, attempt=delivery.attempt)
            error = Internal(f"{type(raised).__name__} in the handler", retryable=True)
        else:
            delivery.ack()
            self._counts.acked.value += 1
            return
        self.running[delivery] = None
        await self._failed(delivery, error, task)

    async def _failed(self, delivery: Delivery, error: HandlerError, task: asyncio.Task[None]) -> None:
        if error.retryable:
            delay = self._limits.retry_delay(delivery.attempt, error.retry_after)
            if isinstance(error, Busy):
                delay = min(delay, max(RETRY_MAX, error.retry_after or 0.0))
            log.warning("message_retried", consumer=self.name, sequence=delivery.sequence, attempt=delivery.attempt,
                        error=error.message, stage=error.stage, delay=round(delay, 3))  # fmt: skip
            delivery.nak(delay)
            self._counts.retried.value += 1
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
            delivery.nak(self._limits.retry_delay(delivery.attempt))
            self._counts.retried.value += 1
            return
        log.error("message_dead_lettered", consumer=self.name, sequence=delivery.sequence, attempt=delivery.attempt,
                  error=error.message, type=error.type.value, stage=error.stage)  # fmt: skip
        delivery.term(error.message)
        self._counts.dead.value += 1

    def _hand_back(self, delivery: Delivery) -> None:
        delivery.nak()
        self._counts.handed_back.value += 1


class Counts:
    """A consumer's metrics, each made once so that counting is one addition."""

    def __init__(self, metrics: Metrics, stream: str, consumer: str) -> None:
        labels = {"stream": stream, "consumer": consumer}
        settled = ("handler_messages_settled_total", "Messages settled, by outcome.")
        received = ("handler_messages_received_total", "Messages delivered to this worker.")
        self.received = metrics.counter(*received, **labels)
        self.redelivered = metrics.counter(
            "handler_redeliveries_total", "Messages that had been delivered before.", **labels
        )
        self.acked = metrics.counter(*settled, **labels, outcome="ack")
        self.retried = metrics.counter(*settled, **labels, outcome="nak")
        self.dead = metrics.counter(*settled, **labels, outcome="dead_letter")
        self.handed_back = metrics.counter(*settled, **labels, outcome="handed_back")
        self.abandoned = metrics.counter(*settled, **labels, outcome="abandoned")
        self.duration = metrics.histogram(
            "handler_duration_seconds", "Time from start to settlement.", SECONDS, **labels
        )
