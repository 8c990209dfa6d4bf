"""What surrounds the text-to-speech module: NATS, a speech endpoint that does as it is told, and a caller."""

import asyncio
import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from handler_core import streams
from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.contract.tts import AudioChunk, SpeakRequest, SpeechStatus
from handler_core.jetstream import Api, Stored
from handler_core.speech import pieces
from handler_core.testing import NatsServer, connection, nats_server, stored, until
from tts_module.service import Settings

TEXT = "The first sentence stands here. The second one follows it closely. And this is the third and last one."
LENGTH = 20_000
"""Bytes of samples of every sentence."""


def voice(text: str) -> bytes:
    """The samples of a sentence, as random as they are always the same."""
    return hashlib.shake_128(text.encode()).digest(LENGTH)


@pytest.fixture(scope="session")
def nats() -> Iterator[NatsServer]:
    with nats_server() as server:
        yield server


@pytest.fixture
async def nc(nats: NatsServer) -> AsyncIterator[Connection]:
    """A connection to a server on which everything is declared and nothing is queued."""
    async with connection(nats.url) as nc:
        await streams.apply(Api(nc))
        for name in ("AI_TTS", "AI_EVENTS", "AI_CONTROL", "DLQ"):
            await Api(nc).request(f"STREAM.PURGE.{name}")
        yield nc


@dataclass
class Engine:
    """An endpoint of the OpenAI kind: bare samples at 24 kHz, in two halves."""

    url: str = ""
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    """What is waited for between the halves of a sentence."""
    answers: list[web.Response] = field(default_factory=list)
    """What the next calls are answered with instead."""
    breaks: list[str] = field(default_factory=list)
    """Sentences that break off in the middle, once each."""
    seen: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    aborted: asyncio.Event = field(default_factory=asyncio.Event)

    @staticmethod
    def spoken(text: str) -> bytes:
        """The samples of a whole text."""
        return b"".join(map(voice, pieces(text, limit=4096)))

    def inputs(self) -> list[str]:
        return [body["input"] for body in self.seen]

    async def speak(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.seen.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.answers:
            return self.answers.pop(0)
        text, samples = body["input"], voice(body["input"])
        response = web.StreamResponse(headers={"Content-Type": "audio/pcm"})
        await response.prepare(request)
        try:
            await response.write(samples[: LENGTH // 2])
            if text in self.gates:
                await self.gates[text].wait()
            if text in self.breaks:
                self.breaks.remove(text)
                if request.transport is not None:
                    request.transport.abort()
                return response
            await response.write(samples[LENGTH // 2 :])
            await response.write_eof()
        except (asyncio.CancelledError, ConnectionError):
            self.aborted.set()
            raise
        return response

    async def voices(self, request: web.Request) -> web.Response:
        return web.json_response({"voices": ["nova", "alloy"]})


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = Engine()
    app = web.Application()
    app.router.add_post("/v1/audio/speech", engine.speak)
    app.router.add_get("/v1/audio/voices", engine.voices)
    async with TestServer(app) as server:
        engine.url = str(server.make_url("")).rstrip("/")
        yield engine
        for gate in engine.gates.values():
            gate.set()


SettingsFor = Callable[..., Settings]


@pytest.fixture
def settings(nats: NatsServer, engine: Engine) -> SettingsFor:
    """Settings of a module of its own, changed as the arguments say."""

    def make(**changes: Any) -> Settings:
        own = {"nats_url": nats.url, "health_host": "127.0.0.1", "health_port": 0, "tts_url": engine.url}
        return Settings(**{**own, "tts_timeout": 10, **changes})

    return make


class Caller:
    """Asks for speech in a session of its own, and keeps all that arrives there."""

    def __init__(self, nc: Connection) -> None:
        self.nc = nc
        self.text = TEXT
        self.sentences = pieces(TEXT, limit=4096)
        self.session = uuid.uuid4().hex
        self.chunks: list[AudioChunk] = []
        self.statuses: list[SpeechStatus] = []
        self.headers: list[dict[str, str]] = []
        self.order: list[str] = []
        """`started`, `chunk`, …, as they came."""

    async def listen(self) -> None:
        await self.nc.subscribe(f"ai.voice.tts.audio.{self.session}", cb=self._on_chunk)
        await self.nc.subscribe(f"ai.voice.tts.status.{self.session}", cb=self._on_status)

    async def _on_chunk(self, message: Any) -> None:
        self.chunks.append(decode(message.data, AudioChunk))
        self.headers.append(message.headers)
        self.order.append("chunk")

    async def _on_status(self, message: Any) -> None:
        self.statuses.append(decode(message.data, SpeechStatus))
        self.order.append(self.statuses[-1].status)

    async def ask(self, headers: dict[str, str] | None = None, **fields: Any) -> str:
        """Queue a request; returns its id."""
        request = SpeakRequest(**{"text": TEXT, "request_id": uuid.uuid4().hex, **fields})
        await self.send(encode(request), headers)
        return str(request.request_id)

    async def send(self, payload: bytes, headers: dict[str, str] | None = None) -> None:
        await Api(self.nc).publish(f"ai.voice.tts.request.{self.session}", payload, headers or {})

    def of(self, request_id: str) -> list[AudioChunk]:
        return [chunk for chunk in self.chunks if chunk.request_id == request_id]

    def audio(self, request_id: str | None = None) -> bytes:
        return b"".join(chunk.audio for chunk in self.chunks if request_id in (None, chunk.request_id))

    def ends(self) -> list[SpeechStatus]:
        return [status for status in self.statuses if status.status != "started"]

    async def end(self) -> SpeechStatus:
        """The one end, once it is there and all is settled."""
        await until(self.ends, "the end is told")
        await settled(self.nc)
        [end] = self.ends()
        return end

    @staticmethod
    def chunk(stored: Stored) -> AudioChunk:
        return decode(stored.data, AudioChunk)

    async def log(self) -> list[Stored]:
        return await stored(self.nc, "AI_EVENTS", f"evt.voice.tts.*.{self.session}")


async def settled(nc: Connection) -> None:
    async def empty() -> bool:
        return int((await Api(nc).request("STREAM.INFO.AI_TTS"))["state"]["messages"]) == 0

    await until(empty, "every request is settled")


@pytest.fixture
async def caller(nc: Connection) -> Caller:
    caller = Caller(nc)
    await caller.listen()
    return caller
