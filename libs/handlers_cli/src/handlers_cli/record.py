"""Recording a question: from the microphone, until it is silent or Enter is pressed."""

import asyncio
import contextlib
import sys
from collections.abc import Iterator

from handler_core.audio import PcmFormat, peak
from handlers_cli.session import err, interactive
from handlers_cli.sound import microphone

CHUNK = 0.03
"""Seconds."""
LOUD = 0.02
"""The least peak of speech, a part of the loudest possible; in noise it is three times that of the first moments."""
NOISE = 0.3
"""Seconds at the beginning by which the noise is judged."""
SILENCE = 1.2
"""Seconds of silence, once something was said, that end it."""
LONGEST = 60.0
"""Seconds."""


class Ear:
    """Tells when somebody has finished speaking, by loudness alone."""

    def __init__(self) -> None:
        self._heard = 0.0
        self._noise = 0.0
        self._spoken = False
        self._silent = 0.0

    def done(self, pcm: bytes, format: PcmFormat) -> bool:
        """Whether the speaker has finished, by this piece of 16 bit samples and those before it."""
        seconds, loudness = format.seconds(len(pcm)), peak(pcm)
        self._heard += seconds
        threshold = max(LOUD, 3 * self._noise)
        if self._heard <= NOISE and loudness < 4 * LOUD:
            self._noise = max(self._noise, loudness)
        elif loudness > threshold:
            self._spoken, self._silent = True, 0.0
        else:
            self._silent += seconds
        return self._heard >= LONGEST or (self._spoken and self._silent >= SILENCE)


async def record() -> tuple[bytes, PcmFormat]:
    """What is said into the default microphone, in 16 bit mono.

    Raises:
        NoSound: there is none.
    """
    ear = Ear()
    audio = bytearray()
    async with microphone(CHUNK) as pcm:
        if interactive():
            err.print("[dim]speak; silence or Enter ends it[/]")
        with _enter() as pressed:
            async for piece in pcm.pieces:
                audio += piece
                if pressed.is_set() or ear.done(piece, pcm.format):
                    break
        return bytes(audio), pcm.format


@contextlib.contextmanager
def _enter() -> Iterator[asyncio.Event]:
    """An event that is set when a line is typed, where somebody can."""
    pressed = asyncio.Event()
    if not sys.stdin.isatty():
        yield pressed
        return
    loop = asyncio.get_running_loop()

    def read() -> None:
        sys.stdin.readline()
        pressed.set()

    loop.add_reader(sys.stdin, read)
    try:
        yield pressed
    finally:
        loop.remove_reader(sys.stdin)
