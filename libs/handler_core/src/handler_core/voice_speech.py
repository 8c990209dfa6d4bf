"""An answer's voice: its sentences spoken while it is still being written, and after what was spoken before."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import structlog

from handler_core.audio import PcmFormat, wav
from handler_core.clients.breaker import CircuitBreaker
from handler_core.clients.failures import UpstreamError
from handler_core.clients.tts import TTS, AudioChunk
from handler_core.contract.voice import Segment, Transcript, VoiceEvent
from handler_core.deadline import Deadline
from handler_core.errors import DeadlineExceeded, DownstreamUnavailable, HandlerError, InvalidRequest
from handler_core.speech import Sentences
from handler_core.synthesis import Skip, Spoken, Synthesis
from handler_core.timings import Timings

log = structlog.get_logger("handler_core.voice")

WAV_HEADER = 44
SEGMENT_BYTES = 65_536
LEAST_BYTES = 1024
"""Samples of a segment where next to nothing fits a message."""
PATIENCE = 1.0
"""Seconds without audio after which a voice counts as failed, although it was only given too little time."""


@dataclass(frozen=True, slots=True)
class Speaker:
    """Who speaks, and how.

    Args:
        breaker: told of answers of which the endpoint made no sound; while it is open, answers are not spoken and wait
            for nothing. (An upstream's own breaker does not count deadlines that passed.) What an endpoint refuses is
            the doing of one request, and must not silence those of others.
        sentence_min_chars: of a sentence; a shorter one is spoken together with the next.
        first_min_chars: of the first one, for which somebody waits.
        max_bytes: up to which the audio is kept, as a WAV file, to be sent whole.
        segment_room: bytes that a segment's samples and text may have together; `SEGMENT_BYTES` are the most samples.
    """

    tts: TTS
    breaker: CircuitBreaker = field(default_factory=lambda: CircuitBreaker(failures=3, cool_down=10.0))
    sentence_min_chars: int = 20
    first_min_chars: int = 10
    max_bytes: int = 512 * 1024
    segment_room: float = float("inf")

    def segment_bytes(self, limit: int) -> int:
        """The most samples of one segment, where a sentence has `limit` characters at most, of up to four bytes."""
        return int(max(LEAST_BYTES, min(SEGMENT_BYTES, self.segment_room - 4 * limit)))


def piece_of(event: VoiceEvent) -> Transcript | Segment | None:
    """What an attempt has written that became this event; None for text, and for what it did not write."""
    if event.type == "transcript":
        return Transcript(content=event.content, language=event.language)
    if event.type == "audio":
        return Segment.model_validate(event.model_dump(exclude_none=True))
    return None


def standing(events: Sequence[VoiceEvent]) -> list[Segment]:
    """The audio that earlier attempts have streamed, without what later ones replaced."""
    segments: list[Segment] = []
    for piece in map(piece_of, events):
        if isinstance(piece, Segment) and piece.segment <= len(segments):
            del segments[piece.segment :]
            segments.append(piece)
    return segments


class Speech:
    """The voice of one answer; `run` speaks what `feed` brings until `close`.

    An answer that is written anew may begin as the earlier one did: as long as its sentences are those which were
    spoken already, they stand. From the first that differs on, segments take the place of the earlier ones.

    Args:
        write: takes each segment as it is made.
        earlier: the segments that stand.
        voice: the voice to speak with; the endpoint's own when None.
    """

    def __init__(
        self,
        speaker: Speaker,
        write: Callable[[Segment], None],
        *,
        voice: str | None,
        language: str | None,
        earlier: Sequence[Segment],
        deadline: Deadline,
        timings: Timings,
    ) -> None:
        self.failed = False
        """Whether the answer, or its rest, is not spoken."""
        self.segments = 0
        self.format: PcmFormat | None = None
        self._speaker = speaker
        self._write = write
        self._voice = voice
        self._language = language
        self._earlier = list(earlier)
        self._deadline = deadline
        self._timings = timings
        self._text: asyncio.Queue[str | None] = asyncio.Queue()
        self._closed = False
        self._limit: asyncio.Timeout | None = None
        self._segment_bytes = SEGMENT_BYTES
        self._begun = 0.0  # when there was text, and
        self._asked = 0.0  # when the voice was first asked for something that it owes
        self._sentence = -1
        self._pcm: list[bytes] = []
        self._size = 0

    def feed(self, text: str) -> None:
        """More of the answer, as the LLM writes it."""
        self._text.put_nowait(text)

    def close(self) -> None:
        """The answer is complete."""
        self._text.put_nowait(None)
        self._closed = True
        self._sign_of_life()

    @property
    def size(self) -> int:
        """Bytes of the answer's audio, as a WAV file; 0 where there is none."""
        return self._size + WAV_HEADER if self._size else 0

    def whole(self) -> bytes | None:
        """The answer's audio as a WAV file; None where there is none, or more than is kept."""
        if self.format is None or not self._pcm:
            return None
        return wav(self.format, b"".join(self._pcm))

    async def run(self) -> None:
        """Speak. A failure is no error: what was spoken stays, and `failed` tells.

        Raises:
            InvalidRequest: there is no such voice as was asked for, so that nothing was spoken.
        """
        breaker = self._speaker.breaker
        if rest := breaker.acquire():
            self._fail(f"not tried for another {rest:.0f} s; last: {breaker.last_failure}", counts=False)
            return
        try:
            remaining = self._deadline.remaining()
            async with asyncio.timeout(None if remaining == float("inf") else remaining) as self._limit:
                self._sign_of_life()
                await self._speak()
        except InvalidRequest as error:
            if self._voice is not None and not self.segments and error.message.startswith("speaker"):
                error.stage = "tts"
                raise
            self._fail(error.message, counts=False)
        except (DeadlineExceeded, TimeoutError):
            self._fail("no audio in time", counts=_since(self._asked) > PATIENCE)
        except HandlerError as error:
            # Engines say 500 of a language, too, that they do not speak: the upstream's own breaker minds those.
            refused = isinstance(error, UpstreamError) and error.status == 500
            self._fail(error.message, counts=error.retryable and not refused)
        except Exception as error:
            log.exception("speech_failed")  # a voice never costs an answer its text
            self._fail(type(error).__name__, counts=False)
        finally:
            self._limit = None
            if self._begun:
                self._timings.record("tts", _since(self._begun))

    def _fail(self, problem: str, *, counts: bool) -> None:
        log.warning("degraded", without="tts", error=problem, segments=self.segments)
        self.failed = True
        if counts and not self.segments:
            self._speaker.breaker.failed(problem)

    def _sign_of_life(self) -> None:
        """Once the text is there, audio is waited for as long as an upstream may take, and no longer."""
        if self._closed and self._limit is not None and not self._limit.expired():
            latest = asyncio.get_running_loop().time() + self._speaker.tts.upstream.timeout
            deadline = self._deadline.remaining() + asyncio.get_running_loop().time()
            self._limit.reschedule(min(latest, deadline))

    async def _speak(self) -> None:
        async with aclosing(self._sentences()) as sentences:
            number, first, skipped = await self._find_begin(sentences)
            if first is None:
                return

            async def rest() -> AsyncGenerator[str, None]:
                yield first
                async for sentence in sentences:
                    yield sentence

            async def emit(spoken: Spoken) -> None:
                self._emit(spoken, number + spoken.sentence)

            synthesis = Synthesis(
                self._say, deadline=self._deadline, piece_bytes=self._segment_bytes, skip=Skip(bytes=skipped)
            )
            async with aclosing(rest()) as following:
                await synthesis.run(following, emit)

    def _say(self, sentence: str, deadline: Deadline) -> AsyncIterator[AudioChunk]:
        self._asked = self._asked or time.perf_counter()
        return self._speaker.tts.speak(sentence, speaker=self._voice, language=self._language, deadline=deadline)

    async def _sentences(self) -> AsyncGenerator[str, None]:
        if (text := await self._text.get()) is None:
            return
        self._begun = self._asked = time.perf_counter()
        speaker = self._speaker
        limit = await speaker.tts.limit(self._language, deadline=self._deadline)
        self._asked = 0.0
        self._segment_bytes = speaker.segment_bytes(limit)
        sentences = Sentences(
            minimum=speaker.sentence_min_chars,
            first_minimum=min(speaker.first_min_chars, speaker.sentence_min_chars),
            limit=limit,
        )
        while text is not None:
            for sentence in sentences.feed(text):
                yield sentence
            text = await self._text.get()
        for sentence in sentences.close():
            yield sentence

    async def _find_begin(self, sentences: AsyncIterator[str]) -> tuple[int, str | None, int]:
        """Where to begin: the number of the first sentence that is not spoken yet, its text (None where all is), and
        the bytes of it that are."""
        number = 0
        async for sentence in sentences:
            spoken = [segment for segment in self._earlier if segment.sentence == number]
            if not spoken or spoken[0].text != sentence:
                return number, sentence, 0
            for segment in spoken:
                self._keep(segment)
            if not spoken[-1].last:
                return number, sentence, sum(len(segment.audio) for segment in spoken)
            number += 1
        return number, None, 0

    def _emit(self, spoken: Spoken, number: int) -> None:
        if self.format not in (None, spoken.format):
            raise DownstreamUnavailable("speaks in another format than what was spoken before")
        if not self.segments:
            self._timings.record("tts_first_audio", self._timings.as_dict()["total_ms"] / 1000)
        segment = Segment(
            segment=self.segments,
            sentence=number,
            text=spoken.text if number > self._sentence else "",
            last=spoken.last,
            audio=spoken.pcm,
            sample_rate=spoken.format.sample_rate,
            width=spoken.format.width,
            channels=spoken.format.channels,
        )
        self._speaker.breaker.succeeded()
        self._keep(segment)
        self._sign_of_life()
        self._write(segment)

    def _keep(self, segment: Segment) -> None:
        self.segments += 1
        self.format = PcmFormat(segment.sample_rate, segment.width, segment.channels)
        self._sentence = segment.sentence
        self._size += len(segment.audio)
        if self.size <= self._speaker.max_bytes:
            self._pcm.append(segment.audio)
        else:
            self._pcm.clear()


def _since(moment: float) -> float:
    """Seconds since then; 0 where it has not come."""
    return time.perf_counter() - moment if moment else 0.0
