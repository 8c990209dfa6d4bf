"""What a session's worker publishes, as long as the session is its own.

Every event is stored on condition that the one before it on the subject is the last that this worker knows
(`Nats-Expected-Last-Subject-Sequence`). Whoever takes a session over publishes first, and thereby shuts the worker
before it out: that one is refused with its next event, stops, and settles nothing. Source of the idea: fencing tokens.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from handler_core import streams
from handler_core.codec import encode
from handler_core.connection import Connection
from handler_core.contract.stt import TRANSCRIPTION_SUBJECT, TranscriptEvent
from handler_core.errors import Abandoned, Transient
from handler_core.jetstream import EXPECTED_LAST, MSG_ID, WRONG_LAST_SEQUENCE, Api, JetStreamError, Stored
from stt_module.checkpoint import HEADER, Checkpoint, parsed

log = structlog.get_logger("stt_module")

STREAM = streams.AI_EVENTS.name
WAITING = "waiting:"
"""How the message id begins of what a full worker says of a session that nobody has taken yet."""
RETRY_MAX = 5.0
"""Seconds; the longest pause before an event is sent again."""


def subject_of(session: str) -> str:
    """Where a session's events are stored; the server republishes them below `ai.`."""
    return "evt." + TRANSCRIPTION_SUBJECT.format(session=session).removeprefix("ai.")


class Events:
    """The events of one session, by one worker.

    Args:
        attempt: how often the session's ticket has been delivered.
        trace_headers: gives the trace context to send along with what is published.
    """

    def __init__(
        self,
        nc: Connection,
        session: str,
        *,
        attempt: int,
        trace_id: str,
        trace_headers: Callable[[], Mapping[str, str]],
    ) -> None:
        self.session = session
        self._api = Api(nc)
        self._subject = subject_of(session)
        self._attempt = attempt
        self._trace_id = trace_id
        self.trace_headers = trace_headers
        self.unsure = False
        """Whether the last event may be stored or not, because its publish was cut off."""
        self._writer = f"{session}:{uuid.uuid4().hex[:12]}:"
        self._count = 0
        self._last = 0

    async def read(self) -> Checkpoint | None:
        """Where the session stands by its last event; None when there is none.

        Raises:
            Transient: the stream does not answer.
        """
        newest = await self._newest()
        self._last = newest.sequence if newest else 0
        return parsed(newest.headers.get(HEADER)) if newest else None

    async def own(self) -> bool:
        """Whether nobody else has published since.

        Raises:
            Transient: the stream does not answer.
        """
        newest = await self._newest()
        return newest is None or newest.sequence == self._last or self._is_harmless(newest)

    async def publish(self, checkpoint: Checkpoint, **fields: Any) -> None:
        """Store an event, for as long as it takes.

        Raises:
            Abandoned: another worker has the session.
        """
        self._count += 1
        event = TranscriptEvent(attempt=self._attempt, trace_id=self._trace_id, timestamp=time.time(), **fields)
        payload = encode(event)
        headers = {**self.trace_headers(), MSG_ID: f"{self._writer}{self._count}", HEADER: checkpoint.header()}
        self.unsure, delay = True, 0.1
        while True:
            try:
                if await self._stored(payload, headers):
                    self.unsure = False
                    return
                continue
            except Transient as error:
                if delay > 1:
                    log.warning("event_not_stored", session=self.session, error=error.message)
            await asyncio.sleep(delay)
            delay = min(delay * 2, RETRY_MAX)

    async def _stored(self, payload: bytes, headers: dict[str, str]) -> bool:
        """Publish once; False when another try, on what is the last event now, will do.

        Raises:
            Abandoned: as `publish`.
            Transient: not stored, or not known to be.
        """
        try:
            self._last = await self._api.publish(self._subject, payload, {**headers, EXPECTED_LAST: str(self._last)})
        except JetStreamError as error:
            if error.err_code not in WRONG_LAST_SEQUENCE:
                raise Transient(error.description) from None
            newest = await self._newest()
            if newest is not None and not self._is_harmless(newest):
                raise Abandoned(f"another worker listens to the session {self.session}") from None
            self._last = newest.sequence if newest else 0  # nothing is kept for ever
            return newest is not None and newest.headers.get(MSG_ID) == headers[MSG_ID]
        return True

    def _is_harmless(self, event: Stored) -> bool:
        """Whether an event that was not known is one of our own, whose publish was cut off, or says that the session
        waits, which is said only of one that nobody has taken yet."""
        return event.headers.get(MSG_ID, "").startswith((self._writer, WAITING))

    async def _newest(self) -> Stored | None:
        try:
            return await self._api.last(STREAM, self._subject)
        except JetStreamError as error:
            raise Transient(f"events cannot be read: {error.description}") from None
