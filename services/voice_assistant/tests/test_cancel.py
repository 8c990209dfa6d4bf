"""A voice turn that is taken back: whatever it is doing, its upstream sees the call given up."""

import asyncio
import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from handler_core.codec import encode
from handler_core.connection import Connection
from handler_core.contract.voice import VOICE, VoiceRequest
from handler_core.jetstream import Api
from handler_core.testing import ask, serving, stored, until
from handler_core.testing_voice import FakeModels, question_wav
from voice_assistant.service import Settings, service

SettingsFor = Callable[..., Settings]

REQUEST = "ai.voice.request"


def question(**fields: Any) -> VoiceRequest:
    own = {"request_id": uuid.uuid4().hex, "audio": question_wav(), "enable_rag": False}
    return VoiceRequest(**{**own, **fields})


async def cancel(nc: Connection, request: VoiceRequest) -> None:
    await Api(nc).publish(f"ai.turn.cancel.{request.request_id}", b"", {})


@pytest.mark.parametrize(
    ("stage", "events"),
    [("stt", ["error"]), ("llm", ["transcript", "error"]), ("tts", ["transcript", "chunk", "error"])],
)
async def test_while_an_upstream_has_not_answered(
    nc: Connection, settings: SettingsFor, models: FakeModels, stage: str, events: list[str]
) -> None:
    endpoint = getattr(models, stage)
    endpoint.hangs = True
    request = question(session_id="s1")

    async def busy() -> bool:
        told = await stored(nc, "AI_EVENTS", f"evt.voice.response.stream.{request.request_id}")
        return endpoint.calls > 0 and len(told) >= len(events) - 1

    async with serving(service, settings()) as runtime:
        asking = asyncio.ensure_future(ask(nc, VOICE, REQUEST, request))
        await until(busy, "the turn is there")
        await cancel(nc, request)
        answered = await asking
        await until(lambda: endpoint.aborted == 1, "the upstream saw the call given up")
        assert runtime.cancellations._watched == {}
    assert answered.response.error is not None
    assert answered.response.error.type == "canceled"
    assert list(dict.fromkeys(event.type for event in answered.events)) == events
    assert await stored(nc, "DLQ", "dlq.>") == []
    assert await stored(nc, "KV_AI_SESSIONS", "$KV.>") == [], "what was not answered is not remembered"


async def test_while_it_is_queued_no_upstream_is_called(
    nc: Connection, settings: SettingsFor, models: FakeModels
) -> None:
    request = question(session_id="s1")
    await Api(nc).publish(REQUEST, encode(request), {})
    await cancel(nc, request)
    responses = await nc.subscribe(VOICE.response_subject(str(request.request_id)))
    async with serving(service, settings()):
        await responses.next_msg(10)
    assert (models.stt.calls, models.llm.calls, models.tts.calls) == (0, 0, 0)


async def test_when_it_came_by_request_and_reply(nc: Connection, settings: SettingsFor, models: FakeModels) -> None:
    models.tts.hangs = True
    async with serving(service, settings()):
        body = json.dumps({"text": "Why?", "enable_rag": False, "request_id": "r1"}).encode()
        asking = asyncio.ensure_future(nc.request("ai.voice.user.alice.ask", body, 10))
        await until(lambda: models.tts.calls, "the voice is asked")
        await nc.publish("ai.turn.cancel.r1", b"")
        reply = json.loads((await asking).data)
        await until(lambda: models.tts.aborted == models.tts.calls, "it saw the call given up")
    assert reply["error"]["type"] == "canceled"


async def test_the_deadline_ends_the_call_to_the_stt(nc: Connection, settings: SettingsFor, models: FakeModels) -> None:
    models.stt.hangs = True
    async with serving(service, settings()):
        answered = await ask(nc, VOICE, REQUEST, question(deadline_ms=300))
        await until(lambda: models.stt.aborted == 1, "it saw the call given up")
    assert answered.response.error is not None
    assert answered.response.error.type == "deadline_exceeded"
