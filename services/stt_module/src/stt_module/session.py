"""One live session: listened to from where the worker before stopped, until it ends or another worker has it.

The reader feeds the intake, synchronously; what comes of it wakes the tasks: `Finals` for utterances, one after the
other, `_show` for partial transcripts, `_watch` for all that may not wait for a transcript.
"""

import asyncio
import contextlib
import time
from typing import Any

from handler_core.contract.stt import STREAM_SUBJECT
from handler_core.errors import HandlerError, Transient
from handler_core.jetstream import Api, JetStreamError
from handler_core.reader import Reader
from stt_module.checkpoint import Checkpoint
from stt_module.events import Events
from stt_module.finals import Finals
from stt_module.intake import Intake
from stt_module.notices import Notices
from stt_module.partials import Open, Schedule
from stt_module.progress import Progress
from stt_module.segmenter import Dropped, Event, Interrupt, Started, Utterance
from stt_module.tickets import AUDIO, TICKET_SUBJECT
from stt_module.transcription import Speech
from stt_module.worker import Worker

LISTENING_EVERY = 60.0
"""Seconds without an event after which one tells that the session lives; a takeover reads no more than that again."""
HOLD = 0.5
"""Seconds without a message after which a chunk that is missing is given up."""
PAUSE = 2.0
"""Seconds without a message that end an utterance, of a client that sends only while somebody speaks."""
CATCH_UP = 5.0
"""Seconds that others wait at most until this session has read what was there before it."""
STALLED = 0.25
"""Seconds for an answer of the server's, above which its silence is no silence of the client's."""


