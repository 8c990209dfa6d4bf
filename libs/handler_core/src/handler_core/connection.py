"""The NATS connection: nats-py's client with checked publishes and a direct path for pulled messages.

What is added overrides nats-py 2.16's private methods, which is why the version is pinned:

- every publish passes `publish`/`send`, which refuse what would make the server close the connection for good
  (a subject or message that is too long), since redelivery would then take the next worker down with it;
- a pulled message goes from the parser straight to its consumer, headers unparsed, without a queue and a task
  between, which is most of the difference to `fetch` (see benchmarks/);
- a flush means what it says, and no late PONG or failing callback leaves a connection that is open but deaf.
"""

import asyncio
import contextlib
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nats.errors
import structlog
from nats.aio.client import Client

from handler_core import openssl
from handler_core.config import NatsSettings, SettingsError, masked
from handler_core.errors import Internal
from handler_core.parser import DirectParser, Sink
from handler_core.replies import Replies

log = structlog.get_logger("handler_core.connection")

MAX_SUBJECT = 512
"""Bytes. The server's control line holds 4 KiB for subject, reply and sizes together."""
RESERVE = 1024
"""Bytes of `max_payload` kept free for what a server adds to a message's headers on its way."""
CONNECT_TIMEOUT = 5.0
RECONNECT_WAIT = 0.5
PING_INTERVAL = 20
WRITE_HIGH_WATER = 1 << 20
"""Bytes unsent from which publishers wait for the socket."""
PENDING_LIMIT = 8 << 20
"""Bytes of publishes that wait for a lost connection; more are refused."""

_SUBJECT = re.compile(r"[^\s.*>\x00\ud800-\udfff]+(?:\.[^\s.*>\x00\ud800-\udfff]+)*").fullmatch
HEADER_NAME = re.compile(r"[!-9;-~]+").fullmatch
_HEADER_LINE = b"NATS/1.0\r\n"


class BadSubject(Internal):
    """A subject that cannot be published to."""


class BadHeader(Internal):
    """A header that would not arrive as it was meant."""


class MessageTooLarge(Internal):
    """Headers and payload together exceed what the server takes."""


def parse_headers(raw: bytes | None) -> dict[str, str]:
    """A NATS header block as a dict; the status line and malformed lines are left out."""
    headers: dict[str, str] = {}
    for line in (raw or b"").split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            headers[name.strip().decode("ascii", "replace")] = value.strip().decode("utf-8", "replace")
    return headers


def header_block(headers: dict[str, str]) -> bytes:
    """A dict as a NATS header block; line ends inside a value become spaces.

    Raises:
        BadHeader: a name is not printable ASCII without a colon.
    """
    lines = []
    for name, value in headers.items():
        if not HEADER_NAME(name):
            raise BadHeader(f"cannot send a header of the name {name[:64]!r}")
        lines.append(f"{name}: {value if value.isprintable() else _one_line(value)}\r\n")
    return _HEADER_LINE + "".join(lines).encode("utf-8", "replace") + b"\r\n"


def trace_block(traceparent: str, tracestate: str = "") -> bytes:
    """`header_block` for a trace context that has been checked already; a third of its time, once a message."""
    state = f"tracestate: {tracestate}\r\n" if tracestate else ""
    return f"NATS/1.0\r\ntraceparent: {traceparent}\r\n{state}\r\n".encode()


def _one_line(value: str) -> str:
    return value.replace("\r", " ").replace("\n", " ")


