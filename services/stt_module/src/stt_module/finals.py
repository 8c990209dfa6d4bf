"""Final transcripts of one session's utterances, one after the other, each once."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import structlog

from handler_core.clients.stt import Transcription
from handler_core.errors import HandlerError
from handler_core.tracing import span
from stt_module import turns
from stt_module.events import Events
from stt_module.progress import Pending, Progress
from stt_module.transcription import Speech
from stt_module.worker import Worker

log = structlog.get_logger("stt_module")

MAX_TEXT = 65_536
"""Characters of a transcript, as of a question."""

Tell = Callable[..., None]
"""Publishes an event, given as its fields, soon."""


class Finals:
    """Transcribes what is pending, and asks for turns where the session wants them."""

    def __init__(self, worker: Worker, events: Events, progress: Progress, tell: Tell) -> None:
        self._worker = worker
        self._events = events
        self._progress = progress
        self._tell = tell
        self._outage = False
        self._more = asyncio.Event()
        self._no_more = False

    def wake(self) -> None:
        """There is an utterance more."""
        self._more.set()

    def close(self) -> None:
        """None will come any more: `run` returns once all are done."""
        self._no_more = True
        self._more.set()

    async def run(self, after_each: Callable[[], None]) -> None:
        """Transcribe until `close`.

        Raises:
            Abandoned: another worker has the session.
        """
        pending = self._progress.pending
        while True:
            while pending:
                await self._transcribe(pending[0])
                after_each()
            if self._no_more:
                return
            await self._more.wait()
            self._more.clear()

    async def _transcribe(self, pending: Pending) -> None:
        utterance, meters, progress = pending.utterance, self._worker.meters, self._progress
        with span("utterance", attributes={"stt.sequence": pending.number, "stt.voiced_ms": utterance.voiced_ms}):
            try:
                said = await self._said(pending)
            except HandlerError as error:
                meters.failed.value += 1
                log.warning("utterance_lost", session=self._events.session, sequence=pending.number,
                            error=error.message)  # fmt: skip
                await progress.publish(pending, type="error", sequence=pending.number, error=error.info())
                return
            # Half a surrogate pair, which an endpoint's JSON may hold, is no text that a question can have.
            text = said.text.strip()[:MAX_TEXT].encode("utf-8", "replace").decode()
            (meters.transcribed if text else meters.empty).value += 1
            if text:
                await self._publish(pending, text, said.language)
                meters.final.observe(time.time() - pending.stored_at)
            elif pending.number in progress.shown:
                await progress.publish(pending, **_final(pending))  # takes back what was shown
            else:
                progress.done(pending)

    async def _said(self, pending: Pending) -> Transcription:
        utterance = pending.utterance
        if not utterance.pcm:
            return Transcription("")

        def failed(error: HandlerError) -> None:
            if not self._outage:
                self._outage = True
                self._tell(type="error", sequence=pending.number, error=error.info())

        speech = Speech(utterance.pcm, pending.phase.config, utterance.voiced_ms)
        said = await self._worker.transcriber.final(speech, pending.stored_at, failed)
        self._outage = False
        return said

    async def _publish(self, pending: Pending, text: str, language: str | None) -> None:
        config, progress = pending.phase.config, self._progress
        request_id = None
        if config.turn is not None:
            # Before the transcript that names it: a worker that dies between the two leaves both to the next one.
            request_id = f"{self._events.session[:40]}-{progress.first}-{pending.number}"
            refused = await turns.ask(self._worker.nc, self._events, config, request_id, text, language)
            if refused is None:
                progress.request_id = request_id
            else:
                request_id = None
                self._tell(type="error", sequence=pending.number, error=refused.info())
        event = {**_final(pending), "transcript": text, "language": language or config.language}
        await progress.publish(pending, **event, request_id=request_id)


def _final(pending: Pending) -> dict[str, Any]:
    utterance = pending.utterance
    return {
        "type": "transcript",
        "is_final": True,
        "sequence": pending.number,
        "start_ms": round(utterance.start_ms, 1),
        "end_ms": round(utterance.end_ms, 1),
        "speaker_id": pending.phase.config.speaker_id,
        "state": pending.phase.state,
    }
