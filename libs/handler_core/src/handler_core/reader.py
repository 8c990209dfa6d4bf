"""Reading one subject of a stream in order, from a sequence on, through whatever happens to server and connection.

An ordered consumer: the server pushes from a consumer of its own making that lives as long as somebody listens and
acknowledges nothing. Every message carries the consumer's own count, so that one that got lost on the way is noticed;
whatever goes wrong, the consumer is made anew behind the last message that arrived. A push costs the server no request
a message and us no task: the sink is called from the parser.

Where the stream republishes its messages, the consumer is only for what is stored already: from then on they are taken
as they are republished, which costs the server much less than a consumer. Each names the one of its subject that came
before it, so that here, too, nothing is missed unnoticed.

Source: the server's push consumers with flow control (ADR-15 for the reply subject; statuses 100 and 409), and the
headers of what it republishes (ADR-28).
"""

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from types import TracebackType

import nats.errors
import structlog

from handler_core.connection import Connection, parse_headers
from handler_core.errors import HandlerError
from handler_core.jetstream import Api, JetStreamError
from handler_core.streams import NANOSECONDS
from handler_core.tasks import background

log = structlog.get_logger("handler_core.reader")

Sink = Callable[[int, float, bytes, bytes | None], None]
"""Takes a message's sequence in the stream, when it was stored (Unix seconds), its data and its raw headers."""

INACTIVE_THRESHOLD = 10.0
"""Seconds until the server forgets the consumer of a reader that is gone."""
RETRY_MAX = 5.0
"""Seconds; the longest pause between two attempts to begin anew."""
_SILENCE = 2.5
"""Heartbeats without which the consumer counts as lost."""


