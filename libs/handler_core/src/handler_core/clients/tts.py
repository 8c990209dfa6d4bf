"""Speech from text, from a Coqui TTS server, an XTTS streaming server, or an OpenAI-compatible endpoint."""

import asyncio
import math
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Literal

from handler_core.clients.failures import UpstreamError
from handler_core.clients.http import Upstream
from handler_core.clients.tts_audio import AudioChunk, SpeechReader
from handler_core.clients.tts_engines import Coqui, Engine, OpenAI, Utterance, VoiceInfo, holding
from handler_core.clients.tts_xtts import Xtts
from handler_core.clients.voices import Recording, VoicesFolder
from handler_core.deadline import Deadline
from handler_core.errors import InvalidRequest
from handler_core.tracing import Value, span

__all__ = ["TTS", "AudioChunk", "EngineName", "VoiceInfo", "VoicesFolder"]

EngineName = Literal["auto", "coqui", "xtts", "openai"]
# A GET is refused by a path that takes POST only, and by Coqui's for want of a text; a path that is not there is not
# found. The second and third can be had from one server: Coqui's own form knows languages and recordings.
_PROBES = {"xtts": "/tts_stream", "coqui": "/api/tts", "openai": "/v1/audio/speech"}
_SHOWN_VOICES = 20
_ABOUT_A_VOICE = re.compile("voice|speaker", re.IGNORECASE)


