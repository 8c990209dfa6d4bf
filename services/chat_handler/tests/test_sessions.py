"""Conversations: what was said before reaches the LLM, once and in order, and its user sees and deletes it."""

import asyncio
import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from chat_handler.service import Settings, service
from handler_core.codec import encode
from handler_core.connection import Connection
from handler_core.contract.chat import CHAT, ChatRequest
from handler_core.contract.session import SessionTurn
from handler_core.jetstream import Api
from handler_core.memory import Memory
from handler_core.testing import ask, serving, stored, until

SettingsFor = Callable[..., Settings]

REQUEST = "ai.chat.request"


def question(query: str, **fields: Any) -> ChatRequest:
    own = {"request_id": uuid.uuid4().hex, "enable_rag": False, "session_id": "s1", "user_id": "alice"}
    return ChatRequest(**{"query": query, **own, **fields})


async def call(nc: Connection, subject: str, **body: Any) -> dict[str, Any]:
    reply: dict[str, Any] = json.loads((await nc.request(subject, json.dumps(body).encode(), 10)).data)
    return reply


def prompted(models: Any) -> list[tuple[str, str]]:
    """The last prompt without its instructions."""
    messages = models.bodies("/v1/chat/completions")[-1]["messages"]
    return [(message["role"], message["content"]) for message in messages[1:]]


async def test_the_next_question_of_a_session_comes_with_what_was_said(
    nc: Connection, settings: SettingsFor, models: Any
) -> None:
    async with serving(service, settings()):
        first = await ask(nc, CHAT, REQUEST, question("How often?"))
        models.script = ["In the morning."]
        await call(nc, "ai.chat.user.alice.ask", query="When?", enable_rag=False, session_id="s1")
        await ask(nc, CHAT, "ai.chat.user.alice.message", question("Why?", user_id="bob"))
    assert first.response.response == "Weekly [1]."
    assert prompted(models) == [
        ("user", "How often?"),
        ("assistant", "Weekly."),
        ("user", "When?"),
        ("assistant", "In the morning."),
        ("user", "Why?"),
    ]


@pytest.mark.parametrize("fields", [{"session_id": "s2"}, {"user_id": "bob"}, {"user_id": None}, {"session_id": None}])
async def test_another_session_and_another_user_begin_with_nothing(
    nc: Connection, settings: SettingsFor, models: Any, fields: dict[str, Any]
) -> None:
    async with serving(service, settings()):
        await ask(nc, CHAT, REQUEST, question("How often?"))
        answered = await ask(nc, CHAT, REQUEST, question("Why?", **fields))
    assert prompted(models) == [("user", "Why?")]
    assert answered.response.degraded == []


async def test_the_user_of_a_subject_reaches_no_other_users_session(nc: Connection, settings: SettingsFor) -> None:
    async with serving(service, settings()):
        await ask(nc, CHAT, REQUEST, question("How often?", user_id="bob"))
        for verb in ("show", "delete"):
            for body in ({}, {"user_id": "bob"}):
                reply = await call(nc, f"ai.chat.user.alice.session.{verb}", session_id="s1", **body)
                assert reply["error"]["type"] == "not_found", body
            assert (await call(nc, f"ai.chat.session.{verb}", session_id="s1"))["error"]["type"] == "not_found"
        own = await call(nc, "ai.chat.user.bob.session.show", session_id="s1", user_id="alice")
        trusted = await call(nc, "ai.chat.session.show", session_id="s1", user_id="bob")
    assert [turn["query"] for turn in own["turns"]] == ["How often?"]
    assert trusted["turns"] == own["turns"]


async def test_a_session_that_its_user_deleted_begins_anew(nc: Connection, settings: SettingsFor, models: Any) -> None:
    async with serving(service, settings()):
        await ask(nc, CHAT, REQUEST, question("How often?"))
        deleted = await call(nc, "ai.chat.user.alice.session.delete", session_id="s1")
        again = await call(nc, "ai.chat.user.alice.session.delete", session_id="s1")
        await ask(nc, CHAT, REQUEST, question("Why?"))
        shown = await call(nc, "ai.chat.user.alice.session.show", session_id="s1")
    assert (deleted["success"], deleted["session_id"]) == (True, "s1")
    assert again["error"]["type"] == "not_found"
    assert prompted(models) == [("user", "Why?")]
    assert [turn["query"] for turn in shown["turns"]] == ["Why?"]


@pytest.mark.parametrize(("body", "type"), [({}, "validation_error"), ({"session_id": "none"}, "not_found")])
@pytest.mark.parametrize("verb", ["show", "delete"])
async def test_a_session_that_is_not_there_or_not_named_is_told(
    nc: Connection, settings: SettingsFor, verb: str, body: dict[str, str], type: str
) -> None:
    async with serving(service, settings()):
        reply = await call(nc, f"ai.chat.user.alice.session.{verb}", **body)
    assert (reply["error"]["type"], reply["success"], reply["turns"]) == (type, False, [])


