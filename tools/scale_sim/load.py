"""The client's side: questions at a rate that comes in bursts, and all that a subscriber sees of their answers."""

import asyncio
import contextlib
import random
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from handler_core.client import publish
from handler_core.codec import decode
from handler_core.connection import Connection
from handler_core.contract.answer import StreamEvent
from handler_core.contract.chat import CHAT, REQUEST_SUBJECT, ChatRequest, ChatResponse
from handler_core.errors import Transient
from handler_core.jetstream import Api

DEADLINE_MS = 120_000
"""Longer than any wait here: what is not answered is lost, and not late."""


@dataclass(frozen=True)
class Phase:
    """A stretch of time with one rate of questions."""

    name: str
    seconds: float
    rate: float
    """Questions a second, on the average."""

    @property
    def burst(self) -> bool:
        return self.name.endswith("burst")


@dataclass
class Seen:
    """What arrived of one turn, in order."""

    events: list[StreamEvent] = field(default_factory=list)
    finals: list[ChatResponse] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return bool(self.finals) and any(event.done for event in self.events)


class Load:
    """Asks, and listens to all answers by two subscriptions.

    Args:
        clock: seconds since the simulation began.
    """

    def __init__(self, nc: Connection, phases: Sequence[Phase], clock: Callable[[], float], *, seed: int) -> None:
        self.phases = phases
        self.asked: dict[str, float] = {}
        """By `request_id`: when the stream had acknowledged it."""
        self.seen: defaultdict[str, Seen] = defaultdict(Seen)
        self.answered = 0
        """Final responses that arrived."""
        self.begins: list[float] = []
        """When each phase began, of those that have begun."""
        self._nc = nc
        self._api = Api(nc)
        self._clock = clock
        self._random = random.Random(seed)
        self._news = asyncio.Event()

    @property
    def phase(self) -> str:
        """The name of the phase that runs."""
        return self.phases[len(self.begins) - 1].name if self.begins else ""

    async def run(self) -> None:
        """Ask, at distances that are random but not far apart, until the last phase is over."""
        for phase in self.phases:
            self.begins.append(begin := self._clock())
            end = begin + phase.seconds
            due = begin
            while phase.rate > 0 and (due := due + self._random.uniform(0.5, 1.5) / phase.rate) < end:
                await asyncio.sleep(due - self._clock())
                await self._ask()
            await asyncio.sleep(end - self._clock())

    async def all_answered(self) -> None:
        """Wait until every question has its whole answer, for ever if need be."""
        while not all(self.seen[request_id].complete for request_id in self.asked):
            self._news.clear()
            await self._news.wait()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Take in all answers for the length of a block."""
        events = await self._nc.subscribe(CHAT.stream_subject("*"), cb=self._on_event)
        finals = await self._nc.subscribe(CHAT.response_subject("*"), cb=self._on_final)
        await self._nc.flush()
        try:
            yield
        finally:
            if self._nc.is_connected:
                await events.unsubscribe()
                await finals.unsubscribe()

    async def _ask(self) -> None:
        request = ChatRequest(
            request_id=uuid.uuid4().hex,
            query="How many of us are there?",
            enable_rag=False,
            enable_streaming=True,
            deadline_ms=DEADLINE_MS,
        )
        try:
            await publish(self._api, REQUEST_SUBJECT, request)
        except Transient:  # it may be stored or not: its id keeps it from being stored twice
            await publish(self._api, REQUEST_SUBJECT, request)
        self.asked[str(request.request_id)] = self._clock()

    async def _on_event(self, message: Any) -> None:
        event = decode(message.data, StreamEvent)
        self.seen[event.request_id].events.append(event)
        if event.done:
            self._news.set()

    async def _on_final(self, message: Any) -> None:
        response = decode(message.data, ChatResponse)
        self.seen[response.request_id].finals.append(response)
        self.answered += 1
        self._news.set()
