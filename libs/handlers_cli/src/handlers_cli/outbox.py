"""A live session's messages on their way to its stream: in their order, none lost, none twice.

Each is published once the one before is stored, and again under the same `Nats-Msg-Id` until it is: of several in
flight some could be lost with a connection and those after them not. Audio that comes meanwhile goes out as one chunk,
so that a slow server costs larger chunks and no delay that grows.
"""

import asyncio
import uuid
from collections import deque

from handler_core.codec import encode
from handler_core.connection import Connection
from handler_core.contract.stt import MAX_CHUNK, STREAM_SUBJECT, StreamMessage
from handler_core.errors import Transient
from handler_core.jetstream import MSG_ID, Api
from handler_core.streams import AI_STT

AGAIN = 0.5
"""Seconds until a message that was not stored is tried again."""


class Outbox:
    """What waits to be published in one session; `run` publishes it."""

    def __init__(self, nc: Connection, session: str) -> None:
        self._api = Api(nc)
        self._subject = STREAM_SUBJECT.format(session=session)
        self._writer = f"{session}:{uuid.uuid4().hex[:12]}"
        self._waiting: deque[bytes | StreamMessage] = deque()
        self._current: StreamMessage | None = None
        self._published = 0
        self._seq = 0
        self._work = asyncio.Event()
        self._empty = asyncio.Event()
        self.closed = False
        """Whether the session's `end` is on its way; nothing is taken any more."""

    def put(self, piece: bytes | StreamMessage) -> None:
        """Publish audio, or another message, after all that was put before."""
        if self.closed:
            return
        self.closed = isinstance(piece, StreamMessage) and piece.type == "end"
        self._waiting.append(piece)
        self._empty.clear()
        self._work.set()

    async def drained(self) -> None:
        """Wait until all is stored."""
        await self._empty.wait()

    async def run(self) -> None:
        """Publish what comes, until `end` is stored; cancelled, it can be run again and goes on.

        Raises:
            Transient: there is no such stream, or it has not answered for as long as it knows a message again.
            JetStreamError: the stream refused a message.
        """
        while True:
            while self._current is None and not self._waiting:
                self._empty.set()
                self._work.clear()
                await self._work.wait()
            self._current = self._current or self._next()
            await self._store(self._current)
            ended = self._current.type == "end"
            self._current = None
            self._published += 1
            if ended:
                self._empty.set()
                return

    def _next(self) -> StreamMessage:
        piece = self._waiting.popleft()
        if isinstance(piece, StreamMessage):
            self._seq = 0 if piece.type == "start" else self._seq
            return piece
        audio = bytearray(piece)
        while self._waiting and isinstance(more := self._waiting[0], bytes) and len(audio) + len(more) <= MAX_CHUNK:
            audio += more
            self._waiting.popleft()
        self._seq += 1
        return StreamMessage(type="chunk", audio=bytes(audio), seq=self._seq - 1)

    async def _store(self, message: StreamMessage) -> None:
        headers = {MSG_ID: f"{self._writer}:{self._published}"}
        payload = encode(message)
        loop = asyncio.get_running_loop()
        give_up = loop.time() + AI_STT.duplicate_window
        while True:
            try:
                await self._api.publish(self._subject, payload, headers)
            except Transient as error:
                if not self._published:
                    raise
                if loop.time() > give_up:
                    text = f"the session's audio was not taken for {AI_STT.duplicate_window:g} s: {error.message}"
                    raise Transient(text) from None
                await asyncio.sleep(AGAIN)
            else:
                return
