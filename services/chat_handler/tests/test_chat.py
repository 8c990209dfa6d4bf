"""The chat handler as a service, from the request on NATS to what its caller sees and its upstreams get."""

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from chat_handler.service import Settings, service
from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.contract.answer import StreamEvent
from handler_core.contract.chat import CHAT, ChatRequest, ChatResponse
from handler_core.jetstream import Api
from handler_core.testing import ask, serving, stored, text_of, until

SettingsFor = Callable[..., Settings]

QUERY = "cactus water weekly"
REQUEST = "ai.chat.request"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def question(**fields: Any) -> ChatRequest:
    return ChatRequest(**{"query": QUERY, "request_id": uuid.uuid4().hex, "enable_rag": False, **fields})


async def settled(nc: Connection) -> None:
    async def empty() -> bool:
        return int((await Api(nc).request("STREAM.INFO.AI_CHAT"))["state"]["messages"]) == 0

    await until(empty, "every request is settled")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("subject", [REQUEST, "ai.chat.user.alice.message"])
async def test_both_families_of_subjects_are_answered(
    nc: Connection, settings: SettingsFor, subject: str, streaming: bool
) -> None:
    async with serving(service, settings()):
        answered = await ask(nc, CHAT, subject, question(enable_streaming=streaming, user_id="mallory"))
    assert answered.response.response == "Weekly [1]."
    assert answered.text == ("Weekly [1]." if streaming else "")
    assert [event.type for event in answered.events][-1:] == (["done"] if streaming else [])


async def test_every_field_of_a_request_has_its_effect(
    nc: Connection, settings: SettingsFor, milvus: str, models: Any
) -> None:
    request = question(
        collection="plants", filter={"rank": [1, 2]}, top_k=1, enable_rag=True, enable_reranker=True,
        enable_streaming=True, enable_tts=True, system_prompt="Be terse.", model="big", temperature=0.5, max_tokens=9,
        username="Alice", user_id="alice", session_id="s1", deadline_ms=30_000, premium=True,
    )  # fmt: skip
    configured = settings(milvus_uri=milvus, milvus_timeout=20, llm_premium_url=f"{models.url}/gold")
    async with serving(service, configured):
        answered = await ask(nc, CHAT, REQUEST, request)
    response = answered.response
    assert (response.request_id, response.success, response.error) == (request.request_id, True, None)
    assert response.response == answered.text == "Weekly [1]."
    assert [(source.id, source.metadata["rank"]) for source in response.sources] == [("far", 2)]
    assert [(cited.index, cited.source_id, cited.start) for cited in response.citations] == [(1, "far", 7)]
    assert (response.used_rag, response.degraded, response.audio) == (True, ["tts"], None)
    assert (response.usage.prompt_tokens, response.usage.total_tokens) == (7, 12)
    assert response.timings.keys() == {
        "queue_ms", "recall_ms", "embed_ms", "search_ms", "rerank_ms", "llm_first_token_ms", "llm_ms", "remember_ms",
        "total_ms",
    }  # fmt: skip
    [reranked] = models.bodies("/rerank")
    assert set(reranked["texts"]) == {"A cactus is a plant.", "A cactus needs water, weekly at most."}
    [chat] = models.bodies("/gold/v1/chat/completions")
    assert (chat["model"], chat["temperature"], chat["max_tokens"]) == ("big", 0.5, 9)
    assert chat["messages"][0]["content"].startswith("Be terse.\n\nPassages:\n\n[1] far.md\nA cactus needs")
    assert models.bodies("/v1/chat/completions") == []


async def test_the_first_chunk_is_there_before_the_llm_has_gone_on(
    nc: Connection, settings: SettingsFor, models: Any
) -> None:
    seen = asyncio.Event()
    models.script = ["first", seen, " second"]
    request = question(enable_streaming=True)

    async def on_event(message: Any) -> None:
        if decode(message.data, StreamEvent).content == "first":
            seen.set()

    await nc.subscribe(CHAT.stream_subject(str(request.request_id)), cb=on_event)
    async with serving(service, settings()):
        answered = await ask(nc, CHAT, REQUEST, request)
    assert answered.text == answered.response.response == "first second"


async def test_a_citation_is_never_cut_between_two_chunks(nc: Connection, settings: SettingsFor, models: Any) -> None:
    seen = asyncio.Event()
    models.script = ["see [", seen, "1", "]"]
    request = question(enable_streaming=True)

    async def on_event(message: Any) -> None:
        seen.set()

    await nc.subscribe(CHAT.stream_subject(str(request.request_id)), cb=on_event)
    async with serving(service, settings()):
        answered = await ask(nc, CHAT, REQUEST, request)
    assert [event.content for event in answered.events if event.type == "chunk"] == ["see ", "[1]"]


async def test_one_trace_runs_through_all_upstreams_and_the_answer(
    nc: Connection, settings: SettingsFor, milvus: str, models: Any
) -> None:
    headers = {"traceparent": TRACE, "tracestate": "a=b"}
    request = question(enable_rag=True)
    async with serving(service, settings(milvus_uri=milvus, milvus_timeout=20)):
        await ask(nc, CHAT, REQUEST, request, headers=headers)
    assert {path for path, _, _ in models.seen} == {"/v1/embeddings", "/rerank", "/v1/chat/completions"}
    for _, sent, _ in models.seen:
        assert (sent["traceparent"], sent["tracestate"]) == (TRACE, "a=b")
    [final] = await stored(nc, "AI_EVENTS", f"evt.chat.response.{request.request_id}")
    assert final.headers["traceparent"] == TRACE


