"""Tickets: whoever holds a session's ticket listens to it, and gives it back when the session has ended.

A ticket is made by the first chunk that finds none, so one must never be given back while a chunk may still be unheard
behind it: the acknowledgement is confirmed first, and then the stream is asked for what came in the meantime.
"""

import asyncio
import contextlib
import math
import random
import time

import nats.errors
import structlog

from handler_core import streams
from handler_core.codec import encode
from handler_core.connection import Connection
from handler_core.contract.base import is_token
from handler_core.contract.errors import ErrorInfo, ErrorType
from handler_core.contract.stt import STREAM_SUBJECT, TranscriptEvent
from handler_core.delivery import ACK, Delivery
from handler_core.errors import HandlerError, Transient
from handler_core.jetstream import EXPECTED_LAST, MSG_ID, WRONG_LAST_SEQUENCE, Api, JetStreamError
from stt_module.checkpoint import HEADER, parsed
from stt_module.events import STREAM, WAITING, subject_of

log = structlog.get_logger("stt_module")

AUDIO = streams.AI_STT.name
TICKETS = streams.AI_STT_SESSIONS.name
TICKET_SUBJECT = "ai.voice.session.{session}"
CONFIRM_TIMEOUT = 2.0
TRIES = 3
GRACE = 1.0
"""Seconds that giving a ticket back goes on when it is cancelled."""
_TRACE = frozenset({"traceparent", "tracestate"})
FIND_EVERY = 5.0
"""Seconds, about, between two looks for sessions that have no ticket, but should."""
MOST_FOUND = 256
"""Sessions that are looked into at one such look."""
LOOK_EVERY = 1.0
"""Seconds between two looks of a full worker at who waits."""
RETRY_AFTER_MS = 5000
MOST_TOLD = 100
"""Sessions that are told at one look."""


def session_of(ticket: Delivery) -> str:
    return ticket.subject.rpartition(".")[2]


async def give_back(nc: Connection, ticket: Delivery, session: str, sequence: int) -> None:
    """Settle the ticket of a session that has been heard up to `sequence`, and make another if there is more.

    Raises:
        Transient: NATS does not confirm it; the ticket comes again.
    """
    try:
        await _give_back(nc, ticket, session, sequence)
    except asyncio.CancelledError:
        # It may be gone already, and then nobody else would look.
        with contextlib.suppress(TimeoutError, Transient):
            async with asyncio.timeout(GRACE):
                await _give_back(nc, ticket, session, sequence)
        raise


async def _give_back(nc: Connection, ticket: Delivery, session: str, sequence: int) -> None:
    await _confirmed(nc, ticket)  # the server confirms one that is gone as well
    for _ in range(TRIES):
        try:
            await _make_ticket_for_more(Api(nc), session, sequence)
        except Transient:
            continue  # the ticket is gone: nobody else would look
        return
    log.warning("late_audio_not_looked_for", session=session)


async def _make_ticket_for_more(api: Api, session: str, sequence: int) -> None:
    try:
        later = await api.next(AUDIO, STREAM_SUBJECT.format(session=session), sequence)
        if later is not None:
            headers = {name: text for name, text in later.headers.items() if name in _TRACE}
            await api.publish(TICKET_SUBJECT.format(session=session), b"", headers)
    except JetStreamError as error:
        log.debug("no_ticket_made", session=session, reason=error.description)  # there is one by now


async def _confirmed(nc: Connection, ticket: Delivery) -> None:
    """Acknowledge, and wait until the server has taken note."""
    for _ in range(TRIES):
        try:
            await nc.ask(ticket.reply.decode(), ACK, timeout=CONFIRM_TIMEOUT)
        except (nats.errors.Error, TimeoutError):
            continue
        ticket.settled = "ack"
        return
    raise Transient("the server does not confirm the acknowledgement")


