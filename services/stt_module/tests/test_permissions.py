"""The permissions that docs/stt.md shows: enough for all that the worker does, and for a client no more than its own
sessions."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from handler_core import streams
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, connection, guarded_server, login, serving, stored, until
from handler_core.testing_speech import Speaker
from stt_module.service import service

from .conftest import SettingsFor

PAGE = Path(__file__).parents[3] / "docs" / "stt.md"


@pytest.fixture
def guarded() -> Iterator[NatsServer]:
    with guarded_server(PAGE) as server:
        yield server


async def test_they_suffice_for_a_session_from_its_first_chunk_to_the_turn_it_asks_for(
    guarded: NatsServer, settings: SettingsFor
) -> None:
    own = {"nats_url": guarded.url, "max_sessions": 1, "session_users": True, **login("stt_module", "s")}
    async with connection(guarded.url, nats_user="operator", nats_password="o") as provisioner:
        await streams.apply(Api(provisioner))
        async with serving(service, settings(**own)), connection(guarded.url, **login("alice", "x")) as nc:
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
    assert guarded.violations("stt_module") == []
    assert guarded.violations("alice") == []
