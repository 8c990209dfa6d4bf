"""Questions by request/reply: the whole answer in one reply, in JSON or MessagePack."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from chat_handler.service import Settings, service
from handler_core.connection import Connection
from handler_core.testing import serving, stored, until

SettingsFor = Callable[..., Settings]

QUESTION = {"query": "cactus water weekly", "request_id": "r1", "top_k": 2}


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("subject", ["ai.chat.ask", "ai.chat.user.alice.ask"])
async def test_the_whole_answer_comes_with_its_sources(
    nc: Connection, settings: SettingsFor, milvus: str, subject: str, text: bool
) -> None:
    payload = json.dumps(QUESTION).encode() if text else msgpack.packb(QUESTION)
    async with serving(service, settings(milvus_uri=milvus, milvus_timeout=20)):
        reply = (await nc.request(subject, payload, 10)).data
    answer = json.loads(reply) if text else msgpack.unpackb(reply)
    assert (answer["response"], answer["request_id"], answer["success"]) == ("Weekly [1].", "r1", True)
    assert [source["id"] for source in answer["sources"]] == ["far", "middle"]
    assert answer["citations"] == [{"index": 1, "source_id": "far", "start": 7}]
    assert (answer["used_rag"], answer["degraded"]) == (True, [])
    assert {"queue_ms", "embed_ms", "search_ms", "rerank_ms", "llm_ms", "total_ms"} <= answer["timings"].keys()
    assert await stored(nc, "AI_EVENTS", "evt.>") == [], "nothing is kept of it"


@pytest.mark.parametrize("text", [True, False])
async def test_an_error_has_what_an_answer_has_to_find_it_by(
    nc: Connection, settings: SettingsFor, models: Any, text: bool
) -> None:
    models.refusals = 3
    body = {**QUESTION, "enable_rag": False}
    payload = json.dumps(body).encode() if text else msgpack.packb(body)
    async with serving(service, settings()):
        reply = (await nc.request("ai.chat.ask", payload, 10)).data
    answer = json.loads(reply) if text else msgpack.unpackb(reply)
    assert (answer["error"]["type"], answer["error"]["stage"]) == ("downstream_unavailable", "llm")
    assert (answer["request_id"], len(answer["trace_id"]), "llm_ms" in answer["timings"]) == ("r1", 32, True)
    assert len(models.seen) == 3, "it is not tried again behind the caller's back"


async def test_the_deadline_ends_the_call_to_the_llm(nc: Connection, settings: SettingsFor, models: Any) -> None:
    models.script = ["never", asyncio.Event()]
    async with serving(service, settings()):
        reply = await nc.request("ai.chat.ask", b'{"query": "x", "enable_rag": false, "deadline_ms": 300}', 10)
        await asyncio.wait_for(models.aborted.wait(), 10)
    assert json.loads(reply.data)["error"]["type"] == "deadline_exceeded"


async def test_a_question_that_is_being_answered_is_answered_although_the_service_ends(
    nc: Connection, settings: SettingsFor, models: Any
) -> None:
    go_on = asyncio.Event()
    models.script = ["begun", go_on, " and finished"]
    async with serving(service, settings()) as runtime:
        asking = asyncio.ensure_future(nc.request("ai.chat.ask", b'{"query": "x", "enable_rag": false}', 10))
        await until(lambda: models.seen, "the LLM is asked")

        async def let_through() -> None:
            await until(lambda: "draining" in runtime.health.ready, "it drains")
            go_on.set()

        letting = asyncio.ensure_future(let_through())
    await letting
    assert json.loads((await asking).data)["response"] == "begun and finished"
