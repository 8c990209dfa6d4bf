"""A real HTTP server on a loopback port that answers, or misbehaves, as a test's script says."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from handler_core.clients.http import Backoff, Upstream, new_session

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Seen:
    """A request that the server got."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: Any


@dataclass
class ScriptedServer:
    """Each path answers with its scripted answers in turn, the last one again and again; 404 for other paths."""

    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    connections: set[tuple[str, int]] = field(default_factory=set)
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    _answers: dict[str, list[Answer]] = field(default_factory=dict)

    def on(self, path: str, *answers: Answer) -> None:
        self._answers[path] = list(answers)

    def paths(self) -> list[str]:
        return [request.path for request in self.seen]

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw) if raw and request.content_type == "application/json" else raw or None
        self.seen.append(Seen(request.method, request.path, request.query_string, request.headers, body))
        assert request.transport is not None
        self.connections.add(request.transport.get_extra_info("peername"))
        answers = self._answers.get(request.path)
        if not answers:
            return web.json_response({"detail": "Not Found"}, status=404)
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return await answer(request)  # type: ignore[arg-type]

    # What follows makes answers.

    @staticmethod
    def json(data: Any, status: int = 200, **headers: str) -> Answer:
        async def answer(request: web.Request) -> web.StreamResponse:
            return web.json_response(data, status=status, headers={k.replace("_", "-"): v for k, v in headers.items()})

        return answer

    @staticmethod
    def body(data: bytes, status: int = 200, **headers: str) -> Answer:
        async def answer(request: web.Request) -> web.StreamResponse:
            return web.Response(body=data, status=status, headers={k.replace("_", "-"): v for k, v in headers.items()})

        return answer

    @staticmethod
    def raw(*pieces: bytes, reset: bool = False) -> Answer:
        """Bytes straight onto the connection, which then ends: with a FIN, or with a reset."""

        async def answer(request: web.Request) -> web.StreamResponse:
            assert request.transport is not None
            for piece in pieces:
                request.transport.write(piece)
                await asyncio.sleep(0)
            if reset:
                sock: socket.socket = request.transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                request.transport.abort()
            else:
                request.transport.close()
            return web.Response()

        return answer

    def hang(self, *pieces: bytes) -> Answer:
        """Bytes straight onto the connection, then silence; `aborted` is set when the client goes away."""

        async def answer(request: web.Request) -> web.StreamResponse:
            assert request.transport is not None
            for piece in pieces:
                request.transport.write(piece)
            try:
                await asyncio.Event().wait()
            finally:
                self.aborted.set()
            raise AssertionError("unreachable")

        return answer

    @staticmethod
    def sse(*chunks: bytes | Mapping[str, Any] | str) -> Answer:
        """An event stream, each chunk written by itself: bytes as they are, others as the data of an event."""

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            for chunk in chunks:
                await response.write(chunk if isinstance(chunk, bytes) else event(chunk))
                await asyncio.sleep(0)
            await response.write_eof()
            return response

        return answer


def event(data: Mapping[str, Any] | str) -> bytes:
    return f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    scripted = ScriptedServer()
    runner = web.ServerRunner(web.Server(scripted.handle, handler_cancellation=True), shutdown_timeout=0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        scripted.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield scripted
    finally:
        await runner.cleanup()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with new_session() as session:
        yield session


@pytest.fixture
def upstream(server: ScriptedServer, session: aiohttp.ClientSession) -> Upstream:
    """The scripted server as an upstream that waits next to nothing between attempts."""
    return Upstream(session, "model", server.url, backoff=Backoff(initial=0.001, maximum=0.01, jitter=0.001))
