"""The XTTS streaming server: a voice is numbers, which the client keeps and sends with each text."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from handler_core.clients.body import Body, File
from handler_core.clients.http import Upstream
from handler_core.clients.languages import base_of
from handler_core.clients.response import Response
from handler_core.clients.tts_engines import XTTS_LIMIT, XTTS_LIMITS, Utterance, VoiceInfo
from handler_core.clients.voices import Recording
from handler_core.deadline import Deadline
from handler_core.errors import InvalidRequest

_KEPT = 8
"""Voices whose numbers are kept, at some 700 kB each."""
_MEMBERS = ("speaker_embedding", "gpt_cond_latent")
_MAX_VOICE = 8 * 2**20
_SPEAKER = re.compile(rb'[\s,{]*("(?:[^"\\]|\\.){1,200}")\s*:\s*\{([^{}]*)\}')
"""One speaker in the answer of `/studio_speakers`: its name, and its numbers as they are sent back."""


class Xtts:
    """coqui-ai's xtts-streaming-server: bare samples at 24 kHz, streamed while they are made.

    All speakers together are some 40 MB of JSON. It is read once for the names, and again at the first use of each
    voice, piece by piece, so that no more than one speaker is in memory beside the few that are kept.
    """

    name = "xtts"
    lists_all = True

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._names: list[str] | None = None
        self._kept: dict[object, bytes] = {}
        """By name, or by recording: the members of the JSON object that describes the voice."""

    def limit(self, language: str) -> int:
        return XTTS_LIMITS.get(base_of(language), XTTS_LIMIT)

    async def voices(self, deadline: Deadline) -> list[VoiceInfo]:
        await self._read_speakers(None, deadline)
        return [VoiceInfo(name, "builtin") for name in self._names or ()]

    @asynccontextmanager
    async def speak(self, utterance: Utterance, deadline: Deadline) -> AsyncIterator[Response]:
        if utterance.recording is not None:
            voice = await self._cloned(utterance.recording, deadline)
        else:
            voice = await self._builtin(utterance.voice, deadline)
        rest = {"text": utterance.text, "language": base_of(utterance.language), "add_wav_header": False,
                "stream_chunk_size": "20"}  # fmt: skip
        body = Body(b"{" + voice + b", " + json.dumps(rest).encode()[1:], "application/json")
        async with self._upstream.stream("/tts_stream", body, deadline=deadline) as response:
            yield response

    async def _builtin(self, name: str | None, deadline: Deadline) -> bytes:
        """A speaker's numbers; without a name, the first's."""
        if name is None and self._names:
            name = self._names[0]
        if name is not None and (voice := self._kept.get(name)) is not None:
            return voice
        found = await self._read_speakers(name, deadline)
        if found is None:
            raise InvalidRequest(f"speaker: the TTS server has no voice {name!r}" if name else "speaker: needed")
        self._keep(name or (self._names or [""])[0], found)
        return found

    async def _cloned(self, recording: Recording, deadline: Deadline) -> bytes:
        """The numbers of a recorded voice, made by the server at its first use and when the file has changed."""
        if (voice := self._kept.get(recording)) is not None:
            return voice
        try:
            data = await asyncio.to_thread(recording.read)
        except OSError:
            raise InvalidRequest(f"speaker: the recording of {recording.name} is gone") from None
        body = Body.multipart({"wav_file": File(recording.path.name, "audio/wav", data)})
        reply = await self._upstream.fetch("POST", "/clone_speaker", body, deadline=deadline)
        try:
            answer = json.loads(reply.body)
        except (ValueError, RecursionError):
            answer = None
        voice = self._members(answer)
        self._keep(recording, voice)
        return voice

    def _members(self, answer: Any) -> bytes:
        members = {name: answer.get(name) for name in _MEMBERS} if isinstance(answer, Mapping) else {}
        if not members or not all(isinstance(value, list) and value for value in members.values()):
            raise self._upstream.failures.problem("answered with no voice")
        return json.dumps(members).encode()[1:-1]

    def _keep(self, key: object, voice: bytes) -> None:
        if isinstance(key, Recording):  # an older one of the same name is of no more use
            self._kept = {k: v for k, v in self._kept.items() if not isinstance(k, Recording) or k.name != key.name}
        self._kept[key] = voice
        while len(self._kept) > _KEPT:
            del self._kept[next(iter(self._kept))]

    async def _read_speakers(self, wanted: str | None, deadline: Deadline) -> bytes | None:
        """Learn all names, and return the numbers of the wanted speaker, or of the first."""
        names: list[str] = []
        found: bytes | None = None
        pending = bytearray()
        async with self._upstream.stream("/studio_speakers", None, query={}, deadline=deadline) as response:
            while chunk := await response.read(self._upstream.timeout):
                pending += chunk
                place = 0
                while match := _SPEAKER.match(pending, place) if b"}" in chunk else None:
                    place = match.end()
                    names.append(self._text(match[1]))
                    if wanted in {None, names[-1]} and found is None:
                        found = self._speaker(match[2])
                del pending[:place]
                if len(pending) > _MAX_VOICE:
                    raise self._upstream.failures.problem("answered with no list of speakers", retryable=False)
        if bytes(pending).strip() not in {b"}", b"{}"}:
            raise self._upstream.failures.problem("answered with no list of speakers")
        self._names = names
        return found

    def _text(self, quoted: bytes) -> str:
        try:
            return str(json.loads(quoted))
        except ValueError:
            raise self._upstream.failures.problem("answered with no list of speakers") from None

    def _speaker(self, members: bytes) -> bytes:
        try:
            return self._members(json.loads(b"{" + members + b"}"))
        except (ValueError, RecursionError):
            raise self._upstream.failures.problem("answered with no list of speakers") from None
