"""Vectors for texts, from an OpenAI-compatible endpoint or text-embeddings-inference (TEI)."""

import base64
import binascii
import math
import sys
from array import array
from collections.abc import Sequence
from typing import Any, NoReturn

from handler_core.clients.batches import Batches
from handler_core.clients.failures import UpstreamError
from handler_core.clients.http import Upstream
from handler_core.deadline import Deadline
from handler_core.tracing import Value, span


class Embeddings:
    """An embeddings endpoint. The form it speaks, `/v1/embeddings` or TEI's `/embed`, is found at the first call.

    Args:
        upstream: where the endpoint is.
        model: the model to name; None where the endpoint has but one.
        batch_size: texts in one request, less where the upstream takes less.
    """

    def __init__(self, upstream: Upstream, model: str | None, *, batch_size: int = 32) -> None:
        self.upstream = upstream
        self.model = model
        self._batches = Batches(upstream, batch_size)
        self._form: str | None = None

    async def embed(self, texts: Sequence[str], *, deadline: Deadline) -> list[list[float]]:
        """One vector for each text, in order, all of one dimension and finite; [] for no texts.

        Raises:
            DownstreamUnavailable: the upstream failed, refused a text, or sent what are no such vectors.
            DeadlineExceeded: the deadline came first.
        """

        async def call(batch: Sequence[str]) -> list[list[float]]:
            return await self._embed(batch, deadline)

        model = self.model or "default"
        attributes: dict[str, Value] = {"gen_ai.operation.name": "embeddings", "gen_ai.provider.name": "openai",
                                        "gen_ai.request.model": model, **self.upstream.place}  # fmt: skip
        with span(f"embeddings {model}", "client", attributes):
            vectors = await self._batches.run(texts, call, deadline)
        if len({len(vector) for vector in vectors}) > 1:
            self._surprised("vectors of different dimensions")
        return vectors

    async def _embed(self, batch: Sequence[str], deadline: Deadline) -> list[list[float]]:
        if self._form == "tei":
            return await self._tei(batch, deadline)
        try:
            vectors = await self._openai(batch, deadline)
        except UpstreamError as error:
            if self._form is not None or error.status not in {404, 405}:
                raise
            try:
                vectors = await self._tei(batch, deadline)
            except UpstreamError as second:
                if second.status in {413, 422}:  # too large a batch, or a bad text, but the right place
                    self._form = "tei"
                # Neither form is known here: the first answer may name the cause, such as an unknown model.
                raise (error if second.status in {404, 405} else second) from None
            self._form = "tei"
        else:
            self._form = "openai"
        return vectors

    async def _openai(self, batch: Sequence[str], deadline: Deadline) -> list[list[float]]:
        body = {"input": list(batch), "encoding_format": "float"}
        if self.model is not None:
            body["model"] = self.model
        answer = await self.upstream.post_json("/v1/embeddings", body, deadline=deadline)
        items = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            self._surprised("no list of embeddings")
        found: dict[Any, Any] = {}
        for place, item in enumerate(items):
            index = item.get("index", place)
            found[index if isinstance(index, int) else place] = item.get("embedding")
        if len(items) != len(batch) or set(found) != set(range(len(batch))):
            self._surprised(f"{len(items)} embeddings, not one for each of {len(batch)} texts")
        return [self._vector(found[index]) for index in range(len(batch))]

    async def _tei(self, batch: Sequence[str], deadline: Deadline) -> list[list[float]]:
        answer = await self.upstream.post_json("/embed", {"inputs": list(batch)}, deadline=deadline)
        if not isinstance(answer, list) or len(answer) != len(batch):
            self._surprised(f"no list of {len(batch)} embeddings")
        return [self._vector(value) for value in answer]

    def _vector(self, value: Any) -> list[float]:
        """A vector from a list of numbers, or from base64 of little-endian float32."""
        try:
            if isinstance(value, str):
                floats = array("f", base64.b64decode(value, validate=True))
                if sys.byteorder == "big":
                    floats.byteswap()
                vector = floats.tolist()
            else:
                vector = array("d", value).tolist()
        except (ValueError, TypeError, OverflowError, binascii.Error):
            self._surprised("an embedding that is no list of numbers")
        if not vector or not all(map(math.isfinite, vector)):
            self._surprised("an embedding that is empty or not finite")
        return vector

    def _surprised(self, what: str) -> NoReturn:
        raise self.upstream.failures.problem(f"answered with {what}")
