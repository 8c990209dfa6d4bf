"""Speech to text: what the endpoint asks for, and the engine that recognises it."""

import asyncio
import json
import math
import struct
import sys
import zlib
from asyncio.subprocess import PIPE, Process
from dataclasses import dataclass
from typing import Protocol

from handler_core.audio import Wav, to_s16
from local_inference.recognizer import SAMPLE_RATE


class TranscriptionFailed(Exception):
    """The process that recognises speech ended in the middle of it."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word, where it stands in seconds, and how sure the decoder is of it, within 0 and 1."""

    text: str
    start: float
    end: float
    probability: float = 1.0


@dataclass(frozen=True, slots=True)
class Segment:
    """What was said between two pauses; at least one word."""

    words: list[Word]
    no_speech_prob: float
    """The share of 30-ms frames, from the first word to the last, in which the voice activity detector heard none."""

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)

    @property
    def avg_logprob(self) -> float:
        """The mean logarithm of the words' probabilities: 0 is certain; what is misheard lies mostly under -1."""
        return sum(math.log(word.probability) for word in self.words) / len(self.words)

    @property
    def compression_ratio(self) -> float:
        """How much shorter the text gets by zlib, as Whisper has it: repetition is above 2.4."""
        text = self.text.encode()
        return len(text) / len(zlib.compress(text))


class Transcriber(Protocol):
    """A model that recognises speech."""

    model: str
    description: str

    async def transcribe(self, audio: Wav) -> list[Segment]:
        """What is said, in order; nothing for silence.

        Raises:
            TranscriptionFailed: there is no telling; another try may succeed.
        """

    async def close(self) -> None:
        """End what runs."""


class PocketSphinx:
    """Real recognition of English on the CPU, at about five times the speed of speech.

    Decoding runs in processes of their own (`recognizer`), each started when it is first needed: half a second and
    100 MB. More requests than processes take turns, and a request that is given up ends its process.

    Args:
        processes: how many there are at most.
    """

    model = "pocketsphinx-en-us"
    description = (
        "English speech by pocketsphinx, in lower case and without punctuation; any name of a model selects it."
    )

    def __init__(self, processes: int = 1) -> None:
        self._slots = asyncio.Semaphore(processes)
        self._idle: list[Process] = []

    async def transcribe(self, audio: Wav) -> list[Segment]:
        pcm = await asyncio.to_thread(_for_recognizer, audio)
        async with self._slots:
            process = await self._process()
            try:
                utterances = json.loads(await _ask(process, pcm))
            except BaseException:
                await _end(process)
                raise
            self._idle.append(process)
        return [
            Segment([Word(*word) for word in utterance["words"]], utterance["unvoiced"]) for utterance in utterances
        ]

    async def close(self) -> None:
        while self._idle:
            await _end(self._idle.pop())

    async def _process(self) -> Process:
        while self._idle:
            # The one used last, so that a second one is started only for requests at the same time.
            process = self._idle.pop()
            if process.returncode is None:
                return process
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "local_inference.recognizer", stdin=PIPE, stdout=PIPE, limit=64 * 1024 * 1024
        )


async def _ask(process: Process, pcm: bytes) -> bytes:
    assert process.stdin is not None  # noqa: S101 - made with pipes
    assert process.stdout is not None  # noqa: S101
    try:
        process.stdin.write(struct.pack("<I", len(pcm)) + pcm)
        await process.stdin.drain()
        return await process.stdout.readuntil(b"\n")
    except (ConnectionError, asyncio.IncompleteReadError):
        raise TranscriptionFailed("the speech recogniser ended unexpectedly") from None


async def _end(process: Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


def _for_recognizer(audio: Wav) -> bytes:
    """The mean of the channels at 16 kHz, s16le."""
    import numpy as np
    import soxr

    samples = np.frombuffer(to_s16(audio.pcm, audio.format.width), dtype="<i2")
    mono = samples.reshape(-1, audio.format.channels).mean(axis=1, dtype=np.float32)
    if audio.format.sample_rate != SAMPLE_RATE:
        mono = soxr.resample(mono, audio.format.sample_rate, SAMPLE_RATE)
    pcm: bytes = mono.round().clip(-32768, 32767).astype("<i2").tobytes()
    return pcm
