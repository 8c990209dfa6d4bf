"""Speech for tests: words that voice detection takes for speech, an endpoint that understands them, and a speaker.

A word is a number from 1 to 255, spoken as a buzz whose samples carry it in their lower byte. So a test knows to the
sample what reached the endpoint, how often, and in which call, which no model could tell.

    async with TestServer(ears.app()) as server:
        speaker = Speaker(nc, "s1")
        await speaker.listen()
        await speaker.say(1, 2, 3)
"""

import asyncio
import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from typing import Any

from aiohttp import web

from handler_core.audio import read_wav
from handler_core.codec import decode
from handler_core.connection import Connection
from handler_core.contract.stt import STREAM_SUBJECT, TRANSCRIPTION_SUBJECT, TranscriptEvent
from handler_core.testing import until

WORD_MS = 300
SOUND = 0.8
"""How much of a word sounds; a sound that never pauses would be taken for noise."""
RATE = 16_000
CHUNK_MS = 20
HEARD_MS = 100
"""How much of a word has to reach the endpoint to be heard as one."""


@lru_cache(maxsize=1024)
def word(number: int, *, ms: int = WORD_MS, rate: int = RATE) -> bytes:
    """A spoken word: 16 bit samples, harmonics of 130 Hz around 500 Hz, as in a vowel, and a short silence."""
    samples = array("h")
    for i in range(int(rate * ms / 1000 * SOUND)):
        phase = 2 * math.pi * 130 * i / rate
        value = sum(math.sin(phase * k) / (1 + abs(k * 130 - 500) / 200) for k in range(1, 16))
        samples.append(max(-32_000, min(32_000, int(3000 * value))) & ~0xFF | number)
    return samples.tobytes().ljust(rate * ms // 1000 * 2, b"\0")


def silence(ms: int, *, rate: int = RATE) -> bytes:
    return bytes(rate * ms // 1000 * 2)


def phrase(*words: int, rate: int = RATE, after_ms: int = 900) -> bytes:
    """Words in one breath, and the silence that ends an utterance."""
    return b"".join(word(number, rate=rate) for number in words) + silence(after_ms, rate=rate)


def understood(pcm: bytes, rate: int) -> list[int]:
    """The words in 16 bit audio. What a lost chunk leaves of one is one word; audio that is there twice is two."""
    least, whole = rate * HEARD_MS // 1000, rate * WORD_MS / 1000 * SOUND
    runs = [(number, sum(1 for _ in run)) for number, run in groupby(pcm[::2])]
    heard = [(number, length) for number, length in runs if number and length >= least]
    words: list[int] = []
    for number, parts in groupby(heard, key=lambda run: run[0]):
        words += [number] * max(1, round(sum(length for _, length in parts) / whole))
    return words


@dataclass
class Ears:
    """An OpenAI-shaped transcription endpoint: `w1 w2` for the words 1 and 2."""

    calls: list[list[int]] = field(default_factory=list)
    """The words of every call that was answered."""
    forms: list[dict[str, Any]] = field(default_factory=list)
    """The other fields of every call."""
    headers: list[dict[str, str]] = field(default_factory=list)
    failures: int = 0
    """How many of the next calls fail; all while it is negative."""
    status: int = 503
    """With what."""
    open: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared, calls wait."""
    silent: bool = False
    """Whether it understands nothing."""
    waiting: int = 0
    """Calls that wait."""

    def __post_init__(self) -> None:
        self.open.set()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=16 << 20)
        app.router.add_post("/v1/audio/transcriptions", self._transcribe)
        return app

    async def _transcribe(self, request: web.Request) -> web.Response:
        form = await request.post()
        file = form["file"]
        if not isinstance(file, web.FileField):
            return web.json_response({"error": {"message": "file: is missing"}}, status=400)
        with file.file:
            audio = read_wav(file.file.read())
        self.waiting += 1
        try:
            await self.open.wait()
        finally:
            self.waiting -= 1
        if self.failures:
            self.failures -= 1
            return web.json_response({"error": {"message": "no replica is up"}}, status=self.status)
        words = [] if self.silent else understood(bytes(audio.pcm), audio.format.sample_rate)
        self.calls.append(words)
        self.forms.append({name: value for name, value in form.items() if isinstance(value, str)})
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        return web.json_response({"text": text(words), "language": "en"})


def text(words: Iterable[int]) -> str:
    return " ".join(f"w{number}" for number in words)


class Speaker:
    """A client of live sessions: sends audio in chunks, as fast as it can, and keeps the events that it sees."""

    def __init__(self, nc: Connection, session: str, *, rate: int = RATE, numbered: bool = False) -> None:
        self.session = session
        self.events: list[TranscriptEvent] = []
        self.headers: list[dict[str, str]] = []
        self.rate = rate
        self.seq: int | None = 0 if numbered else None
        self._nc = nc

    async def listen(self) -> "Speaker":
        """Keep the session's events from now on."""
        await self._nc.subscribe(TRANSCRIPTION_SUBJECT.format(session=self.session), cb=self._on_event)
        await self._nc.flush()
        return self

    async def _on_event(self, message: Any) -> None:
        self.events.append(decode(message.data, TranscriptEvent))
        self.headers.append(dict(message.headers or {}))

    # -- sending

    async def send(self, headers: dict[str, str] | None = None, **message: Any) -> None:
        """Publish one message of the session as it is."""
        import msgpack

        await self._nc.publish(STREAM_SUBJECT.format(session=self.session), msgpack.packb(message), headers=headers)

    async def start(self, **fields: Any) -> None:
        await self.send(type="start", **fields)

    async def end(self) -> None:
        await self.send(type="end")

    def chunks(self, pcm: bytes) -> list[dict[str, Any]]:
        """Audio as messages of 20 ms each, numbered where the speaker numbers them."""
        size = self.rate * CHUNK_MS // 1000 * 2
        made = []
        for place in range(0, len(pcm), size):
            chunk: dict[str, Any] = {"type": "chunk", "audio": pcm[place : place + size]}
            if self.seq is not None:
                chunk["seq"] = self.seq
                self.seq += 1
            made.append(chunk)
        return made

    async def play(self, pcm: bytes) -> None:
        for chunk in self.chunks(pcm):
            await self.send(**chunk)

    async def say(self, *words: int, after_ms: int = 900) -> None:
        """Say words in one breath; with the silence after them the utterance ends."""
        await self.play(phrase(*words, rate=self.rate, after_ms=after_ms))

    async def pause(self, ms: int) -> None:
        await self.play(silence(ms, rate=self.rate))

    async def say_until_shown(self) -> int:
        """Say 1, 2, 3 … in one breath until a partial transcript comes; returns the last word."""
        number = 0
        while not self.partials:
            number += 1
            if number > 90:
                raise AssertionError("no partial transcript in an utterance of 27 seconds")
            await self.play(word(number))
            await asyncio.sleep(0.01)
        return number

    # -- what was seen

    @property
    def finals(self) -> list[str]:
        return [event.transcript for event in self.events if event.is_final]

    @property
    def partials(self) -> list[str]:
        return [event.transcript for event in self.events if event.is_partial]

    @property
    def statuses(self) -> list[str]:
        return [event.status for event in self.events if event.status]

    @property
    def errors(self) -> list[str]:
        return [event.error.message for event in self.events if event.error]

    async def hears(self, *finals: Sequence[int]) -> None:
        """Wait for final transcripts, which have to be these."""
        expected = [text(words) for words in finals]
        await until(lambda: len(self.finals) >= len(expected), f"{self.session} hears {expected}, not {self}")
        if self.finals != expected:
            raise AssertionError(f"{self.session} heard {self.finals}, not {expected}")

    async def sees(self, status: str, times: int = 1) -> None:
        await until(lambda: self.statuses.count(status) >= times, f"{self.session} is {status}, not {self}")

    def __repr__(self) -> str:
        return f"{self.statuses} {self.finals} {self.errors}"
