"""Where audio comes from: a WAV file, or a pipe of WAV or raw PCM."""

import asyncio
import contextlib
import os
import stat
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from handler_core.audio import UNKNOWN_SIZE, BadAudio, PcmFormat, Wav, read_wav, sniff
from handler_core.errors import InvalidRequest

BLOCK = 64 * 1024
"""Bytes read at once."""
MAX_HEAD = 1 << 20
"""Bytes in which the samples of a piped WAV must have begun."""


@dataclass(frozen=True)
class Pcm:
    """Audio as it comes: pieces of any size, in this format."""

    format: PcmFormat
    pieces: AsyncIterator[bytes]
    paced: bool = False
    """Whether it comes at the pace at which it is spoken, as from a microphone."""


@contextlib.asynccontextmanager
async def opened(place: str, rate: int | None, channels: int | None) -> AsyncIterator[Pcm]:
    """The audio of a file, or of stdin for `-`.

    Args:
        rate: of raw PCM (16 bit, little-endian), which is what unknown data on stdin are taken for; in a file only
            where a rate is given.
        channels: of raw PCM.

    Raises:
        BadAudio: it is none of it; says what it is.
        OSError: it cannot be read.
    """
    raw = PcmFormat(rate or 16_000, 2, channels or 1)
    if place == "-":
        async with contextlib.aclosing(stdin_blocks()) as blocks:
            yield await _piped(blocks, raw)
        return
    data = await asyncio.to_thread(Path(place).read_bytes)
    if rate is not None and not sniff(data):
        yield Pcm(raw, _pieces(memoryview(data)))
    else:
        wav = wav_of(data, place)
        yield Pcm(wav.format, _pieces(wav.pcm))


def wav_of(data: bytes, place: str) -> Wav:
    """The samples of a WAV file; what is none is said with a way to make one of it."""
    try:
        return read_wav(data, field=place)
    except BadAudio as error:
        if (kind := sniff(data)) and kind != "wav":
            raise InvalidRequest(f"{error.message}; convert it: ffmpeg -i {place} -f wav - | …") from None
        raise


async def _pieces(data: memoryview) -> AsyncIterator[bytes]:
    for start in range(0, len(data), BLOCK):
        yield bytes(data[start : start + BLOCK])


# -- pipes


async def stdin_blocks() -> AsyncGenerator[bytes, None]:
    """What comes on stdin, as it comes.

    Raises:
        InvalidRequest: it is a terminal.
    """
    file = sys.stdin.buffer
    if file.isatty():
        raise InvalidRequest("stdin: is a terminal; `-` reads a pipe or a file")
    if not stat.S_ISFIFO(mode := os.fstat(file.fileno()).st_mode) and not stat.S_ISSOCK(mode):
        while block := file.read(BLOCK):  # a file, which is there at once
            yield block
        return
    # Not read in a thread, which an interrupt would leave waiting for a pipe that says nothing.
    reader = asyncio.StreamReader(limit=BLOCK)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file)
    try:
        while block := await reader.read(BLOCK):
            yield block
    finally:
        transport.close()


async def _piped(blocks: AsyncGenerator[bytes, None], raw: PcmFormat) -> Pcm:
    head = b""
    place: tuple[int, int] | None = None
    async for block in blocks:
        head += block
        place = _samples_at(head)
        if place is not None or len(head) > MAX_HEAD or (len(head) >= 12 and sniff(head) != "wav"):
            break
    if head and not sniff(head):
        return Pcm(raw, _rest(head, blocks, None))
    format = wav_of(head, "stdin").format
    start, size = place or (len(head), 0)
    # What stands behind the samples is no sound; a stream does not say where they end.
    return Pcm(format, _rest(head[start:], blocks, None if size in {0, UNKNOWN_SIZE} else size))


def _samples_at(head: bytes) -> tuple[int, int] | None:
    """Where the samples of a WAV begin, and the size that it gives them; None if they have not begun yet."""
    if sniff(head) != "wav":
        return None
    place = 12
    while place + 8 <= len(head):
        size = int.from_bytes(head[place + 4 : place + 8], "little")
        if head[place : place + 4] == b"data":
            return place + 8, size
        place += 8 + size + size % 2
    return None


async def _rest(head: bytes, blocks: AsyncGenerator[bytes, None], limit: int | None) -> AsyncIterator[bytes]:
    left = limit
    piece: bytes | None = head
    while piece is not None:
        piece = piece if left is None else piece[:left]
        if piece:
            yield piece
        if left is not None and not (left := left - len(piece)):
            return
        piece = await anext(blocks, None)
