"""What the server says of itself, and of what it does not have."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp.test_utils import TestClient

from local_inference.engine import MiniLM

Serve = Callable[..., Awaitable[TestClient[Any, Any]]]


async def test_health_answers_once_it_serves(serve: Serve) -> None:
    client = await serve()
    response = await client.get("/health")
    assert (response.status, (await response.json())["status"]) == (200, "ok")


async def test_models_say_what_they_are(serve: Serve, minilm: MiniLM) -> None:
    client = await serve(minilm, speech_engine="espeak")
    data = (await (await client.get("/v1/models")).json())["data"]
    speech = ["pocketsphinx-en-us", "espeak-ng"]
    assert [model["id"] for model in data] == ["extractive-minilm", "sentence-transformers/all-MiniLM-L6-v2", *speech]
    assert data[0]["owned_by"] == "local_inference"
    assert "no language model" in data[0]["description"]


async def test_unknown_paths_and_methods_get_json_errors(serve: Serve) -> None:
    client = await serve()
    missing = await client.get("/nope")
    assert (missing.status, (await missing.json())["error"]["message"]) == (404, "Not Found: GET /nope")
    wrong = await client.get("/v1/embeddings")
    assert (wrong.status, wrong.headers["Allow"]) == (405, "POST")


async def test_the_server_answers_while_the_model_works(serve: Serve, minilm: MiniLM) -> None:
    client = await serve(minilm)
    finish = threading.Event()
    minilm._workers.submit(finish.wait)  # a batch that takes its time
    async with asyncio.TaskGroup() as group:
        work = group.create_task(client.post("/embed", json={"inputs": "a"}))
        assert (await client.get("/health")).status == 200
        assert not work.done()
        finish.set()
    assert work.result().status == 200