class Connection(Client):
    """A connection to NATS; see `connect`."""

    def __init__(self) -> None:
        super().__init__()
        self._ps: DirectParser = DirectParser(self)
        self._kick: asyncio.Future[None] | None = None
        self._replies = Replies(self)
        self._inboxes: dict[int, str] = {}
        self.on_reconnect: list[Callable[[], None]] = []
        """Called after each reconnect, once the server has been told of all subscriptions again."""

    # -- publishing

    @property
    def payload_room(self) -> int:
        """Bytes that headers and payload of one message may have together."""
        return self._max_payload - RESERVE

    def check(self, subject: str, size: int) -> None:
        """Raise unless a message of `size` bytes, headers included, may be published to `subject`.

        Raises:
            BadSubject: empty tokens, wildcards, white space, or more than `MAX_SUBJECT` bytes.
            MessageTooLarge: more than the server's `max_payload` less `RESERVE`.
        """
        long = len(subject) > MAX_SUBJECT or not (
            subject.isascii() or len(subject.encode("utf-8", "replace")) <= MAX_SUBJECT
        )
        if long or not _SUBJECT(subject):
            raise BadSubject(f"cannot publish to the subject {subject[:64]!r}{'…' if len(subject) > 64 else ''}")
        if size > self.payload_room:
            raise MessageTooLarge(f"a message of {size} bytes to {subject} exceeds {self.payload_room}")

    def send(self, subject: str, payload: bytes, *, reply: str = "", headers: bytes = b"") -> None:
        """Queue a publish for the next write to the socket; `headers` is a whole header block.

        Raises:
            BadSubject, MessageTooLarge: see `check`; `reply` is checked alike.
            nats.errors.ConnectionClosedError: the connection has ended.
            nats.errors.OutboundBufferLimitError: disconnected, and `PENDING_LIMIT` is reached.
        """
        size = len(headers) + len(payload)
        self.check(subject, size)
        if reply:
            self.check(reply, 0)
        if headers:
            self._write(
                b"HPUB %b %b %d %d\r\n%b%b\r\n"
                % (subject.encode(), reply.encode(), len(headers), size, headers, payload)
            )
        else:
            self._write(b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), reply.encode(), size, payload))
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += size

    def answer(self, reply: bytes, payload: bytes) -> None:
        """Queue an acknowledgement to a reply subject that the server made; one that cannot be sent is dropped.

        The message comes again then, which its handler has to bear in any case.
        """
        with contextlib.suppress(nats.errors.ConnectionClosedError, nats.errors.OutboundBufferLimitError):
            self._write(b"PUB %b  %d\r\n%b\r\n" % (reply, len(payload), payload))

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Publish on core NATS; waits only when too much is unsent. Raises as `send` does."""
        self.send(subject, payload, reply=reply, headers=header_block(headers) if headers else b"")
        if self.congested:
            await self.drained()

    @property
    def congested(self) -> bool:
        """Whether so much is unsent that a publisher should wait for `drained`."""
        return self._pending_data_size > WRITE_HIGH_WATER

    async def drained(self) -> None:
        """Wait until what is queued has been written to the socket."""
        await self._flush_pending(force_flush=True)

    def _write(self, command: bytes) -> None:
        if not self.is_connected:
            if self.is_closed:
                raise nats.errors.ConnectionClosedError
            if self._pending_data_size + len(command) > PENDING_LIMIT:
                raise nats.errors.OutboundBufferLimitError
            self._pending.append(command)
            self._pending_data_size += len(command)
            return
        self._pending.append(command)
        self._pending_data_size += len(command)
        queue = self._flush_queue
        if queue is not None and queue.empty():
            if self._kick is None:
                self._kick = asyncio.get_running_loop().create_future()
                self._kick.set_result(None)
            queue.put_nowait(self._kick)

    async def ask(self, subject: str, payload: bytes, *, headers: bytes = b"", timeout: float) -> bytes:
        """Publish a request and wait for the body of its reply; `headers` is a whole header block.

        Raises:
            nats.errors.NoRespondersError: nobody listens on the subject.
            nats.errors.TimeoutError: no reply within `timeout` seconds.
            BadSubject, MessageTooLarge, nats.errors.Error: as `send`.
        """
        return await self._replies.ask(subject, payload, headers=headers, timeout=timeout)

    # -- pulled messages

    async def attach(self, inbox: str, sink: Sink) -> int:
        """Subscribe `sink` to an inbox, bypassing nats-py's queue; returns the subscription's id."""
        subscription = await self.subscribe(inbox)
        self._ps.sinks[subscription._id] = sink
        self._inboxes[subscription._id] = inbox.removesuffix("*")
        return int(subscription._id)

    def mute(self, sid: int) -> None:
        """Queue the end of a subscription; its sink still gets what is on the way, until `detach`."""
        with contextlib.suppress(nats.errors.ConnectionClosedError, nats.errors.OutboundBufferLimitError):
            self._write(b"UNSUB %d\r\n" % sid)

    async def detach(self, sid: int) -> None:
        """Unsubscribe, feeding the sink what the server had already sent, so that nothing is lost on the way."""
        try:
            self.mute(sid)
            await self.responds(CONNECT_TIMEOUT)
        finally:
            self._subs.pop(sid, None)
            self._ps.sinks.pop(sid, None)
            self._inboxes.pop(sid, None)

    def owns(self, subject: str) -> bool:
        """Whether this connection listens there for what it has asked itself: nobody else may have us write to it."""
        return any(subject.startswith(inbox) for inbox in self._inboxes.values())

    @property
    def ssl_context(self) -> ssl.SSLContext:
        if openssl.left_out():
            raise nats.errors.Error("the server asks for TLS: name it in NATS_URL by tls://")
        return super().ssl_context

    # -- where nats-py would be left waiting or deaf

    async def responds(self, timeout: float) -> bool:
        """Whether the server has taken all that was sent so far and says so within `timeout` seconds."""
        if not self.is_connected:
            return False
        try:
            await self.flush(timeout=timeout)  # type: ignore[arg-type]
        except (nats.errors.Error, TimeoutError, OSError):
            return False
        return True

    async def _send_ping(self, future: "asyncio.Future[bool] | None" = None) -> None:
        # nats-py's PING overtakes what waits in `_pending`, so that its PONG would say nothing about that.
        if self._pending and self._transport is not None:
            pending, self._pending, self._pending_data_size = self._pending, [], 0
            self._transport.writelines(pending)
        await super()._send_ping(future)

    async def _process_pong(self) -> None:
        # The PONG of a flush that was given up: nats-py sets the result of a cancelled future, and stops reading.
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _read_loop(self) -> None:
        await super()._read_loop()
        if self.is_connected and asyncio.current_task() is self._reading_task:
            # Ended by an unexpected error, not by a lost connection: nobody would read from here on.
            await self._process_op_err(nats.errors.StaleConnectionError())

    async def _attempt_reconnect(self) -> None:
        # nats-py waits until the lost connection has sent what it holds, which may be never.
        self.abort()
        await super()._attempt_reconnect()

    def abort(self) -> None:
        """Drop the socket, with what it still holds."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()