class TTS:
    """A speech endpoint.

    Args:
        upstream: where it is.
        engine: what it speaks; `auto` finds out at the first call, by which of the engines' paths exist.
        model: the model to name, for an OpenAI-compatible endpoint that has several.
        speaker: the voice when a call names none; None leaves it to the engine.
        language: the code of the language when a call names none.
        concurrency: utterances made at once; further calls wait. Most servers make one at a time anyway.
        max_chars: characters that one utterance may have, instead of the engine's own limit; 0 for that.
        names: voices of an endpoint that does not tell them.
        sample_rate: of bare samples, where the answer does not tell.
        folder: recordings of voices to clone.
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        engine: EngineName = "auto",
        model: str | None = None,
        speaker: str | None = None,
        language: str = "en",
        concurrency: int = 1,
        max_chars: int = 0,
        names: Sequence[str] = (),
        sample_rate: int = 24_000,
        folder: VoicesFolder | None = None,
    ) -> None:
        self.upstream = upstream
        self.speaker = speaker
        self.language = language
        self._model = model or "default"
        self._max_chars = max_chars
        self._sample_rate = sample_rate
        self._folder = folder
        self._slots = asyncio.Semaphore(concurrency)
        self._listing = asyncio.Semaphore(1)
        self._engines: dict[str, Engine] = {
            "coqui": Coqui(upstream, folder),
            "xtts": Xtts(upstream),
            "openai": OpenAI(upstream, model, names),
        }
        self._engine: Engine | None = self._engines.get(engine)
        self._builtin: list[VoiceInfo] | None = None

    async def speak(
        self,
        text: str,
        *,
        speaker: str | None = None,
        language: str | None = None,
        speaker_wav: str | None = None,
        speed: float | None = None,
        deadline: Deadline,
    ) -> AsyncGenerator[AudioChunk, None]:
        """The speech for one text as it is made, all of it in one format.

        Silence at the begin is held back until sound comes. Nothing is repeated after the first bytes. Close the
        generator (`contextlib.aclosing`) to abort: the upstream's connection is closed and the slot is free at once.

        Args:
            text: no longer than `limit`.
            speaker: a voice, built-in or custom.
            speaker_wav: a custom voice by its name, its file's name, or its path at the server; it counts before
                `speaker`.
            speed: 1 is the voice's own; from 0.25 to 4; only OpenAI-compatible endpoints know it.

        Raises:
            InvalidRequest: the text is empty or too long, or a voice is not known; the message names the field.
            DownstreamUnavailable: the upstream failed or refused, answered with another format, with nothing or with
                silence, or broke off in the middle (`outcome` is `broken`), be it after some chunks.
            DeadlineExceeded: the deadline came first, also while waiting for a slot.
        """
        attributes: dict[str, Value] = {"gen_ai.operation.name": "speak", "gen_ai.request.model": self._model,
                                        "tts.characters": len(text), **self.upstream.place}  # fmt: skip
        with span(f"speak {self._model}", "client", attributes) as call:
            engine = await self._known_engine(deadline)
            utterance = await self._utterance(text, speaker, language, speaker_wav, speed, engine, deadline)
            call.set({"tts.engine": engine.name})
            heard = False
            slot = holding(self._slots, deadline, f"{self.upstream.name}: no free slot before the deadline")
            async with slot, aclosing(self._chunks(engine, utterance, deadline)) as chunks:
                async for chunk in chunks:
                    if not heard:
                        call.event("tts.first_audio")
                        heard = True
                    yield chunk

    async def _chunks(
        self, engine: Engine, utterance: Utterance, deadline: Deadline
    ) -> AsyncGenerator[AudioChunk, None]:
        try:
            async with engine.speak(utterance, deadline) as response:
                reader = SpeechReader(self.upstream.failures, self._sample_rate, response.content_type)
                while data := await response.read(self.upstream.timeout):
                    if chunk := reader.feed(data):
                        yield chunk
                if chunk := reader.end():
                    yield chunk
        except UpstreamError as error:
            if utterance.voice is not None and error.status in {400, 404, 422}:
                await self._check(utterance.voice, deadline)
                if not self._builtin and _ABOUT_A_VOICE.search(error.message):  # no list, but it says so itself
                    raise InvalidRequest(f"speaker: {utterance.voice[:100]!r} is refused: {error.message}") from None
            raise

    async def limit(self, language: str | None = None, *, deadline: Deadline) -> int:
        """The most characters of a language that one call may speak; raises as `engine`."""
        engine = await self._known_engine(deadline)
        return self._max_chars or engine.limit(language or self.language)

    async def engine(self, deadline: Deadline) -> str:
        """Which engine answers there: `coqui`, `xtts` or `openai`.

        Raises:
            DownstreamUnavailable: it cannot be reached, or is none of these; the message tells what was tried.
            DeadlineExceeded: the deadline came first.
        """
        return (await self._known_engine(deadline)).name

    async def voices(self, deadline: Deadline) -> list[VoiceInfo]:
        """All voices by name, the engine's own before the custom ones, which replace those of the same name.

        Raises:
            DownstreamUnavailable: the engine could not be asked.
            DeadlineExceeded: the deadline came first.
        """
        custom = await self._recordings()
        async with holding(self._listing, deadline, f"{self.upstream.name}: no list of voices before the deadline"):
            if self._builtin is None:
                self._builtin = await (await self._known_engine(deadline)).voices(deadline)
            builtin = [voice for voice in self._builtin if voice.name not in custom]
        return [*sorted(builtin, key=_name), *(VoiceInfo(name, "custom") for name in custom)]

    async def refresh(self, deadline: Deadline) -> list[VoiceInfo]:
        """`voices`, with the folder read and the engine asked anew."""
        if self._folder is not None:
            await self._folder.recordings(anew=True)
        self._builtin = None
        return await self.voices(deadline)

    async def _recordings(self) -> dict[str, Recording]:
        return {} if self._folder is None else await self._folder.recordings()

    async def _known_engine(self, deadline: Deadline) -> Engine:
        if self._engine is None:
            tried = []
            for name, path in _PROBES.items():
                if answer := await self._absent(path, deadline):
                    tried.append(f"{path} {answer}")
                else:
                    self._engine = self._engines[name]
                    break
            else:
                raise self.upstream.failures.problem(f"no speech server is known there (GET {', '.join(tried)})")
        return self._engine

    async def _absent(self, path: str, deadline: Deadline) -> str:
        """What a GET of a path says that does not exist; empty where it does, be it for other methods or arguments."""
        try:
            reply = await self.upstream.fetch("GET", path, deadline=deadline)
        except UpstreamError as error:
            if error.status == 500 and path == _PROBES["coqui"]:
                return ""  # old versions of Coqui's server stumble over the missing text
            if error.status == 405 or (error.status in {400, 415, 422} and path != _PROBES["xtts"]):
                return ""
            if error.status in {400, 404, 410, 415, 422, 501}:
                return str(error.status)
            raise
        return "" if reply.content_type.startswith("audio/") else f"200 {reply.content_type}"

    async def _utterance(
        self,
        text: str,
        speaker: str | None,
        language: str | None,
        speaker_wav: str | None,
        speed: float | None,
        engine: Engine,
        deadline: Deadline,
    ) -> Utterance:
        language = language or self.language
        limit = self._max_chars or engine.limit(language)
        if not text.strip():
            raise InvalidRequest("text: empty")
        if len(text) > limit:
            raise InvalidRequest(f"text: {len(text)} characters, the most at once are {limit}")
        if speed is not None and not (math.isfinite(speed) and 0.25 <= speed <= 4):
            raise InvalidRequest("speed: must be from 0.25 to 4")
        utterance = Utterance(text, language, speaker or self.speaker, speed=speed)
        custom = await self._recordings()
        if speaker_wav:
            name = self._folder.name_of(speaker_wav) if self._folder is not None else speaker_wav
            if name not in custom:
                raise InvalidRequest(f"speaker_wav: no custom voice {speaker_wav[:100]!r}; {_choice(list(custom))}")
            return replace(utterance, voice=None, recording=custom[name])
        if utterance.voice in custom:
            return replace(utterance, voice=None, recording=custom[utterance.voice])
        if utterance.voice is not None and engine.lists_all:
            await self._check(utterance.voice, deadline)
        return utterance

    async def _check(self, voice: str, deadline: Deadline) -> None:
        """Refuse a voice that is not among those known, if any are."""
        names = [known.name for known in await self.voices(deadline)]
        if self._builtin and voice not in names:
            raise InvalidRequest(f"speaker: no voice {voice[:100]!r}; {_choice(names)}")


def _name(voice: VoiceInfo) -> str:
    return voice.name


def _choice(names: Sequence[str]) -> str:
    """The voices to choose from, the first of many."""
    shown = ", ".join(names[:_SHOWN_VOICES]) + (", …" if len(names) > _SHOWN_VOICES else "")
    return f"there are {shown}" if names else "there are none"
