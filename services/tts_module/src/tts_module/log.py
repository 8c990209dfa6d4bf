"""The log of a session's speech: its audio and its statuses, in one order that all its writers agree on.

Several requests of a session may be spoken at once, by several workers; and one request too, when it is redelivered
while the worker that had it before is only stalled. So a message is stored on the condition that its writer knows all
that the session's subjects hold (`Nats-Expected-Last-Subject-Sequence`). A writer that is refused reads what is new:
messages of other requests it passes over, and tries again; a message of its own request by another writer means that
it was succeeded, and it stops. Every message says in a header how far its request has come by then, so that a
successor goes on right there, and nothing is heard twice.
"""

import asyncio
import json
import random
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass

from handler_core.answer import PUBLISH_TRIES, SOURCE, AlreadyAnswered
from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.contract import tts
from handler_core.contract.tts import AudioChunk, SpeechStatus
from handler_core.errors import Abandoned, Transient
from handler_core.jetstream import (
    EXPECTED_LAST,
    EXPECTED_LAST_SUBJECT,
    MSG_ID,
    WRONG_LAST_SEQUENCE,
    Acknowledgement,
    Api,
    JetStreamError,
    Stored,
)
from handler_core.streams import AI_EVENTS

WRITER = "Speech-Writer"
"""Header of every message: `{request_id}:{attempt}:{writer}:{number}`, which no two have in common."""
POSITION = "Speech-Position"
"""Header of every message: a `Position` as JSON."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far a request has been spoken."""

    limit: int = 0
    """Characters of a sentence, by which the text was cut; 0 before it was."""
    sentence: int = 0
    """The one being spoken."""
    bytes: int = 0
    """Of its samples."""
    chunks: int = 0
    duration_ms: float = 0.0
    complete: bool = False
    """Whether the last chunk is among them."""


Make = Callable[[Position], tuple[AudioChunk | SpeechStatus, Position]]


