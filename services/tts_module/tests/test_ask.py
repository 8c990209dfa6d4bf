"""Speech and voices by request/reply, for callers with MessagePack and for those with `nats request`."""

import asyncio
import base64
import json
from typing import Any

import msgpack
import pytest

from handler_core.audio import read_wav
from handler_core.connection import Connection
from handler_core.testing import serving, stored
from tts_module.service import service


def fields(reply: bytes, text: bool) -> Any:
    """The reply with its audio as bytes."""
    answer = json.loads(reply) if text else msgpack.unpackb(reply)
    if text and "audio" in answer:
        answer["audio"] = base64.b64decode(answer["audio"], validate=True)
    return answer


def packed(body: dict[str, Any], text: bool) -> bytes:
    return json.dumps(body).encode() if text else bytes(msgpack.packb(body))


@pytest.mark.parametrize("text", [True, False])
async def test_a_text_is_answered_with_one_wav_file(
    nc: Connection, caller: Any, settings: Any, engine: Any, text: bool
) -> None:
    async with serving(service, settings()):
        reply = await nc.request("ai.tts.speak", packed({"text": caller.text, "request_id": "r1"}, text), 10)
    answer = fields(reply.data, text)
    file = read_wav(answer["audio"])
    assert bytes(file.pcm) == engine.spoken(caller.text)
    assert (answer["format"], answer["sample_rate"], file.format.sample_rate) == ("wav", 24_000, 24_000)
    assert (answer["request_id"], answer["success"], answer["duration_ms"]) == ("r1", True, 1250.0)
    assert answer["timings"].keys() == {"queue_ms", "tts_first_audio_ms", "tts_ms", "total_ms"}
    assert await stored(nc, "AI_EVENTS", "evt.>") == [], "nothing is kept of it"


@pytest.mark.parametrize("text", [True, False])
async def test_bare_samples_come_where_they_are_asked_for_by_name(
    nc: Connection, caller: Any, settings: Any, engine: Any, text: bool
) -> None:
    async with serving(service, settings()):
        reply = await nc.request("ai.tts.speak", packed({"text": caller.text, "format": "pcm"}, text), 10)
    answer = fields(reply.data, text)
    assert (answer["format"], answer["audio"]) == ("pcm", engine.spoken(caller.text))


@pytest.mark.parametrize(("text", "sentences"), [(True, 38), (False, 51)])
async def test_what_does_not_fit_into_one_reply_is_refused_with_the_way_that_does(
    nc: Connection, settings: Any, engine: Any, text: bool, sentences: int
) -> None:
    """A sentence has 20,000 bytes, a reply a mebibyte, and base64 makes four bytes of three."""

    def body(count: int) -> bytes:
        return packed({"text": " ".join(f"This is sentence {n:06}." for n in range(count))}, text)

    async with serving(service, settings()):
        fits = fields((await nc.request("ai.tts.speak", body(sentences), 20)).data, text)
        refused = fields((await nc.request("ai.tts.speak", body(sentences * 2), 20)).data, text)
    assert len(fits["audio"]) == 44 + sentences * 20_000
    assert (refused["success"], refused["error"]["type"]) == (False, "validation_error")
    assert refused["error"]["message"].startswith("text: its audio does not fit")
    assert "ai.voice.tts.request.{session}" in refused["error"]["message"]
    assert len(engine.seen) < sentences * 2 + sentences, "it is refused as soon as that is known"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"text": " "}', "text: is empty"),
        (b'{"text": "```code```"}', "text: has nothing in it"),
        (b'{"text": "Hello.", "speaker": "nobody"}', "speaker: no voice 'nobody'; there are alloy, nova"),
        (b'{"text": "Hello.", "language": "?"}', "language: "),
    ],
)
async def test_a_wrong_request_is_told_which_field_it_is(
    nc: Connection, settings: Any, engine: Any, body: bytes, said: str
) -> None:
    from aiohttp import web

    engine.answers = [web.json_response({"error": {"message": "what voice?"}}, status=400)]
    async with serving(service, settings()):
        answer = json.loads((await nc.request("ai.tts.speak", body, 10)).data)
    assert answer["error"]["type"] == "validation_error"
    assert answer["error"]["message"].startswith(said)


async def test_the_deadline_ends_the_call_to_the_engine(
    nc: Connection, caller: Any, settings: Any, engine: Any
) -> None:
    engine.gates[caller.sentences[0]] = asyncio.Event()
    async with serving(service, settings()):
        reply = await nc.request("ai.tts.speak", packed({"text": caller.text, "deadline_ms": 300}, True), 10)
        await asyncio.wait_for(engine.aborted.wait(), 10)
    assert json.loads(reply.data)["error"]["type"] == "deadline_exceeded"


@pytest.mark.parametrize("subject", ["ai.voice.tts.voices.list", "ai.voice.tts.voices.refresh"])
async def test_the_voices_are_listed(nc: Connection, settings: Any, subject: str, tmp_path: Any) -> None:
    async with serving(service, settings(tts_speaker="nova")):
        answer = json.loads((await nc.request(subject, b"", 10)).data)
    assert (answer["engine"], answer["default"], answer["success"]) == ("openai", "nova", True)
    assert answer["voices"] == [{"name": "alloy", "kind": "builtin"}, {"name": "nova", "kind": "builtin"}]


async def test_voices_that_cannot_be_asked_for_are_an_error(nc: Connection, settings: Any) -> None:
    async with serving(service, settings(tts_url="http://127.0.0.1:9")):
        answer = json.loads((await nc.request("ai.voice.tts.voices.list", b"", 10)).data)
    assert answer["error"]["type"] == "downstream_unavailable"
