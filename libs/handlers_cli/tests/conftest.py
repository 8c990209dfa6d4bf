"""What the commands' tests share: a real NATS server with everything declared, and a worker of their own."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog

from handler_core import streams
from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.contract.answer import StreamEvent
from handler_core.contract.chat import CHAT, ChatRequest, ChatResponse
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, connection, nats_server
from handlers_cli.settings import CliSettings


@pytest.fixture(autouse=True)
def logs_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command logs warnings only; the tests of others that follow in this process hear all again."""
    configure = structlog.configure
    monkeypatch.setattr(structlog, "configure", lambda **o: configure(**{**o, "cache_logger_on_first_use": False}))
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def nats() -> Iterator[NatsServer]:
    """A real NATS server; every pytest-xdist worker has its own."""
    with nats_server() as server:
        yield server


@pytest.fixture
async def nc(nats: NatsServer) -> AsyncIterator[Connection]:
    """A connection to a server on which everything is declared and nothing is stored."""
    async with connection(nats.url) as nc:
        await streams.apply(Api(nc))
        for stream in streams.STREAMS:
            await Api(nc).request(f"STREAM.PURGE.{stream.name}")
        yield nc


@pytest.fixture
def config(nats: NatsServer) -> CliSettings:
    return CliSettings(nats_url=nats.url)


@dataclass
class Worker:
    """Answers every question as `script` says, where a chat_handler would: a stand-in that needs no models."""

    nc: Connection
    script: Callable[[ChatRequest], ChatResponse | None] = lambda request: ChatResponse(response="Yes.")
    restarts: int = 0
    """How many times it begins anew."""
    seen: list[ChatRequest] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, message: Any) -> None:
        request = decode(message.data, ChatRequest)
        self.seen.append(request)
        self.arrived.set()
        response = self.script(request)
        if response is not None:
            await self.answer(request, response)

    async def answer(self, request: ChatRequest, response: ChatResponse) -> None:
        """Events, if asked for, and the final response, stored and republished."""
        request_id = request.request_id or ""
        response = response.model_copy(update={"request_id": request_id, "success": response.error is None})
        kinds = [*["restart"] * self.restarts, "chunk", "error" if response.error else "done"]
        if request.enable_streaming:
            for seq, kind in enumerate(kinds[:-1], 1):
                await self._event(request_id, seq, kind, response.response if kind == "chunk" else "")
        await self._store(CHAT.response_subject(request_id), encode(response))
        if request.enable_streaming:
            await self._event(request_id, len(kinds), kinds[-1], "")

    async def _event(self, request_id: str, seq: int, kind: Any, content: str) -> None:
        event = StreamEvent(
            request_id=request_id,
            seq=seq,
            type=kind,
            content=content,
            done=kind in ("done", "error"),
            timestamp=time.time(),
        )
        await self._store(CHAT.stream_subject(request_id), encode(event))

    async def _store(self, subject: str, payload: bytes) -> None:
        await Api(self.nc).publish("evt." + subject.removeprefix("ai."), payload, {})


@pytest.fixture
async def worker(nats: NatsServer, nc: Connection) -> AsyncIterator[Worker]:
    """A worker on a connection of its own."""
    async with connection(nats.url) as own, contextlib.AsyncExitStack() as stack:
        worker = Worker(own)
        for subject in streams.AI_CHAT.subjects:
            subscription = await own.subscribe(subject, cb=worker.take)
            stack.push_async_callback(subscription.unsubscribe)
        assert await own.responds(5)
        yield worker