class SpeechLog:
    """A session's log as the writer of one request sees it.

    Args:
        attempt: how many times the request has been delivered; `open` looks for earlier writers from the second on.
        source: the identity of the request's message: of two messages with one `request_id`, only that which
            began goes on.
        headers: sent with everything.
    """

    def __init__(
        self, nc: Connection, session: str, request_id: str, *, attempt: int, source: str, headers: dict[str, str]
    ) -> None:
        self.position = Position()
        """How far the request has come, by whichever attempt."""
        self._api = Api(nc)
        self._request_id = request_id
        self._attempt = attempt
        self._source = source
        self._writer = uuid.uuid4().hex[:12]
        self._headers = {**headers, SOURCE: source}
        self._audio = _stored_as(tts.AUDIO_SUBJECT, session)
        self._status = _stored_as(tts.STATUS_SUBJECT, session)
        self._all = _stored_as(tts.STATUS_SUBJECT.replace("status", "*"), session)
        self._begin = f"{request_id}:{session}:begin"
        self._opened = False
        self._begun = False
        """Whether the log has anything of this request."""
        self._fenced = False
        """Whether it has something of ours: whoever had the request before is shut out."""
        self._last = 0
        self._count = 0

    async def open(self) -> None:
        """Find out where the log is, and what earlier attempts have stored; nothing to do the second time.

        Raises:
            AlreadyAnswered: the request has its end.
            Abandoned: somebody else speaks it at this moment, or another message has the same id.
            Transient: the stream does not answer.
        """
        if self._opened:
            return
        newest = await self._api.last(AI_EVENTS.name, self._all)
        self._last = 0 if newest is None else newest.sequence
        if self._attempt > 1:
            await self._look_back()
        self._opened = True

    async def append(self, make: Make) -> None:
        """Store a message, and how far the request has come with it.

        Args:
            make: makes both from how far it has come before; called again when an earlier attempt has got further
                meanwhile, which only the first message of this one can find.

        Raises:
            AlreadyAnswered, Abandoned, Transient: as `open`.
            MessageTooLarge: it does not fit.
        """
        await self.open()
        self._count += 1
        name = f"{self._request_id}:{self._attempt}:{self._writer}:{self._count}"
        while True:
            message, position = make(self.position)
            if (stored := await self._store(name, message, position)) is None:
                if await self._read_on(name):
                    break
            elif stored.duplicate:
                # Another message with this id was here before, or an earlier attempt is only now.
                await self._look_back()
                self._begun = True
            else:
                self._last = stored.sequence
                break
        self._begun = self._fenced = True
        self.position = position

    async def _store(self, name: str, message: AudioChunk | SpeechStatus, position: Position) -> Acknowledgement | None:
        """Publish until acknowledged; None when there is something in the log that we have not read."""
        subject, payload = self._audio if isinstance(message, AudioChunk) else self._status, encode(message)
        state = json.dumps(asdict(position), separators=(",", ":"))
        headers = {**self._headers, WRITER: name, POSITION: state, EXPECTED_LAST_SUBJECT: self._all}
        # What begins a request has the same id in every attempt, and in every message with its `request_id`.
        headers |= {MSG_ID: name if self._begun else self._begin, EXPECTED_LAST: str(self._last)}
        for tries_left in range(PUBLISH_TRIES - 1, -1, -1):
            try:
                return await self._api.store(subject, payload, headers)
            except JetStreamError as error:
                if error.err_code in WRONG_LAST_SEQUENCE:
                    return None
                raise Transient(f"the speech could not be stored: {error.description}") from None
            except Transient:  # it may be stored all the same: the next try will be refused then
                if not tries_left:
                    raise
        raise AssertionError("unreachable")

    # -- reading

    async def _look_back(self) -> None:
        """Take in all that the log holds of this request."""
        begun = 0
        async for message in self._from(self._status, 1):
            if self._is_of_this(message):
                self._raise_if_end(message)
                begun = begun or message.sequence
        if begun:
            async for message in self._from(self._all, begun):
                self._take_in(message)

    async def _read_on(self, name: str) -> bool:
        """Take in what is new; returns whether the message of that name, published just now, is there."""
        known, found = self._last, False
        kept = known == 0
        async for message in self._from(self._all, max(1, known)):
            if message.sequence == known:
                kept = True
            elif self._fenced and not kept:
                break
            elif message.headers.get(WRITER) == name:
                found = self._fenced = True
                self._last = message.sequence
            else:
                self._take_in(message)
        if not kept and not found:
            if self._fenced:
                raise Abandoned(f"the stream keeps no longer what was said of {self._request_id}")
            self._last = 0 if self._last == known else self._last
        elif self._last == known:
            # In a cluster, what stands in the way may be on its way into the log itself.
            await asyncio.sleep(random.uniform(0.001, 0.01))
        return found

    async def _from(self, subject: str, sequence: int) -> AsyncIterator[Stored]:
        while (message := await self._api.next(AI_EVENTS.name, subject, sequence)) is not None:
            yield message
            sequence = message.sequence + 1

    def _take_in(self, message: Stored) -> None:
        if self._is_of_this(message):
            _, attempt, writer, _ = message.headers[WRITER].split(":")
            own = writer == self._writer
            if not own and (self._fenced or int(attempt) >= self._attempt):
                raise Abandoned(f"another worker speaks {self._request_id}")
            self._raise_if_end(message)
            if message.headers.get(SOURCE) != self._source:
                raise Abandoned(f"another message with the id {self._request_id} is being spoken")
            self._begun, self._fenced = True, self._fenced or own
            self.position = Position(**json.loads(message.headers[POSITION]))
        self._last = message.sequence  # only now: past a message that ends our work, nothing may be stored

    def _is_of_this(self, message: Stored) -> bool:
        return message.headers.get(WRITER, "").partition(":")[0] == self._request_id

    def _raise_if_end(self, message: Stored) -> None:
        if message.subject != self._status:
            return
        status = decode(message.data, SpeechStatus)
        if status.status != "started":
            raise AlreadyAnswered(status.error if message.headers.get(SOURCE) == self._source else None)


def _stored_as(subject: str, session: str) -> str:
    """Where the stream keeps what clients read on a subject."""
    return "evt." + subject.removeprefix("ai.").format(session=session)
