"""Speaking sentences in order, the next one prefetched while one is sent.

An engine speaks a sentence faster than it is heard, but takes a moment to begin. So the next sentence is begun as
soon as the one before has its first audio: not earlier, since two at once would delay the first.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from handler_core.audio import PcmFormat
from handler_core.clients.tts import AudioChunk
from handler_core.deadline import Deadline
from handler_core.errors import DownstreamUnavailable
from handler_core.tasks import background

Speak = Callable[[str, Deadline], AsyncIterator[AudioChunk]]
"""A sentence to its audio, such as `TTS.speak`; an async generator is closed as soon as nobody listens."""

PIECE_BYTES = 65_536
BUFFER_BYTES = 1_048_576


@dataclass(frozen=True, slots=True)
class Spoken:
    """A piece of a sentence's audio."""

    sentence: int
    """From 0, those skipped included."""
    text: str
    """The whole sentence."""
    pcm: bytes
    """Whole frames; empty only in a last piece, where the end was not known before."""
    format: PcmFormat
    """The same in all pieces of an utterance."""
    last: bool
    """Whether it ends its sentence; one piece of each sentence that has audio does."""


@dataclass(frozen=True, slots=True)
class Skip:
    """What an earlier worker has sent already."""

    sentences: int = 0
    bytes: int = 0
    """Of the sentence after those; rounded up to a whole frame."""


Emit = Callable[[Spoken], Awaitable[None]]


class Synthesis:
    """One utterance: its sentences spoken in order.

    Args:
        speak: the engine.
        deadline: handed to each call of `speak`.
        ahead: sentences in work beyond the one that is being emitted.
        piece_bytes: the most that one piece holds. A piece holds what is ready, so the first is small and quick.
        buffer_bytes: audio that waits for `emit`, per sentence; the engine waits while it is exceeded.
        skip: what is not to be emitted again. Skipped sentences are not synthesised.
    """

    def __init__(
        self,
        speak: Speak,
        *,
        deadline: Deadline,
        ahead: int = 1,
        piece_bytes: int = PIECE_BYTES,
        buffer_bytes: int = BUFFER_BYTES,
        skip: Skip | None = None,
    ) -> None:
        self._speak = speak
        self._deadline = deadline
        self._piece_bytes = piece_bytes
        self._buffer_bytes = buffer_bytes
        self._skip = skip or Skip()
        self._places = asyncio.Semaphore(1 + ahead)
        self._queue: asyncio.Queue[_Sentence | Exception | None] = asyncio.Queue()
        self._format: PcmFormat | None = None

    async def run(self, sentences: AsyncIterator[str], emit: Emit) -> None:
        """Emit the audio of all sentences; done when the last piece was emitted.

        `sentences` is read only while there is a place for one more, and closing it is left to its owner.

        Raises:
            HandlerError: the first failure of `speak` or of `sentences`, after all that came before it was emitted.
            DownstreamUnavailable: the format changed.
        """
        async with background(self._begin_all(sentences)):
            while (sentence := await self._queue.get()) is not None:
                if isinstance(sentence, Exception):
                    raise sentence
                await self._emit(sentence, emit)
                self._places.release()

    async def _begin_all(self, sentences: AsyncIterator[str]) -> None:
        async with asyncio.TaskGroup() as group:
            try:
                number = 0
                await self._places.acquire()
                async for text in sentences:
                    if number >= self._skip.sentences:
                        sentence = self._begin(number, text, group)
                        await sentence.begun.wait()
                        if sentence.error is not None:
                            return
                        await self._places.acquire()
                    number += 1
                self._queue.put_nowait(None)
            except Exception as error:
                # Raised in its turn, after the sentences that came before it.
                self._queue.put_nowait(error)

    def _begin(self, number: int, text: str, group: asyncio.TaskGroup) -> "_Sentence":
        sentence = _Sentence(number, text, self._buffer_bytes)
        group.create_task(sentence.speak(self._speak(text, self._deadline)))
        self._queue.put_nowait(sentence)
        return sentence

    async def _emit(self, sentence: "_Sentence", emit: Emit) -> None:
        skipped = self._skip.bytes if sentence.number == self._skip.sentences else 0
        last = False
        while not last:
            pcm, last = await sentence.take(self._piece_bytes)
            if sentence.format is None:
                return  # there was nothing to be heard
            if self._format is None:
                self._format = sentence.format
            _check_format(self._format, sentence.format)
            if skipped:
                skipped += -skipped % self._format.frame_size
                dropped = min(skipped, len(pcm))
                pcm, skipped = pcm[dropped:], skipped - dropped
            if pcm or last:
                await emit(Spoken(sentence.number, sentence.text, pcm, self._format, last))


class _Sentence:
    """A sentence's audio on its way from the engine to `emit`."""

    def __init__(self, number: int, text: str, room: int) -> None:
        self.number = number
        self.text = text
        self.format: PcmFormat | None = None
        self.error: Exception | None = None
        self.begun = asyncio.Event()
        """Set with the first audio, or at the end."""
        self._room = room
        self._pcm = bytearray()
        self._ended = False
        self._ready = asyncio.Event()
        self._drained = asyncio.Event()

    async def speak(self, chunks: AsyncIterator[AudioChunk]) -> None:
        """Collect the audio, waiting while there is too much of it; a failure is left in `error`."""
        try:
            async with AsyncExitStack() as stack:
                if hasattr(chunks, "aclose"):
                    stack.push_async_callback(chunks.aclose)
                async for chunk in chunks:
                    await self._put(chunk)
        except Exception as error:
            self.error = error
        finally:
            self._ended = True
            self._ready.set()
            self.begun.set()

    async def take(self, at_most: int) -> tuple[bytes, bool]:
        """What is ready, whole frames, and whether that is the last of it; waits for some, or for the end.

        Raises:
            Exception: the engine's failure, after the audio that came before it.
        """
        await self._ready.wait()
        if self.error is not None and not self._pcm:
            raise self.error
        frame = self.format.frame_size if self.format else 1
        taken = max(frame, at_most - at_most % frame)
        pcm = bytes(self._pcm[:taken])
        del self._pcm[:taken]
        if len(self._pcm) < self._room:
            self._drained.set()
        if not self._pcm and not self._ended:
            self._ready.clear()
        return pcm, self._ended and self.error is None and not self._pcm

    async def _put(self, chunk: AudioChunk) -> None:
        if self.format is None:
            self.format = chunk.format
        _check_format(self.format, chunk.format)
        self._pcm += chunk.pcm
        self._ready.set()
        self.begun.set()
        if len(self._pcm) >= self._room:
            self._drained.clear()
            await self._drained.wait()


def _check_format(expected: PcmFormat, found: PcmFormat) -> None:
    if found != expected:
        raise DownstreamUnavailable(
            f"the speech endpoint changed from {_name(expected)} to {_name(found)} in one utterance", retryable=False
        )


def _name(format: PcmFormat) -> str:
    return f"{format.sample_rate} Hz, {8 * format.width} bits, {format.channels} channels"
