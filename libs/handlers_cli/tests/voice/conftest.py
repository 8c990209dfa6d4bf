"""Stand-ins for the services and the sound card that the voice commands need, each named for what it replaces."""

import asyncio
import contextlib
import math
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from handler_core import streams
from handler_core.audio import PcmFormat, wav
from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.contract.base import Message
from handler_core.contract.errors import ErrorInfo, ErrorType
from handler_core.contract.stt import StreamMessage, TranscriptEvent
from handler_core.contract.tts import AudioChunk, SpeakRequest, SpeechStatus
from handler_core.contract.voice import VOICE, VoiceEvent, VoiceRequest, VoiceResponse
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, connection

SPEECH = PcmFormat(24_000)


def tone(seconds: float, format: PcmFormat = SPEECH, loudness: float = 0.5) -> bytes:
    """A sine of 440 Hz, the same on every channel."""
    top = loudness * (2 ** (8 * format.width - 1) - 1)
    made = bytearray()
    for frame in range(int(seconds * format.sample_rate)):
        value = int(top * math.sin(2 * math.pi * 440 * frame / format.sample_rate)) + (128 if format.width == 1 else 0)
        made += value.to_bytes(format.width, "little", signed=format.width > 1) * format.channels
    return bytes(made)


@dataclass
class Fake:
    """Takes what comes on subjects, and stores what it answers below `evt.`, as the services do."""

    nc: Connection
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def emit(self, subject: str, message: Message) -> None:
        await Api(self.nc).publish("evt." + subject.removeprefix("ai."), encode(message), {})


