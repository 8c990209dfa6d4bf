"""The permissions that docs/tts.md shows: enough for all that the module does, and for a client to use its own session
only."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import nats.errors
import pytest

from handler_core import streams
from handler_core.connection import Connection
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, connection, guarded_server, login, serving, stored, until
from tts_module.service import Settings, service

from .conftest import Caller

PAGE = Path(__file__).parents[3] / "docs" / "tts.md"


@pytest.fixture
def guarded() -> Iterator[NatsServer]:
    with guarded_server(PAGE) as server:
        yield server


@pytest.fixture
async def operator(guarded: NatsServer) -> AsyncIterator[Connection]:
    async with connection(guarded.url, nats_user="operator", nats_password="o") as nc:
        await streams.apply(Api(nc))
        yield nc


@pytest.fixture
async def alice(guarded: NatsServer, operator: Connection) -> AsyncIterator[Caller]:
    async with connection(guarded.url, **login("alice", "x")) as nc:
        caller = Caller(nc)
        caller.session = "alice-1"
        await caller.listen()
        yield caller


@pytest.fixture
def guarded_settings(guarded: NatsServer, settings: Callable[..., Settings]) -> Settings:
    # What is cut off when it stops is what another worker goes on with.
    return settings(nats_url=guarded.url, drain_timeout=0.05, **login("tts_module", "t"))


async def test_they_suffice_for_speech_a_takeover_a_cancellation_and_a_dead_letter(
    guarded: NatsServer, operator: Connection, alice: Caller, guarded_settings: Settings, engine: Any
) -> None:
    engine.gates[alice.sentences[1]] = asyncio.Event()
    taken_over = await alice.ask()
    async with serving(service, guarded_settings):
        await until(lambda: len(engine.seen) == 2 and alice.chunks, "the second sentence is begun")
    engine.gates.pop(alice.sentences[1]).set()
    async with serving(service, guarded_settings):
        await until(alice.ends, "the next worker ends it")
        assert (alice.ends()[0].attempt, alice.audio(taken_over)) == (2, engine.spoken(alice.text))
        engine.gates[alice.sentences[0]] = asyncio.Event()
        canceled, calls = await alice.ask(), len(engine.seen)
        await until(lambda: len(engine.seen) > calls, "it is begun")
        await Api(operator).publish(f"ai.turn.cancel.{canceled}", b"", {})
        await until(lambda: len(alice.ends()) == 2, "it is canceled")
        await alice.send(b"no request")
        await until(lambda: stored(operator, "DLQ", "dlq.AI_TTS.tts_module"), "it is a dead letter")
    assert [end.error.type.value for end in alice.ends() if end.error] == ["canceled", "validation_error"]
    assert guarded.violations("tts_module") == guarded.violations("alice") == []


async def test_they_suffice_for_replies(
    guarded: NatsServer, operator: Connection, alice: Caller, guarded_settings: Settings, engine: Any
) -> None:
    async with serving(service, guarded_settings):
        for nc in (alice.nc, operator):
            for subject in ("ai.tts.speak", "ai.voice.tts.voices.list"):
                assert json.loads((await nc.request(subject, b'{"text": "Hello."}', 10)).data)["success"]
        assert json.loads((await operator.request("ai.voice.tts.voices.refresh", b"", 10)).data)["success"]
        assert (await operator.request("$SRV.INFO.tts_module", b"", 10)).data
    assert guarded.violations("tts_module") == guarded.violations("alice") == []


async def test_a_client_cannot_speak_or_listen_in_the_session_of_another(guarded: NatsServer, alice: Caller) -> None:
    closed = [
        "ai.voice.tts.request.bob-1", "evt.voice.tts.audio.alice-1", "evt.voice.tts.status.alice-1",
        "ai.voice.tts.audio.alice-1", "ai.turn.cancel.r1", "$JS.API.STREAM.MSG.GET.AI_EVENTS",
    ]  # fmt: skip
    private = [
        "_INBOX.>", "_INBOX_tts_module.>", "evt.>", "ai.voice.tts.audio.*", "ai.voice.tts.status.bob-1",
        "ai.tts.speak", ">",
    ]  # fmt: skip
    for subject in closed:
        await alice.nc.publish(subject, b"{}")
    for subject in private:
        await alice.nc.subscribe(subject)
    await alice.nc.flush()
    kept_from = [f'Publish "{subject}"' for subject in closed] + [f'Subscription "{subject}"' for subject in private]
    assert guarded.violations("alice") == kept_from
    with pytest.raises(nats.errors.TimeoutError):
        await alice.nc.request("ai.voice.tts.voices.refresh", b"", timeout=0.1)