async def test_turns_of_one_session_that_run_at_once_are_all_remembered(
    nc: Connection, settings: SettingsFor, models: Any
) -> None:
    go_on = asyncio.Event()
    models.script = [go_on, "answer"]
    async with serving(service, settings()):
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(ask(nc, CHAT, REQUEST, question(f"q{n}"))) for n in range(8)]
            await until(lambda: len(models.seen) == 8, "all are with the LLM")
            go_on.set()
        shown = await call(nc, "ai.chat.session.show", session_id="s1", user_id="alice")
    assert sorted(turn["query"] for turn in shown["turns"]) == [f"q{n}" for n in range(8)]
    assert {tuple(task.result().response.degraded) for task in asked} == {()}


async def test_a_turn_whose_worker_died_between_remembering_and_answering_is_remembered_once(
    nc: Connection, settings: SettingsFor, models: Any
) -> None:
    request = question("How often?")
    forgotten = SessionTurn(
        request_id=str(request.request_id), attempt=1, query="How often?", response="Daily.", timestamp=1.0
    )
    models.refusals = 3  # the first attempt fails, and the second finds what the first had remembered
    async with serving(service, settings()):
        await Memory(nc).remember("alice", "s1", forgotten)
        answered = await ask(nc, CHAT, REQUEST, request)
        shown = await call(nc, "ai.chat.session.show", session_id="s1", user_id="alice")
    assert prompted(models) == [("user", "How often?")], "its own earlier answer is no history"
    assert answered.response.response == "Weekly [1]."
    assert [(turn["response"], turn["attempt"]) for turn in shown["turns"]] == [("Weekly.", 2)]


async def test_a_session_goes_into_the_prompt_up_to_its_budget(
    nc: Connection, settings: SettingsFor, models: Any
) -> None:
    models.script = ["x" * 150]
    async with serving(service, settings(session_tokens=100)):
        for n in range(6):
            await ask(nc, CHAT, REQUEST, question(f"q{n}"))
    assert [text for role, text in prompted(models) if role == "user"] == ["q3", "q4", "q5"]


async def test_what_was_said_takes_half_of_the_room_at_most(
    nc: Connection, settings: SettingsFor, milvus: str, models: Any
) -> None:
    models.script = ["x" * 700]
    request = {"enable_rag": True, "enable_reranker": False, "system_prompt": "Be brief."}
    tight = settings(milvus_uri=milvus, milvus_timeout=20, prompt_tokens=256, session_tokens=1000)
    async with serving(service, tight):
        first = await ask(nc, CHAT, REQUEST, question("cactus water weekly", **request))
        second = await ask(nc, CHAT, REQUEST, question("cactus water weekly?", **request))
    assert len(first.response.sources) == len(second.response.sources) == 3
    [*_, (asker, before), (answerer, said), (_, now)] = prompted(models)
    assert (asker, before, answerer, now) == ("user", "cactus water weekly", "assistant", "cactus water weekly?")
    assert said == "x" * len(said)
    assert 0 < len(said) < 700


async def test_without_the_bucket_questions_are_answered_and_it_is_said(nc: Connection, settings: SettingsFor) -> None:
    await Api(nc).request("STREAM.DELETE.KV_AI_SESSIONS")
    async with serving(service, settings()):
        answered = await ask(nc, CHAT, REQUEST, question("How often?"))
        alone = await ask(nc, CHAT, REQUEST, question("How often?", session_id=None))
        shown = await call(nc, "ai.chat.session.show", session_id="s1", user_id="alice")
    assert (answered.response.response, answered.response.degraded) == ("Weekly [1].", ["memory"])
    assert alone.response.degraded == []
    assert not any(name in alone.response.timings for name in ("recall_ms", "remember_ms"))
    assert (shown["error"]["type"], shown["error"]["retryable"]) == ("transient", True)


async def test_a_session_that_cannot_be_read_is_said_once_and_replaced(
    nc: Connection, settings: SettingsFor, models: Any
) -> None:
    await Api(nc).publish("$KV.AI_SESSIONS.user.alice.s1", b"\xc1", {})
    async with serving(service, settings()):
        first = await ask(nc, CHAT, REQUEST, question("How often?"))
        second = await ask(nc, CHAT, REQUEST, question("Why?"))
    assert (first.response.degraded, second.response.degraded) == (["memory"], [])
    assert prompted(models)[0] == ("user", "How often?")


async def test_the_same_request_again_is_remembered_once(nc: Connection, settings: SettingsFor, models: Any) -> None:
    request = question("How often?")
    async with serving(service, settings()):
        await ask(nc, CHAT, REQUEST, request)
        await Api(nc).publish(REQUEST, encode(request), {})

        async def settled() -> bool:
            return int((await Api(nc).request("STREAM.INFO.AI_CHAT"))["state"]["messages"]) == 0

        await until(settled, "it is settled")
        shown = await call(nc, "ai.chat.session.show", session_id="s1", user_id="alice")
    assert [turn["query"] for turn in shown["turns"]] == ["How often?"]
    assert len(await stored(nc, "AI_EVENTS", "evt.chat.response.*")) == 1