@dataclass
class FakeTtsModule(Fake):
    """Speaks each word as a tenth of a second."""

    error: ErrorInfo | None = None
    silent: bool = False
    """Takes requests and never answers."""
    order: Callable[[list[int]], list[int]] = lambda indexes: indexes
    """In which order the chunks are stored, so that a client can be seen to sort them."""
    seen: list[SpeakRequest] = field(default_factory=list)

    async def take(self, message: Any) -> None:
        request = decode(message.data, SpeakRequest)
        self.seen.append(request)
        self.arrived.set()
        if self.silent:
            return
        session, words = message.subject.rpartition(".")[2], request.text.split()
        await self.status(request, session, "started")
        if self.error is not None:
            await self.status(request, session, "error", error=self.error)
            return
        for index in self.order(list(range(len(words)))):
            await self.chunk(request, session, index, len(words))
        await self.status(request, session, "completed", chunks=len(words))

    async def chunk(self, request: SpeakRequest, session: str, index: int, total: int) -> None:
        chunk = AudioChunk(
            request_id=request.request_id or "",
            chunk_index=index,
            audio=struct.pack("<h", index + 1) * (SPEECH.sample_rate // 10),
            is_last=index == total - 1,
            sample_rate=SPEECH.sample_rate,
            timestamp=time.time(),
        )
        await self.emit(f"ai.voice.tts.audio.{session}", chunk)

    async def status(self, request: SpeakRequest, session: str, status: Any, **fields: Any) -> None:
        event = SpeechStatus(request_id=request.request_id or "", status=status, timestamp=time.time(), **fields)
        await self.emit(f"ai.voice.tts.status.{session}", event)


@dataclass
class FakeSttModule(Fake):
    """Understands a session as `script` says: what to publish for each of its messages."""

    script: Callable[["FakeSttModule", StreamMessage], list[TranscriptEvent]] = lambda module, message: module.plain(
        message
    )
    seen: list[StreamMessage] = field(default_factory=list)
    text: str = "hello there"

    async def take(self, message: Any) -> None:
        body = decode(message.data, StreamMessage)
        self.seen.append(body)
        self.arrived.set()
        for event in self.script(self, body):
            await self.emit(f"ai.voice.transcription.{message.subject.rpartition('.')[2]}", event)

    @property
    def audio(self) -> bytes:
        return b"".join(message.audio for message in self.seen if message.type == "chunk")

    @property
    def start(self) -> StreamMessage:
        return next(message for message in self.seen if message.type == "start")

    def plain(self, message: StreamMessage) -> list[TranscriptEvent]:
        """`started`, and one utterance when the audio ends."""
        if message.type == "start":
            return [event(type="status", status="started")]
        if message.type == "end":
            partial = event(transcript="hello", is_partial=True, sequence=1, start_ms=200)
            return [partial, self.final(), event(type="status", status="ended", reason="end")]
        return []

    def final(self, **fields: Any) -> TranscriptEvent:
        made = {"transcript": self.text, "is_final": True, "sequence": 1, "start_ms": 200, "end_ms": 61_340}
        return event(**{**made, **fields})


def event(**fields: Any) -> TranscriptEvent:
    return TranscriptEvent(timestamp=time.time(), **fields)


@dataclass
class FakeVoiceAssistant(Fake):
    """Answers a spoken question with a text and two segments of audio; `events` replaces what it streams."""

    events: list[dict[str, Any]] | None = None
    response: dict[str, Any] = field(default_factory=dict)
    silent: bool = False
    seen: list[VoiceRequest] = field(default_factory=list)

    async def take(self, message: Any) -> None:
        request = decode(message.data, VoiceRequest)
        self.seen.append(request)
        self.arrived.set()
        if message.reply and "JS" not in message.reply and message.subject.endswith("ask"):
            whole = self.final(request, audio=wav(SPEECH, segment(0) + segment(1)), audio_segments=0)
            await self.nc.publish(message.reply, encode(whole))
        elif not self.silent:
            await self.answer(request)

    async def answer(self, request: VoiceRequest) -> None:
        request_id = request.request_id or ""
        streamed = DEFAULT_EVENTS if self.events is None else self.events
        final = self.final(request, audio_segments=len({e["segment"] for e in streamed if e["type"] == "audio"}))
        for seq, fields in enumerate(streamed, 1):
            made = VoiceEvent(request_id=request_id, seq=seq, timestamp=time.time(), **fields)
            await self.emit(VOICE.stream_subject(request_id), made)
        await self.emit(VOICE.response_subject(request_id), final)
        last = "error" if final.error else "done"
        end = VoiceEvent(request_id=request_id, seq=999, type=last, done=True, error=final.error, timestamp=time.time())
        await self.emit(VOICE.stream_subject(request_id), end)

    def final(self, request: VoiceRequest, **fields: Any) -> VoiceResponse:
        made = {"transcription": "well?", "response": "Yes, it is.", "timings": {"stt_ms": 12.0, "total_ms": 34.5}}
        whole = VoiceResponse(request_id=request.request_id or "", **{**made, **fields, **self.response})
        return whole.model_copy(update={"success": whole.error is None})


def segment(number: int, seconds: float = 0.1) -> bytes:
    """Audio that can be told from that of another number."""
    return struct.pack("<h", 100 + number) * int(SPEECH.sample_rate * seconds)


def audio(number: int, **fields: Any) -> dict[str, Any]:
    made = {"type": "audio", "segment": number, "sentence": 0, "audio": segment(number), "sample_rate": 24_000}
    return {**made, **fields}


DEFAULT_EVENTS: list[dict[str, Any]] = [
    {"type": "transcript", "content": "well?"},
    {"type": "chunk", "content": "Yes, "},
    audio(0, text="Yes, it is."),
    {"type": "chunk", "content": "it is."},
    audio(1, last=True),
]

CANCELED = ErrorInfo(type=ErrorType.CANCELED, message="interrupted by speech", retryable=False)


@contextlib.asynccontextmanager
async def listening(nats: NatsServer, fake: type[Any], *subjects: str) -> AsyncIterator[Any]:
    async with connection(nats.url) as own:
        made = fake(own)
        for subject in subjects:
            await own.subscribe(subject, cb=made.take)
        assert await own.responds(5)
        yield made


@pytest.fixture
async def tts_module(nats: NatsServer, nc: Connection) -> AsyncIterator[FakeTtsModule]:
    async with listening(nats, FakeTtsModule, *streams.AI_TTS.subjects) as fake:
        yield fake


@pytest.fixture
async def stt_module(nats: NatsServer, nc: Connection) -> AsyncIterator[FakeSttModule]:
    async with listening(nats, FakeSttModule, *streams.AI_STT.subjects) as fake:
        yield fake


@pytest.fixture
async def voice_assistant(nats: NatsServer, nc: Connection) -> AsyncIterator[FakeVoiceAssistant]:
    subjects = (*streams.AI_VOICE.subjects, "ai.voice.ask", "ai.voice.user.*.ask")
    async with listening(nats, FakeVoiceAssistant, *subjects) as fake:
        yield fake


class FakeSounddevice:
    """The package `sounddevice`, with a device of any rate: what is played is kept, what is to be heard is `speech`."""

    class PortAudioError(Exception):
        pass

    def __init__(self) -> None:
        self.played = bytearray()
        self.opened: list[dict[str, Any]] = []
        self.aborted = 0
        self.devices = True
        self.rates: set[int] | None = None
        """Those that the microphone can; all when None."""
        self.speech = b""
        """What the microphone hears, in pieces of its block size."""
        self.writing: Callable[[], None] = lambda: None
        """Called with each write."""
        device = self

        class RawOutputStream:
            def __init__(self, **options: Any) -> None:
                device.opened.append(options)

            def start(self) -> None: ...
            def stop(self) -> None: ...
            def close(self) -> None: ...
            def abort(self) -> None:
                device.aborted += 1

            def write(self, data: bytes) -> bool:
                device.writing()
                device.played += data
                return False

        class RawInputStream:
            def __init__(self, *, blocksize: int, callback: Callable[..., None], **options: Any) -> None:
                device.opened.append(options)
                self._block, self._callback = blocksize * 2, callback

            def start(self) -> None:
                for place in range(0, len(device.speech), self._block):
                    piece = device.speech[place : place + self._block]
                    self._callback(memoryview(piece), len(piece) // 2, None, None)

            def stop(self) -> None: ...
            def close(self) -> None: ...

        self.RawOutputStream, self.RawInputStream = RawOutputStream, RawInputStream

    def query_devices(self, kind: str) -> dict[str, Any]:
        if not self.devices:
            raise self.PortAudioError("Error querying device -1")
        return {"default_samplerate": 44_100.0}

    def check_input_settings(self, *, samplerate: int, **_: Any) -> None:
        if self.rates is not None and samplerate not in self.rates:
            raise self.PortAudioError("Invalid sample rate")


@pytest.fixture
def sounddevice(monkeypatch: pytest.MonkeyPatch) -> FakeSounddevice:
    fake = FakeSounddevice()
    monkeypatch.setitem(sys.modules, "sounddevice", fake)  # type: ignore[arg-type]
    return fake


@pytest.fixture
def lib() -> SimpleNamespace:
    """The helpers of this module, for tests to use: no test imports another file of tests."""
    return SimpleNamespace(
        SPEECH=SPEECH, tone=tone, event=event, segment=segment, audio=audio, CANCELED=CANCELED, default=DEFAULT_EVENTS
    )
