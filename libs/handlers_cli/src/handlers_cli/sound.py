"""The sound card: playing and recording, where the package `sounddevice` and PortAudio are installed."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple, Protocol

from handler_core.audio import PcmFormat
from handlers_cli.resample import SPEECH_RATE
from handlers_cli.source import Pcm

SLICE = 0.1
"""Seconds of audio handed to the device at once: how soon playing stops."""
DTYPES = {1: "uint8", 2: "int16", 3: "int24", 4: "int32"}


class NoSound(OSError):
    """There is no way to play or to record here; the message says what to install."""


def sounddevice() -> Any:
    """The module.

    Raises:
        NoSound: it, or PortAudio, is not installed.
    """
    try:
        import sounddevice as module
    except ImportError:
        raise NoSound("no sound: the package sounddevice is not installed: pip install 'handlers-cli[audio]'") from None
    except OSError as error:
        install = "apt install libportaudio2 (Debian, Ubuntu), dnf install portaudio (Fedora), brew install portaudio"
        raise NoSound(f"no sound: {error}; install PortAudio: {install}") from None
    return module


@contextlib.contextmanager
def _device_errors(module: Any, what: str) -> Iterator[None]:
    try:
        yield
    except module.PortAudioError as error:
        raise NoSound(f"no sound: {what}: {error}") from None


# -- playing


class Output(Protocol):
    """What plays one slice after the other."""

    async def play(self, pcm: bytes, format: PcmFormat) -> None:
        """Returns when the next slice may come."""

    async def drain(self) -> None:
        """Returns when all has been heard."""

    def abort(self) -> None:
        """Be quiet at once."""


class Silence:
    """Plays nothing, and takes as long."""

    async def play(self, pcm: bytes, format: PcmFormat) -> None:
        await asyncio.sleep(format.seconds(len(pcm)))

    async def drain(self) -> None:
        pass

    def abort(self) -> None:
        pass


class Speaker:
    """The default output device; opened when there is something to play.

    Raises:
        NoSound: it cannot be.
    """

    def __init__(self) -> None:
        self._module = sounddevice()
        with _device_errors(self._module, "there is no output device"):
            self._module.query_devices(kind="output")
        self._stream: Any = None
        self._format: PcmFormat | None = None

    async def play(self, pcm: bytes, format: PcmFormat) -> None:
        if format != self._format:
            await self.drain()
            self._open(format)
        with _device_errors(self._module, "the output device failed"):
            await asyncio.to_thread(self._stream.write, pcm)

    def _open(self, format: PcmFormat) -> None:
        rate, channels, kind = format.sample_rate, format.channels, DTYPES[format.width]
        with _device_errors(self._module, f"the output device takes no {rate} Hz, {channels} channels"):
            self._stream = self._module.RawOutputStream(samplerate=rate, channels=channels, dtype=kind)
            self._stream.start()
        self._format = format

    async def drain(self) -> None:
        if self._stream is not None:
            await asyncio.to_thread(self._stream.stop)
        self._close()

    def abort(self) -> None:
        if self._stream is not None:
            self._stream.abort()
        self._close()

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = self._format = None


class _Piece(NamedTuple):
    of: str
    number: int
    pcm: bytes
    format: PcmFormat


class Player:
    """Plays pieces of audio one after the other, while `run` runs; what waits can be replaced, and all of it stopped.

    Args:
        on_change: told True when the playing of a turn begins, and False when all that is open has been heard.
    """

    def __init__(self, output: Output, on_change: Callable[[bool], None] = lambda _: None) -> None:
        self._output = output
        self._on_change = on_change
        self._waiting: deque[_Piece] = deque()
        self._open: set[str] = set()
        self._stopped: set[str] = set()
        self._stops = 0
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._playing = False
        self._failure: NoSound | None = None

    def put(self, of: str, number: int, pcm: bytes, format: PcmFormat) -> None:
        """Play a piece of a turn after those before it; one of a number that still waits replaces it and what follows
        it. One of a turn that was stopped is dropped."""
        if of in self._stopped:
            return
        kept = [piece for piece in self._waiting if piece.of != of or piece.number < number]
        self._waiting = deque([*kept, _Piece(of, number, pcm, format)])
        self._open.add(of)
        self._wake()

    def end(self, of: str) -> None:
        """No more pieces of this turn will come."""
        self._open.discard(of)
        self._wake()

    def stop(self) -> None:
        """Be quiet, and drop what there is to come of all turns so far."""
        self._stopped |= self._open | {piece.of for piece in self._waiting}
        self._waiting.clear()
        self._open.clear()
        self._stops += 1
        self._wake()

    async def finished(self) -> None:
        """Wait until all has been heard.

        Raises:
            NoSound: the device failed.
        """
        await self._idle.wait()
        if self._failure is not None:
            raise self._failure

    def _wake(self) -> None:
        if self._failure is None:
            self._idle.clear()
            self._work.set()

    async def run(self) -> None:
        """Play until cancelled, or until the device fails, which `finished` tells."""
        try:
            await self._run()
        except NoSound as error:
            self._failure = error
            self._change(False)
            self._idle.set()

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._waiting:
                self._change(True)
                await self._play(self._waiting.popleft())
            if self._open:
                continue  # more of it is being made
            await self._output.drain()
            if not self._waiting and not self._open:
                self._change(False)
                self._idle.set()

    async def _play(self, piece: _Piece) -> None:
        stops = self._stops
        size = max(1, int(piece.format.sample_rate * SLICE)) * piece.format.frame_size
        for start in range(0, len(piece.pcm), size):
            await self._output.play(piece.pcm[start : start + size], piece.format)
            if self._stops != stops:
                self._output.abort()
                return

    def _change(self, playing: bool) -> None:
        if playing is not self._playing:
            self._playing = playing
            self._on_change(playing)


# -- recording


@contextlib.asynccontextmanager
async def microphone(seconds: float) -> AsyncIterator[Pcm]:
    """The default input device, in pieces of so many seconds.

    Raises:
        NoSound: there is none.
    """
    module = sounddevice()
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def hear(data: Any, *_: Any) -> None:  # in a thread of PortAudio's own
        loop.call_soon_threadsafe(heard.put_nowait, bytes(data))

    with _device_errors(module, "the microphone cannot be opened"):
        rate = _input_rate(module)
        block = max(1, int(rate * seconds))
        stream = module.RawInputStream(samplerate=rate, channels=1, dtype="int16", blocksize=block, callback=hear)
        stream.start()
    try:
        yield Pcm(PcmFormat(rate), _heard(heard), paced=True)
    finally:
        stream.stop()
        stream.close()


def _input_rate(module: Any) -> int:
    """What speech needs, where the device can; else what it does by itself."""
    try:
        module.check_input_settings(samplerate=SPEECH_RATE, channels=1, dtype="int16")
    except module.PortAudioError:
        return int(module.query_devices(kind="input")["default_samplerate"])
    return SPEECH_RATE


async def _heard(queue: "asyncio.Queue[bytes]") -> AsyncIterator[bytes]:
    while True:
        yield await queue.get()