class Reader:
    """Reads while it is entered: `async with Reader(nc, "AI_STT", "ai.voice.stream.s1", 1, sink) as reader: …`.

    The sink is called from the connection's parser: it must not block. What it raises is logged, and reading goes on
    behind that message.

    Args:
        stream: the stream's name.
        subject: of which messages; without wildcards.
        start_sequence: the first sequence to read; what is no longer there is left out.
        sink: called for each message in the stream's order, once for each.
        live: where the stream republishes the subject's messages whole, if it does.
        idle_heartbeat: seconds; after two and a half of them without a sign of the server reading begins anew.
    """

    def __init__(
        self,
        nc: Connection,
        stream: str,
        subject: str,
        start_sequence: int,
        sink: Sink,
        *,
        live: str | None = None,
        idle_heartbeat: float = 5.0,
    ) -> None:
        self.stream = stream
        self.subject = subject
        self.next_sequence = max(1, start_sequence)
        """Where reading would begin anew: behind the last message that the sink was given."""
        self.problem = "not started"
        """Why nothing can be read at the moment; empty when all is well, also in a pause."""
        self.caught_up = asyncio.Event()
        """Set once the sink has been given all that the stream held when reading began."""
        self.restarts = 0
        """How often it had to begin anew."""
        self._nc = nc
        self._api = Api(nc)
        self._sink = sink
        self._heartbeat = idle_heartbeat
        self._name = ""
        self._sid: int | None = None
        self._live = live
        self._live_sid: int | None = None
        self._is_live = False  # what is republished counts, and no more what the consumer sends
        self._live_seen = 0  # the newest message that was republished while it did not
        self._serial = 0  # of the consumer that is listened to; what an earlier one still sends is nobody's
        self._delivered = 0
        self._last_sign = 0.0
        self._fault = ""
        self._paused = False
        self._left = False
        self._attention = asyncio.Event()
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> "Reader":
        self._nc.on_reconnect.append(self._reconnected)
        self._stack.callback(self._nc.on_reconnect.remove, self._reconnected)
        self._stack.push_async_callback(self._drop)
        await self._stack.enter_async_context(background(self._run()))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:  # fmt: skip
        self._left = True  # a cancellation may be lost: to `wait_for` of 3.11, within nats-py
        self._fail("left")
        await self._stack.aclose()

    def pause(self) -> None:
        """Read no more until `resume`; the stream keeps what comes. May be called by the sink."""
        self._paused = True
        self._fail("paused")

    def resume(self) -> None:
        """Go on behind the last message that was read."""
        self._paused = False
        self._attention.set()

    @property
    def paused(self) -> bool:
        return self._paused

    def behind(self, sequence: int) -> None:
        """The stream holds a message of so high a number: read it, if it has been missed."""
        if self._is_live and sequence >= self.next_sequence:
            self._fail(f"message {sequence} was not republished")

    # -- the consumer's life

    async def _run(self) -> None:
        failures = 0
        while not self._left:
            self._attention.clear()
            if self._paused:
                await self._drop()
                await self._attention.wait()
                continue
            try:
                await self._begin()
            except (HandlerError, JetStreamError, nats.errors.Error, OSError) as error:
                self._say(str(error))
                failures += 1
                await self._rest(min(0.1 * 2.0 ** min(failures, 10), RETRY_MAX))
                continue
            self._say("")
            failures = 0
            await self._listen()
            if self._fault not in ("paused", "left"):
                self.restarts += 1
                log.info("reading_restarted", stream=self.stream, subject=self.subject, reason=self._fault)

    async def _begin(self) -> None:
        """Have the server push to an inbox of this attempt's own.

        Raises:
            HandlerError, JetStreamError, nats.errors.Error: it does not.
        """
        await self._drop()
        self._serial += 1
        self._fault = ""
        self._delivered = 0
        self._last_sign = time.monotonic()
        self._live_seen = 0
        if self._live is not None:
            self._live_sid = await self._nc.attach(self._live, partial(self._receive_live, self._serial))
        self._name = name = f"reader-{secrets.token_hex(6)}"
        inbox = self._nc.new_inbox()
        self._sid = await self._nc.attach(inbox, partial(self._receive, self._serial))
        config = {
            "name": name,
            "deliver_subject": inbox,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self.next_sequence,
            "filter_subject": self.subject,
            "ack_policy": "none",
            "max_deliver": 1,
            "replay_policy": "instant",
            "flow_control": True,
            "idle_heartbeat": int(self._heartbeat * NANOSECONDS),
            "inactive_threshold": int(INACTIVE_THRESHOLD * NANOSECONDS),
            "num_replicas": 1,
            "mem_storage": True,
        }
        body = {"stream_name": self.stream, "config": config, "action": "create"}
        info = await self._api.request(f"CONSUMER.CREATE.{self.stream}.{name}.{self.subject}", body)
        waiting = info.get("num_pending", 0) + info.get("delivered", {}).get("consumer_seq", 0)
        if not waiting:
            self._caught_up()

    async def _listen(self) -> None:
        """Return when reading has to begin anew."""
        while not self._fault:
            self._attention.clear()
            if self._is_live:
                await self._end()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat):
                    await self._attention.wait()
            silent = time.monotonic() - self._last_sign
            if self._is_live:
                if silent > self._heartbeat and not self._fault:
                    await self._look()
            elif silent > _SILENCE * self._heartbeat and self._nc.is_connected:
                self._fail(f"no heartbeat for {silent:.1f} s")

    async def _look(self) -> None:
        """Begin anew if the stream holds a message that was not republished to us: the last of them is missed by none
        that follows."""
        try:
            if await self._api.next(self.stream, self.subject, self.next_sequence) is not None:
                self._fail("a message was not republished")
        except (HandlerError, JetStreamError, nats.errors.Error) as error:
            self._fail(str(error))
        self._last_sign = time.monotonic()

    async def _drop(self) -> None:
        """Listen to nothing more."""
        self._serial += 1
        self._is_live = False
        await self._end()
        if self._live_sid is not None:
            sid, self._live_sid = self._live_sid, None
            if not self._nc.is_closed:
                await self._nc.detach(sid)

    async def _end(self) -> None:
        """Listen to the consumer no more, and have it removed; where that fails, the server forgets it in time."""
        if self._sid is None:
            return
        sid, self._sid = self._sid, None
        with contextlib.suppress(nats.errors.Error):
            if self._nc.is_connected:
                self._nc.send(f"$JS.API.CONSUMER.DELETE.{self.stream}.{self._name}", b"")
        if not self._nc.is_closed:
            await self._nc.detach(sid)

    async def _rest(self, seconds: float) -> None:
        """Wait with jitter, or until something happens."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds * (0.75 + random.random() / 2)):
                await self._attention.wait()

    def _reconnected(self) -> None:
        self._fail("reconnected")

    def _fail(self, reason: str) -> None:
        self._fault = self._fault or reason
        self._attention.set()

    def _say(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.warning("cannot_read", stream=self.stream, subject=self.subject, problem=problem)
        self.problem = problem

    # -- what arrives

    def _receive(self, serial: int, _: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        """The subscription's sink: called from the parser for messages and statuses alike."""
        if serial != self._serial or self._paused or self._is_live:
            return
        self._last_sign = time.monotonic()
        if not reply.startswith(b"$JS.ACK."):
            self._status(reply, headers or b"")
            return
        tokens = reply.split(b".")  # see Delivery
        place = 5 if len(tokens) <= 9 else 7
        count = int(tokens[place + 1])
        if count != self._delivered + 1:
            self._fail(f"message {count} of the consumer came after {self._delivered}")
            return
        self._delivered = count
        sequence = int(tokens[place])
        self.next_sequence = sequence + 1
        try:
            self._sink(sequence, int(tokens[place + 2]) / NANOSECONDS, data, headers)
        finally:
            if tokens[place + 3] == b"0":
                self._caught_up()

    def _caught_up(self) -> None:
        """All that was stored has been read; what is republished counts from here on, unless it is ahead already."""
        self.caught_up.set()
        if self._live is not None and self._live_seen < self.next_sequence and not self._fault:
            self._is_live = True
            self._attention.set()

    def _receive_live(self, serial: int, _: bytes, __: bytes, data: bytes, headers: bytes | None) -> None:
        """The sink of what is republished."""
        if serial != self._serial or self._paused or self._fault or headers is None:
            return
        sequence = _number(headers, b"\r\nNats-Sequence: ")
        if not _value(headers, b"\r\nNats-Last-Sequence: "):
            return  # somebody else's, which is no copy of a message
        if not self._is_live:
            self._live_seen = max(self._live_seen, sequence)
            return
        self._last_sign = time.monotonic()
        if sequence < self.next_sequence:
            return  # the consumer was quicker; or it is none of the stream's
        if (before := _number(headers, b"\r\nNats-Last-Sequence: ")) >= self.next_sequence:
            self._fail(f"message {before} was not republished")
            return
        self.next_sequence = sequence + 1
        self._sink(sequence, _stored_at(headers), data, headers)

    def _status(self, reply: bytes, raw: bytes) -> None:
        code = raw[9:12]
        if code != b"100":
            if code.isdigit():
                text = raw.partition(b"\r\n")[0][13:].decode("utf-8", "replace").strip()
                self._fail(f"{code.decode()} {text}")
            return
        if reply:
            self._nc.answer(reply, b"")  # flow control: all that came before has been taken in
            return
        headers = parse_headers(raw)
        if stalled := headers.get("Nats-Consumer-Stalled"):
            self._nc.answer(stalled.encode(), b"")
        if (last := headers.get("Nats-Last-Consumer")) is not None and last != str(self._delivered):
            self._fail(f"of {last} messages of the consumer {self._delivered} arrived")


def _value(headers: bytes, name: bytes) -> bytes:
    """A header's value; the last one's, which is the server's own: a client may have sent another before it."""
    start = headers.rfind(name)
    return b"" if start < 0 else headers[start + len(name) : headers.find(b"\r\n", start + 2)]


def _number(headers: bytes, name: bytes) -> int:
    value = _value(headers, name)
    return int(value) if value.isdigit() else 0


def _stored_at(headers: bytes) -> float:
    """When it was stored, in Unix seconds; now, should the server not say."""
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(_value(headers, b"\r\nNats-Time-Stamp: ").decode("ascii")).timestamp()
    return time.time()
