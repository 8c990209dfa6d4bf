"""The permissions that docs/streams.md shows: enough for all that the handler does, and too little for a user to read
what is another's."""

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats.errors
import pytest

from chat_handler.service import service
from handler_core import streams
from handler_core.config import NatsSettings
from handler_core.connection import Connection, connect
from handler_core.contract.chat import CHAT, ChatRequest
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, ask, nats_server, serving

from .conftest import SettingsFor

PAGE = Path(__file__).parents[3] / "docs" / "streams.md"


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[NatsServer]:
    """A server with the configuration of the page."""
    [block] = re.findall(r"```text\n(authorization \{.*?\n\})\n```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "nats.conf").write_text(block)
    with nats_server("--config", str(tmp_path / "nats.conf")) as server:
        yield server


@asynccontextmanager
async def connected(server: NatsServer, user: str, password: str, inbox: str = "_INBOX") -> AsyncIterator[Connection]:
    credentials: dict[str, Any] = {"nats_user": user, "nats_password": password, "nats_inbox_prefix": inbox}
    nc = await connect(NatsSettings(nats_url=server.url, **credentials), user)
    try:
        yield nc
    finally:
        await nc.close()


async def test_they_suffice_for_the_handler_and_keep_a_user_from_the_others(
    guarded: NatsServer, settings: SettingsFor, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(guarded, "provisioner", "p") as provisioner:
        await streams.apply(Api(provisioner))
    own: dict[str, Any] = {
        "nats_url": guarded.url, "nats_user": "chat_handler", "nats_password": "c",
        "nats_inbox_prefix": "_INBOX_chat_handler",
    }  # fmt: skip
    async with serving(service, settings(**own)), connected(guarded, "alice", "x", "_INBOX_alice") as alice:
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
