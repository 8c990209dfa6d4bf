"""What the endpoints ask of a model, and the model itself: all-MiniLM-L6-v2 on the CPU."""

import asyncio
import functools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar

from local_inference.lexical import overlap
from local_inference.prompt import Turn, read_prompt

if TYPE_CHECKING:
    from local_inference.bert import Floats
    from local_inference.encoder import Encoder

P = ParamSpec("P")
R = TypeVar("R")

_COSINE_WEIGHT = 0.75
_MIDDLE = 0.25
_STEEPNESS = 12.0


class ModelMissing(Exception):
    """The package that carries the model's weights and tokenizer is not installed."""


class InputTooLong(Exception):
    """A text has more tokens than the model reads, and the client asked not to have it cut."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector a text, in the order of the texts."""

    vectors: list[list[float]]
    tokens: int
    """How many tokens the model read for them."""


class Engine(Protocol):
    """A model behind the endpoints."""

    chat_model: str
    embedding_model: str
    description: str
    dimensions: int
    max_input_tokens: int

    async def start(self) -> None:
        """Get ready to answer. Nothing else may be called before."""

    def close(self) -> None:
        """Let go of threads; work that has not begun is dropped."""

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has."""

    async def answer(self, turns: Sequence[Turn]) -> str:
        """The reply to a conversation."""

    async def embed(self, texts: Sequence[str], *, normalize: bool = True, truncate: bool = True) -> Embeddings:
        """Embeddings of length 1, or as the model pools them when not `normalize`.

        Raises:
            InputTooLong: a text exceeds `max_input_tokens` and `truncate` is off.
        """

    async def rerank(self, query: str, texts: Sequence[str], *, raw: bool = False) -> list[float]:
        """How well each text answers the query: higher is better, within 0 and 1 unless `raw`."""


class MiniLM:
    """Real embeddings, an extractive responder and a hybrid reranker.

    All arithmetic runs in worker threads, a batch each, so that the event loop stays responsive and concurrent requests
    take turns. OpenBLAS itself gets one thread: several of its own wait for each other by spinning, which on a busy
    machine takes longer than the product. It heeds this only if numpy was not imported before.

    Args:
        threads: how many batches are computed at once.
    """

    chat_model = "extractive-minilm"
    description = (
        "Development only, no language model: quotes the sentences of the prompt's passages that are nearest to the "
        "question by all-MiniLM-L6-v2 embeddings and shared words."
    )

    def __init__(self, threads: int = 1) -> None:
        self._workers = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="minilm")
        self._encoder: Encoder

    async def start(self) -> None:
        """Map the weights and run once, so that the first request finds warm pages.

        Raises:
            ModelMissing: the package with the weights is not installed.
        """
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        from local_inference import encoder  # imports numpy, which reads the variable above

        self.embedding_model = encoder.MODEL_ID
        self.max_input_tokens = encoder.MAX_TOKENS
        self._encoder = await self._run(encoder.Encoder, encoder.model_directory())
        self.dimensions = self._encoder.dimensions
        await self.embed(["Ready to serve."])

    def close(self) -> None:
        self._workers.shutdown(wait=False, cancel_futures=True)

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return await self._run(self._encoder.count_tokens, texts)

    async def answer(self, turns: Sequence[Turn]) -> str:
        from local_inference import responder

        return await responder.answer(read_prompt(turns), self._vectors)

    async def embed(self, texts: Sequence[str], *, normalize: bool = True, truncate: bool = True) -> Embeddings:
        from local_inference.encoder import batches

        tokenized = await self._run(self._encoder.tokenize, texts)
        longest = max(text.length for text in tokenized)
        if longest > self.max_input_tokens and not truncate:
            raise InputTooLong(f"must have at most {self.max_input_tokens} tokens. Given: {longest}")
        vectors: list[list[float]] = [[] for _ in texts]

        async def compute(group: list[int]) -> None:
            batch = [tokenized[index] for index in group]
            embedded = await self._run(functools.partial(self._encoder.embed, normalize=normalize), batch)
            # Eight decimals are all that float32 holds here; more would only make the JSON longer.
            for index, vector in zip(group, embedded.astype("f8").round(8).tolist(), strict=True):
                vectors[index] = vector

        async with asyncio.TaskGroup() as tasks:
            for group in batches(tokenized):
                tasks.create_task(compute(group))
        return Embeddings(vectors, sum(len(text.ids) for text in tokenized))

    async def rerank(self, query: str, texts: Sequence[str], *, raw: bool = False) -> list[float]:
        """Three parts embedding cosine, one part word overlap (BM25, `lexical.overlap`): no cross-encoder.

        The raw sum s lies within -0.75 and 1; by default it is mapped to 1 / (1 + exp(-12·(s - 0.25))), which puts
        unrelated texts near 0.1 and good matches above 0.6. As the overlap weighs words by how many of the texts have
        them, scores of different requests compare only roughly.
        """
        vectors = await self._vectors([query, *texts])
        cosines: list[float] = (vectors[1:] @ vectors[0]).tolist()
        shared = overlap(query, texts)
        sums = [_COSINE_WEIGHT * a + (1 - _COSINE_WEIGHT) * b for a, b in zip(cosines, shared, strict=True)]
        return sums if raw else [1 / (1 + math.exp(-_STEEPNESS * (value - _MIDDLE))) for value in sums]

    async def _vectors(self, texts: Sequence[str]) -> "Floats":
        import numpy as np

        return np.array((await self.embed(texts)).vectors, dtype=np.float32)

    async def _run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        work = functools.partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._workers, work)
