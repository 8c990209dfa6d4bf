"""Server-sent events, parsed as the bytes come in.

Follows the event stream interpretation of the WHATWG HTML standard, section 9.2.6, but for reconnection (`retry`),
which an answer to a POST has no use for.
"""

from typing import NamedTuple

_BOM = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One dispatched event; `id` is the last one that the stream set, in this event or before."""

    data: str
    event: str = "message"
    id: str = ""


class EventTooLarge(ValueError):
    """A line, or the data of one event, is longer than the parser's limit."""


class EventParser:
    """Turns byte chunks, cut anywhere, into events.

    >>> parser = EventParser()
    >>> parser.feed(b"data: one\\n\\nda")
    [Event(data='one', event='message', id='')]
    >>> parser.feed(b"ta: two\\n\\n")
    [Event(data='two', event='message', id='')]

    Args:
        limit: bytes that a line may have, and the data of an event; 4 MiB by default.
    """

    __slots__ = ("_after_cr", "_at_start", "_data", "_event", "_id", "_partial", "_size", "limit")

    def __init__(self, limit: int = 4 * 2**20) -> None:
        self.limit = limit
        self._partial = bytearray()
        self._after_cr = False
        self._at_start = True
        self._data: list[str] = []
        self._size = 0
        self._event = ""
        self._id = ""

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that `chunk` completes.

        Raises:
            EventTooLarge: the limit is passed; the parser is of no further use.
        """
        if not chunk:
            return []
        # The line that a CR ended is already taken: an LF right after it belongs to it, be it in the next chunk.
        start = 1 if self._after_cr and chunk.startswith(b"\n") else 0
        self._after_cr = chunk.endswith(b"\r")
        lines = chunk[start:].splitlines()  # of bytes: at CR, LF and CRLF only
        rest = b"" if chunk.endswith((b"\r", b"\n")) else lines.pop()
        events = []
        for line in lines:
            if self._partial or len(line) > self.limit:
                self._extend(line)
                event = self._line(bytes(self._partial))
                self._partial.clear()
            else:
                event = self._line(line)
            if event is not None:
                events.append(event)
        self._extend(rest)
        return events

    def flush(self) -> Event | None:
        """What an unfinished last event holds, where a server left out the closing blank line.

        The standard drops it: it may be cut off, so take it only if it proves whole.
        """
        if self._partial:
            self._line(bytes(self._partial))
            self._partial.clear()
        return self._dispatch()

    def _extend(self, piece: bytes) -> None:
        self._partial += piece
        if len(self._partial) > self.limit:
            raise EventTooLarge(f"a line of more than {self.limit} bytes")

    def _line(self, line: bytes) -> Event | None:
        if self._at_start:
            line = line.removeprefix(_BOM)
            self._at_start = False
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._size += len(value) + 1
            if self._size > self.limit + 1:
                raise EventTooLarge(f"an event of more than {self.limit} bytes")
            self._data.append(value.decode("utf-8", "replace"))
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"id" and b"\0" not in value:
            self._id = value.decode("utf-8", "replace")
        return None

    def _dispatch(self) -> Event | None:
        lines, name = self._data, self._event
        self._data, self._size, self._event = [], 0, ""
        return Event("\n".join(lines), name or "message", self._id) if lines else None
