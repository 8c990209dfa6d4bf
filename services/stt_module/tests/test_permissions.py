"""The permissions that docs/stt.md shows: enough for all that the worker does, and for a client no more than its own
sessions."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from handler_core import streams
from handler_core.config import NatsSettings
from handler_core.connection import Connection, connect
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, nats_server, serving, stored, until
from handler_core.testing_speech import Speaker
from stt_module.service import service

from .conftest import SettingsFor

CONFIGURATION = """
authorization {
  users = [
    { user: provisioner, password: p, permissions: { publish: [">"], subscribe: [">"] } }
    { user: stt_module, password: s, permissions: {
        publish: ["$JS.API.CONSUMER.INFO.AI_STT_SESSIONS.stt_module",
                  "$JS.API.CONSUMER.MSG.NEXT.AI_STT_SESSIONS.stt_module",
                  "$JS.ACK.AI_STT_SESSIONS.stt_module.>", "dlq.AI_STT_SESSIONS.stt_module",
                  "$JS.API.CONSUMER.CREATE.AI_STT.*.ai.voice.stream.*", "$JS.API.CONSUMER.DELETE.AI_STT.*",
                  "$JS.FC.AI_STT.>",
                  "$JS.API.STREAM.MSG.GET.AI_STT", "$JS.API.STREAM.MSG.GET.AI_STT_SESSIONS",
                  "$JS.API.STREAM.MSG.GET.AI_EVENTS",
                  "evt.voice.transcription.*", "ai.voice.session.*", "ai.voice.request", "ai.voice.user.*.request"]
        subscribe: ["_INBOX_stt_module.>", "ai.turn.cancel.*"] } }
    { user: alice, password: x, permissions: {
        publish: ["ai.voice.stream.alice-1"]
        subscribe: ["ai.voice.transcription.alice-1", "_INBOX_alice.>"] } }
  ]
}
"""


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[NatsServer]:
    (tmp_path / "nats.conf").write_text(CONFIGURATION)
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


async def test_they_suffice_for_a_session_from_its_first_chunk_to_the_turn_it_asks_for(
    guarded: NatsServer, settings: SettingsFor, capsys: pytest.CaptureFixture[str]
) -> None:
    own: dict[str, Any] = {
        "nats_url": guarded.url, "nats_user": "stt_module", "nats_password": "s",
        "nats_inbox_prefix": "_INBOX_stt_module", "max_sessions": 1,
    }  # fmt: skip
    async with connected(guarded, "provisioner", "p") as provisioner:
        await streams.apply(Api(provisioner))
        async with serving(service, settings(**own)), connected(guarded, "alice", "x", "_INBOX_alice") as nc:
            alice = await Speaker(nc, "alice-1").listen()
            await alice.start(turn={}, user_id="alice")
            await alice.say(1)
            await alice.hears([1])
            bob = await Speaker(provisioner, "bob-1").listen()
            await bob.say(2)
            await bob.sees("waiting")
            await alice.end()
            await alice.sees("ended")
            await bob.hears([2])
            await bob.end()
            await bob.sees("ended")

            async def none_waits() -> bool:
                return await stored(provisioner, "AI_STT_SESSIONS", "ai.voice.session.*") == []

            await until(none_waits, "the tickets are settled")
            assert len(await stored(provisioner, "AI_VOICE", "ai.voice.user.alice.request")) == 1

            async def none_reads() -> bool:
                answer = await Api(provisioner).request("CONSUMER.LIST.AI_STT")
                return int(answer["total"]) == 0

            await until(none_reads, "the readers are gone")
    assert "permissions violation" not in capsys.readouterr().out.lower()
