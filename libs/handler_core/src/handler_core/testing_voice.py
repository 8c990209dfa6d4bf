"""Fakes of the three endpoints of a voice turn, for tests that need them slow, silent, broken or gone.

async with fake_models() as models:
    models.llm.script = ["Water it weekly.", " In winter, less."]
    models.tts.hangs = True
"""

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from aiohttp.typedefs import Handler

from handler_core.audio import PcmFormat, wav

SPEECH = PcmFormat(8000)
"""What the fake voice speaks."""


def pcm_of(text: str, per_character: int) -> bytes:
    """What the fake voice makes of a text: `per_character` samples for each, the same ones for the same text."""
    loudness = 1000 + sum(text.encode()) % 20_000
    return struct.pack("<h", loudness) * (len(text) * per_character)


_QUESTION = PcmFormat(16_000)


def question_wav(seconds: float = 0.5, format: PcmFormat = _QUESTION) -> bytes:
    """A WAV file with sound in it."""
    frame = (b"\x00" * (format.width - 1) + b"\x20") * format.channels
    return wav(format, frame * int(seconds * format.sample_rate))


@dataclass
class FakeEndpoint:
    """What all three have."""

    refusals: int = 0
    """How many of the next calls fail with 503."""
    hangs: bool = False
    """Whether calls are taken and never answered."""
    calls: int = 0
    aborted: int = 0

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.calls += 1
        if self.refusals:
            self.refusals -= 1
            return web.json_response({"error": {"message": "no replica is up"}}, status=503)
        try:
            if self.hangs:
                await asyncio.Event().wait()
            return await self.answer(request)
        except asyncio.CancelledError:
            self.aborted += 1
            raise

    async def answer(self, request: web.Request) -> web.StreamResponse:
        raise NotImplementedError


@dataclass
class FakeLLM(FakeEndpoint):
    """Says `script`: strings are words of the answer, and an event is waited for before the next."""

    script: list[str | asyncio.Event] = field(default_factory=lambda: ["Water it weekly", " [", "1", "]", "."])
    prompts: list[list[dict[str, str]]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.prompts.append((await request.json())["messages"])
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for step in self.script:
            if isinstance(step, asyncio.Event):
                await step.wait()
            else:
                await _say(response, {"content": step}, None)
        await _say(response, {}, "stop")
        await response.write(b"data: [DONE]\n\n")
        return response


async def _say(response: web.StreamResponse, delta: dict[str, str], finish_reason: str | None) -> None:
    chunk = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}
    await response.write(f"data: {json.dumps(chunk)}\n\n".encode())


@dataclass
class FakeSTT(FakeEndpoint):
    """Understands `text` in whatever it is given."""

    text: str = "How often does it need water?"
    language: str = "english"
    seen: list[dict[str, Any]] = field(default_factory=list)
    """The fields of every call; of the file its `filename`, `content_type` and `data`."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        fields: dict[str, Any] = {}
        for name, value in (await request.post()).items():
            if isinstance(value, web.FileField):
                fields |= {
                    "filename": value.filename, "content_type": value.content_type, "data": value.file.read()
                }  # fmt: skip
            else:
                fields[name] = value
        self.seen.append(fields)
        return web.json_response({"text": self.text, "language": self.language, "duration": 1.0})


@dataclass
class FakeTTS(FakeEndpoint):
    """Speaks as an OpenAI-compatible endpoint does, in bare samples."""

    per_character: int = 80
    """Samples of one character: a hundred characters a second."""
    broken: dict[str, int] = field(default_factory=dict)
    """After how many bytes the connection is cut, of a text that begins so."""
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    """What is waited for in the middle of a text that begins so."""
    spoken: list[str] = field(default_factory=list)
    voices: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        text = body["input"]
        if self.voices and body.get("voice", self.voices[0]) not in self.voices:
            return web.json_response({"error": {"message": "no such voice"}}, status=400)
        self.spoken.append(text)
        pcm = pcm_of(text, self.per_character)
        response = web.StreamResponse(headers={"Content-Type": f"audio/pcm; rate={SPEECH.sample_rate}"})
        await response.prepare(request)
        for beginning, length in self.broken.items():
            if text.startswith(beginning) and request.transport is not None:
                await response.write(pcm[:length])
                request.transport.close()
                return response
        half = len(pcm) // 4 * 2
        await response.write(pcm[:half])
        for beginning, gate in self.gates.items():
            if text.startswith(beginning):
                await gate.wait()
        await response.write(pcm[half:])
        return response


@dataclass
class FakeModels:
    """The endpoints together, below one address."""

    llm: FakeLLM = field(default_factory=FakeLLM)
    stt: FakeSTT = field(default_factory=FakeSTT)
    tts: FakeTTS = field(default_factory=FakeTTS)
    url: str = ""

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answers in the place of what an application has at these paths, if anything."""
        fakes: dict[str, FakeEndpoint] = {
            "/v1/chat/completions": self.llm,
            "/v1/audio/transcriptions": self.stt,
            "/v1/audio/speech": self.tts,
        }
        if request.path == "/v1/audio/voices":
            return web.json_response({"voices": self.tts.voices})
        if request.path in ("/tts_stream", "/api/tts"):
            return web.Response(status=404)  # the application's own voices, by which the engine would be told
        if request.path not in fakes:
            return await handler(request)
        if request.method != "POST":
            return web.Response(status=405)
        return await fakes[request.path].serve(request)


@contextlib.asynccontextmanager
async def fake_models(app: web.Application | None = None) -> AsyncIterator[FakeModels]:
    """The fakes, served beside what `app` has."""
    models = FakeModels()
    app = app or web.Application()
    app.middlewares.insert(0, models.middleware)
    async with TestServer(app) as server:
        models.url = str(server.make_url("")).rstrip("/")
        yield models