class WaitingRoom:
    """Tells sessions that nobody has taken yet that all workers are full; what is said meanwhile is kept.

    Every full worker does so, and the stream keeps one notice for each ticket. What it is conditional on is read
    before it is made sure that the ticket is still there, so that it can never come between a worker and its session.
    """

    def __init__(self, nc: Connection) -> None:
        self._api = Api(nc)
        self._told = 0  # the last ticket whose session was told
        self._seen = 0  # tickets up to this one waited at the last look: others may still find a worker

    async def run(self, full: "asyncio.Event") -> None:
        """Look every second while this worker is full."""
        while True:
            await full.wait()
            try:
                await self._look()
            except (HandlerError, JetStreamError) as error:
                log.debug("waiting_room_not_read", error=str(error))
            await asyncio.sleep(LOOK_EVERY)

    async def _look(self) -> None:
        taken, waiting = await self._tickets()
        if not waiting:
            return
        every = TICKET_SUBJECT.format(session="*")
        newest = await self._api.last(TICKETS, every)
        seen, self._seen = self._seen, newest.sequence if newest else 0
        self._told = max(taken, min(self._told, self._seen))  # a stream made anew counts from one again
        for _ in range(MOST_TOLD):
            ticket = await self._api.next(TICKETS, every, self._told + 1)
            if ticket is None or ticket.sequence > seen:
                return
            await self._tell(ticket.subject.rpartition(".")[2], ticket.sequence)
            self._told = ticket.sequence

    async def _tell(self, session: str, ticket: int) -> None:
        if not is_token(session):
            return
        subject = subject_of(session)
        before = await self._api.last(STREAM, subject)
        taken, _ = await self._tickets()
        if taken >= ticket:
            return
        error = ErrorInfo(
            type=ErrorType.BUSY,
            message="all workers are full; what is said is kept",
            retryable=True,
            retry_after_ms=RETRY_AFTER_MS,
        )
        event = TranscriptEvent(type="error", status="waiting", error=error, timestamp=time.time())
        headers = {
            MSG_ID: f"{WAITING}{session}:{ticket}",
            EXPECTED_LAST: str(before.sequence if before else 0),
        }
        if before is not None and HEADER in before.headers:
            headers[HEADER] = before.headers[HEADER]  # it is the last event now, where the next worker looks
        try:
            await self._api.publish(subject, encode(event), headers)
        except JetStreamError as error:
            if error.err_code not in WRONG_LAST_SEQUENCE:
                raise
            log.debug("waiting_not_told", session=session, reason=error.description)  # a worker was faster

    async def _tickets(self) -> tuple[int, int]:
        """The last ticket that any worker was given, and how many come after it."""
        consumer = streams.STT_MODULE
        info = await self._api.request(f"CONSUMER.INFO.{consumer.stream}.{consumer.name}")
        return int(info["delivered"]["stream_seq"]), int(info["num_pending"])


class LostTickets:
    """Makes the tickets that chunks could not make themselves: a chunk whose headers hold an expectation of its stream
    (`Nats-Expected-Stream`) is stored, but its copy is refused as a ticket; and whoever gave a ticket back may have
    died before it could look for more.

    A session is looked into when it has got more messages since it was last, and has no ticket: those that are
    listened to have one, and one that has ended is looked into once.
    """

    def __init__(self, nc: Connection) -> None:
        self._api = Api(nc)
        self._counts: dict[str, int] = {}  # the messages of each session at the last look
        self._grown: set[str] = set()  # sessions to look into once they have no ticket
        self._since = math.inf  # where the stream ended at the first look

    async def run(self) -> None:
        """Look now and then, until cancelled."""
        while True:
            try:
                await self.look()
            except (HandlerError, JetStreamError) as error:
                log.debug("lost_tickets_not_looked_for", error=str(error))
            await asyncio.sleep(FIND_EVERY * (0.75 + random.random() / 2))

    async def look(self) -> None:
        """Make the tickets that are missing.

        Raises:
            JetStreamError, Transient: a stream does not answer.
        """
        counts, last = await self._sessions(AUDIO, STREAM_SUBJECT)
        self._since = min(self._since, last)
        self._grown |= {session for session, count in counts.items() if count > self._counts.get(session, 0)}
        self._grown &= counts.keys()
        self._counts = counts
        if not self._grown:
            return
        tickets, _ = await self._sessions(TICKETS, TICKET_SUBJECT)  # after the audio: a ticket comes after its chunk
        for session in list(self._grown - tickets.keys())[:MOST_FOUND]:
            await self._look_into(session)
            self._grown.discard(session)

    async def _look_into(self, session: str) -> None:
        newest = await self._api.last(AUDIO, STREAM_SUBJECT.format(session=session))
        if newest is None or not is_token(session):
            return
        event = await self._api.last(STREAM, subject_of(session))
        known = parsed(event.headers.get(HEADER)) if event else None
        # Of one without events nobody knows whether it was never listened to, or its events are gone by now.
        heard = self._since if known is None else known.start_sequence - 1
        if newest.sequence > heard:
            log.info("lost_ticket_made", session=session)
            await _make_ticket_for_more(self._api, session, known.start_sequence if known else 1)

    async def _sessions(self, stream: str, subject: str) -> tuple[dict[str, int], int]:
        """How many messages a stream holds of each session, and its last sequence."""
        body = {"subjects_filter": subject.format(session="*")}
        state = (await self._api.request(f"STREAM.INFO.{stream}", body))["state"]
        subjects: dict[str, int] = state.get("subjects") or {}
        return {subject.rpartition(".")[2]: count for subject, count in subjects.items()}, int(state["last_seq"])
