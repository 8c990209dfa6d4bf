"""What the caller of a request gets: that it is begun, its audio in chunks, and its one end."""

import time
from dataclasses import replace
from typing import Any

from handler_core import audio, tracing
from handler_core.connection import Connection
from handler_core.context import Context
from handler_core.contract.tts import AudioChunk, SpeakRequest, SpeechStatus
from handler_core.errors import DownstreamUnavailable, HandlerError
from handler_core.synthesis import Skip, Spoken
from tts_module.log import Position, SpeechLog

ENVELOPE = 4096
"""Bytes of a chunk's message beside its samples and its text: headers, the other fields, a WAV file's header."""


class Speech:
    """Writes the audio and the statuses of one request to its session's log.

    Args:
        session: whose they are.
        chunk_bytes: the most samples of one chunk; fewer where the server takes no such messages.
        request: None for one that cannot be read, and only fails.
    """

    def __init__(
        self, nc: Connection, ctx: Context[Any], session: str, chunk_bytes: int, request: SpeakRequest | None = None
    ) -> None:
        self._nc = nc
        self._ctx = ctx
        self._chunk_bytes = chunk_bytes
        self._wav = request is not None and request.format == "wav"
        self._streaming = request is None or request.stream
        self._log = SpeechLog(
            nc,
            session,
            ctx.request_id,
            attempt=ctx.attempt,
            source=ctx.message.identity,
            headers=ctx.trace_headers,
        )
        self._sentences: list[str] = []
        self._held: list[Spoken] = []
        self._span: tracing.Span | None = None

    @property
    def position(self) -> Position:
        """How far the request has come, by this attempt and those before."""
        return self._log.position

    @property
    def skip(self) -> Skip:
        """What need not be spoken any more."""
        return Skip(len(self._sentences) if self.position.complete else self.position.sentence, self.position.bytes)

    @property
    def piece_bytes(self) -> int:
        """The most samples that fit one chunk."""
        text = max((len(sentence.encode()) for sentence in self._sentences), default=0)
        return max(1, min(self._chunk_bytes, self._nc.payload_room - ENVELOPE - text))

    async def open(self) -> None:
        """Find out how far earlier attempts have come; raises as `SpeechLog.open`."""
        await self._log.open()

    async def begin(self, sentences: list[str], limit: int) -> None:
        """Tell that the text is spoken from here on, in these sentences, cut at `limit` characters; raises as
        `SpeechLog.append`, as all that follows."""
        self._sentences = sentences
        if (above := tracing.active.get()) is not None:
            # One span for all chunks of this attempt: one for each would be hundreds a text.
            self._span = above.child("send evt.voice.tts.audio", "producer", {"messaging.system": "nats"})
        await self._tell("started", limit=limit)

    async def say(self, spoken: Spoken) -> None:
        """Send a piece, or keep it until all are there."""
        if self._streaming:
            await self._send(spoken, is_last=spoken.last and spoken.sentence == len(self._sentences) - 1)
        else:
            self._held.append(spoken)

    async def complete(self) -> None:
        """End the audio, and tell that it is whole.

        Raises:
            DownstreamUnavailable: there is none.
        """
        held = [spoken for spoken in self._held if spoken.pcm] or self._held[-1:]
        total = self.position.chunks + len(held)
        for number, spoken in enumerate(held, 1):
            await self._send(spoken, is_last=number == len(held), total=total)
        if not self.position.complete:
            raise DownstreamUnavailable("nothing was to be heard", stage="tts", retryable=False)
        await self._tell("completed")

    async def fail(self, error: HandlerError) -> None:
        """Tell that there will be no more, and why."""
        await self._tell("error", error=error)

    def close(self) -> None:
        """End the span of the chunks, however it went."""
        if self._span is not None:
            self._span.set({"messaging.batch.message_count": self.position.chunks})
            self._span.end()

    async def _send(self, spoken: Spoken, *, is_last: bool, total: int | None = None) -> None:
        if not spoken.pcm and not is_last:
            return  # the end of a sentence, which nobody can hear
        first = not self.position.chunks
        await self._log.append(lambda before: self._chunk(before, spoken, is_last, total))
        if first:
            self._ctx.timings.record("tts_first_audio", time.time() - self._ctx.message.timestamp)
            if self._span is not None:
                self._span.event("first_audio")

    def _chunk(self, before: Position, spoken: Spoken, is_last: bool, total: int | None) -> tuple[AudioChunk, Position]:
        format = spoken.format
        begun = before.bytes if before.sentence == spoken.sentence else 0
        position = replace(
            before,
            sentence=spoken.sentence + spoken.last,
            bytes=0 if spoken.last else begun + len(spoken.pcm),
            chunks=before.chunks + 1,
            duration_ms=before.duration_ms + 1000 * format.seconds(len(spoken.pcm)),
            complete=is_last,
        )
        chunk = AudioChunk(
            request_id=self._ctx.request_id,
            chunk_index=before.chunks,
            total_chunks=position.chunks if is_last else total,
            audio=audio.wav(format, spoken.pcm) if self._wav else spoken.pcm,
            is_last=is_last,
            sample_rate=format.sample_rate,
            width=format.width,
            channels=format.channels,
            format="wav" if self._wav else "pcm",
            sentence=spoken.sentence,
            text="" if begun else spoken.text,
            attempt=self._ctx.attempt,
            timestamp=time.time(),
        )
        return chunk, position

    async def _tell(self, status: str, *, error: HandlerError | None = None, limit: int = 0) -> None:
        def make(before: Position) -> tuple[SpeechStatus, Position]:
            message = SpeechStatus(
                request_id=self._ctx.request_id,
                status=status,
                attempt=self._ctx.attempt,
                sentences=len(self._sentences),
                chunks=before.chunks,
                duration_ms=round(before.duration_ms, 3),
                error=error.info() if error else None,
                timings={} if status == "started" else self._ctx.timings.as_dict(),
                trace_id=self._ctx.trace_id,
                timestamp=time.time(),
            )
            return message, replace(before, limit=before.limit or limit)

        await self._log.append(make)
