"""Requests whose replies come straight from the parser: one inbox for all, a future each, no queue and no task between.

What nats-py does for a request takes more than half as long again, and a turn makes several.
"""

import asyncio
import secrets
from typing import TYPE_CHECKING, Final

import nats.errors

if TYPE_CHECKING:
    from handler_core.connection import Connection

_NO_RESPONDERS: Final = b"NATS/1.0 503"


class Replies:
    """The requests of one connection that wait for their reply."""

    def __init__(self, nc: "Connection") -> None:
        self._nc = nc
        self._prefix = ""
        self._opening = asyncio.Lock()
        self._waiting: dict[bytes, asyncio.Future[bytes]] = {}

    async def ask(self, subject: str, payload: bytes, *, headers: bytes, timeout: float) -> bytes:
        """Publish a request and wait for the body of its first reply; raises as `Connection.ask`."""
        if not self._prefix:
            await self._open()
        token = secrets.token_hex(8).encode()  # not to be guessed: whoever knew it could answer in the server's place
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[bytes] = loop.create_future()
        self._waiting[token] = reply
        timer = loop.call_later(timeout, _give_up, reply)
        try:
            self._nc.send(subject, payload, reply=self._prefix + token.decode(), headers=headers)
            return await reply
        finally:
            timer.cancel()
            self._waiting.pop(token, None)

    async def _open(self) -> None:
        async with self._opening:
            if not self._prefix:
                inbox = self._nc.new_inbox()
                await self._nc.attach(f"{inbox}.*", self._receive)
                self._prefix = f"{inbox}."

    def _receive(self, subject: bytes, _: bytes, data: bytes, headers: bytes | None) -> None:
        reply = self._waiting.pop(subject[len(self._prefix) :], None)
        if reply is None or reply.done():
            return
        if headers is not None and not data and headers.startswith(_NO_RESPONDERS):
            reply.set_exception(nats.errors.NoRespondersError())
        else:
            reply.set_result(data)


def _give_up(reply: "asyncio.Future[bytes]") -> None:
    if not reply.done():
        reply.set_exception(nats.errors.TimeoutError())
