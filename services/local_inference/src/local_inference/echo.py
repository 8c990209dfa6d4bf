"""Engines that cost next to nothing, for benchmarks of what stands in front of a model."""

import hashlib
import math
import struct
from collections.abc import AsyncIterator, Sequence

from handler_core.audio import Wav
from local_inference.engine import Embeddings
from local_inference.lexical import terms
from local_inference.prompt import Turn
from local_inference.synthesizer import CHUNK, FORMAT
from local_inference.transcriber import Segment, Word


class Echo:
    """No model: hash embeddings and replies of a fixed length, the same for the same input.

    Args:
        dimensions: of an embedding; a multiple of 8.
        tokens: in a reply.
    """

    chat_model = "echo"
    embedding_model = "echo"
    description = "Benchmarks only, no model: fixed-length replies and hash embeddings."
    max_input_tokens = 1_000_000

    def __init__(self, dimensions: int = 384, tokens: int = 64) -> None:
        self.dimensions = dimensions
        self._reply = "token " * (tokens - 1) + "end."
        # Every coordinate is ± the same value, so each vector has length 1; a byte of the hash makes eight of them.
        step = dimensions**-0.5
        self._signs = [[step if byte >> bit & 1 else -step for bit in range(8)] for byte in range(256)]

    async def start(self) -> None:
        pass

    def close(self) -> None:
        pass

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Words, for tokens."""
        return [len(text.split()) for text in texts]

    async def answer(self, turns: Sequence[Turn]) -> str:
        return self._reply

    async def embed(self, texts: Sequence[str], *, normalize: bool = True, truncate: bool = True) -> Embeddings:
        """Equal texts have equal vectors; unequal ones have a cosine near 0."""
        vectors = [self._hash(text) for text in texts]
        return Embeddings(vectors, sum(await self.count_tokens(texts)))

    async def rerank(self, query: str, texts: Sequence[str], *, raw: bool = False) -> list[float]:
        """The share of the query's words that stand in the text."""
        wanted = set(terms(query))
        return [len(wanted.intersection(terms(text))) / (len(wanted) or 1) for text in texts]

    def _hash(self, text: str) -> list[float]:
        digest = hashlib.shake_256(text.encode("utf-8", "surrogatepass")).digest(self.dimensions // 8)
        return [value for byte in digest for value in self._signs[byte]]


class EchoTranscriber:
    """Hears nothing: two words for each second of audio, whatever is said in it."""

    model = "echo"
    description = Echo.description

    async def transcribe(self, audio: Wav) -> list[Segment]:
        """One segment, `token token … end.`, each word half a second long."""
        count = max(1, round(2 * audio.format.seconds(len(audio.pcm))))
        texts = ["token"] * (count - 1) + ["end."]
        return [Segment([Word(text, place / 2, (place + 1) / 2) for place, text in enumerate(texts)], 0.0)]

    async def close(self) -> None:
        pass


class EchoSynthesizer:
    """A tone of 240 Hz, 60 ms for each character, a tenth of a second at least. Takes any voice."""

    model = "echo"
    description = Echo.description

    def __init__(self) -> None:
        # A chunk holds 24 whole waves, so that one follows on the other without a click.
        rate, count = FORMAT.sample_rate, CHUNK // FORMAT.frame_size
        waves = (round(8000 * math.sin(2 * math.pi * 240 * sample / rate)) for sample in range(count))
        self._chunk = struct.pack(f"<{count}h", *waves)

    async def voices(self) -> Sequence[str]:
        return [self.model]

    async def voice(self, name: str | None) -> str:
        return name or self.model

    async def speak(self, text: str, voice: str, speed: float) -> AsyncIterator[bytes]:
        for _ in range(max(1, round(len(text) * 0.6 / speed))):
            yield self._chunk
