"""The clients that settings describe: which URL, model, key, timeout and headers each call gets."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from handler_core.clients.http import new_session
from handler_core.contract.chat import ChatRequest, ChatResponse
from handler_core.deadline import Deadline
from handler_core.rag import Rag, answer
from handler_core.telemetry import Metrics, current
from handler_core.upstreams import RagSettings, rag_clients
from handler_core.vectors import VectorStore

TRACE = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "a=b"}
NEVER = Deadline.never()


class Turn:
    """What is being answered."""

    request_id = "r"
    traceparent = TRACE["traceparent"]
    trace_headers = TRACE


class Recorder:
    """An endpoint below any path prefix that answers every call and keeps path, headers and body."""

    def __init__(self) -> None:
        self.url = ""
        self.seen: list[tuple[str, dict[str, str], Any]] = []

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.seen.append((request.path, {name.lower(): value for name, value in request.headers.items()}, body))
        if request.path.endswith("/v1/embeddings"):
            return web.json_response({"data": [{"index": n, "embedding": [1.0]} for n in range(len(body["input"]))]})
        if request.path.endswith("/rerank"):
            return web.json_response([{"index": n, "score": 0.5} for n in range(len(body["texts"]))])
        delta = {"choices": [{"index": 0, "delta": {"content": body["model"]}, "finish_reason": "stop"}]}
        return web.Response(text=f"data: {json.dumps(delta)}\n\ndata: [DONE]\n\n", content_type="text/event-stream")

    def header(self, name: str) -> list[str | None]:
        return [headers.get(name) for _, headers, _ in self.seen]


@pytest.fixture
async def recorder() -> AsyncIterator[Recorder]:
    recorder = Recorder()
    app = web.Application()
    app.router.add_post("/{path:.*}", recorder.handle)
    async with TestServer(app) as server:
        recorder.url = str(server.make_url("")).rstrip("/")
        yield recorder


def settings(recorder: Recorder, **changes: Any) -> RagSettings:
    urls = {"llm_url": f"{recorder.url}/llm", "embeddings_url": f"{recorder.url}/embed/v1"}
    return RagSettings(**{**urls, "reranker_url": f"{recorder.url}/rank/", **changes})


async def say(clients: Rag, **request: Any) -> ChatResponse:
    [*_, response] = [i async for i in answer(clients, ChatRequest(query="q", enable_rag=False, **request))]
    assert isinstance(response, ChatResponse)
    return response


async def test_every_upstream_gets_its_own_url_model_key_and_the_turns_trace(recorder: Recorder) -> None:
    named = settings(
        recorder, llm_model="m", llm_api_key="key-l", embeddings_model="e", embeddings_api_key="key-e",
        reranker_api_key="key-r",
    )  # fmt: skip
    token = current.set(Turn())
    async with rag_clients(named) as clients:
        await clients.embeddings.embed(["text"], deadline=NEVER)
        assert clients.reranker is not None
        await clients.reranker.rerank("q", ["text"], deadline=NEVER)
        await say(clients)
    current.reset(token)
    assert [path for path, _, _ in recorder.seen] == [
        "/embed/v1/embeddings", "/rank/rerank", "/llm/v1/chat/completions",
    ]  # fmt: skip
    assert [body.get("model") for _, _, body in recorder.seen] == ["e", None, "m"]
    assert recorder.header("authorization") == ["Bearer key-e", "Bearer key-r", "Bearer key-l"]
    assert recorder.header("traceparent") == [TRACE["traceparent"]] * 3
    assert recorder.header("tracestate") == ["a=b"] * 3


async def test_outside_a_turn_no_trace_is_sent(recorder: Recorder) -> None:
    async with rag_clients(settings(recorder)) as clients:
        await say(clients)
    assert recorder.header("traceparent") == [None]


@pytest.mark.parametrize(
    ("changes", "path", "model", "key"),
    [
        ({}, "/llm", "m", "Bearer key-l"),
        ({"llm_premium_model": "gold"}, "/llm", "gold", "Bearer key-l"),
        ({"llm_premium_model": "gold", "llm_premium_api_key": "key-p"}, "/llm", "gold", "Bearer key-p"),
        ({"llm_premium_url": "/gold"}, "/gold", "m", None),
        ({"llm_premium_url": "/gold", "llm_premium_model": "g"}, "/gold", "g", None),
        ({"llm_premium_url": "/gold", "llm_premium_api_key": "key-p"}, "/gold", "m", "Bearer key-p"),
    ],
)
async def test_premium_is_another_endpoint_or_another_model_and_no_key_goes_to_a_foreign_url(
    recorder: Recorder, changes: dict[str, str], path: str, model: str, key: str | None
) -> None:
    if "llm_premium_url" in changes:
        changes = {**changes, "llm_premium_url": recorder.url + changes["llm_premium_url"]}
    async with rag_clients(settings(recorder, llm_model="m", llm_api_key="key-l", **changes)) as clients:
        assert (await say(clients, premium=True)).response == model
        assert (await say(clients)).response == "m"
    assert recorder.seen[0][0] == f"{path}/v1/chat/completions"
    assert recorder.header("authorization") == [key, "Bearer key-l"]


async def test_without_a_reranker_url_there_is_none(recorder: Recorder) -> None:
    async with rag_clients(settings(recorder, reranker_url=None)) as clients:
        assert clients.reranker is None


async def test_timeouts_budget_and_collection_come_from_the_settings(recorder: Recorder) -> None:
    named = settings(
        recorder, llm_timeout=11, embeddings_timeout=12, reranker_timeout=13, milvus_uri="https://m.example",
        collection_name="mine", prompt_tokens=999,
    )  # fmt: skip
    async with rag_clients(named) as clients:
        assert clients.reranker is not None
        assert (clients.llm.idle_timeout, clients.llm.upstream.timeout) == (11, 11)
        assert (clients.embeddings.upstream.timeout, clients.reranker.upstream.timeout) == (12, 13)
        assert (clients.collection, clients.prompt_tokens) == ("mine", 999)
        assert isinstance(clients.store, VectorStore)
        assert clients.store.address == "m.example:443"


async def test_each_attempt_is_observed_under_its_upstreams_name(recorder: Recorder) -> None:
    metrics = Metrics()
    async with rag_clients(settings(recorder, llm_premium_model="gold"), metrics) as clients:
        await clients.embeddings.embed(["text"], deadline=NEVER)
        await say(clients, premium=True)
        await say(clients)
    text = metrics.render()
    for name in ("embeddings", "llm_premium", "llm"):
        assert f'handler_upstream_duration_seconds_count{{upstream="{name}",outcome="ok"}} 1' in text
    for name in ("llm_premium", "llm"):
        assert f'handler_time_to_first_token_seconds_count{{upstream="{name}"}} 1' in text
        assert f'handler_tokens_total{{upstream="{name}",kind="completion"}}' in text


async def test_a_session_that_there_is_already_is_used_and_left_open(recorder: Recorder) -> None:
    async with new_session() as session:
        async with rag_clients(settings(recorder), session=session) as clients:
            await say(clients)
        assert not session.closed
    with pytest.raises(RuntimeError, match="closed"):
        await say(clients)


async def test_the_connections_are_closed_in_the_end_and_nothing_is_contacted_at_the_start(recorder: Recorder) -> None:
    async with rag_clients(settings(recorder)) as clients:
        pass
    assert recorder.seen == []
    with pytest.raises(RuntimeError, match="closed"):
        await say(clients)
