"""What all sessions of a worker share."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from handler_core.connection import Connection
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

    def too_much(self, held: int) -> bool:
        """Whether a session, of which so many bytes wait, should read no more for now; never where none wait."""
        return held > 0 and (held > MOST_HELD or self.held > MOST_HELD_OF_ALL)
