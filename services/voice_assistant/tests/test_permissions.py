"""The permissions that docs/voice.md shows: enough for all that the service does, and for a user to ask as himself."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import nats.errors
import pytest

from handler_core import streams
from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.contract.stt import TranscriptEvent
from handler_core.contract.voice import VOICE, VoiceRequest, VoiceResponse
from handler_core.jetstream import Api
from handler_core.memory import Memory
from handler_core.testing import NatsServer, ask, connection, guarded_server, login, serving, stored, until
from handler_core.testing_voice import FakeModels, question_wav
from voice_assistant.service import Settings, service

PAGE = Path(__file__).parents[3] / "docs" / "voice.md"
REQUEST = "ai.voice.user.alice.request"


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
async def alice(guarded: NatsServer, operator: Connection) -> AsyncIterator[Connection]:
    async with connection(guarded.url, **login("alice", "x")) as nc:
        yield nc


@pytest.fixture
def guarded_settings(guarded: NatsServer, settings: Callable[..., Settings]) -> Settings:
    # What is cut off when it stops is what another worker goes on with.
    return settings(nats_url=guarded.url, drain_timeout=0.05, **login("voice_assistant", "v"))


def question(**fields: Any) -> VoiceRequest:
    own = {"request_id": uuid.uuid4().hex, "text": "Why?", "enable_rag": False, "session_id": "alice-1"}
    return VoiceRequest(**{**own, **fields})


async def interrupt(operator: Connection, request: VoiceRequest, played_ms: float) -> None:
    """As `stt_module` does."""
    event = TranscriptEvent(type="interrupt", request_id=request.request_id, played_ms=played_ms, timestamp=0.0)
    await Api(operator).publish("evt.voice.transcription.alice-1", encode(event), {})


async def cancel(operator: Connection, request: VoiceRequest) -> None:
    await Api(operator).publish(f"ai.turn.cancel.{request.request_id}", b"", {})


async def error_of(operator: Connection, request_id: str | None) -> str:
    """The type of the error that a turn has ended with."""

    subject = f"evt.voice.response.{request_id}"
    await until(lambda: stored(operator, "AI_EVENTS", subject), "the turn is over")
    [final] = await stored(operator, "AI_EVENTS", subject)
    error = decode(final.data, VoiceResponse).error
    return "" if error is None else error.type.value


async def test_they_suffice_for_turns_replies_and_interruptions(
    guarded: NatsServer, operator: Connection, alice: Connection, guarded_settings: Settings, models: FakeModels
) -> None:
    models.tts.per_character = 800
    async with serving(service, guarded_settings):
        first, second, third = question(text="", audio=question_wav()), question(), question()
        answered = await ask(alice, VOICE, REQUEST, first)
        assert (answered.response.degraded, answered.events[-1].type) == ([], "done")
        await interrupt(operator, first, 1000)

        async def amended() -> bool:
            return (await Memory(operator).recall("alice", "alice-1"))[0].response.endswith("…")

        await until(amended, "the session remembers what was heard")
        models.llm.hangs = True
        for number, stop in enumerate((interrupt(operator, second, 0), cancel(operator, third)), 2):
            asking = asyncio.ensure_future(ask(alice, VOICE, REQUEST, (second, third)[number - 2]))
            await until(lambda calls=number: models.llm.calls == calls, "the LLM is asked")
            await stop
            error = (await asking).response.error
            assert error is not None
            assert error.type == "canceled"
        models.llm.hangs = False
        body = b'{"text": "Why?", "session_id": "alice-1", "enable_rag": false, "enable_tts": false}'
        for nc, subject in ((alice, "ai.voice.user.alice.ask"), (operator, "ai.voice.ask")):
            reply = json.loads((await nc.request(subject, body, 10)).data)
            assert (reply["success"], reply["degraded"]) == (True, [])
        assert (await operator.request("$SRV.INFO.voice_assistant", b"", 10)).data
    assert guarded.violations("voice_assistant") == []
    assert guarded.violations("alice") == []


async def test_they_suffice_for_a_takeover_a_lost_connection_and_a_dead_letter(
    guarded: NatsServer, operator: Connection, alice: Connection, guarded_settings: Settings, models: FakeModels
) -> None:
    request, lost = question(), question()
    go_on = asyncio.Event()
    models.llm.script = ["Water it once a week. In winter ", go_on, "less."]
    asking = asyncio.ensure_future(ask(alice, VOICE, REQUEST, request))
    async with serving(service, guarded_settings):
        await until(lambda: models.tts.spoken, "the first sentence is spoken")
    go_on.set()
    async with serving(service, guarded_settings) as runtime:
        answered = await asking
        assert (answered.response.success, answered.events[-1].attempt) == (True, 2)
        models.llm.hangs = True
        await Api(operator).publish(REQUEST, encode(lost), {})
        await until(lambda: models.llm.calls == 3, "the LLM is asked")
        runtime.nc.abort()
        await until(lambda: not runtime.nc.is_connected, "the connection is lost")
        await interrupt(operator, lost, 0)
        assert await error_of(operator, lost.request_id) == "canceled"
        await alice.publish(REQUEST, b"no request")
        await until(lambda: stored(operator, "DLQ", "dlq.AI_VOICE.voice_assistant"), "it is a dead letter")
    assert guarded.violations("voice_assistant") == []


async def test_a_user_cannot_ask_answer_or_listen_as_another(guarded: NatsServer, alice: Connection) -> None:
    closed = [
        "ai.voice.request", "voice.request", "ai.voice.ask", "ai.voice.user.bob.request", "ai.voice.user.bob.ask",
        "evt.voice.response.r1", "evt.voice.response.stream.r1", "evt.voice.transcription.alice-1",
        "ai.voice.response.r1", "ai.voice.transcription.alice-1", "ai.turn.cancel.r1",
        "$KV.AI_SESSIONS.user.bob.s1", "$JS.API.STREAM.MSG.GET.KV_AI_SESSIONS", "$JS.API.STREAM.MSG.GET.AI_EVENTS",
    ]  # fmt: skip
    private = [
        "_INBOX.>", "_INBOX_voice_assistant.>", "$KV.>", "evt.>", "ai.voice.transcription.*", "ai.voice.user.*.ask",
        "ai.voice.request", ">",
    ]  # fmt: skip
    for subject in closed:
        await alice.publish(subject, b"{}")
    for subject in private:
        await alice.subscribe(subject)
    await alice.flush()
    kept_from = [f'Publish "{subject}"' for subject in closed] + [f'Subscription "{subject}"' for subject in private]
    assert guarded.violations("alice") == kept_from
    with pytest.raises(nats.errors.TimeoutError):
        await alice.request("ai.voice.ask", b'{"text": "Why?", "user_id": "bob"}', timeout=0.1)
