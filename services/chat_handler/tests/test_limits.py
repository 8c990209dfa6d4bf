"""What a user may take of a chat handler: so many turns at once, and the collections that are allowed."""

import asyncio
import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from chat_handler.service import Settings, service
from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.contract.chat import CHAT, ChatRequest, ChatResponse
from handler_core.jetstream import Api
from handler_core.testing import ask, serving, stored, until

SettingsFor = Callable[..., Settings]

QUERY = "cactus water weekly"
REQUEST = "ai.chat.request"
ALLOWED = "notes, user_{user}"


def question(**fields: Any) -> ChatRequest:
    return ChatRequest(**{"query": QUERY, "request_id": uuid.uuid4().hex, "enable_rag": False, **fields})


async def test_a_user_that_floods_the_queue_does_not_hold_up_another(
    nc: Connection, settings: SettingsFor, models: Any
) -> None:
    go_on = asyncio.Event()
    models.script = ["first", go_on]
    flood = [question(user_id="alice") for _ in range(40)]
    async with serving(service, settings(max_in_flight=4, max_turns_per_user=1)):
        for request in flood:
            await Api(nc).publish(REQUEST, encode(request), {})
        await until(lambda: models.seen, "one of them is with the LLM")
        models.script = ["second"]
        answered = await ask(nc, CHAT, REQUEST, question(user_id="bob"))
        assert answered.response.response == "second"
        assert len(models.seen) == 2, "all others of the same user wait, or were told"
        go_on.set()
        found = [decode(final.data, ChatResponse) for final in await stored(nc, "AI_EVENTS", "evt.chat.response.*")]
    busy = [response.error for response in found if response.error]
    assert busy
    assert {(error.type, error.retry_after_ms) for error in busy} == {("busy", 1000)}
    assert await stored(nc, "DLQ", "dlq.>") == []


async def test_by_request_and_reply_one_turn_too_many_is_told_busy_at_once(
    nc: Connection, settings: SettingsFor, models: Any
) -> None:
    go_on = asyncio.Event()
    models.script = ["first", go_on]
    async with serving(service, settings(max_turns_per_user=1)):
        first = asyncio.ensure_future(nc.request("ai.chat.user.alice.ask", b'{"query": "x", "enable_rag": false}', 10))
        await until(lambda: models.seen, "the LLM is asked")
        second = json.loads((await nc.request("ai.chat.user.alice.ask", b'{"query": "x"}', 10)).data)
        go_on.set()
        await first
    assert (second["error"]["type"], second["error"]["retry_after_ms"]) == ("busy", 1000)
    assert second["request_id"]
    assert len(models.seen) == 1


@pytest.mark.parametrize(
    ("collection", "user"),
    [(None, None), ("plants", None), ("notes", None), ("notes", "alice"), ("user_alice", "alice")],
)
async def test_a_collection_that_is_allowed_is_searched(
    nc: Connection, settings: SettingsFor, models: Any, collection: str | None, user: str | None
) -> None:
    request = question(enable_rag=True, collection=collection, user_id=user)
    async with serving(service, settings(allowed_collections=ALLOWED)):
        answered = await ask(nc, CHAT, REQUEST, request)
    assert answered.response.degraded == ["vectors"], "as far as there is a vector store"
    assert len(models.bodies("/v1/embeddings")) == 1


@pytest.mark.parametrize("rag", [True, False])
@pytest.mark.parametrize(
    ("collection", "user"),
    [("secret", "alice"), ("user_bob", "alice"), ("user_alice", None), ("user_", None), ("Notes", "alice")],
)
async def test_a_collection_that_is_not_allowed_is_refused_before_any_upstream_is_called(
    nc: Connection, settings: SettingsFor, models: Any, collection: str, user: str | None, rag: bool
) -> None:
    request = question(enable_rag=rag, collection=collection, user_id=user)
    async with serving(service, settings(allowed_collections=ALLOWED)):
        answered = await ask(nc, CHAT, REQUEST, request)
    error = answered.response.error
    assert error is not None
    assert (error.type, error.retryable) == ("validation_error", False)
    assert error.message == f"collection: {collection} is none of those that may be searched"
    assert models.seen == []


async def test_the_user_of_the_subject_decides_which_collection_is_his_own(
    nc: Connection, settings: SettingsFor, models: Any
) -> None:
    body = json.dumps({"query": QUERY, "collection": "user_bob", "user_id": "bob"}).encode()
    async with serving(service, settings(allowed_collections=ALLOWED)):
        reply = json.loads((await nc.request("ai.chat.user.alice.ask", body, 10)).data)
    assert reply["error"]["type"] == "validation_error"
    assert models.seen == []
