"""Injected faults, and the counts that show what became of a request."""

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import ClientPayloadError, ServerDisconnectedError
from aiohttp.test_utils import TestClient, TestServer

from local_inference.accounting import STATS, Stats
from local_inference.faults import Fault, Faults, RateLimit

Serve = Callable[..., Awaitable[TestClient[Any, Any]]]


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until the condition holds; the test's own timeout bounds it."""
    while not condition():
        await asyncio.sleep(0.001)


CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}
PAIR = {"query": "a", "texts": ["b"]}


def stats_of(client: TestClient[Any, Any]) -> Stats:
    assert isinstance(client.server, TestServer)
    return client.server.app[STATS]


async def put(client: TestClient[Any, Any], **faults: Any) -> None:
    assert (await client.put("/faults", json=faults)).status == 200


async def test_faults_are_shown_replaced_and_cleared(serve: Serve) -> None:
    client = await serve(faults=Faults(chat=Fault(latency_ms=1)))
    assert (await (await client.get("/faults")).json())["chat"]["latency_ms"] == 1
    await put(client, rerank={"error_rate": 1})
    shown = await (await client.get("/faults")).json()
    assert (shown["chat"]["latency_ms"], shown["rerank"]["error_rate"]) == (0, 1)
    await client.delete("/faults")
    assert await (await client.get("/faults")).json() == Faults().model_dump()


@pytest.mark.parametrize(
    ("faults", "param"),
    [({"chat": {"error_rate": 2}}, "chat.error_rate"), ({"chat": {"slow": 1}}, "chat.slow"), ({"tts": {}}, "tts")],
)
async def test_a_wrong_fault_is_named_and_changes_nothing(serve: Serve, faults: object, param: str) -> None:
    client = await serve()
    response = await client.put("/faults", json=faults)
    assert response.status == 400
    assert (await response.json())["error"]["param"] == param
    assert await (await client.get("/faults")).json() == Faults().model_dump()


async def test_an_injected_error_has_the_body_of_its_server(serve: Serve) -> None:
    client = await serve()
    await put(client, chat={"error_rate": 1, "error_status": 500}, rerank={"error_rate": 1})
    chat = await client.post(CHAT, json=HELLO)
    assert (chat.status, (await chat.json())["error"]["type"]) == (500, "server_error")
    rerank = await client.post("/rerank", json=PAIR)
    assert (rerank.status, (await rerank.json())["error_type"]) == (503, "unhealthy")
    assert (await client.post("/embed", json={"inputs": "a"})).status == 200


async def test_beyond_the_rate_limit_a_client_is_told_when_to_come_back(serve: Serve) -> None:
    client = await serve()
    await put(client, embeddings={"rate_limit": 0.1})
    assert (await client.post("/embed", json={"inputs": "a"})).status == 200
    refused = await client.post("/v1/embeddings", json={"input": "a"})
    assert refused.status == 429
    assert 1 <= int(refused.headers["Retry-After"]) <= 10


def test_a_rate_limit_fills_with_time() -> None:
    limit = RateLimit(2, now=0)
    assert [limit.take(0), limit.take(0)] == [0, 0]
    assert limit.take(0) == 0.5
    assert limit.take(0.5) == 0
    assert limit.take(100) == limit.take(100) == 0
    assert limit.take(100) > 0


async def test_a_cut_stream_ends_after_the_tokens_and_without_its_end(serve: Serve) -> None:
    client = await serve()
    await put(client, chat={"cut_after_tokens": 2})
    response = await client.post(CHAT, json=HELLO | {"stream": True})
    received = bytearray()

    async def receive() -> None:
        async for data in response.content.iter_any():
            received.extend(data)

    with pytest.raises(ClientPayloadError):
        await receive()
    events = [json.loads(event.removeprefix("data: ")) for event in received.decode().split("\n\n") if event]
    assert [event["choices"][0]["delta"]["content"] for event in events] == ["", "token", " token"]
    assert stats_of(client).chat.aborted == 0  # the server went, not the client


@pytest.mark.parametrize(("path", "body"), [(CHAT, HELLO), ("/embed", {"inputs": "a"}), ("/v1/rerank", None)])
async def test_a_cut_whole_reply_is_a_lost_connection(serve: Serve, path: str, body: object) -> None:
    cut = Fault(cut_after_tokens=1)
    client = await serve(faults=Faults(chat=cut, embeddings=cut, rerank=cut))
    with pytest.raises(ServerDisconnectedError):
        await client.post(path, json=body)


async def test_token_delay_spaces_a_stream_out(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await serve(faults=Faults(chat=Fault(token_delay_ms=20)))
    loop = asyncio.get_running_loop()
    response = await client.post(CHAT, json=HELLO | {"stream": True})
    times = [loop.time() async for line in response.content if b"token" in line]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert sum(gaps) > 0.05  # three waits of 20 ms at least: it cannot be shorter, whatever the machine does


async def test_a_hanging_request_is_counted_and_its_abort_seen(serve: Serve) -> None:
    client = await serve(faults=Faults(chat=Fault(hang=True)))
    tally = stats_of(client).chat
    async with asyncio.TaskGroup() as group:
        request = group.create_task(client.post(CHAT, json=HELLO))
        await until(lambda: tally.in_flight == 1)
        request.cancel()
    await until(lambda: tally.in_flight == 0)
    stats = await (await client.get("/stats")).json()
    assert stats["chat"] == {"requests": 1, "in_flight": 0, "aborted": 1}


async def test_leaving_in_mid_stream_counts_as_aborted(serve: Serve) -> None:
    client = await serve(faults=Faults(chat=Fault(token_delay_ms=3_600_000)))
    tally = stats_of(client).chat
    response = await client.post(CHAT, json=HELLO | {"stream": True})
    await response.content.readline()
    response.close()
    await until(lambda: tally.in_flight == 0)
    assert tally.aborted == 1


async def test_latency_comes_before_the_first_byte(serve: Serve) -> None:
    client = await serve(faults=Faults(rerank=Fault(latency_ms=30)))
    started = asyncio.get_running_loop().time()
    assert (await client.post("/rerank", json=PAIR)).status == 200
    assert asyncio.get_running_loop().time() - started > 0.029
