"""Requests that fail: each has exactly one end, which says why, and its message is settled as it should be."""

import asyncio
import socket
import uuid
from typing import Any

import msgpack
import pytest
from aiohttp import web

from handler_core import limits
from handler_core.audio import PcmFormat, wav
from handler_core.connection import Connection
from handler_core.contract.tts import MAX_TEXT
from handler_core.jetstream import Api
from handler_core.testing import serving, stored, until
from tts_module import requests
from tts_module.service import service


async def letters(nc: Connection) -> list[str]:
    return [letter.headers["Dead-Letter-Reason"] for letter in await stored(nc, "DLQ", "dlq.AI_TTS.tts_module")]


def unavailable() -> web.Response:
    return web.json_response({"error": {"message": "no replica is up"}}, status=503)


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to come back does so at once."""
    monkeypatch.setattr(limits.Limits, "_half_ceiling", lambda self, attempt: 0.01)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"text": ""}, "text: is empty"),
        ({"text": "x" * (MAX_TEXT + 1)}, "text: "),
        ({}, "text: "),
        ({"text": "Hello.", "language": "klingonish!"}, "language: "),
        ({"text": "Hello.", "speed": 9}, "speed: "),
        ({"text": "Hello.", "format": "mp3"}, "format: "),
        ({"text": "🙂 ```code```"}, "text: has nothing in it"),
    ],
)
async def test_an_invalid_request_is_told_so_before_any_audio(
    nc: Connection, caller: Any, settings: Any, engine: Any, body: dict[str, Any], said: str
) -> None:
    async with serving(service, settings()):
        await caller.send(msgpack.packb({**body, "request_id": "r1"}))
        end = await caller.end()
    assert (end.request_id, end.status, end.error.type) == ("r1", "error", "validation_error")
    assert end.error.message.startswith(said)
    assert (caller.chunks, engine.seen) == ([], [])
    [reason] = await letters(nc)
    assert reason == end.error.message


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1", b'{"text": "Hello."}', msgpack.packb({"request_id": "a.b", "text": "x"})]
)
async def test_a_message_that_cannot_be_read_has_its_end_in_its_session(
    nc: Connection, caller: Any, settings: Any, payload: bytes
) -> None:
    async with serving(service, settings()):
        await caller.send(payload)
        end = await caller.end()
    assert (end.status, end.error.type, end.error.retryable) == ("error", "validation_error", False)
    assert end.request_id
    assert len(await letters(nc)) == 1


async def test_a_session_that_is_no_token_is_a_dead_letter(nc: Connection, caller: Any, settings: Any) -> None:
    caller.session = "caf\u00e9"
    async with serving(service, settings()):
        await caller.ask()
        await until(lambda: letters(nc), "it is a dead letter")
    assert await caller.log() == []


@pytest.mark.parametrize("field", ["speaker", "speaker_wav"])
async def test_a_voice_that_is_not_there_is_named(
    nc: Connection, caller: Any, settings: Any, engine: Any, field: str
) -> None:
    engine.answers = [web.json_response({"error": {"message": "what voice?"}}, status=400)]
    async with serving(service, settings()):
        await caller.ask(**{field: "nobody"})
        end = await caller.end()
    assert (end.status, end.error.type) == ("error", "validation_error")
    assert end.error.message.startswith(f"{field}: ")
    assert caller.chunks == []
    assert len(await letters(nc)) == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda: web.Response(body=bytes(9600), content_type="audio/pcm"), "silence"),
        (lambda: web.Response(body=b"", content_type="audio/pcm"), "nothing"),
        (lambda: web.Response(body=b"ID3" + bytes(9600), content_type="audio/mpeg"), "mp3"),
        (lambda: web.Response(body=wav(PcmFormat(8000), b"\1\2" * 9600)[:-9000]), "truncated"),
        (lambda: web.json_response({"detail": "bad text"}, status=422), "bad text"),
    ],
)
@pytest.mark.usefixtures("quick_retries")
async def test_what_is_no_speech_is_an_error(
    nc: Connection, caller: Any, settings: Any, engine: Any, answer: Any, said: str
) -> None:
    engine.answers = [answer() for _ in range(2 * requests.ATTEMPTS)]
    async with serving(service, settings()):
        await caller.ask(text="Hello, hello.")
        end = await caller.end()
    assert (end.status, end.error.type, end.error.stage) == ("error", "downstream_unavailable", "tts")
    assert said in end.error.message
    assert caller.order[-1] == "error"
    assert len(await letters(nc)) == 1


@pytest.mark.usefixtures("quick_retries")
async def test_an_engine_that_is_away_for_a_while_is_waited_for(
    nc: Connection, caller: Any, settings: Any, engine: Any
) -> None:
    engine.answers = [unavailable() for _ in range(4)]
    async with serving(service, settings()):
        await caller.ask()
        end = await caller.end()
    assert (end.status, end.error) == ("completed", None)
    assert end.attempt > 1
    assert caller.audio() == engine.spoken(caller.text)
    assert await letters(nc) == []


@pytest.mark.usefixtures("quick_retries")
async def test_after_a_failure_in_the_middle_the_speech_goes_on_where_it_was(
    caller: Any, settings: Any, engine: Any
) -> None:
    engine.breaks = [caller.sentences[1], caller.sentences[2]]
    async with serving(service, settings(chunk_bytes=4096)):
        await caller.ask()
        end = await caller.end()
    assert end.status == "completed"
    assert caller.audio() == engine.spoken(caller.text), "nothing is heard twice, and nothing is missing"
    assert [chunk.chunk_index for chunk in caller.chunks] == list(range(end.chunks))
    assert [chunk.text for chunk in caller.chunks if chunk.text] == caller.sentences
    assert engine.inputs().count(caller.sentences[0]) == 1, "what was said whole is not made again"
    assert {chunk.attempt for chunk in caller.chunks} > {1}


@pytest.mark.usefixtures("quick_retries")
async def test_an_engine_that_stays_away_is_given_up(
    nc: Connection, caller: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "ATTEMPTS", 2)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
        async with serving(service, settings(tts_url=nowhere)):
            await caller.ask()
            end = await caller.end()
    assert (end.status, end.error.type, end.attempt) == ("error", "downstream_unavailable", 2)
    assert len(await letters(nc)) == 1


async def test_a_request_that_ends_its_worker_each_time_has_its_end_too(
    nc: Connection, caller: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "ATTEMPTS", 0)  # as if that many deliveries had been lost
    async with serving(service, settings()):
        await caller.ask()
        end = await caller.end()
    assert (end.status, end.error.type, end.error.stage) == ("error", "internal", "max_deliveries")
    assert len(await letters(nc)) == 1


async def test_a_hung_engine_is_given_up_at_the_deadline(
    nc: Connection, caller: Any, settings: Any, engine: Any
) -> None:
    engine.gates[caller.sentences[0]] = asyncio.Event()
    async with serving(service, settings()):
        await caller.ask(deadline_ms=400)
        end = await caller.end()
        await asyncio.wait_for(engine.aborted.wait(), 10)
    assert (end.status, end.error.type) == ("error", "deadline_exceeded")
    assert end.chunks == len(caller.chunks) > 0
    assert not any(chunk.is_last for chunk in caller.chunks)
    assert await letters(nc) == []


async def test_a_deadline_that_passed_in_the_queue_costs_no_call(caller: Any, settings: Any, engine: Any) -> None:
    await caller.ask(deadline_ms=1)
    async with serving(service, settings()):
        end = await caller.end()
    assert (end.error.type, engine.seen) == ("deadline_exceeded", [])


async def test_speech_is_canceled_at_once(nc: Connection, caller: Any, settings: Any, engine: Any) -> None:
    engine.gates[caller.sentences[1]] = asyncio.Event()
    async with serving(service, settings()):
        request_id = await caller.ask()
        await until(lambda: len(engine.seen) == 2, "the second sentence is being made")
        await Api(nc).publish(f"ai.turn.cancel.{request_id}", b"", {})
        end = await caller.end()
        await asyncio.wait_for(engine.aborted.wait(), 10)
    assert (end.status, end.error.type) == ("error", "canceled")
    assert caller.order[-1] == "error"
    assert await letters(nc) == []


async def test_a_request_canceled_in_the_queue_is_not_spoken(
    nc: Connection, caller: Any, settings: Any, engine: Any
) -> None:
    request_id = await caller.ask()
    await Api(nc).publish(f"ai.turn.cancel.{request_id}", b"", {})
    async with serving(service, settings()):
        end = await caller.end()
    assert (end.error.type, caller.order, engine.seen) == ("canceled", ["error"], [])


async def test_a_handler_that_takes_too_long_is_tried_again_where_it_was(
    caller: Any, settings: Any, engine: Any
) -> None:
    gate = engine.gates[caller.sentences[1]] = asyncio.Event()
    async with serving(service, settings(handler_timeout=0.5)):
        await caller.ask()
        await asyncio.wait_for(engine.aborted.wait(), 10)
        gate.set()
        end = await caller.end()
    assert (end.status, end.attempt > 1) == ("completed", True)
    assert caller.audio() == engine.spoken(caller.text)


async def test_two_messages_with_one_request_id_are_spoken_once(caller: Any, settings: Any, engine: Any) -> None:
    request_id = uuid.uuid4().hex
    async with serving(service, settings()):
        await caller.ask(request_id=request_id)
        await caller.end()
        await caller.ask(request_id=request_id)
        await caller.end()
    assert caller.audio() == engine.spoken(caller.text)
    assert caller.order.count("started") == 1