class Session:
    """See the module's text.

    Args:
        worker: what all sessions of this process share.
        events: where this one publishes.
        start: where it stands.
    """

    def __init__(self, worker: Worker, events: Events, start: Checkpoint) -> None:
        self._worker = worker
        self._events = events
        self._subject = STREAM_SUBJECT.format(session=events.session)
        self._live = TICKET_SUBJECT.format(session=events.session)
        self._start_sequence = start.start_sequence
        self._reader: Reader | None = None
        self._reason = ""
        self._finalised = False
        self._open: Open | None = None
        self._pass: asyncio.Task[None] | None = None
        self._notices = Notices()
        self._to_tell = asyncio.Event()
        self._to_show = asyncio.Event()
        self._closing = asyncio.Event()
        self._intake = Intake(
            start,
            worker.settings,
            worker.meters,
            on_event=self._heard,
            on_error=self._refused,
            on_end=lambda: self._close("end"),
            on_due=self._to_show.set,
            on_hold=self._to_tell.set,
        )
        self._progress = Progress(worker, events, self._intake, start)
        self._finals = Finals(worker, events, self._progress, self._tell)
        if self._intake.segmenter.voice_activity:
            self._begin(start.position.onset_ms or 0.0)

    async def run(self, opening: dict[str, Any]) -> int:
        """Take the session with an event, and listen until it ends; returns the stream sequence behind what was heard.

        Raises:
            Abandoned: another worker has it.
        """
        try:
            await self._progress.publish(**opening)
            async with asyncio.TaskGroup() as tasks:
                for work in (self._read, self._finalise, self._show, self._watch):
                    tasks.create_task(work())
        except BaseExceptionGroup as group:
            raise _first(group) from None
        except asyncio.CancelledError:
            await self._leave()
            raise
        finally:
            self._progress.give_up()
            self._intake.count_lost()
        await self._progress.publish(type="status", status="ended", reason=self._reason)
        return self._intake.last_sequence + 1

    async def _leave(self) -> None:
        """Tell the next worker where to go on, so that it need not listen to the last minute again."""
        if self._events.unsure:
            return  # a transcript that may be out, and is not known to be: the one that is stored tells the next worker
        with contextlib.suppress(TimeoutError, HandlerError):
            self._progress.takeovers = 0  # nothing has failed
            async with asyncio.timeout(1.0):
                await self._progress.publish(type="status", status="listening")

    # -- what is heard; called by the intake

    def _heard(self, event: Event) -> None:
        match event:
            case Started():
                self._begin(event.start_ms)
            case Utterance():
                self._ended(event)
            case Dropped():
                self._dropped(event)
            case Interrupt():
                self._interrupted(event)

    def _begin(self, start_ms: float) -> None:
        config, settings = self._intake.phase.config, self._worker.settings
        self._open = Open(self._progress.number, round(start_ms, 1), Schedule(settings.partial_interval_ms))
        partials = settings.partials if config.partials is None else config.partials
        self._intake.schedule = self._open.schedule if partials else None
        self._to_tell.set()  # to watch for a client that stops sending

    def _ended(self, utterance: Utterance) -> None:
        self._progress.add(utterance)
        self._no_more_partials()
        if utterance.cut:
            self._begin(utterance.end_ms)
        self._finals.wake()
        if self._progress.too_much and self._reader is not None:
            self._reader.pause()  # the stream keeps what comes …
            self._reader.caught_up.set()  # … and others may read what has piled up of theirs

    def _read_on(self) -> None:
        if self._reader is not None and self._reader.paused and not self._progress.too_much:
            self._reader.resume()

    def _dropped(self, event: Dropped) -> None:
        self._worker.meters.dropped.value += 1
        if self._progress.number in self._progress.shown:  # what is shown has to be taken back
            at = self._intake.segmenter.position
            self._ended(Utterance(b"", event.start_ms, event.end_ms, event.voiced_ms, False, at, at))
        else:
            self._no_more_partials()

    def _no_more_partials(self) -> None:
        self._open = self._intake.schedule = None
        if self._pass is not None:
            self._pass.cancel()

    def _interrupted(self, event: Interrupt) -> None:
        phase = self._intake.phase
        self._intake.interrupted = phase.sequence
        self._worker.meters.interrupts.value += 1
        played_ms = round(max(0.0, event.start_ms - phase.since_ms), 1)
        request_id = self._progress.request_id or None
        self._tell(type="interrupt", state=phase.state, request_id=request_id, played_ms=played_ms)

    def _refused(self, error: HandlerError) -> None:
        if self._notices.worth_telling(error.message):
            self._tell(type="error", error=error.info())

    def _tell(self, **event: Any) -> None:
        """Publish an event soon."""
        self._notices.add(event)
        self._to_tell.set()

    def _close(self, reason: str) -> None:
        """Listen no more, and end once all that was heard is transcribed."""
        if not self._reason:
            self._intake.flush()
            self._reason = reason
            self._intake.closed = True
            self._closing.set()
            self._to_show.set()
            self._finals.close()

    # -- the tasks

    async def _read(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            # Only so many sessions at once read what has piled up: a connection holds only so much.
            async with self._worker.catching_up:
                reader = Reader(
                    self._worker.nc, AUDIO, self._subject, self._start_sequence, self._intake.receive, live=self._live
                )
                self._reader = await stack.enter_async_context(reader)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CATCH_UP):
                        await reader.caught_up.wait()
            await self._closing.wait()

    async def _finalise(self) -> None:
        await self._finals.run(after_each=self._read_on)
        self._finalised = True
        self._to_tell.set()

    async def _show(self) -> None:
        """Make partial transcripts of the utterance that is being spoken, one pass at a time."""
        async with asyncio.TaskGroup() as tasks:
            while not self._reason:
                await self._to_show.wait()
                self._to_show.clear()
                if (open := self._open) is not None:
                    self._pass = tasks.create_task(self._show_once(open))
                    await asyncio.wait([self._pass])  # it is cancelled when the utterance ends
                    self._pass = None
                    open.schedule.done()

    async def _show_once(self, open: Open) -> None:
        config, progress = self._intake.phase.config, self._progress
        text = await self._worker.transcriber.partial(Speech(self._intake.segmenter.growing(), config))
        before = open.agreement.published
        shown = open.agreement.update(text) if text else before
        if shown != before:
            progress.shown.add(open.number)
            self._worker.meters.partials.value += 1
            await progress.publish(
                only_if=lambda: self._open is open, type="transcript", transcript=shown, is_partial=True,
                sequence=open.number, start_ms=open.start_ms, speaker_id=config.speaker_id, language=config.language,
            )  # fmt: skip

    async def _watch(self) -> None:
        """Publish what does not wait for a transcript, and look after a client that has gone quiet."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience()):
                    await self._to_tell.wait()
            self._to_tell.clear()
            while self._notices:
                await self._progress.publish(**self._notices.pop())
            if self._finalised:
                return
            await self._look_after()

    def _patience(self) -> float:
        """Seconds until there may be something to look after."""
        if not self._reason and (self._intake.holding or self._intake.segmenter.voice_activity):
            return HOLD
        now = time.monotonic()
        listening = self._progress.published_at + LISTENING_EVERY - now
        idle = self._intake.heard_at + self._worker.settings.idle_timeout - now
        return max(0.01, listening if self._reason else min(listening, idle))

    async def _look_after(self) -> None:
        intake, reader = self._intake, self._reader
        if reader is None or reader.problem or reader.paused or not self._worker.nc.is_connected:
            intake.heard_at = time.monotonic()  # it is we who do not hear
        if not self._reason:
            # Asked every time, and not only once PAUSE is over, so that a server that stalls meanwhile is noticed.
            if (intake.holding or intake.segmenter.voice_activity) and await self._is_quiet(HOLD):
                if intake.segmenter.voice_activity and time.monotonic() - intake.heard_at >= PAUSE:
                    intake.flush()
                else:
                    intake.release()
            if await self._is_quiet(self._worker.settings.idle_timeout):
                self._close("idle")
        if time.monotonic() - self._progress.published_at >= LISTENING_EVERY:
            intake.count_lost()
            await self._progress.publish(type="status", status="listening")

    async def _is_quiet(self, seconds: float) -> bool:
        """Whether the client has sent nothing for so long. That nothing was heard is not enough: a worker, a server or
        a connection may have stood still, and what was said meanwhile is yet to come."""
        intake, asked = self._intake, time.monotonic()
        if asked - intake.heard_at < seconds:
            return False
        try:
            newest = await Api(self._worker.nc).last(AUDIO, self._subject)
            nothing_more = newest is None or newest.sequence <= intake.last_sequence
            if newest is not None and self._reader is not None:
                self._reader.behind(newest.sequence)
        except (Transient, JetStreamError):
            nothing_more = False
        now = time.monotonic()
        if not nothing_more or now - asked > STALLED:
            intake.heard_at = now
        return now - intake.heard_at >= seconds


def _first(error: BaseException) -> BaseException:
    """What ended the tasks: the first failure, which has cancelled the others."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
