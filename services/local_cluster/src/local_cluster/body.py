"""The body of an answer on its way to the client."""

import asyncio
import socket
import struct
from collections.abc import Callable

from aiohttp import web

from local_cluster.fault import GARBAGE, Fault


class Body:
    """The body of an answer, as far as the fault in force lets it through.

    Args:
        fault: what befalls it.
        silenced: tells whether nothing more may come of it.
    """

    def __init__(self, request: web.Request, fault: Fault, silenced: Callable[[], bool]) -> None:
        self._request = request
        self._fault = fault
        self._silenced = silenced
        self._left = fault.cut_after

    async def send(self, whole: web.Response) -> web.StreamResponse:
        """Send a whole answer, in pieces if need be."""
        if self._left is None and not self._fault.piece_delay:
            await self.hold()
            return whole
        data = whole.body if isinstance(whole.body, bytes) else b""
        response = web.StreamResponse(status=whole.status, headers=whole.headers)
        response.content_length = len(data)
        await self.begin(response)
        await self.write(response, data)
        return response

    async def begin(self, response: web.StreamResponse) -> None:
        """Send the head of an answer whose body comes in pieces.

        Raises:
            ConnectionError: as `write`.
        """
        await self.hold()
        await response.prepare(self._request)
        if self._fault.garbage and self._left is None:
            await self._put(response, GARBAGE)
        await self.write(response, b"")

    async def write(self, response: web.StreamResponse, data: bytes) -> None:
        """Send some of an answer's body.

        Raises:
            ConnectionError: the connection is gone, or cut on purpose.
        """
        if self._left is None or len(data) < self._left:
            await self._put(response, data)
            if self._left is not None:
                self._left -= len(data)
            return
        await self._put(response, data[: self._left])
        if self._fault.stall:
            await asyncio.Event().wait()
        if self._fault.garbage:
            await self._put(response, GARBAGE)
        raise self.cut(reset=self._fault.reset)

    def cut(self, *, reset: bool) -> ConnectionError:
        """Close the connection after what was sent, or have the peer see a reset; returns what to raise."""
        if (transport := self._request.transport) is not None:
            if reset:
                # The end is then a reset, which also loses what has not been sent.
                sock: socket.socket = transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                transport.abort()
            else:
                transport.close()
        return ConnectionAbortedError("cut on purpose")

    async def hold(self) -> None:
        """Wait for ever, if nothing more may come."""
        if self._silenced():
            await asyncio.Event().wait()

    async def _put(self, response: web.StreamResponse, data: bytes) -> None:
        size = self._fault.piece_size if self._fault.piece_delay else max(1, len(data))
        for start in range(0, len(data), size):
            await asyncio.sleep(self._fault.piece_delay)
            await self.hold()
            await response.write(data[start : start + size])


_BODY = web.RequestKey("body", Body)


def put_body(request: web.Request, body: Body) -> None:
    """Say how the body of a request's answer is to be sent."""
    request[_BODY] = body


def body_of(request: web.Request) -> Body:
    """How the body of a request's answer is to be sent; a handler that streams sends it by this."""
    if (body := request.get(_BODY)) is None:
        body = request[_BODY] = Body(request, Fault(), lambda: False)
    return body
