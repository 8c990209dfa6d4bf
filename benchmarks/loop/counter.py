"""Counting results without looking at them: a raw subscriber that costs next to nothing beside any candidate."""

import asyncio
import json
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from benchmarks.loop.messages import RESULT_SUBJECT

_FRAME = f"HMSG {RESULT_SUBJECT}.".encode()
_SAMPLE = 64 * 1024


class ResultCounter(asyncio.Protocol):
    """A subscriber of all results, which counts the frames in what the socket gives and parses none.

    The first 64 KiB of a round are kept, for `sample` to look into when the round is over.
    """

    def __init__(self) -> None:
        self.count = 0
        self.warm: tuple[float, int] | None = None
        """When the warm-up was over, and how many results had come by then."""
        self.done = asyncio.Event()
        self._expected = self._warm_up = 0
        self._tail = b""
        self._kept = bytearray()
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def connect(cls, url: str) -> "ResultCounter":
        """Subscribe at the server of that URL."""
        address = urlsplit(url)
        _, counter = await asyncio.get_running_loop().create_connection(cls, address.hostname or "", address.port or 0)
        return counter

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        options = {"verbose": False, "pedantic": False, "headers": True, "lang": "python", "version": "1"}
        transport.write(b"CONNECT %b\r\nSUB %b.* 1\r\n" % (json.dumps(options).encode(), RESULT_SUBJECT.encode()))

    def data_received(self, data: bytes) -> None:
        if b"PING\r\n" in data and self._transport is not None:
            self._transport.write(b"PONG\r\n")
        # A frame's name may be cut by the border between two reads.
        border = len(_FRAME) - 1
        self.count += data.count(_FRAME) + (self._tail + data[:border]).count(_FRAME)
        self._tail = (self._tail + data)[-border:] if len(data) < border else data[-border:]
        if len(self._kept) < _SAMPLE:
            self._kept += data
        if self.warm is None and self.count >= self._warm_up:
            self.warm = (time.perf_counter(), self.count)
        if self.count >= self._expected:
            self.done.set()

    def expect(self, results: int, warm_up: int) -> None:
        """Begin a round of `results`, the first `warm_up` of which are not timed."""
        self.count, self._expected, self._warm_up = 0, results, warm_up
        self.warm = None
        self.done.clear()
        self._kept.clear()

    def sample(self) -> Iterator[tuple[str, bytes, bytes]]:
        """The subject, headers and body of each of the round's first results."""
        data = bytes(self._kept)
        at = data.find(_FRAME)
        while (end := data.find(b"\r\n", at)) >= 0:
            _, subject, _, header_size, size = data[at:end].split(b" ")
            body = end + 2 + int(header_size)
            last = end + 2 + int(size)
            if last > len(data):
                return
            yield subject.decode(), data[end + 2 : body], data[body:last]
            at = last + 2

    def close(self) -> None:
        """Leave the server."""
        if self._transport is not None:
            self._transport.close()
