"""A chat turn that is taken back: whatever it is doing, its upstream sees the call given up."""

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from chat_handler.service import Settings, service
from handler_core.codec import encode
from handler_core.connection import Connection
from handler_core.contract.chat import CHAT, ChatRequest
from handler_core.jetstream import Api
from handler_core.testing import ask, serving, stored, until

SettingsFor = Callable[..., Settings]

QUERY = "cactus water weekly"
REQUEST = "ai.chat.request"


def question(**fields: Any) -> ChatRequest:
    return ChatRequest(**{"query": QUERY, "request_id": uuid.uuid4().hex, "enable_streaming": True, **fields})


async def cancel(nc: Connection, request: ChatRequest) -> None:
    await Api(nc).publish(f"ai.turn.cancel.{request.request_id}", b"", {})


class Silence:
    """An upstream that takes calls and never answers."""

    def __init__(self) -> None:
        self.url = ""
        self.calls = 0
        self.aborted = 0

    async def answer(self, request: web.Request) -> web.Response:
        self.calls += 1
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.aborted += 1
            raise
        return web.Response()


@pytest.fixture
async def silence() -> AsyncIterator[Silence]:
    silence = Silence()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", silence.answer)
    async with TestServer(app) as server:
        silence.url = str(server.make_url("")).rstrip("/")
        yield silence


async def canceled(nc: Connection, settings: Settings, request: ChatRequest, busy: Callable[[], object]) -> list[str]:
    """Ask, cancel as soon as it is `busy`, and see that it ends as it should; returns the types of its events."""
    async with serving(service, settings) as runtime:
        asking = asyncio.ensure_future(ask(nc, CHAT, REQUEST, request))
        await until(busy, "the turn is there")
        await cancel(nc, request)
        answered = await asking
        assert answered.response.error is not None
        assert answered.response.error.type == "canceled"
        assert runtime.cancellations._watched == {}
    assert (await Api(nc).request("STREAM.INFO.AI_CHAT"))["state"]["messages"] == 0
    assert await stored(nc, "DLQ", "dlq.>") == []
    return [event.type for event in answered.events]


@pytest.mark.parametrize("stage", ["embeddings", "llm"])
async def test_while_an_upstream_has_not_answered(
    nc: Connection, settings: SettingsFor, silence: Silence, stage: str
) -> None:
    configured = settings(**{f"{stage}_url": silence.url})
    request = question(enable_rag=stage == "embeddings")
    assert await canceled(nc, configured, request, lambda: silence.calls) == ["error"]
    await until(lambda: silence.aborted == 1, "the upstream saw the call given up")
    assert silence.calls == 1


async def test_while_the_passages_are_ranked(
    nc: Connection, settings: SettingsFor, milvus: str, silence: Silence, models: Any
) -> None:
    configured = settings(milvus_uri=milvus, milvus_timeout=20, reranker_url=silence.url)
    assert await canceled(nc, configured, question(), lambda: silence.calls) == ["error"]
    await until(lambda: silence.aborted == 1, "the upstream saw the call given up")
    assert models.bodies("/v1/chat/completions") == []


async def test_while_the_vector_store_is_silent(nc: Connection, settings: SettingsFor, models: Any) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        configured = settings(milvus_uri=f"http://127.0.0.1:{silent.getsockname()[1]}", milvus_timeout=20)
        asked = lambda: models.bodies("/v1/embeddings")  # noqa: E731
        assert await canceled(nc, configured, question(), asked) == ["error"]
    assert models.bodies("/v1/chat/completions") == []


async def test_before_the_first_token(nc: Connection, settings: SettingsFor, models: Any) -> None:
    models.script = [asyncio.Event()]
    asked = lambda: models.bodies("/v1/chat/completions")  # noqa: E731
    assert await canceled(nc, settings(), question(enable_rag=False), asked) == ["error"]
    await asyncio.wait_for(models.aborted.wait(), 10)
    assert len(models.seen) == 1


async def test_in_the_middle_of_the_answer(nc: Connection, settings: SettingsFor, models: Any) -> None:
    models.script = ["Weekly", asyncio.Event()]
    request = question(enable_rag=False, session_id="s1", user_id="alice")

    async def begun() -> bool:
        return bool(await stored(nc, "AI_EVENTS", f"evt.chat.response.stream.{request.request_id}"))

    assert await canceled(nc, settings(), request, begun) == ["chunk", "error"]
    await asyncio.wait_for(models.aborted.wait(), 10)
    assert await stored(nc, "KV_AI_SESSIONS", "$KV.>") == [], "what was not answered is not remembered"


async def test_while_it_is_queued_no_upstream_is_called(nc: Connection, settings: SettingsFor, models: Any) -> None:
    request = question(enable_rag=True, session_id="s1")
    await Api(nc).publish(REQUEST, encode(request), {})
    await cancel(nc, request)
    responses = await nc.subscribe(CHAT.response_subject(str(request.request_id)))
    async with serving(service, settings()):
        await responses.next_msg(10)
    assert models.seen == []
    assert await stored(nc, "DLQ", "dlq.>") == []


async def test_while_the_llm_is_down_and_the_turn_waits_for_its_next_attempt(
    nc: Connection, settings: SettingsFor, models: Any
) -> None:
    models.refusals = 3  # as often as the client tries within one attempt
    calls = lambda: len(models.seen) == 3  # noqa: E731
    events = await canceled(nc, settings(), question(enable_rag=False), calls)
    assert (len(models.seen), events[-1]) == (3, "error")


@pytest.mark.parametrize("subject", ["ai.chat.ask", "ai.chat.user.alice.ask"])
async def test_when_it_came_by_request_and_reply(
    nc: Connection, settings: SettingsFor, models: Any, subject: str
) -> None:
    models.script = ["Weekly", asyncio.Event()]
    async with serving(service, settings()):
        asking = asyncio.ensure_future(
            nc.request(subject, b'{"query": "x", "enable_rag": false, "request_id": "r1"}', 10)
        )
        await until(lambda: models.seen, "the LLM is asked")
        await nc.publish("ai.turn.cancel.r1", b"")
        reply = (await asking).data
    assert b'"type":"canceled"' in reply
    await asyncio.wait_for(models.aborted.wait(), 10)
