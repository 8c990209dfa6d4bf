"""Speech by espeak-ng: the library that comes in the wheel of espeakng-loader, so that there is always a voice.

The names of functions, constants and structures are those of espeak-ng's `speak_lib.h`.
"""

import asyncio
import ctypes
import functools
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar

from local_inference.resampling import resampled
from local_inference.synthesizer import SynthesisFailed, pick, sentences

_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_RATE_PARAMETER = 1
_POS_CHARACTER = 1
_CHARS_UTF8 = 1
_WORDS_PER_MINUTE = 175
_FAVOURITES = ("en-us", "en-gb")

# The library has one state for the whole process, and is not thread-safe.
_LOCK = threading.Lock()


class _Voice(ctypes.Structure):
    """The begin of `espeak_VOICE`."""

    _fields_: ClassVar = [("name", ctypes.c_char_p), ("languages", ctypes.c_char_p)]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """The English voices of espeak-ng, one sentence at a time, in a worker thread. The slowest that it speaks is 80
    words a minute, which is a speed of 0.46."""

    model = "espeak-ng"
    description = "Speech by espeak-ng; any name of a model selects it."

    async def voices(self) -> Sequence[str]:
        return await asyncio.to_thread(_voices)

    async def voice(self, name: str | None) -> str:
        return pick(name, await self.voices())

    async def speak(self, text: str, voice: str, speed: float) -> AsyncIterator[bytes]:
        for sentence in sentences(text):
            yield await asyncio.to_thread(_speak, sentence, voice, speed)


class _Library:
    """The library, started, and what its callback has received."""

    def __init__(self) -> None:
        import espeakng_loader

        self.lib = ctypes.CDLL(espeakng_loader.get_library_path())
        self.lib.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Voice))
        path = espeakng_loader.get_data_path().encode()
        self.sample_rate: int = self.lib.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, path, _INITIALIZE_DONT_EXIT)
        if self.sample_rate <= 0:
            raise SynthesisFailed("espeak-ng does not start: its data are missing")
        self.received: list[bytes] = []
        self._callback = self._receiver()  # kept: the library holds no reference
        self.lib.espeak_SetSynthCallback(self._callback)

    def _receiver(self) -> Any:
        def receive(samples: Any, count: int, _events: Any) -> int:
            if count > 0:
                self.received.append(ctypes.string_at(samples, 2 * count))
            return 0

        return _Callback(receive)


@functools.cache
def _library() -> _Library:
    return _Library()


def _voices() -> list[str]:
    with _LOCK:
        voices = _library().lib.espeak_ListVoices(None)
        names = []
        for place in range(1_000_000):
            if not voices[place]:
                break
            # The first language, after a byte with its priority.
            names.append(voices[place].contents.languages[1:].decode())
    english = {name for name in names if name.partition("-")[0] == "en"}
    return [*_FAVOURITES, *sorted(english.difference(_FAVOURITES))]


def _speak(text: str, voice: str, speed: float) -> bytes:
    data = text.replace("\0", " ").encode("utf-8", "replace") + b"\0"
    with _LOCK:
        library = _library()
        library.received.clear()
        library.lib.espeak_SetVoiceByName(voice.encode())
        library.lib.espeak_SetParameter(_RATE_PARAMETER, round(_WORDS_PER_MINUTE * speed), 0)
        failed = library.lib.espeak_Synth(data, len(data), 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None)
        pcm = b"".join(library.received)
    if failed:
        raise SynthesisFailed(f"espeak-ng ended with code {failed}")
    return resampled(pcm, library.sample_rate)