async def connect(
    settings: NatsSettings,
    name: str,
    *,
    on_closed: Callable[[], None] | None = None,
    on_failure: Callable[[str], None] | None = None,
) -> Connection:
    """Connect, trying for as long as it takes, and from then on reconnect for ever; bound it with `asyncio.timeout`.

    Args:
        name: shown by the server's monitoring.
        on_closed: called when the connection has ended for good, by `close` or because the server refused us.
        on_failure: told why an attempt to connect failed; logged, at intervals, when absent.
    """
    nc = Connection()
    failures = 0

    async def disconnected() -> None:
        if not nc.is_closed:
            log.warning("nats_disconnected")

    async def reconnected() -> None:
        nonlocal failures
        failures = 0
        log.info("nats_reconnected", server=_server(nc))
        for callback in nc.on_reconnect:
            callback()

    async def closed() -> None:
        if on_closed is not None:
            on_closed()

    async def error(exc: Exception) -> None:
        # Every attempt to connect fails alike: said at the first, the tenth, and then once in a while.
        nonlocal failures
        if nc.is_connected:
            log.warning("nats_error", error=_text(exc))
            return
        failures += 1
        if on_failure is not None:
            on_failure(_text(exc))
        elif failures in (1, 10) or failures % 120 == 0:
            log.warning("nats_unreachable", url=masked(settings.nats_url), error=_text(exc), attempts=failures)

    try:
        await nc.connect(
            settings.nats_url.split(","),
            name=name,
            disconnected_cb=disconnected,
            reconnected_cb=reconnected,
            closed_cb=closed,
            error_cb=error,
            connect_timeout=CONNECT_TIMEOUT,  # type: ignore[arg-type]
            reconnect_time_wait=RECONNECT_WAIT,  # type: ignore[arg-type]
            max_reconnect_attempts=-1,
            inbox_prefix=settings.nats_inbox_prefix,
            ping_interval=PING_INTERVAL,
            max_outstanding_pings=2,
            pending_size=PENDING_LIMIT,
            flush_timeout=CONNECT_TIMEOUT,
            **credentials(settings),
        )
    except BaseException:
        nc.abort()  # given up in the middle of an attempt, whose socket nats-py would leave open
        raise
    return nc


def credentials(settings: NatsSettings) -> dict[str, Any]:
    """The authentication options of `nats.connect` that the settings ask for."""
    options: dict[str, Any] = {}
    if settings.nats_user is not None:
        options["user"] = settings.nats_user
    if settings.nats_password is not None:
        options["password"] = settings.nats_password.get_secret_value()
    if settings.nats_token is not None:
        options["token"] = settings.nats_token.get_secret_value()
    if settings.nats_nkey_seed is not None:
        options["nkeys_seed_str"] = settings.nats_nkey_seed.get_secret_value()
    if settings.nats_creds is not None:
        options["user_credentials"] = str(settings.nats_creds)
    secure = any(url.startswith(("tls://", "wss://")) for url in settings.nats_url.split(","))
    if settings.nats_tls_ca or settings.nats_tls_cert or secure:
        options["tls"] = _tls(settings)
    return options


def _tls(settings: NatsSettings) -> ssl.SSLContext:
    name = "NATS_TLS_CA"
    try:
        context = ssl.create_default_context(cafile=_path(settings.nats_tls_ca))
        if settings.nats_tls_cert is not None:
            name = "NATS_TLS_CERT, NATS_TLS_KEY"
            context.load_cert_chain(str(settings.nats_tls_cert), _path(settings.nats_tls_key))
    except ssl.SSLError as error:
        raise SettingsError(f"{name}: cannot be used: {error.reason or error}") from None
    return context


def _text(exc: Exception) -> str:
    return str(exc) or type(exc).__name__


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _server(nc: Connection) -> str:
    url = nc.connected_url
    return "" if url is None else f"{url.hostname}:{url.port}"
