"""A few pages over HTTP/1.1, for probes and scrapers; aiohttp's server is two megabytes more of every process.

One request a connection, answered from memory and closed: what kubelet and Prometheus do, or get along with.
Source: RFC 9112, sections 3 and 9.6.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import structlog

log = structlog.get_logger("handler_core.pages")

MAX_HEAD = 16 * 1024
"""Bytes of a request line and its headers."""
TIMEOUT = 10.0
"""Seconds that a request may take to arrive and its answer to be read."""
_PHRASES = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class Page(NamedTuple):
    """An answer."""

    status: int
    content_type: str
    text: str


class Pages:
    """A server of pages, by their paths; each is made when it is asked for, and must not take long."""

    def __init__(self, pages: Mapping[str, Callable[[], Page]]) -> None:
        self._pages = pages
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port, which the system chose if 0 was asked for.

        Raises:
            OSError: the port is taken.
        """
        self._server = await asyncio.start_server(self._serve, host, port, limit=MAX_HEAD)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Listen no more, and drop what is still being asked."""
        if self._server is not None:
            self._server.close()
            for writer in self._open:
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            with contextlib.suppress(OSError):  # they went away
                async with asyncio.timeout(TIMEOUT):
                    writer.write(await self._answer(reader))
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
        finally:
            writer.transport.abort()  # nothing if it is closed
            self._open.discard(writer)

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        """The whole response to the request that arrives; empty if none does."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""
        except asyncio.LimitOverrunError:
            return _response(Page(431, "text/plain", ""))
        line = head[: head.index(b"\r\n")].decode("latin-1").split(" ")
        if len(line) != 3 or not line[2].startswith("HTTP/1."):
            return _response(Page(400, "text/plain", ""))
        method, target, _ = line
        page = self._pages.get(target.partition("?")[0])
        if page is None:
            return _response(Page(404, "text/plain", ""))
        if method not in ("GET", "HEAD"):
            return _response(Page(405, "text/plain", ""), "Allow: GET, HEAD\r\n")
        try:
            made = page()
        except Exception:  # as nobody else would hear of it
            log.exception("page_failed", path=target)
            made = Page(500, "text/plain", "")
        return _response(made, with_body=method == "GET")


def _response(page: Page, headers: str = "", *, with_body: bool = True) -> bytes:
    body = page.text.encode()
    head = (
        f"HTTP/1.1 {page.status} {_PHRASES[page.status]}\r\n"
        f"Content-Type: {page.content_type}; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"{headers}Connection: close\r\n\r\n"
    )
    return head.encode() + (body if with_body else b"")
