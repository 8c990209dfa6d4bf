"""Text to speech: what the endpoints ask for, and which engine there is."""

import re
import shutil
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from handler_core.audio import PcmFormat

FORMAT = PcmFormat(sample_rate=24_000)
"""Of all speech, as OpenAI's: 24 kHz s16le mono."""
CHUNK = FORMAT.bytes_per_second // 10
"""Bytes of a chunk, 100 ms."""
_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|\n+")


class SynthesisFailed(Exception):
    """The engine made no audio."""


class UnknownVoice(Exception):
    """The engine has no such voice; the message names those that it has."""

    def __init__(self, name: str, voices: Sequence[str]) -> None:
        super().__init__(f"there is no voice {name!r}; there are: {', '.join(voices)}")


class Synthesizer(Protocol):
    """An engine that speaks."""

    model: str
    description: str

    async def voices(self) -> Sequence[str]:
        """The names of its voices, the default one first."""

    async def voice(self, name: str | None) -> str:
        """The voice of that name; the default one for none or an empty one.

        Raises:
            UnknownVoice: there is none.
        """

    def speak(self, text: str, voice: str, speed: float) -> AsyncIterator[bytes]:
        """Audio in `FORMAT`, a sentence at a time as it is made; some for any text.

        Args:
            speed: 1 is the voice's own pace, 2 twice that.

        Raises:
            SynthesisFailed: while it is iterated.
        """


def pick(name: str | None, voices: Sequence[str]) -> str:
    """As `Synthesizer.voice`, of these."""
    if not name:
        return voices[0]
    if name not in voices:
        raise UnknownVoice(name, voices)
    return name


def sentences(text: str) -> list[str]:
    """The text cut where sentences and lines end; the whole text where nothing else is left."""
    return [part for part in map(str.strip, _SENTENCE_END.split(text)) if part] or [text]


def has_flite() -> bool:
    """Whether the command is installed."""
    return shutil.which("flite") is not None


async def chunked(audio: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same audio in pieces of `CHUNK`, the last one shorter."""
    rest = b""
    async for piece in audio:
        data = rest + piece
        whole = len(data) - len(data) % CHUNK
        for start in range(0, whole, CHUNK):
            yield data[start : start + CHUNK]
        rest = data[whole:]
    if rest:
        yield rest
