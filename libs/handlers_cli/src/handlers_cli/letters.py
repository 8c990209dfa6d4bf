"""Dead letters as the stream `DLQ` holds them: listed by their headers, read one by one, deleted."""

import asyncio
import base64
import contextlib
import json
import re
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from handler_core.connection import Connection, parse_headers
from handler_core.delivery import Delivery
from handler_core.errors import NotFound, Transient
from handler_core.jetstream import NO_MESSAGE_FOUND, Api, JetStreamError
from handler_core.streams import DLQ, NANOSECONDS, STREAM_NOT_FOUND

BATCH = 500
"""Letters in one pull; only their headers are sent."""
SILENCE = 10.0
"""Seconds without a letter until a listing is given up."""
DELETE_FAILED = 10057
GONE = ("no message found", "deleted message")
"""What the server says of a deletion that failed because there is nothing to delete."""

# Added by the worker that wrote the letter, or acting on the server; all others are the message's own.
_ADDED = ("nats-", "dead-letter-", "truncated")
_STATUS = re.compile(rb"NATS/1\.0 +(\d{3}) *([^\r\n]*)").match


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter; what its headers do not say is empty."""

    sequence: int
    """In `DLQ`."""
    stored: float
    """When the letter was stored, in Unix seconds."""
    subject: str
    """`dlq.{stream}.{consumer}`."""
    headers: dict[str, str]
    size: int
    """Bytes of the body."""
    data: bytes = b""
    """The body, where the letter was read whole."""

    @property
    def stream(self) -> str:
        return self._about("Stream") or self._token(1)

    @property
    def consumer(self) -> str:
        return self._about("Consumer") or self._token(2)

    @property
    def original_subject(self) -> str:
        return self._about("Subject")

    @property
    def deliveries(self) -> str:
        return self._about("Deliveries")

    @property
    def reason(self) -> str:
        """`{type}: {message}`."""
        return ": ".join(part for part in (self._about("Type"), self._about("Reason")) if part)

    @property
    def full_size(self) -> str:
        """Bytes of the original body where only a part was kept; else empty."""
        return self.headers.get("Truncated", "")

    @property
    def original_headers(self) -> dict[str, str]:
        """The headers that the message came with, but for the server's own, which a letter does not keep."""
        return {name: value for name, value in self.headers.items() if not name.lower().startswith(_ADDED)}

    def _about(self, what: str) -> str:
        return self.headers.get(f"Dead-Letter-{what}", "")

    def _token(self, index: int) -> str:
        tokens = self.subject.split(".")
        return tokens[index] if len(tokens) == 3 else ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which letters: all conditions have to hold."""

    stream: str | None = None
    consumer: str | None = None
    reason: str | None = None
    """A part of `Letter.reason`, in capitals or not."""
    since: float | None = None
    """Seconds: stored no longer ago than this."""

    @property
    def subject(self) -> str:
        if self.stream is None and self.consumer is None:
            return "dlq.>"
        return f"dlq.{self.stream or '*'}.{self.consumer or '*'}"

    def matches(self, letter: Letter) -> bool:
        """Whether the conditions hold that the server does not check."""
        return self.reason is None or self.reason.casefold() in letter.reason.casefold()


async def scan(nc: Connection, wanted: Wanted) -> AsyncGenerator[Letter, None]:
    """The letters that are there, oldest first, without their bodies.

    Raises:
        NotFound: there is no stream `DLQ`.
        JetStreamError, Transient: the server refused or does not answer.
    """
    api = Api(nc)
    created = await _consumer(api, wanted)
    name, left = created["name"], created["num_pending"]
    inbox = nc.new_inbox()
    arrived: asyncio.Queue[tuple[bytes, bytes, bytes | None]] = asyncio.Queue()
    sid = await nc.attach(inbox, lambda subject, reply, _data, headers: arrived.put_nowait((subject, reply, headers)))
    try:
        while left > 0:
            batch = min(BATCH, left)
            pull = json.dumps({"batch": batch, "no_wait": True}).encode()
            await nc.publish(f"$JS.API.CONSUMER.MSG.NEXT.{DLQ.name}.{name}", pull, reply=inbox)
            for _ in range(batch):
                subject, reply, raw = await _next(arrived)
                if (status := _STATUS(raw or b"")) is not None:
                    if status[1] in (b"404", b"408"):  # others have deleted letters meanwhile
                        return
                    raise Transient(f"the listing was broken off: {status[2].decode('utf-8', 'replace')}")
                delivery = Delivery(nc, subject, reply, b"", raw)
                headers = delivery.headers
                size = int(headers.get("Nats-Msg-Size", "0"))
                letter = Letter(delivery.sequence, delivery.timestamp, delivery.subject, headers, size)
                if wanted.matches(letter):
                    yield letter
            left -= batch
    finally:
        await nc.detach(sid)
        with contextlib.suppress(JetStreamError, Transient):  # it ends by itself
            await api.request(f"CONSUMER.DELETE.{DLQ.name}.{name}")


async def _consumer(api: Api, wanted: Wanted) -> dict[str, Any]:
    config = {
        "ack_policy": "none",
        "deliver_policy": "all",
        "filter_subject": wanted.subject,
        "headers_only": True,
        "inactive_threshold": 60 * NANOSECONDS,
        "mem_storage": True,
        "num_replicas": 1,
    }
    if wanted.since is not None:
        start = datetime.fromtimestamp(time.time() - wanted.since).astimezone()
        config |= {"deliver_policy": "by_start_time", "opt_start_time": start.isoformat()}
    try:
        return await api.request(f"CONSUMER.CREATE.{DLQ.name}", {"stream_name": DLQ.name, "config": config})
    except JetStreamError as error:
        raise _missing(error) from None


async def _next(arrived: "asyncio.Queue[tuple[bytes, bytes, bytes | None]]") -> tuple[bytes, bytes, bytes | None]:
    try:
        async with asyncio.timeout(SILENCE):
            return await arrived.get()
    except TimeoutError:
        raise Transient(f"the stream {DLQ.name} sent nothing for {SILENCE:g} s") from None


async def read(api: Api, sequence: int) -> Letter:
    """One letter, whole.

    Raises:
        NotFound: there is no such letter, or no stream `DLQ`.
        JetStreamError, Transient: the server refused or does not answer.
    """
    try:
        message = (await api.request(f"STREAM.MSG.GET.{DLQ.name}", {"seq": sequence}))["message"]
    except JetStreamError as error:
        if error.err_code == NO_MESSAGE_FOUND:
            raise NotFound(f"there is no dead letter {sequence}") from None
        raise _missing(error) from None
    data = base64.b64decode(message.get("data") or "")
    return Letter(
        sequence=message["seq"],
        stored=datetime.fromisoformat(message["time"]).timestamp(),
        subject=message["subject"],
        headers=parse_headers(base64.b64decode(message.get("hdrs") or "")),
        size=len(data),
        data=data,
    )


async def delete(api: Api, sequence: int) -> bool:
    """Delete a letter; False when it was not there.

    Raises:
        NotFound: there is no stream `DLQ`.
        JetStreamError, Transient: the server refused or does not answer.
    """
    try:
        await api.request(f"STREAM.MSG.DELETE.{DLQ.name}", {"seq": sequence, "no_erase": True})
    except JetStreamError as error:
        if error.err_code == DELETE_FAILED and error.description in GONE:
            return False
        raise _missing(error) from None
    return True


def _missing(error: JetStreamError) -> NotFound | JetStreamError:
    if error.err_code == STREAM_NOT_FOUND:
        return NotFound(f"there is no stream {DLQ.name}; handlers streams apply creates it")
    return error
