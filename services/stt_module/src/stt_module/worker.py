"""What all sessions of a worker share."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from handler_core.connection import Connection
from handler_core.errors import Abandoned, HandlerError
from stt_module.meters import Meters
from stt_module.settings import Settings
from stt_module.transcription import Transcriber

CATCHING_UP = 8
"""Sessions at once that read what has piled up. The server has up to 2 MiB for each on its way to us, and gives up a
connection that lets 64 MiB pile up."""
MOST_HELD = 4 << 20
"""Bytes of audio that may wait for the transcription endpoint, of one session …"""
MOST_HELD_OF_ALL = 64 << 20
"""… and of all. Beyond, the stream keeps what comes."""


@dataclass(frozen=True, eq=False)
class Ownership:
    """Of a session that is listened to."""

    limit: asyncio.Timeout
    """Ends it."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Worker:
    """The connection, the endpoint, and how much of everything is in use."""

    nc: Connection
    settings: Settings
    transcriber: Transcriber
    meters: Meters
    sessions: int = 0
    """Tickets held."""
    held: int = 0
    """Bytes of audio that wait for the transcription endpoint."""
    full: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while no further session can be taken."""
    catching_up: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CATCHING_UP))
    owned: dict[str, Ownership] = field(default_factory=dict)
    """The sessions that are listened to."""

    @contextmanager
    def holding_a_ticket(self) -> Iterator[None]:
        """Count a session while it is listened to."""
        self.sessions += 1
        if self.sessions >= self.settings.max_sessions:
            self.full.set()
        try:
            yield
        finally:
            self.sessions -= 1
            self.full.clear()

    @asynccontextmanager
    async def owning(self, session: str) -> AsyncIterator[None]:
        """A block that listens to a session; it begins once an earlier one of the same session has ended.

        Raises:
            Abandoned: the ticket has come again, as it does when the network has stalled, and a later block goes on.
        """
        while (earlier := self.owned.get(session)) is not None:
            if not earlier.limit.expired():
                earlier.limit.reschedule(asyncio.get_running_loop().time())
            await earlier.ended.wait()
        own = Ownership(asyncio.timeout(None))
        self.owned[session] = own
        try:
            async with own.limit:
                yield
        except (TimeoutError, HandlerError):
            if not own.limit.expired():
                raise
            raise Abandoned(f"the ticket of the session {session} has come again") from None
        finally:
            del self.owned[session]
            own.ended.set()

    def too_much(self, held: int) -> bool:
        """Whether a session, of which so many bytes wait, should read no more for now; never where none wait."""
        return held > 0 and (held > MOST_HELD or self.held > MOST_HELD_OF_ALL)
