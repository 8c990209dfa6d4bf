"""One coherent answer, whoever writes it.

A turn may be answered by two workers: one dies or stalls, the message is redelivered, and the first may wake up again.
What is *stored* decides, so every event is published with the sequence of the event before it as a condition
(`Nats-Expected-Last-Subject-Sequence`): of two writers one is refused, stops, and settles nothing. A redelivered turn
first looks for its final response; without one it publishes `restart`, which shuts the earlier writer out, and only
then begins. The final response is conditional on the same sequence, so that it always belongs to the last attempt.

Publishing waits for the acknowledgement, one event at a time; text that arrives meanwhile goes out together.
"""

import asyncio
import contextlib
import re
import time
import uuid
from collections import deque
from typing import Any, Generic, TypeVar

from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.contract.answer import Family, Response, StreamEvent
from handler_core.contract.base import Message, is_token
from handler_core.contract.errors import ErrorInfo
from handler_core.errors import Abandoned, InvalidRequest, Transient
from handler_core.jetstream import (
    EXPECTED_LAST,
    EXPECTED_LAST_SUBJECT,
    MSG_ID,
    WRONG_LAST_SEQUENCE,
    Api,
    JetStreamError,
)
from handler_core.tracing import Span, Value, active, span

R = TypeVar("R", bound=Response)

MAX_CHUNK = 16_384
"""Characters of one chunk event; at four bytes each it fits any server's `max_payload`."""
PUBLISH_TRIES = 3
SOURCE = "Answer-Source"
"""Header of every event: which message is being answered."""

_INBOX = re.compile(r"_INBOX[A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)+").fullmatch


class AlreadyAnswered(Exception):
    """The final response is stored already; the message only needs to be settled.

    `error` is what it says went wrong, if it answers this very message.
    """

    def __init__(self, error: ErrorInfo | None = None) -> None:
        super().__init__()
        self.error = error


