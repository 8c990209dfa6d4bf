"""What a stream republishes on a few subjects: every message once, in its order, over lost connections too."""

import asyncio
from collections import deque
from types import TracebackType
from typing import Any, NamedTuple

from handler_core.connection import Connection
from handler_core.errors import Transient
from handler_core.jetstream import Api, JetStreamError
from handler_core.streams import AI_EVENTS, STREAM_NOT_FOUND

SEQUENCE = "Nats-Sequence"
AGAIN = 0.5
"""Seconds after which a stream that did not answer is asked again."""


class Item(NamedTuple):
    """A stored message."""

    subject: str
    """Where it was republished, below `ai.`."""
    sequence: int
    data: bytes


class Feed:
    """Listens on subjects below `ai.` from `async with` on; what was missed is read from the stream.

    Entering it raises `Transient` where there is no such stream, or it does not answer.

    Args:
        subjects: without wildcards.
    """

    def __init__(self, nc: Connection, *subjects: str) -> None:
        self._nc = nc
        self._api = Api(nc)
        self._seen = dict.fromkeys(subjects, 0)
        self._arrived: asyncio.Queue[Item | None] = asyncio.Queue()
        self._missed: deque[Item] = deque()
        self._reconnects = 0
        self._subscriptions: list[Any] = []

    async def __aenter__(self) -> "Feed":
        self._reconnects = self._nc.stats["reconnects"]
        self._nc.on_reconnect.append(self.look)
        for subject in self._seen:
            self._subscriptions.append(await self._nc.subscribe(subject, cb=self._take))
        try:
            for subject in self._seen:
                last = await self._api.last(AI_EVENTS.name, _stored_as(subject))
                self._seen[subject] = 0 if last is None else last.sequence
        except JetStreamError as error:
            await self.__aexit__()
            if error.err_code != STREAM_NOT_FOUND:
                raise
            raise Transient(f"NATS has no stream {AI_EVENTS.name}; handlers streams apply creates it") from None
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._nc.on_reconnect.remove(self.look)
        if not self._nc.is_closed:
            for subscription in self._subscriptions:
                await subscription.unsubscribe()

    async def _take(self, message: Any) -> None:
        # nats-py hands out messages of a new connection before it says that there is one.
        if self._nc.stats["reconnects"] != self._reconnects:
            self.look()
        sequence = (message.headers or {}).get(SEQUENCE, "")
        if sequence.isdecimal():
            self._arrived.put_nowait(Item(message.subject, int(sequence), message.data))

    def look(self) -> None:
        """Have the stream read for what may have been missed, before anything that arrives from now on."""
        self._reconnects = self._nc.stats["reconnects"]
        self._arrived.put_nowait(None)

    async def next(self) -> Item:
        """The next message; waits for it.

        Raises:
            JetStreamError: the stream cannot be read.
        """
        while not self._missed:
            item = await self._arrived.get()
            if item is None:
                self._missed.extend(await self.stored())
            elif item.sequence > self._seen[item.subject]:
                self._seen[item.subject] = item.sequence
                return item
        return self._missed.popleft()

    async def stored(self) -> list[Item]:
        """What the stream holds by now that `next` has not given; neither will it."""
        found: dict[int, Item] = {}
        latest = dict(self._seen)
        for subject in latest:
            while (stored := await self._stored(subject, latest[subject] + 1)) is not None:
                found[stored.sequence] = stored
                latest[subject] = stored.sequence
        self._seen = latest
        return [found[sequence] for sequence in sorted(found)]

    async def _stored(self, subject: str, sequence: int) -> Item | None:
        while True:
            try:
                stored = await self._api.next(AI_EVENTS.name, _stored_as(subject), sequence)
            except Transient:  # as after the loss of a server
                await asyncio.sleep(AGAIN)
                continue
            return None if stored is None else Item(subject, stored.sequence, stored.data)


def _stored_as(subject: str) -> str:
    return "evt." + subject.removeprefix("ai.")
