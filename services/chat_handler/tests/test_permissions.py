"""The permissions that docs/streams.md shows: enough for all that the handler does, and too little for a user to read
what is another's."""

import asyncio
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nats.errors
import pytest

from chat_handler.service import service
from handler_core import streams
from handler_core.contract.chat import CHAT, ChatRequest
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, ask, connection, guarded_server, login, serving

from .conftest import SettingsFor

PAGE = Path(__file__).parents[3] / "docs" / "streams.md"


@pytest.fixture
def guarded() -> Iterator[NatsServer]:
    with guarded_server(PAGE) as server:
        yield server


async def test_they_suffice_for_the_handler_and_keep_a_user_from_the_others(
    guarded: NatsServer, settings: SettingsFor, caplog: pytest.LogCaptureFixture
) -> None:
    async with connection(guarded.url, **login("provisioner", "p")) as provisioner:
        await streams.apply(Api(provisioner))
    own = settings(nats_url=guarded.url, **login("chat_handler", "c"))
    async with serving(service, own), connection(guarded.url, **login("alice", "x")) as alice:
        request = ChatRequest(
            query="How often?", request_id=uuid.uuid4().hex, enable_rag=False, enable_streaming=True, session_id="s1"
        )
        answered = await ask(alice, CHAT, "ai.chat.user.alice.message", request, timeout=10)
        assert (answered.text, answered.response.degraded) == ("Weekly [1].", [])
        body = json.dumps({"query": "And why?", "enable_rag": False, "session_id": "s1"}).encode()
        asked = json.loads((await alice.request("ai.chat.user.alice.ask", body, timeout=10)).data)
        assert (asked["success"], asked["degraded"]) == (True, [])
        shown = json.loads((await alice.request("ai.chat.user.alice.session.show", b'{"session_id": "s1"}', 10)).data)
        assert [turn["query"] for turn in shown["turns"]] == ["How often?", "And why?"]

        with pytest.raises(nats.errors.TimeoutError):
            await alice.request("ai.chat.session.show", b'{"session_id": "s1", "user_id": "bob"}', timeout=0.3)
        heard: list[str] = []

        async def overhear(message: Any) -> None:
            heard.append(message.subject)

        for subject in ("_INBOX.>", "_INBOX_chat_handler.>", "$KV.>"):
            await alice.subscribe(subject, cb=overhear)
        await alice.request("ai.chat.user.alice.ask", body, timeout=10)
        await alice.flush()
        await asyncio.sleep(0)
        assert heard == []
    assert guarded.violations("provisioner") == guarded.violations("chat_handler") == []
