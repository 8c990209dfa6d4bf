"""Tickets: whoever holds a session's ticket listens to it, and gives it back when the session has ended.

A ticket is made by the first chunk that finds none, so one must never be given back while a chunk may still be unheard
behind it: the acknowledgement is confirmed first, and then the stream is asked for what came in the meantime.
"""

import asyncio
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
from handler_core.jetstream import EXPECTED_LAST, MSG_ID, Api, JetStreamError
from stt_module.checkpoint import HEADER
from stt_module.events import STREAM, WAITING, subject_of

log = structlog.get_logger("stt_module")

AUDIO = streams.AI_STT.name
TICKET_SUBJECT = "ai.voice.session.{session}"
CONFIRM_TIMEOUT = 2.0
TRIES = 3
_TRACE = frozenset({"traceparent", "tracestate"})
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
    await _confirmed(nc, ticket)
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
        self._told: set[int] = set()
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
        self._told = {ticket for ticket in self._told if ticket > taken}
        if not waiting:
            return
        sequence, newest = taken + 1, self._seen
        for _ in range(MOST_TOLD):
            ticket = await self._api.next(streams.AI_STT_SESSIONS.name, TICKET_SUBJECT.format(session="*"), sequence)
            if ticket is None:
                break
            sequence = ticket.sequence + 1
            if ticket.sequence <= self._seen and ticket.sequence not in self._told:
                await self._tell(ticket.subject.rpartition(".")[2], ticket.sequence)
            newest = max(newest, ticket.sequence)
        self._seen = newest

    async def _tell(self, session: str, ticket: int) -> None:
        self._told.add(ticket)
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
            log.debug("waiting_told_already", session=session, reason=error.description)

    async def _tickets(self) -> tuple[int, int]:
        """The last ticket that any worker was given, and how many come after it."""
        consumer = streams.STT_MODULE
        info = await self._api.request(f"CONSUMER.INFO.{consumer.stream}.{consumer.name}")
        return int(info["delivered"]["stream_seq"]), int(info["num_pending"])
