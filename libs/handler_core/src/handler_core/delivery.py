"""One message as JetStream delivered it, and the ways to settle it."""

import json
from functools import lru_cache
from typing import Final

from handler_core.connection import Connection, parse_headers

ACK: Final = b"+ACK"
NAK: Final = b"-NAK"
TERM: Final = b"+TERM"
IN_PROGRESS: Final = b"+WPI"


@lru_cache(maxsize=64)
def _needles(name: bytes) -> tuple[bytes, bytes]:
    """What a header's value follows, in both ways of writing its name."""
    return b"\r\n%b:" % name, b"\r\n%b:" % name.capitalize()


class Incoming:
    """A message as a handler sees it, whether from a stream or as a request that waits for its reply."""

    __slots__ = ("data", "raw_headers", "subject")

    attempt: int
    """How many times it has been delivered, from 1."""
    identity: str
    """What names this message, at every delivery."""
    timestamp: float
    """When it was stored, or arrived, in Unix seconds."""

    def __init__(self, subject: str, data: bytes, raw_headers: bytes | None) -> None:
        self.subject = subject
        self.data = data
        self.raw_headers = raw_headers

    @property
    def token(self) -> str:
        """A request id for a message that names none: the same at every delivery."""
        return self.identity

    @property
    def headers(self) -> dict[str, str]:
        return parse_headers(self.raw_headers)

    def header(self, name: bytes) -> str | None:
        """One header's value without parsing the others; `name` in lower case, or with a capital as Go writes it."""
        raw = self.raw_headers
        if raw is None:
            return None
        lower, capital = _needles(name)
        if (start := raw.find(lower)) < 0 and (start := raw.find(capital)) < 0:
            return None
        start += len(name) + 3
        return raw[start : raw.find(b"\r\n", start)].strip().decode("utf-8", "replace")


class Delivery(Incoming):
    """A pulled message. Its reply subject holds the metadata (ADR-15), read only when asked for."""

    __slots__ = ("_nc", "_tokens", "renewed", "reply", "settled", "started", "timeouts")

    def __init__(self, nc: Connection, subject: bytes, reply: bytes, data: bytes, raw_headers: bytes | None) -> None:
        super().__init__(subject.decode("utf-8", "replace"), data, raw_headers)
        self._nc = nc
        self._tokens: list[bytes] | None = None
        self.reply = reply
        self.started = 0.0
        """When its handler started, on the monotonic clock."""
        self.settled = ""
        """How it was settled (`ack`, `nak`, `term`), or empty."""
        self.timeouts = 0
        """How often its handler was cancelled for taking too long; from the first on it is not kept alive."""
        self.renewed = False
        """Whether it was delivered again while it was held here."""

    def _token(self, index: int) -> bytes:
        # $JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<timestamp>.<pending>; newer servers may
        # put <domain>.<account> after $JS.ACK and a random token last: counted from the stream's name either way.
        if self._tokens is None:
            tokens = self.reply.split(b".")
            self._tokens = tokens[2:] if len(tokens) <= 9 else tokens[4:]
        return self._tokens[index]

    @property
    def stream(self) -> str:
        return self._token(0).decode()

    @property
    def consumer(self) -> str:
        return self._token(1).decode()

    @property
    def attempt(self) -> int:  # type: ignore[override]
        return int(self._token(2))

    @property
    def redelivered(self) -> bool:
        return self._token(2) != b"1"

    def same_as(self, other: "Delivery") -> bool:
        """Whether both are deliveries of one message: one number, stored at one time, of one stream."""
        return all(self._token(index) == other._token(index) for index in (3, 5, 0))

    def renew(self, later: "Delivery") -> None:
        """From here on this is the later delivery of the same message, which alone the server still waits for."""
        self.reply, self._tokens, self.renewed = later.reply, None, True

    @property
    def sequence(self) -> int:
        """Its sequence in the stream."""
        return int(self._token(3))

    @property
    def timestamp(self) -> float:  # type: ignore[override]
        return int(self._token(5)) / 1e9

    @property
    def identity(self) -> str:  # type: ignore[override]
        """What names this message and no other one, even of a stream made anew."""
        return b":".join((self._token(0), self._token(3), self._token(5))).decode()

    @property
    def token(self) -> str:
        return f"{self.sequence}-{self.timestamp * 1e6:.0f}"

    @property
    def pending(self) -> int:
        """How many messages stood behind it when it was delivered."""
        return int(self._token(6))

    def ack(self) -> None:
        """Done: never deliver it again."""
        self._settle(ACK, "ack")

    def nak(self, delay: float = 0.0) -> None:
        """Deliver it again, to whoever pulls, not before `delay` seconds from now."""
        payload = NAK if delay <= 0 else NAK + b" " + json.dumps({"delay": int(delay * 1e9)}).encode()
        self._settle(payload, "nak")

    def term(self, reason: str) -> None:
        """Never deliver it again, although it was not done; the server's advisory carries the reason."""
        self._settle(TERM + b" " + reason.encode("utf-8", "replace")[:256].replace(b"\n", b" "), "term")

    def in_progress(self) -> None:
        """Start `ack_wait` anew."""
        self._nc.answer(self.reply, IN_PROGRESS)

    def _settle(self, payload: bytes, how: str) -> None:
        if not self.settled:
            self._nc.answer(self.reply, payload)
            self.settled = how
