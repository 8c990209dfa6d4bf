"""Embeddings over HTTP, in both forms."""

import base64
import math
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from local_inference.engine import MiniLM

Serve = Callable[..., Awaitable[TestClient[Any, Any]]]


async def test_openai_floats_and_base64_are_the_same_vectors(serve: Serve, minilm: MiniLM) -> None:
    client = await serve(minilm)
    texts = ["A message.", "Another message altogether."]
    floats = await (await client.post("/v1/embeddings", json={"input": texts})).json()
    packed = await (await client.post("/v1/embeddings", json={"input": texts, "encoding_format": "base64"})).json()
    assert [item["index"] for item in floats["data"]] == [0, 1]
    assert floats["usage"] == {"prompt_tokens": 11, "total_tokens": 11}
    for item, encoded in zip(floats["data"], packed["data"], strict=True):
        assert len(item["embedding"]) == 384
        assert struct.unpack("<384f", base64.b64decode(encoded["embedding"])) == pytest.approx(item["embedding"])


async def test_tei_agrees_with_openai(serve: Serve, minilm: MiniLM) -> None:
    client = await serve(minilm)
    response = await client.post("/embed", json={"inputs": "A message."})
    assert int(response.headers["x-inference-time"]) >= 0
    [tei] = await response.json()
    openai = await (await client.post("/v1/embeddings", json={"input": "A message."})).json()
    assert tei == pytest.approx(openai["data"][0]["embedding"], abs=1e-6)


async def test_tei_leaves_length_alone_when_asked(serve: Serve, minilm: MiniLM) -> None:
    client = await serve(minilm)
    [vector] = await (await client.post("/embed", json={"inputs": ["A message."], "normalize": False})).json()
    assert math.hypot(*vector) > 1.5


async def test_info_tells_the_limits(serve: Serve, minilm: MiniLM) -> None:
    client = await serve(minilm)
    info = await (await client.get("/info")).json()
    assert info["model_id"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert (info["max_client_batch_size"], info["max_input_length"]) == (32, 256)


async def test_a_batch_over_the_limit_is_refused_as_tei_does(serve: Serve) -> None:
    client = await serve()
    assert (await client.post("/embed", json={"inputs": ["a"] * 32})).status == 200
    response = await client.post("/embed", json={"inputs": ["a"] * 33})
    assert response.status == 413
    message = "inputs: batch size 33 > maximum allowed batch size 32"
    assert await response.json() == {"error": message, "error_type": "validation"}


async def test_a_long_text_is_refused_when_it_may_not_be_cut(serve: Serve, minilm: MiniLM) -> None:
    client = await serve(minilm)
    response = await client.post("/embed", json={"inputs": "word " * 300, "truncate": False})
    assert response.status == 413
    assert "at most 256 tokens. Given: 302" in (await response.json())["error"]


@pytest.mark.parametrize("body", [{}, {"inputs": []}, {"inputs": [""]}, {"inputs": [1, 2]}])
async def test_malformed_tei_requests_get_tei_errors(serve: Serve, body: object) -> None:
    client = await serve()
    response = await client.post("/embed", json=body)
    error = await response.json()
    assert response.status == 422
    assert error["error"].startswith("inputs")
    assert error["error_type"] == "validation"


async def test_malformed_openai_requests_get_openai_errors(serve: Serve) -> None:
    client = await serve()
    for body, param in (({"input": [[1, 2]]}, "input.0"), ({"input": "a", "dimensions": 99}, "dimensions")):
        response = await client.post("/v1/embeddings", json=body)
        assert response.status == 400
        assert (await response.json())["error"]["param"] == param


async def test_the_echo_engine_hashes_without_a_model(serve: Serve) -> None:
    client = await serve()
    vectors = await (await client.post("/embed", json={"inputs": ["one", "two", "one"]})).json()
    assert vectors[0] == vectors[2] != vectors[1]
    assert [math.hypot(*vector) for vector in vectors] == pytest.approx([1, 1, 1])
