"""Embeddings, in OpenAI's form and in TEI's."""

import base64
import struct
import time
from collections.abc import Sequence

from aiohttp import web

from local_inference.engine import InputTooLong
from local_inference.errors import ApiError, Dialect
from local_inference.keys import ENGINE, SETTINGS
from local_inference.schemas import EmbeddingsRequest, EmbedRequest, read


async def openai(request: web.Request) -> web.Response:
    """`POST /v1/embeddings`; texts longer than the model reads are cut."""
    body = await read(request, EmbeddingsRequest)
    engine = request.app[ENGINE]
    check_batch(request, body.input, "input")
    if body.dimensions not in (None, engine.dimensions):
        message = f"dimensions: {engine.embedding_model} has {engine.dimensions}"
        raise ApiError(400, message, param="dimensions")
    started = time.perf_counter()
    embedded = await engine.embed(body.input)
    as_base64 = body.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _base64(vector) if as_base64 else vector}
        for index, vector in enumerate(embedded.vectors)
    ]
    usage = {"prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens}
    reply = {"object": "list", "data": data, "model": engine.embedding_model, "usage": usage}
    return web.json_response(reply, headers=inference_time(started))


async def tei(request: web.Request) -> web.Response:
    """`POST /embed`; texts longer than the model reads are cut unless `truncate` is false."""
    body = await read(request, EmbedRequest, Dialect.TEI)
    check_batch(request, body.inputs, "inputs")
    started = time.perf_counter()
    try:
        embedded = await request.app[ENGINE].embed(
            body.inputs, normalize=body.normalize, truncate=body.truncate is not False
        )
    except InputTooLong as error:
        raise ApiError(413, f"`inputs` {error}", param="inputs") from None
    return web.json_response(embedded.vectors, headers=inference_time(started))


def check_batch(request: web.Request, texts: Sequence[str], field: str) -> None:
    """Refuse more texts than `/info` allows.

    Raises:
        ApiError: 413, as TEI answers.
    """
    limit = request.app[SETTINGS].max_client_batch_size
    if len(texts) > limit:
        message = f"{field}: batch size {len(texts)} > maximum allowed batch size {limit}"
        raise ApiError(413, message, param=field)


def inference_time(started: float) -> dict[str, str]:
    """TEI's timing header, in milliseconds since `started` on the performance counter."""
    return {"x-inference-time": str(round((time.perf_counter() - started) * 1000))}


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
