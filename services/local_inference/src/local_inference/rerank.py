"""Reranking, in TEI's form and in Cohere's."""

import time
import uuid
from typing import Any

from aiohttp import web

from local_inference.embeddings import check_batch, inference_time
from local_inference.errors import ApiError, Dialect
from local_inference.keys import ENGINE
from local_inference.schemas import CohereRerankRequest, RerankRequest, read


async def tei(request: web.Request) -> web.Response:
    """`POST /rerank`: `[{index, score}]`, best first. How scores come about: `MiniLM.rerank`."""
    body = await read(request, RerankRequest, Dialect.TEI)
    check_batch(request, body.texts, "texts")
    engine = request.app[ENGINE]
    if body.truncate is False:
        longest = max(await engine.count_tokens([body.query, *body.texts]))
        if longest > engine.max_input_tokens:
            message = f"`inputs` must have at most {engine.max_input_tokens} tokens. Given: {longest}"
            raise ApiError(413, message, param="texts")
    started = time.perf_counter()
    ranked = _ranked(await engine.rerank(body.query, body.texts, raw=body.raw_scores))
    reply = [
        {"index": index, "score": score} | ({"text": body.texts[index]} if body.return_text else {})
        for index, score in ranked
    ]
    return web.json_response(reply, headers=inference_time(started))


async def cohere(request: web.Request) -> web.Response:
    """`POST /v1/rerank` and `/v2/rerank`: the best `top_n`, best first."""
    body = await read(request, CohereRerankRequest)
    started = time.perf_counter()
    engine = request.app[ENGINE]
    ranked = _ranked(await engine.rerank(body.query, body.documents))
    results: list[dict[str, Any]] = [
        {"index": index, "relevance_score": score}
        | ({"document": {"text": body.documents[index]}} if body.return_documents else {})
        for index, score in ranked[: body.top_n]
    ]
    reply = {"id": uuid.uuid4().hex, "model": engine.embedding_model, "results": results}
    return web.json_response(reply, headers=inference_time(started))


def _ranked(scores: list[float]) -> list[tuple[int, float]]:
    return sorted(enumerate(scores), key=lambda pair: (-pair[1], pair[0]))
