"""Request/reply endpoints: core NATS in a queue group, answered in the format of the request.

Guarantees: at most `max_in_flight` calls of an endpoint run at once; every request that reaches this process and names
an inbox is answered, with an error if need be. A full endpoint is out of its queue group, so that requests go to other
replicas; where none has room, the caller hears NATS's "no responders" at once.
"""

import asyncio
import contextlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import nats.errors
import structlog

from handler_core.calls import Answer, Call, Counts, outcome_of, told
from handler_core.connection import CONNECT_TIMEOUT, Connection, MessageTooLarge
from handler_core.contract.answer import Response
from handler_core.contract.base import Message
from handler_core.errors import Busy, HandlerError, Internal, Transient
from handler_core.queue_group import QueueGroup
from handler_core.telemetry import Metrics

log = structlog.get_logger("handler_core.endpoint")

QUEUE: Final = "q"
"""The queue group's name, the same in every `nats.micro` service."""

_NAME = re.compile(r"[A-Za-z0-9_-]+").fullmatch


@dataclass(frozen=True)
class EndpointConfig:
    """What an endpoint is.

    Raises:
        ValueError: the name has other characters than letters, digits, `_` and `-`; there is room for no call; or the
            response has fields that an error cannot fill.
    """

    name: str
    subject: str
    """May hold wildcards, as in `ai.chat.user.*.ask`."""
    request: type[Message]
    """What `$SRV.INFO` shows; who answers decodes the body."""
    response: type[Response]
    """What `$SRV.INFO` shows, and what an error is sent as: with `success` and `error` alone."""
    max_in_flight: int = 64
    """Calls running at once."""
    handler_timeout: float = 300.0
    """Seconds after which a call is cancelled and answered with `deadline_exceeded`."""

    def __post_init__(self) -> None:
        if not _NAME(self.name):
            raise ValueError(f"endpoint {self.name!r}: a name consists of letters, digits, _ and -")
        if self.max_in_flight < 1:
            raise ValueError(f"endpoint {self.name}: max_in_flight has to be at least 1")
        self.response()

    @property
    def slack(self) -> int:
        """Free places from which a full endpoint asks for requests again: an eighth of them, so that a large one does
        not come and go with every call."""
        return math.ceil(self.max_in_flight / 8)