class Answer(Generic[R]):
    """Writes the events and the final response of one turn.

    Args:
        attempt: how many times the request has been delivered; `open` looks for earlier writers from the second on.
        streaming: whether events are published; without them only the final response is.
        source: the identity of the request's message: of two messages with one `request_id`, only that which
            began the answer goes on with it.
        copy_to: a further subject for the final response, checked against what the family allows.
        headers: trace context, sent with everything.

    Raises:
        InvalidRequest: `copy_to` is not a subject that a caller may name.
    """

    def __init__(
        self,
        nc: Connection,
        family: Family[R],
        request_id: str,
        *,
        attempt: int,
        streaming: bool,
        source: str = "",
        copy_to: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.request_id = request_id
        self._nc = nc
        self._api = Api(nc)
        self._family = family
        self._attempt = attempt
        self._streaming = streaming
        self._copy_to = _writable(nc, family.prefix, copy_to) if copy_to else None
        self._headers = {**(headers or {}), SOURCE: source}
        self._final = f"evt.{family.prefix}.{request_id}"
        self._stream = f"evt.{family.prefix}.stream.{request_id}"
        self._writer = uuid.uuid4().hex[:12]
        self._last = 0
        self._seq = 0
        self._pieces: deque[str | Message] = deque()
        self._work = asyncio.Event()
        self._closing = False
        self._opened = attempt == 1
        self._span: Span | None = None
        self._events = 0

    async def open(self) -> None:
        """Take the turn over from whoever had it before; nothing to do at the first attempt, or the second time.

        Raises:
            AlreadyAnswered: the final response is there; a stream that lacked its end has it now.
            Abandoned: somebody else is taking it over at this moment, or another message has the same id.
        """
        if self._opened:
            return
        self._opened = True
        await self._raise_if_answered()
        if self._streaming:
            await self._event("restart")
            # The earlier writer is shut out from here on, but may have finished just before.
            await self._raise_if_answered()

    async def answered(self) -> bool:
        """Whether a final response is stored."""
        return await self._api.last(self._family.stream, self._final) is not None

    async def _raise_if_answered(self) -> None:
        # The events first: a final response is stored before its `done`, so that one read after them can be missing
        # only if they had not ended; and if it comes later still, the next event's condition tells.
        event = newest = None
        if self._streaming and (event := await self._api.last(self._family.stream, self._stream)) is not None:
            if self._last not in (0, event.sequence):
                raise Abandoned(f"another worker answers {self.request_id}")
            newest = decode(event.data, self._family.event)
            self._last, self._seq = event.sequence, newest.seq
        final = await self._api.last(self._family.stream, self._final)
        if final is None:
            if event is not None and event.headers.get(SOURCE) != self._headers[SOURCE]:
                raise Abandoned(f"another message with the id {self.request_id} is being answered")
            return
        response = decode(final.data, self._family.response)
        if newest is not None and not newest.done:
            if newest.type == "restart":
                await self._event("chunk", content=getattr(response, "response", ""))
            await self._event("error" if response.error else "done", response=response)
        raise AlreadyAnswered(response.error if final.headers.get(SOURCE) == self._headers[SOURCE] else None)

    # -- what comes before the end

    async def earlier(self) -> list[StreamEvent]:
        """The events of earlier attempts, for a handler that goes on where another broke off; read when asked for.

        Raises:
            Transient: the stream does not answer.
        """
        found: list[StreamEvent] = []
        sequence = 1
        while self._streaming and self._attempt > 1:
            event = await self._api.next(self._family.stream, self._stream, sequence)
            if event is None or event.sequence > self._last:
                break
            found.append(decode(event.data, self._family.event))
            sequence = event.sequence + 1
        return found

    def write(self, piece: str | Message) -> None:
        """Stream a piece of the answer: text, or a message that is made an event of its own, whose `type` it has.

        It goes out as soon as the piece before it is stored.
        """
        if self._streaming and piece:
            self._pieces.append(piece)
            self._work.set()

    def close(self) -> None:
        """No more pieces: `pump` returns once what is written is stored."""
        self._closing = True
        self._work.set()

    async def pump(self) -> None:
        """Publish what `write` brings until `close`.

        Raises:
            Abandoned: another worker has taken over.
            Transient: the stream does not answer.
        """
        while True:
            await self._work.wait()
            self._work.clear()
            while self._pieces:
                piece = self._pieces.popleft()
                if isinstance(piece, str):
                    await self._event("chunk", content=self._joined(piece))
                else:
                    await self._event(**dict(piece))
            if self._closing:
                return

    def _joined(self, text: str) -> str:
        """The text with that which has come after it meanwhile, but for what is too much for one event."""
        texts = [text]
        while self._pieces and isinstance(following := self._pieces[0], str):
            self._pieces.popleft()
            texts.append(following)
        text = "".join(texts)
        if len(text) > MAX_CHUNK:
            self._pieces.appendleft(text[MAX_CHUNK:])
        return text[:MAX_CHUNK]

    # -- the end

    async def finish(self, response: R) -> None:
        """Store the final response, then end the stream with `done` (or `error`, when that is what it says).

        Raises:
            Abandoned: another worker has answered or taken over.
            MessageTooLarge: the response does not fit; nothing was stored.
            Transient: the stream does not answer.
        """
        payload = encode(response)
        expected = {EXPECTED_LAST: str(self._last)}
        if self._streaming:
            expected[EXPECTED_LAST_SUBJECT] = self._stream
        with span(f"send evt.{self._family.prefix}", "producer", self._attributes(self._final)):
            await self._store(self._final, payload, {**expected, MSG_ID: f"{self.request_id}:{self._writer}:final"})
        if self._streaming:
            await self._event("error" if response.error else "done", response=response)
        if self._copy_to is not None and self._copy_to != self._final:
            await self._copy(self._copy_to, payload)

    async def _copy(self, subject: str, payload: bytes) -> None:
        if not subject.startswith("evt."):
            await self._nc.publish(subject, payload, headers=self._headers)
            return
        # Below the family's own prefix it must not come before, or beside, the answer of another turn.
        with contextlib.suppress(Abandoned):
            await self._store(subject, payload, {EXPECTED_LAST: "0", MSG_ID: f"{self.request_id}:{self._writer}:copy"})

    async def fail(self, response: R) -> None:
        """Answer with a response that tells of an error; raises as `finish` does."""
        await self._find_own()
        try:
            await self.finish(response)
        except Abandoned:
            # The server reads at once, but stores in turn: a chunk that was on its way is sure to be seen only now.
            if not await self._find_own():
                raise
            await self.finish(response)

    async def _find_own(self) -> bool:
        """Take in a chunk that was stored although its publish was cut off (a failed turn cancels its `pump`); returns
        whether there was one."""
        newest = await self._api.last(self._family.stream, self._stream) if self._streaming else None
        if newest is None or newest.sequence == self._last:
            return False
        if not newest.headers.get(MSG_ID, "").startswith(f"{self.request_id}:{self._writer}:"):
            return False
        self._last, self._seq = newest.sequence, decode(newest.data, self._family.event).seq
        return True

    async def _event(self, type: str, *, response: Response | None = None, **fields: Any) -> None:
        event = self._family.event(
            request_id=self.request_id,
            seq=self._seq + 1,
            attempt=self._attempt,
            type=type,
            done=type in ("done", "error"),
            error=response.error if response else None,
            timestamp=time.time(),
            **fields,
        )
        headers = {EXPECTED_LAST: str(self._last), MSG_ID: f"{self.request_id}:{self._writer}:{event.seq}"}
        if self._span is None and (above := active.get()) is not None:
            # One span for all events of this attempt: one for each would be hundreds a turn.
            name = f"send evt.{self._family.prefix}.stream"
            self._span = above.child(name, "producer", self._attributes(self._stream))
        self._last = await self._store(self._stream, encode(event), headers)
        self._seq = event.seq
        if self._span is not None:
            self._events += 1
            if self._events == 1 or type != "chunk":
                self._span.event(type, {"messaging.nats.stream.sequence": self._last})

    def _attributes(self, subject: str) -> dict[str, Value]:
        return {
            "messaging.system": "nats",
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
            "messaging.destination.name": subject,
            "messaging.destination.template": subject.removesuffix(self.request_id) + "{request_id}",
            "messaging.message.conversation_id": self.request_id,
        }

    def end_span(self) -> None:
        """End the span of the events, however the turn went."""
        if self._span is not None:
            self._span.set({"messaging.batch.message_count": self._events})
            self._span.end()

    async def _store(self, subject: str, payload: bytes, headers: dict[str, str]) -> int:
        """Publish until acknowledged; returns the stream sequence."""
        lost = False
        for tries_left in range(PUBLISH_TRIES - 1, -1, -1):
            try:
                return await self._api.publish(subject, payload, {**self._headers, **headers})
            except JetStreamError as error:
                if error.err_code not in WRONG_LAST_SEQUENCE:
                    raise Transient(f"the answer could not be stored: {error.description}") from None
                # The server checks the sequence before the message id: the one that stands there may be our own.
                newest = await self._api.last(self._family.stream, subject) if lost else None
                if newest is not None and newest.headers.get(MSG_ID) == headers[MSG_ID]:
                    return newest.sequence
                raise Abandoned(f"another worker answers {self.request_id}") from None
            except Transient:
                lost = True
                if not tries_left:
                    raise
        raise AssertionError("unreachable")


def inbox(nc: Connection, subject: str) -> bool:
    """Whether a caller may have a copy sent to this subject because it is an inbox, and none of ours."""
    return _INBOX(subject) is not None and not nc.owns(subject)


def _writable(nc: Connection, family_prefix: str, subject: str) -> str:
    """The subject on which a copy for `subject` is published; a caller may name an inbox or the family's own.

    Raises:
        InvalidRequest: it names another one.
    """
    prefix = f"ai.{family_prefix}."
    if inbox(nc, subject):
        return subject
    if subject.startswith(prefix) and is_token(subject.removeprefix(prefix)):
        return "evt." + subject.removeprefix("ai.")
    raise InvalidRequest(f"response_subject: has to be an _INBOX or below {prefix}", stage="decode")
