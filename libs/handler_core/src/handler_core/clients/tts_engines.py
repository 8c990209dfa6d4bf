"""How each kind of speech server is asked: what a call may hold, which voices there are, and the request itself."""

import asyncio
import html
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from handler_core.clients.body import Body
from handler_core.clients.failures import UpstreamError
from handler_core.clients.http import Upstream
from handler_core.clients.languages import base_of
from handler_core.clients.response import Response
from handler_core.clients.voices import Recording, VoicesFolder
from handler_core.deadline import Deadline
from handler_core.errors import DeadlineExceeded

XTTS_LIMITS = {
    "ar": 166, "cs": 186, "de": 253, "en": 250, "es": 239, "fr": 273, "hi": 150, "hu": 224, "it": 213, "ja": 71,
    "ko": 95, "nl": 251, "pl": 224, "pt": 203, "ru": 182, "tr": 226, "zh": 82,
}  # fmt: skip
"""Characters above which XTTS cuts its audio off, by language (its tokenizer's `char_limits`)."""
XTTS_LIMIT = 250
OPENAI_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class VoiceInfo:
    """A voice to speak with: the engine's own, or one cloned from a recording."""

    name: str
    kind: Literal["builtin", "custom"]
    language: str | None = None


@dataclass(frozen=True, slots=True)
class Utterance:
    """What is to be said, and how: with a built-in voice, with a recording's, or with the engine's own choice."""

    text: str
    language: str
    voice: str | None = None
    recording: Recording | None = None
    speed: float | None = None


class Engine(Protocol):
    """One kind of speech server."""

    name: str
    lists_all: bool
    """Whether a voice that `voices` does not name is unknown to the server; else it may be an alias or a mixture."""

    def limit(self, language: str) -> int:
        """Characters that one utterance may have."""

    async def voices(self, deadline: Deadline) -> list[VoiceInfo]:
        """The built-in voices, as far as the server tells; raises as any call."""

    def speak(self, utterance: Utterance, deadline: Deadline) -> AbstractAsyncContextManager[Response]:
        """The answer to the request, its first bytes there."""


class Coqui:
    """Coqui's TTS server: `/api/tts`, which reads a form or, in old versions, a query only, and answers with WAV."""

    name = "coqui"
    lists_all = True

    def __init__(self, upstream: Upstream, folder: VoicesFolder | None) -> None:
        self._upstream = upstream
        self._folder = folder
        self._by_query = False

    def limit(self, language: str) -> int:
        return XTTS_LIMITS.get(base_of(language), XTTS_LIMIT)  # it may well be XTTS that runs there

    async def voices(self, deadline: Deadline) -> list[VoiceInfo]:
        """As its MaryTTS form tells them: lines of name, language and gender; names may hold spaces."""
        try:
            reply = await self._upstream.fetch("GET", "/voices", deadline=deadline)
        except UpstreamError as error:
            if error.status is None or error.status >= 500:
                raise
            return []
        text = html.unescape(reply.body.decode("utf-8", "replace"))
        if text.lstrip()[:1] in {"<", "{", "["}:
            return []
        rows = (line.rsplit(maxsplit=2) for line in text.splitlines())
        return [VoiceInfo(row[0], "builtin", row[1]) for row in rows if len(row) == 3]

    @asynccontextmanager
    async def speak(self, utterance: Utterance, deadline: Deadline) -> AsyncIterator[Response]:
        language = base_of(utterance.language)
        fields = {"text": utterance.text, "language_id": "zh-cn" if language == "zh" else language}  # as XTTS names it
        if utterance.recording is not None and self._folder is not None:
            # An empty speaker keeps the server from putting its own default beside the recording.
            fields |= {"speaker_id": "", "speaker_wav": self._folder.at_server(utterance.recording)}
        elif utterance.voice is not None:
            fields["speaker_id"] = utterance.voice
        if not self._by_query:
            try:
                async with self._upstream.stream("/api/tts", Body.form(fields), deadline=deadline) as response:
                    yield response
                    return
            except UpstreamError as error:
                if error.status != 405:
                    raise
        async with self._upstream.stream("/api/tts", None, query=fields, deadline=deadline) as response:
            self._by_query = True
            yield response


class OpenAI:
    """A server with OpenAI's `/v1/audio/speech`. The language is the server's to find in the text."""

    name = "openai"
    lists_all = False

    def __init__(self, upstream: Upstream, model: str | None, names: Sequence[str]) -> None:
        self._upstream = upstream
        self._model = model
        self._names = names
        self._format = "pcm"

    def limit(self, language: str) -> int:
        return OPENAI_LIMIT

    async def voices(self, deadline: Deadline) -> list[VoiceInfo]:
        """From `/v1/audio/voices`, which many such servers have; else the names that were configured."""
        try:
            answer = await self._upstream.get_json("/v1/audio/voices", deadline=deadline)
        except UpstreamError as error:
            if error.outcome != "invalid" and (error.status is None or error.status >= 500):
                raise
            answer = None
        return listed(answer) or [VoiceInfo(name, "builtin") for name in self._names]

    @asynccontextmanager
    async def speak(self, utterance: Utterance, deadline: Deadline) -> AsyncIterator[Response]:
        voice = utterance.recording.name if utterance.recording is not None else utterance.voice
        body: dict[str, Any] = {"input": utterance.text}
        options = {"model": self._model, "voice": voice, "speed": utterance.speed}
        body |= {name: value for name, value in options.items() if value is not None}
        try:
            async with self._stream(body, self._format, deadline) as response:
                yield response
                return
        except UpstreamError as error:
            if self._format != "pcm" or error.status not in {400, 415, 422} or "format" not in error.message.lower():
                raise
        async with self._stream(body, "wav", deadline) as response:
            self._format = "wav"
            yield response

    def _stream(self, body: dict[str, Any], format: str, deadline: Deadline) -> AbstractAsyncContextManager[Response]:
        return self._upstream.stream("/v1/audio/speech", {**body, "response_format": format}, deadline=deadline)


@asynccontextmanager
async def holding(places: asyncio.Semaphore, deadline: Deadline, too_late: str) -> AsyncIterator[None]:
    """A block with one of the places; raises `DeadlineExceeded` with that text where none is free in time."""
    seconds = deadline.timeout(at_most=math.inf)
    try:
        async with asyncio.timeout(None if seconds == math.inf else seconds):
            await places.acquire()
    except TimeoutError:
        raise DeadlineExceeded(too_late) from None
    try:
        yield
    finally:
        places.release()


def listed(answer: Any) -> list[VoiceInfo]:
    """The voices in a JSON list of any of the usual shapes: names or objects, bare or in `voices` or `data`."""
    if isinstance(answer, Mapping):
        answer = answer.get("voices", answer.get("data"))
    found = {}
    for item in answer if isinstance(answer, list) else []:
        name, language = item, None
        if isinstance(item, Mapping):
            name, language = item.get("id") or item.get("voice_id") or item.get("name"), item.get("language")
        if isinstance(name, str) and name:
            found[name] = VoiceInfo(name, "builtin", language if isinstance(language, str) else None)
    return list(found.values())
