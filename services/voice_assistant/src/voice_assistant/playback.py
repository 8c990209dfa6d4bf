"""Barge-in: somebody speaks while an answer is played, and from then on it is as if no more of it had been said.

A live session tells of it on `ai.voice.transcription.{session}`. Whoever writes an answer for the session listens there
while he writes, which an interrupt ends, and as long as the answer is being heard: what is remembered of it is then cut
to what was heard.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import nats.errors
import structlog
from nats.aio.subscription import Subscription

from handler_core import streams
from handler_core.codec import decode
from handler_core.connection import Connection
from handler_core.contract.base import Message
from handler_core.contract.stt import TRANSCRIPTION_SUBJECT, TranscriptEvent
from handler_core.contract.voice import Segment, Transcript, VoiceResponse
from handler_core.errors import Canceled, HandlerError, Transient
from handler_core.jetstream import NO_MESSAGE_FOUND, Api, JetStreamError

log = structlog.get_logger("voice_assistant.playback")

LISTEN_ON = 2.0
"""Seconds beyond the audio's own length: it takes a while to reach a loudspeaker."""
CHARACTERS_PER_SECOND = 15.0
"""How fast a voice reads: of a sentence whose audio is not complete, this tells how long it would have been."""

Amend = Callable[[str], Awaitable[None]]
"""Remembers of an answer what was heard of it instead."""


class Interrupted(Canceled):
    """The one who had asked began to speak."""

    def __init__(self) -> None:
        super().__init__("interrupted by speech")


@dataclass(frozen=True, slots=True)
class _Piece:
    sentence: int
    text: str
    last: bool
    starts: float
    seconds: float

    @property
    def ends(self) -> float:
        return self.starts + self.seconds


class Playback:
    """An answer on its way to somebody's ear: what of it is heard by when, and whether it is interrupted.

    Args:
        question: what was asked, where that is known before a `Transcript` tells.
        streamed: whether audio is played as soon as it is written; otherwise when the answer is complete.
    """

    def __init__(self, request_id: str, question: str = "", *, streamed: bool = True) -> None:
        self.interrupted = asyncio.Event()
        self.amend: Amend | None = None
        self._request_id = request_id
        self._question = question
        self._streamed = streamed
        self._complete = False
        self._pieces: list[_Piece] = []
        self._played = 0.0
        self._limit: asyncio.Timeout | None = None

    # -- what is played

    def note(self, piece: str | Message | None, at: float | None = None) -> None:
        """What was written, now or `at` a Unix time; only a question and its answer's audio matter."""
        if isinstance(piece, Transcript):
            self._question = piece.content
        elif isinstance(piece, Segment):
            del self._pieces[piece.segment :]
            starts = max(time.time() if at is None else at, self.ends)
            seconds = len(piece.audio) / (piece.sample_rate * piece.width * piece.channels)
            self._pieces.append(_Piece(piece.sentence, piece.text, piece.last, starts, seconds))

    def complete(self, amend: Amend) -> None:
        """All is written and remembered; `amend` would have it remembered differently. What was not streamed begins to
        play."""
        self.amend = amend
        self._complete = True
        if not self._streamed:
            pieces, self._pieces = self._pieces, []
            for piece in pieces:
                starts = max(time.time(), self.ends)
                self._pieces.append(_Piece(piece.sentence, piece.text, piece.last, starts, piece.seconds))

    @property
    def ends(self) -> float:
        """When all that was written so far will have been heard, in Unix seconds; 0 before there is any."""
        return self._pieces[-1].ends if self._pieces else 0.0

    # -- what ends it

    @contextlib.asynccontextmanager
    async def interruptible(self) -> AsyncIterator[None]:
        """A block that ends with `Interrupted` when somebody speaks, or has spoken already."""
        limit = asyncio.timeout(None)
        try:
            async with limit:
                if self.interrupted.is_set():
                    raise Interrupted
                self._limit = limit
                try:
                    yield
                finally:
                    self._limit = None
        except TimeoutError:
            if not limit.expired():
                raise
            raise Interrupted from None

    def hear(self, event: TranscriptEvent, at: float | None = None) -> None:
        """An event of the session, of now or of `at`. What matters is an interrupt of this answer or of any; and one of
        another answer while this one is being heard, for a session has but one loudspeaker."""
        if event.type != "interrupt" or self.interrupted.is_set():
            return
        now = time.time() if at is None else at
        pieces = self._pieces if self._streamed or self._complete else []  # else nothing of it has left yet
        meant = event.request_id in (None, self._request_id)
        if not (meant or (pieces and pieces[0].starts <= now < self.ends)):
            return
        self.interrupted.set()
        if meant and pieces and event.played_ms is not None:
            self._played = max(0.0, event.played_ms / 1000)
        else:
            self._played = sum(min(max(0.0, now - piece.starts), piece.seconds) for piece in pieces)
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time())

    def heard(self) -> str | None:
        """What was heard of the answer when it was interrupted: the sentences that were, of the one in progress as many
        words as its share, and `…`. None when all was heard."""
        said: list[str] = []
        left = self._played
        for _, group in groupby(self._pieces, lambda piece: piece.sentence):
            pieces = list(group)
            text, seconds = pieces[0].text, sum(piece.seconds for piece in pieces)
            if not pieces[-1].last:
                seconds = max(seconds, len(text) / CHARACTERS_PER_SECOND)
            if left < seconds:
                words = text.split()
                begun = " ".join(words[: int(len(words) * left / seconds)])
                return " ".join([*said, f"{begun}…"])
            said.append(text)
            left -= seconds
        return None if self._complete else " ".join([*said, "…"])

    def broken_off(self, error: Interrupted) -> VoiceResponse:
        """The response that tells of an interrupted answer."""
        return VoiceResponse(
            success=False,
            error=error.info(),
            transcription=self._question,
            response=self.heard() or "",
            audio_segments=len(self._pieces) if self._streamed else 0,
        )


