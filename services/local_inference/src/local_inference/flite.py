"""Speech by flite, CMU's small synthesiser: the command, where it is installed."""

import asyncio
import tempfile
import unicodedata
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from handler_core.audio import BadAudio, read_wav
from local_inference.resampling import resampled
from local_inference.synthesizer import SynthesisFailed, pick, sentences

_TIME_LIMIT = 60.0
_FAVOURITES = ("slt", "rms", "awb", "kal16", "kal")
_CLOCKS = "_time"
_ASCII = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": ", ", "…": "..."}
)


class Flite:
    """A process for each sentence, at some fifty times the speed of speech. It reads ASCII; what can't be written so
    is left out.

    Args:
        processes: how many run at once at most.
    """

    model = "flite"
    description = "Speech by flite; any name of a model selects it."

    def __init__(self, processes: int = 1) -> None:
        self._slots = asyncio.Semaphore(processes)
        self._voices: list[str] = []

    async def voices(self) -> Sequence[str]:
        """Those that the command lists, but for its talking clocks."""
        if not self._voices:
            listed = (await self._run("-lv", output=PIPE)).decode().partition(":")[2].split()
            self._voices = sorted((name for name in listed if not name.endswith(_CLOCKS)), key=_rank)
        return self._voices

    async def voice(self, name: str | None) -> str:
        return pick(name, await self.voices())

    async def speak(self, text: str, voice: str, speed: float) -> AsyncIterator[bytes]:
        for sentence in sentences(text):
            yield await self._sentence(sentence, voice, speed)

    async def _sentence(self, text: str, voice: str, speed: float) -> bytes:
        with tempfile.TemporaryDirectory(prefix="flite-") as name:
            # Files, because nothing in a file is taken for an option, and because it cannot write a WAV into a pipe.
            source, target = Path(name, "text"), Path(name, "speech.wav")
            await asyncio.to_thread(source.write_text, _ascii(text) + "\n", "ascii")
            stretch = f"duration_stretch={1 / speed:.4f}"
            await self._run("-voice", voice, "--setf", stretch, "-f", str(source), "-o", str(target))
            return await asyncio.to_thread(_read, target)

    async def _run(self, *arguments: str, output: int = DEVNULL) -> bytes:
        async with self._slots:
            process = await asyncio.create_subprocess_exec(
                "flite", *arguments, stdin=DEVNULL, stdout=output, stderr=DEVNULL
            )
            try:
                async with asyncio.timeout(_TIME_LIMIT):
                    written, _ = await process.communicate()
            except TimeoutError:
                raise SynthesisFailed(f"flite took longer than {_TIME_LIMIT:g} s") from None
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        if process.returncode:
            raise SynthesisFailed(f"flite ended with code {process.returncode}")
        return written


def _rank(voice: str) -> tuple[int, str]:
    return (_FAVOURITES.index(voice) if voice in _FAVOURITES else len(_FAVOURITES), voice)


def _ascii(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text.translate(_ASCII))
    return decomposed.encode("ascii", "ignore").decode().replace("\0", "")


def _read(path: Path) -> bytes:
    try:
        audio = read_wav(path.read_bytes())
    except (OSError, BadAudio) as error:
        raise SynthesisFailed(f"flite wrote no audio: {error}") from None
    return resampled(bytes(audio.pcm), audio.format.sample_rate)
