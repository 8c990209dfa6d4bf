"""Turns put through a stack at a rate or a concurrency, over one connection and two subscriptions in all."""

import asyncio
import contextlib
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import nats.errors

from handler_core.client import publish
from handler_core.codec import decode, encode, validate
from handler_core.connection import Connection
from handler_core.contract.answer import StreamEvent
from handler_core.contract.chat import CHAT, REQUEST_SUBJECT, USER_SUBJECT, ChatRequest, ChatResponse
from handler_core.contract.control import CANCEL_SUBJECT, CancelRequest
from handler_core.errors import HandlerError
from handler_core.jetstream import Api, JetStreamError
from handlers_cli.cancel import TAKE_BACK

TIMEOUT = "timeout"
"""What a turn without an answer in time counts as; the other names are those of the wire's errors."""
REFUSED = "refused"


@dataclass(frozen=True)
class Plan:
    """What to put through.

    Args:
        rate: turns begun each second, however many run then; None keeps `concurrency` of them running.
        turns: how many in all; None for no limit but `duration`.
        duration: seconds in which turns are begun; None for no limit but `turns`.
        timeout: seconds for one turn.
    """

    questions: Sequence[str]
    concurrency: int = 10
    rate: float | None = None
    turns: int | None = 100
    duration: float | None = None
    timeout: float = 60.0
    fields: dict[str, Any] = field(default_factory=dict)
    """Of the request, beside the question."""


@dataclass
class Tally:
    """What was seen so far."""

    started: int = 0
    answered: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    degraded: Counter[str] = field(default_factory=Counter)
    restarts: int = 0
    first_chunk: list[float] = field(default_factory=list)
    """Milliseconds from the publish to the first text, of the turns that were answered."""
    total: list[float] = field(default_factory=list)
    """Milliseconds from the publish to the final response, of the same turns."""
    elapsed: float = 0.0
    """Seconds, set at the end."""

    @property
    def ended(self) -> int:
        return self.answered + self.errors.total()


@dataclass
class _Turn:
    began: float
    response: "asyncio.Future[ChatResponse]"
    first_chunk: float | None = None
    restarts: int = 0


class Load:
    """Runs a plan and counts. `tally` may be read meanwhile, and holds what there was when `run` is canceled."""

    def __init__(self, nc: Connection, plan: Plan) -> None:
        self.plan = plan
        self.tally = Tally()
        self._nc = nc
        self._api = Api(nc)
        self._run = uuid.uuid4().hex[:12]
        self._turns: dict[str, _Turn] = {}
        user = plan.fields.get("user_id")
        self._subject = USER_SUBJECT.format(user=user) if user else REQUEST_SUBJECT
        self._template = self._request("", plan.questions[0])

    def _request(self, request_id: str, query: str) -> ChatRequest:
        fields = {name: value for name, value in self.plan.fields.items() if value is not None}
        deadline = {"deadline_ms": max(1, int(self.plan.timeout * 1000))}
        ids = {"request_id": request_id or self._run, "query": query, "enable_streaming": True}
        return validate({**fields, **deadline, **ids}, ChatRequest)

    async def run(self) -> None:
        """Until the plan is done. Canceled, it takes back the turns that run."""
        async with self._listening():
            began = time.perf_counter()
            try:
                await (self._keep_busy() if self.plan.rate is None else self._keep_pace(self.plan.rate))
            except asyncio.CancelledError:
                await self._take_back()
                raise
            finally:
                self.tally.elapsed = time.perf_counter() - began

    # -- when to begin a turn

    def _more(self, began: float) -> bool:
        plan = self.plan
        in_time = plan.duration is None or time.perf_counter() - began < plan.duration
        return in_time and (plan.turns is None or self.tally.started < plan.turns)

    async def _keep_busy(self) -> None:
        began = time.perf_counter()

        async def work() -> None:
            while self._more(began):
                await self._turn()

        async with asyncio.TaskGroup() as tasks:
            for _ in range(self.plan.concurrency):
                tasks.create_task(work())

    async def _keep_pace(self, rate: float) -> None:
        """Begin turns at their times, late ones at once: a stack that is slow is not spared."""
        began = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number in count(1):
                if not self._more(began):
                    return
                tasks.create_task(self._turn())
                await asyncio.sleep(began + number / rate - time.perf_counter())

    # -- one turn

    async def _turn(self) -> None:
        number = self.tally.started
        self.tally.started += 1
        request_id = f"{self._run}-{number}"
        query = self.plan.questions[number % len(self.plan.questions)]
        request = self._template.model_copy(update={"request_id": request_id, "query": query})
        turn = _Turn(time.perf_counter(), asyncio.get_running_loop().create_future())
        self._turns[request_id] = turn
        try:
            async with asyncio.timeout(self.plan.timeout):
                await publish(self._api, self._subject, request)
                response = await turn.response
        except TimeoutError:
            self.tally.errors[TIMEOUT] += 1
        except HandlerError as error:
            self.tally.errors[error.type.value] += 1
        except JetStreamError:
            self.tally.errors[REFUSED] += 1
        else:
            self._count(turn, response)
        finally:
            self.tally.restarts += turn.restarts
        # Not in `finally`: what is left when the run is canceled is taken back.
        del self._turns[request_id]

    def _count(self, turn: _Turn, response: ChatResponse) -> None:
        if response.error is not None:
            self.tally.errors[response.error.type.value] += 1
            return
        total = (time.perf_counter() - turn.began) * 1000
        self.tally.answered += 1
        self.tally.degraded.update(response.degraded)
        self.tally.total.append(total)
        if turn.first_chunk is not None:
            self.tally.first_chunk.append((turn.first_chunk - turn.began) * 1000)

    # -- what comes back

    @contextlib.asynccontextmanager
    async def _listening(self) -> AsyncIterator[None]:
        events = await self._nc.subscribe(CHAT.stream_subject("*"), cb=self._on_event)
        finals = await self._nc.subscribe(CHAT.response_subject("*"), cb=self._on_response)
        try:
            yield
        finally:
            with contextlib.suppress(nats.errors.Error, OSError):  # the figures count, not a connection that is gone
                await events.unsubscribe()
                await finals.unsubscribe()

    def _of(self, subject: str) -> _Turn | None:
        return self._turns.get(subject.rpartition(".")[2])

    async def _on_event(self, message: Any) -> None:
        if (turn := self._of(message.subject)) is None:
            return
        if turn.first_chunk is not None and b"restart" not in message.data:
            return  # most events: nothing in them counts
        event = decode(message.data, StreamEvent)
        if event.type == "restart":
            turn.restarts += 1
        elif event.content and turn.first_chunk is None:
            turn.first_chunk = time.perf_counter()

    async def _on_response(self, message: Any) -> None:
        turn = self._of(message.subject)
        if turn is not None and not turn.response.done():
            turn.response.set_result(decode(message.data, ChatResponse))

    async def _take_back(self) -> None:
        """Cancel what runs, so that nobody works for a bench that is over."""
        with contextlib.suppress(nats.errors.Error, OSError):
            for request_id in self._turns:
                cancel = CancelRequest(request_id=request_id, reason="the bench was interrupted")
                await self._nc.publish(CANCEL_SUBJECT.format(request_id=request_id), encode(cancel))
            await self._nc.responds(TAKE_BACK)
