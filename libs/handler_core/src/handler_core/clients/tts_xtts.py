"""The XTTS streaming server: a voice is numbers, which the client keeps and sends with each text."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from handler_core.clients.body import Body, File
from handler_core.clients.http import Upstream
from handler_core.clients.languages import base_of
from handler_core.clients.response import Response
from handler_core.clients.tts_engines import XTTS_LIMIT, XTTS_LIMITS, Utterance, VoiceInfo, holding
from handler_core.clients.voices import Recording
from handler_core.deadline import Deadline
from handler_core.errors import InvalidRequest

_KEPT = 8
"""Voices whose numbers are kept, at some 700 kB each."""
_MEMBERS = tuple(
    re.compile(rb'"%s"\s*:\s*\[[\[\s]*-?\d[\d\s.,eE+\-\[\]]*\]' % name)
    for name in (b"speaker_embedding", b"gpt_cond_latent")
)
"""What describes a voice, and is passed on as it came: the numbers of one take tens of milliseconds to parse."""
_MAX_VOICE = 8 * 2**20
_SPEAKER = re.compile(rb'[\s,{]*("(?:[^"\\]|\\.){1,200}")\s*:\s*\{([^{}]*)\}')
"""One speaker in the answer of `/studio_speakers`: its name, and its numbers as they are sent back."""


class Xtts:
    """coqui-ai's xtts-streaming-server: bare samples at 24 kHz, streamed while they are made.

    All speakers together are some 40 MB of JSON. It is read for the names, and at the first use of each voice, by one
    call at a time and piece by piece, so that no more than one speaker is in memory beside the few that are kept.
    """

    name = "xtts"
    lists_all = False  # asking for the list would be reading all speakers once more than using one takes

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._making = asyncio.Semaphore(1)
        self._names: list[str] | None = None
        self._kept: dict[object, bytes] = {}
        """By name, or by recording: the members of the JSON object that describes the voice."""

    def limit(self, language: str) -> int:
        return XTTS_LIMITS.get(base_of(language), XTTS_LIMIT)

    async def voices(self, deadline: Deadline) -> list[VoiceInfo]:
        async with self._alone(deadline):
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
        if self._of(name) is None:
            async with self._alone(deadline):
                unknown = name is not None and self._names is not None and name not in self._names
                if self._of(name) is None and not unknown:
                    await self._read_speakers(name, deadline)
        if (voice := self._of(name)) is not None:
            return voice
        if name is None:
            raise InvalidRequest("speaker: needed")
        raise self._upstream.failures.refused(404, f"no speaker {name!r}")

    async def _cloned(self, recording: Recording, deadline: Deadline) -> bytes:
        """The numbers of a recorded voice, made by the server at its first use and when the file has changed."""
        async with self._alone(deadline):
            if (voice := self._kept.get(recording)) is not None:
                return voice
            try:
                data = await asyncio.to_thread(recording.read)
            except OSError:
                raise InvalidRequest(f"speaker: the recording of {recording.name} is gone") from None
            body = Body.multipart({"wav_file": File(recording.path.name, "audio/wav", data)})
            reply = await self._upstream.fetch("POST", "/clone_speaker", body, deadline=deadline)
            voice = self._members(reply.body)
            self._keep(recording, voice)
            return voice

    def _of(self, name: str | None) -> bytes | None:
        """What is kept of a built-in speaker, of the first without a name."""
        return self._kept.get(self._names[0] if name is None and self._names else name)

    def _alone(self, deadline: Deadline) -> AbstractAsyncContextManager[None]:
        return holding(self._making, deadline, f"{self._upstream.name}: no voice before the deadline")

    def _members(self, body: bytes) -> bytes:
        """The members of a JSON object that describe a voice."""
        found = [match[0] for member in _MEMBERS if (match := member.search(body)) is not None]
        if len(found) < len(_MEMBERS):
            raise self._upstream.failures.problem("answered with no voice")
        return b", ".join(found)

    def _keep(self, key: object, voice: bytes) -> None:
        if isinstance(key, Recording):  # an older one of the same name is of no more use
            self._kept = {k: v for k, v in self._kept.items() if not isinstance(k, Recording) or k.name != key.name}
        self._kept[key] = voice
        while len(self._kept) > _KEPT:
            del self._kept[next(iter(self._kept))]

    async def _read_speakers(self, wanted: str | None, deadline: Deadline) -> None:
        """Learn all names, and keep the numbers of the wanted speaker, or of the first."""
        names: list[str] = []
        pending = bytearray()
        async with self._upstream.stream("/studio_speakers", None, query={}, deadline=deadline) as response:
            while chunk := await response.read(self._upstream.timeout):
                pending += chunk
                place = 0
                while match := _SPEAKER.match(pending, place) if b"}" in chunk else None:
                    place = match.end()
                    names.append(name := self._text(match[1]))
                    if name == wanted or (wanted is None and len(names) == 1):
                        self._keep(name, self._members(match[2]))
                del pending[:place]
                if len(pending) > _MAX_VOICE:
                    raise self._upstream.failures.problem("answered with no list of speakers", retryable=False)
        if bytes(pending).strip() not in {b"}", b"{}"}:
            raise self._upstream.failures.problem("answered with no list of speakers")
        self._names = names

    def _text(self, quoted: bytes) -> str:
        try:
            return str(json.loads(quoted))
        except ValueError:
            raise self._upstream.failures.problem("answered with no list of speakers") from None