async def test_turns_at_the_same_time_keep_their_traces_apart(
    nc: Connection, settings: SettingsFor, models: Any
) -> None:
    async with serving(service, settings()), asyncio.TaskGroup() as tasks:
        for n in range(10):
            headers = {"traceparent": f"00-{n + 1:032x}-00f067aa0ba902b7-01"}
            tasks.create_task(ask(nc, CHAT, REQUEST, question(query=f"question {n + 1:032x}"), headers=headers))
    assert len(models.seen) == 10
    for _, sent, body in models.seen:
        assert body["messages"][1]["content"].removeprefix("question ") == sent["traceparent"][3:35]


async def test_an_inbox_that_the_request_names_gets_a_copy(nc: Connection, settings: SettingsFor) -> None:
    inbox = nc.new_inbox()
    copies = await nc.subscribe(inbox)
    async with serving(service, settings()):
        await Api(nc).publish(
            REQUEST, msgpack.packb({"query": QUERY, "enable_rag": False, "response_subject": inbox}), {}
        )
        copy = decode((await copies.next_msg(10)).data, ChatResponse)
    assert (copy.response, bool(copy.request_id)) == ("Weekly [1].", True)


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({"message": "from message"}, "from message"),
        ({"query": "", "message": "from message"}, "from message"),
        ({"query": "from query", "message": "other"}, "from query"),
    ],
)
async def test_the_question_may_come_as_message(
    nc: Connection, settings: SettingsFor, models: Any, fields: dict[str, str], asked: str
) -> None:
    request_id = uuid.uuid4().hex
    responses = await nc.subscribe(CHAT.response_subject(request_id))
    async with serving(service, settings()):
        await Api(nc).publish(REQUEST, msgpack.packb({**fields, "request_id": request_id, "enable_rag": False}), {})
        await responses.next_msg(10)
    [chat] = models.bodies("/v1/chat/completions")
    assert chat["messages"][-1]["content"] == asked


async def test_without_milvus_the_answer_says_so(nc: Connection, settings: SettingsFor) -> None:
    async with serving(service, settings()):
        answered = await ask(nc, CHAT, REQUEST, question(enable_rag=True))
    assert (answered.response.degraded, answered.response.used_rag) == (["vectors"], False)
    assert answered.response.success


async def test_an_llm_that_is_down_for_a_while_delays_the_answer(
    nc: Connection, settings: SettingsFor, models: Any
) -> None:
    models.refusals = 3  # as often as the client tries within one attempt
    async with serving(service, settings()):
        answered = await ask(nc, CHAT, REQUEST, question(enable_streaming=True))
        await settled(nc)
    assert answered.text == answered.response.response == "Weekly [1]."
    assert answered.events[0].type == "restart"
    assert len(models.seen) == 4
    assert await stored(nc, "DLQ", "dlq.>") == []


async def test_a_deadline_ends_the_turn_and_the_call_to_the_llm(
    nc: Connection, settings: SettingsFor, models: Any
) -> None:
    models.script = ["never", asyncio.Event()]
    async with serving(service, settings()):
        answered = await ask(nc, CHAT, REQUEST, question(enable_streaming=True, deadline_ms=400))
        await settled(nc)
        await asyncio.wait_for(models.aborted.wait(), 10)
    assert answered.response.error is not None
    assert answered.response.error.type == "deadline_exceeded"
    assert [event.type for event in answered.events] == ["chunk", "error"]


@pytest.mark.parametrize(
    ("fields", "type", "named"),
    [
        ({"filter": {'a"]': 1}}, "validation_error", "filter."),
        ({"collection": "missing"}, "not_found", "missing"),
    ],
)
async def test_a_request_that_cannot_be_met_is_told_why_and_kept(
    nc: Connection, settings: SettingsFor, milvus: str, fields: dict[str, Any], type: str, named: str
) -> None:
    async with serving(service, settings(milvus_uri=milvus, milvus_timeout=20)):
        answered = await ask(nc, CHAT, REQUEST, question(enable_rag=True, enable_streaming=True, **fields))
        await settled(nc)
    error = answered.response.error
    assert error is not None
    assert (error.type, error.stage, error.retryable) == (type, "search", False)
    assert named in error.message
    assert [event.type for event in answered.events] == ["error"]
    [letter] = await stored(nc, "DLQ", "dlq.>")
    assert letter.headers["Dead-Letter-Type"] == type


async def test_the_metrics_count_turns_and_upstream_calls(nc: Connection, settings: SettingsFor) -> None:
    async with serving(service, settings()) as runtime:
        await ask(nc, CHAT, REQUEST, question())
        await settled(nc)
        rendered = runtime.metrics.render()
    assert 'handler_messages_settled_total{stream="AI_CHAT",consumer="chat_handler",outcome="ack"} 1' in rendered
    assert 'handler_upstream_duration_seconds_count{upstream="llm",outcome="ok"} 1' in rendered


async def test_a_late_subscriber_reads_the_same_text(nc: Connection, settings: SettingsFor) -> None:
    request = question(enable_streaming=True)
    async with serving(service, settings()):
        await Api(nc).publish(REQUEST, encode(request), {})
        await settled(nc)
    events = await stored(nc, "AI_EVENTS", f"evt.chat.response.stream.{request.request_id}")
    assert text_of([decode(event.data, StreamEvent) for event in events]) == "Weekly [1]."