class Endpoint:
    """One endpoint: its place in the queue group and the calls that run; `ended` is called after each."""

    def __init__(
        self, nc: Connection, config: EndpointConfig, answer: Answer, metrics: Metrics, *, ended: Callable[[], None]
    ) -> None:
        self.config = config
        self.counts = Counts(metrics, config.name, lambda: self.in_flight)
        self._nc = nc
        self._answer = answer
        self._ended = ended
        self._running: dict[asyncio.Task[None], Call] = {}
        self._group: QueueGroup | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._stopping = False
        self._told: set[str] = set()
        self._id = ""
        self._calls = 0

    @property
    def in_flight(self) -> int:
        """Calls running now."""
        return len(self._running)

    @property
    def joined(self) -> bool:
        """Whether requests are asked for: not while full, and not once stopped."""
        return self._group is not None and self._group.joined

    # -- taking requests

    def start(self, tasks: asyncio.TaskGroup, id: str) -> None:
        """Take requests and run them in this group; `id` begins the identity of each."""
        self._tasks = tasks
        self._id = id
        self._group = QueueGroup(self._nc, self.config.subject, QUEUE, self._receive)
        self._balance()

    def stop(self) -> None:
        """Ask for no more requests; those on their way are still answered."""
        self._stopping = True
        self._balance()

    def refuse(self) -> None:
        """Run none of those on their way either."""
        self.stop()
        self._tasks = None

    def close(self) -> None:
        """Hear of no more."""
        if self._group is not None:
            self._group.close()
            self._group = None

    def _balance(self) -> None:
        """Be in the queue group while there is room, and out of it when full, until there is some slack again."""
        room = 0 if self._stopping else self.config.max_in_flight - self.in_flight
        if self._group is not None and room <= 0:
            self._group.leave()
        elif self._group is not None and room >= self.config.slack:
            self._group.join()

    def _receive(self, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        self._calls += 1
        call = Call(subject, reply, data, headers, f"{self._id}-{self._calls}")
        if problem := call.unanswerable(self._nc):
            self._drop(call, problem, ran=False)
        elif self._tasks is None:
            self._fail(call, Transient("the service is shutting down"), ran=False)
        elif self.in_flight >= self.config.max_in_flight:
            self._fail(call, Busy("every place is taken"), ran=False)
        else:
            task = self._tasks.create_task(self._serve(call))
            self._running[task] = call
            task.add_done_callback(self._served)
            self._balance()

    def _served(self, task: asyncio.Task[None]) -> None:
        call = self._release(task)
        if call is not None:  # cancelled, perhaps before it had begun
            self._fail(call, Transient("the service is shutting down"))

    def _release(self, task: "asyncio.Task[None] | None") -> Call | None:
        """Give a call's place free; returns the call, if it was not released before."""
        call = self._running.pop(task, None) if task is not None else None
        if call is not None:
            self._balance()
            self._ended()
        return call

    # -- answering

    async def _serve(self, call: Call) -> None:
        """Run one call to its reply. Whatever happens, only a cancellation of this task leaves it."""
        outcome = await outcome_of(self._answer, call, self.config.handler_timeout)
        if self._nc.congested:
            with contextlib.suppress(nats.errors.Error, OSError):
                await self._nc.drained()
        # Before the reply, so that a caller who has it finds room again: the server reads the one before the other.
        self._release(asyncio.current_task())
        if isinstance(outcome, HandlerError):
            self._fail(call, outcome)
        else:
            self._reply(call, outcome)

    def _reply(self, call: Call, response: Response) -> None:
        try:
            self._send(call, response)
        except MessageTooLarge as error:
            log.error("reply_too_large", endpoint=self.config.name, call=call.identity, error=error.message)
            self._fail(call, Internal(f"the response exceeds the {self._nc.payload_room} bytes that NATS takes"))
        except Exception as error:
            log.exception("reply_failed", endpoint=self.config.name, call=call.identity)
            self._fail(call, Internal(f"{type(error).__name__} in the response"))

    def _fail(self, call: Call, error: HandlerError, *, ran: bool = True) -> None:
        try:
            self._send(call, self.config.response(success=False, error=error.info()), ran=ran)
        except MessageTooLarge as failure:  # NATS takes next to nothing here
            self._drop(call, failure.message, ran=ran)

    def _send(self, call: Call, response: Response, *, ran: bool = True) -> None:
        if response.error is not None:
            wait = self.counts.retry_after(self.config.slack, self.config.max_in_flight)
            response = response.model_copy(update={"error": told(response.error, wait)})
        try:
            call.send(self._nc, response)
        except nats.errors.Error as error:
            self._drop(call, f"the reply cannot be sent ({type(error).__name__})", ran=ran)
        else:
            self.counts.answered(call, response.error, ran=ran)

    def _drop(self, call: Call, problem: str, *, ran: bool) -> None:
        """Give up on a call that nobody hears the reply of; the log tells the first of each kind."""
        self.counts.unanswered(call, problem, ran=ran)
        if problem not in self._told:
            self._told.add(problem)
            log.warning("request_unanswerable", endpoint=self.config.name, subject=call.subject, error=problem)


class Endpoints:
    """A service's endpoints, and its presence under `$SRV`; run beside its consumers and as they are.

    Args:
        name: the service's: letters, digits, `_` and `-`.
        version: a semantic version.
    """

    def __init__(
        self,
        nc: Connection,
        name: str,
        *,
        version: str = "0.1.0",
        description: str = "",
        metrics: Metrics | None = None,
    ) -> None:
        self.name = name
        self._nc = nc
        self._version = version
        self._description = description
        self._metrics = metrics or Metrics()
        self._endpoints: list[Endpoint] = []
        self._stopped = asyncio.Event()
        self._idle = asyncio.Event()
        self._serving = False

    def add(self, config: EndpointConfig, answer: Answer) -> None:
        """Declare an endpoint; before `run`."""
        self._endpoints.append(Endpoint(self._nc, config, answer, self._metrics, ended=self._idle.set))

    @property
    def in_flight(self) -> int:
        """Calls running now, of all endpoints."""
        return sum(endpoint.in_flight for endpoint in self._endpoints)

    @property
    def problem(self) -> str:
        """Why no requests are taken; empty when all is well, which a full endpoint is."""
        return "" if self._serving else "not subscribed"

    async def run(self) -> None:
        """Answer until `stop` is called, then finish what runs; cancel it to end at once: what runs is cancelled then,
        and answered with a retryable `transient`.

        Raises:
            ValueError: the service's name or version is none.
        """
        from handler_core.micro import Visible  # which describes what is here

        visible = Visible(self._nc, self.name, self._version, self._description, self._endpoints)
        try:
            async with asyncio.TaskGroup() as tasks:
                try:
                    await visible.start()
                    for number, endpoint in enumerate(self._endpoints):
                        endpoint.start(tasks, f"{visible.id}-{number}")
                    await self._nc.responds(CONNECT_TIMEOUT)
                    self._serving = True
                    await self._stopped.wait()
                    await self._nc.responds(CONNECT_TIMEOUT)  # what the server sent before it knew has arrived by now
                    await self._drained()
                finally:
                    for endpoint in self._endpoints:
                        endpoint.refuse()
        finally:
            self._serving = False
            for endpoint in self._endpoints:
                endpoint.close()
            await visible.stop()

    def stop(self) -> None:
        """Leave the queue groups at once, so that new requests go to other replicas; what runs or is on its way is
        finished, then `run` returns. Until then `$SRV` goes on answering."""
        for endpoint in self._endpoints:
            endpoint.stop()
        self._stopped.set()

    async def _drained(self) -> None:
        while self.in_flight:
            self._idle.clear()
            await self._idle.wait()