class Playbacks:
    """The answers that this worker has under way or knows to be played; `run` beside it."""

    def __init__(self, nc: Connection) -> None:
        self._nc = nc
        self._api = Api(nc)
        self._tasks = asyncio.TaskGroup()

    async def run(self) -> None:
        """Listen on after turns have ended, until cancelled."""
        async with self._tasks:
            await asyncio.Event().wait()

    @contextlib.asynccontextmanager
    async def listening(self, playback: Playback, session: str | None, since: float) -> AsyncIterator[None]:
        """Listen to a session, if there is one, for the length of a block, and after it for as long as its answer is
        played.

        Args:
            since: when the question was asked, in Unix seconds; whoever has spoken after that has interrupted its
                answer.
        """
        async with contextlib.AsyncExitStack() as ears:
            if session is not None:
                await self._listen(playback, TRANSCRIPTION_SUBJECT.format(session=session), since, ears)
            yield
            played = playback.ends + LISTEN_ON > time.time()
            if session is not None and played and playback.amend is not None:
                self._beside(self._listen_on(playback, playback.amend, ears.pop_all()))

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.create_task(_contained(work))

    async def _listen(self, playback: Playback, subject: str, since: float, ears: contextlib.AsyncExitStack) -> None:
        async def on_event(message: Any) -> None:
            with contextlib.suppress(HandlerError):  # no event, and none of ours
                playback.hear(decode(message.data, TranscriptEvent))

        def look_again() -> None:  # for what was said while the connection was lost
            self._beside(self._look_back(playback, subject, since))

        subscription = await self._nc.subscribe(subject, cb=on_event)
        ears.push_async_callback(_end, subscription)
        self._nc.on_reconnect.append(look_again)
        ears.callback(self._nc.on_reconnect.remove, look_again)
        await self._look_back(playback, subject, since)

    async def _look_back(self, playback: Playback, subject: str, since: float) -> None:
        """What the session had to say since the question was asked."""
        stream, subject = streams.AI_EVENTS.name, "evt." + subject.removeprefix("ai.")
        start = {"start_time": datetime.fromtimestamp(since, UTC).isoformat(), "next_by_subj": subject}
        try:
            sequence = (await self._api.request(f"STREAM.MSG.GET.{stream}", start))["message"]["seq"]
            while (event := await self._api.next(stream, subject, sequence)) is not None:
                sequence = event.sequence + 1
                with contextlib.suppress(HandlerError):
                    past = decode(event.data, TranscriptEvent)
                    playback.hear(past, past.timestamp)
        except JetStreamError as error:
            if error.err_code != NO_MESSAGE_FOUND:
                log.warning("interrupts_unknown", error=str(error))
        except Transient as error:
            log.warning("interrupts_unknown", error=error.message)

    async def _listen_on(self, playback: Playback, amend: Amend, ears: contextlib.AsyncExitStack) -> None:
        async with ears:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(playback.ends + LISTEN_ON - time.time()):
                    await playback.interrupted.wait()
            if playback.interrupted.is_set() and (heard := playback.heard()) is not None:
                log.info("answer_interrupted", characters=len(heard))
                await amend(heard)


async def _contained(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception:  # in a task group it would end the listening to all other answers as well
        log.exception("listening_failed")


async def _end(subscription: Subscription) -> None:
    with contextlib.suppress(nats.errors.Error):
        await subscription.unsubscribe()
