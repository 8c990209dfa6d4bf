"""Reranking over HTTP, in both forms."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from local_inference.engine import MiniLM

Serve = Callable[..., Awaitable[TestClient[Any, Any]]]

QUERY = "How is redelivery avoided?"
TEXTS = [
    "Boil the pasta in salted water.",
    "The consumer acknowledges progress, so that messages are not redelivered.",
    "NATS is a message broker.",
]


async def test_tei_ranks_the_answer_first_within_zero_and_one(serve: Serve, minilm: MiniLM) -> None:
    client = await serve(minilm)
    ranked = await (await client.post("/rerank", json={"query": QUERY, "texts": TEXTS, "return_text": True})).json()
    assert ranked[0]["index"] == 1
    assert ranked[0]["text"] == TEXTS[1]
    assert sorted(item["index"] for item in ranked) == [0, 1, 2]
    scores = [item["score"] for item in ranked]
    assert scores == sorted(scores, reverse=True)
    assert 1 > scores[0] > 0.5 > scores[1] > 0


async def test_raw_scores_keep_the_order(serve: Serve, minilm: MiniLM) -> None:
    client = await serve(minilm)
    raw = await (await client.post("/rerank", json={"query": QUERY, "texts": TEXTS, "raw_scores": True})).json()
    mapped = await (await client.post("/rerank", json={"query": QUERY, "texts": TEXTS})).json()
    assert [item["index"] for item in raw] == [item["index"] for item in mapped]
    assert "text" not in raw[0]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
async def test_cohere_returns_the_best_few(serve: Serve, minilm: MiniLM, path: str) -> None:
    client = await serve(minilm)
    documents = [TEXTS[0], {"text": TEXTS[1]}, TEXTS[2]]
    body = {"model": "any", "query": QUERY, "documents": documents, "top_n": 2, "return_documents": True}
    results = (await (await client.post(path, json=body)).json())["results"]
    assert len(results) == 2
    assert results[0]["index"] == 1
    assert results[0]["document"] == {"text": TEXTS[1]}


async def test_wrong_requests_get_the_errors_of_their_server(serve: Serve, minilm: MiniLM) -> None:
    client = await serve(minilm)
    too_many = await client.post("/rerank", json={"query": "a", "texts": ["b"] * 33})
    assert (too_many.status, (await too_many.json())["error_type"]) == (413, "validation")
    too_long = await client.post("/rerank", json={"query": "a", "texts": ["b " * 300], "truncate": False})
    assert too_long.status == 413
    empty = await client.post("/v1/rerank", json={"query": "a", "documents": []})
    assert (empty.status, (await empty.json())["error"]["param"]) == (400, "documents")
    textless = await client.post("/v1/rerank", json={"query": "a", "documents": [{"title": "b"}]})
    assert (await textless.json())["error"]["param"] == "documents.0"


async def test_the_echo_engine_ranks_by_shared_words(serve: Serve) -> None:
    client = await serve()
    ranked = await (
        await client.post("/rerank", json={"query": "red apple", "texts": ["blue", "red", "apple red"]})
    ).json()
    assert [(item["index"], item["score"]) for item in ranked] == [(2, 1.0), (1, 0.5), (0, 0.0)]
