"""Spoken questions over NATS: streamed, in one reply, and without what is missing."""

import asyncio
import base64
import json
import uuid
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from aiohttp.test_utils import TestServer

from handler_core import streams
from handler_core.audio import PcmFormat, read_wav, wav
from handler_core.codec import encode
from handler_core.connection import Connection
from handler_core.contract.voice import VOICE, VoiceEvent, VoiceRequest
from handler_core.jetstream import Api
from handler_core.testing import Answered, ask, connection, nats_server, serving, stored, until
from handler_core.testing_voice import SPEECH, FakeModels, pcm_of, question_wav
from local_inference.app import create_app
from local_inference.echo import Echo
from local_inference.settings import Settings as ModelSettings
from voice_assistant.service import Settings, service

SettingsFor = Callable[..., Settings]

REQUEST = "ai.voice.request"
TEXT = "Water it once a week [1]. In winter a cactus needs much less. Mind the pot."
SENTENCES = ["Water it once a week.", "In winter a cactus needs much less.", "Mind the pot."]


def question(**fields: Any) -> VoiceRequest:
    own = {"request_id": uuid.uuid4().hex, "audio": question_wav(), "enable_rag": False}
    return VoiceRequest(**{**own, **fields})


def spoken(per_character: int = 80) -> bytes:
    return b"".join(pcm_of(sentence, per_character) for sentence in SENTENCES)


def audio_of(answered: Answered[Any]) -> list[VoiceEvent]:
    return [event for event in answered.events if isinstance(event, VoiceEvent) and event.type == "audio"]


async def call(nc: Connection, subject: str, **body: Any) -> dict[str, Any]:
    reply: dict[str, Any] = json.loads((await nc.request(subject, json.dumps(body).encode(), 10)).data)
    return reply


# -- answered


@pytest.mark.parametrize("subject", [REQUEST, "voice.request", "ai.voice.user.alice.request"])
async def test_a_question_is_answered_in_text_and_audio(nc: Connection, settings: SettingsFor, subject: str) -> None:
    async with serving(service, settings()):
        answered = await ask(nc, VOICE, subject, question())
    response = answered.response
    assert (response.transcription, response.language) == ("How often does it need water?", "en")
    assert response.response == answered.text.removeprefix(response.transcription) == TEXT
    types = [event.type for event in answered.events]
    assert (types[0], types[-1]) == ("transcript", "done")
    segments = audio_of(answered)
    assert [segment.segment for segment in segments] == list(range(response.audio_segments))
    assert [segment.text for segment in segments if segment.text] == SENTENCES
    assert b"".join(segment.audio for segment in segments) == spoken()
    assert response.audio == wav(SPEECH, spoken())
    assert (response.degraded, response.success) == ([], True)
    expected = {"queue", "stt", "llm_first_token", "llm", "tts_first_audio", "tts", "total"}
    assert {f"{name}_ms" for name in expected} <= response.timings.keys()


async def test_the_answer_rests_on_what_was_found(
    nc: Connection, settings: SettingsFor, models: FakeModels, milvus: str
) -> None:
    models.stt.text = "cactus water weekly"
    async with serving(service, settings(milvus_uri=milvus, milvus_timeout=20)):
        answered = await ask(nc, VOICE, REQUEST, question(enable_rag=True))
    response = answered.response
    assert [source.id for source in response.sources] == ["p1"]
    assert [(citation.index, citation.source_id) for citation in response.citations] == [(1, "p1")]
    assert (response.used_rag, response.degraded) == (True, [])
    assert {"embed_ms", "search_ms", "rerank_ms"} <= response.timings.keys()


async def test_without_streaming_there_is_the_response_alone(nc: Connection, settings: SettingsFor) -> None:
    request = question(enable_streaming=False)
    async with serving(service, settings()):
        answered = await ask(nc, VOICE, REQUEST, request)
    assert answered.events == []
    assert await stored(nc, "AI_EVENTS", "evt.voice.response.stream.*") == []
    assert (answered.response.audio, answered.response.audio_segments) == (wav(SPEECH, spoken()), 0)


async def test_without_tts_there_is_text_alone(nc: Connection, settings: SettingsFor, models: FakeModels) -> None:
    async with serving(service, settings()):
        answered = await ask(nc, VOICE, REQUEST, question(enable_tts=False))
    assert (answered.response.response, answered.response.audio, audio_of(answered)) == (TEXT, None, [])
    assert (answered.response.degraded, models.tts.calls) == ([], 0)


async def test_nothing_heard_is_said_and_not_remembered(
    nc: Connection, settings: SettingsFor, models: FakeModels
) -> None:
    models.stt.text = ""
    async with serving(service, settings(nothing_heard="Come again?")):
        answered = await ask(nc, VOICE, REQUEST, question(session_id="s1"))
    response = answered.response
    assert (response.success, response.transcription, response.response) == (True, "", "Come again?")
    assert response.audio == wav(SPEECH, pcm_of("Come again?", 80))
    assert models.llm.calls == 0
    assert await stored(nc, "KV_AI_SESSIONS", "$KV.>") == []


async def test_a_session_remembers_what_was_said_aloud(
    nc: Connection, settings: SettingsFor, models: FakeModels
) -> None:
    async with serving(service, settings()):
        await ask(nc, VOICE, REQUEST, question(session_id="s1"))
        await ask(nc, VOICE, REQUEST, question(session_id="s1", audio=b"", text="And in summer?"))
        await ask(nc, VOICE, REQUEST, question(session_id="s1", user_id="bob"))
    assert [message["content"] for message in models.llm.prompts[1][1:]] == [
        "How often does it need water?", TEXT.replace(" [1]", ""), "And in summer?"
    ]  # fmt: skip
    assert len(models.llm.prompts[2]) == 2, "nobody else's"


@pytest.mark.parametrize("engine", ["auto", "xtts", "coqui", "openai"])
async def test_each_kind_of_speech_endpoint_is_spoken_with(nc: Connection, settings: SettingsFor, engine: str) -> None:
    async with TestServer(create_app(ModelSettings(log_level="error"), Echo(dimensions=16, tokens=8))) as server:
        url = str(server.make_url(""))
        names = ("llm_url", "embeddings_url", "reranker_url", "stt_url", "tts_url")
        async with serving(service, settings(tts_engine=engine, **dict.fromkeys(names, url))):
            answered = await ask(nc, VOICE, REQUEST, question(audio=b"", text="Why?"))
    response = answered.response
    assert (response.transcription, response.response) == ("Why?", "token " * 7 + "end.")
    assert (response.degraded, response.sample_rate) == ([], 24_000)
    assert response.audio is not None
    assert bytes(read_wav(response.audio).pcm) == b"".join(segment.audio for segment in audio_of(answered))


# -- sizes


async def test_an_answer_larger_than_a_message_is_whole_in_its_segments(
    nc: Connection, settings: SettingsFor, models: FakeModels
) -> None:
    models.tts.per_character = 8000
    async with serving(service, settings()):
        answered = await ask(nc, VOICE, REQUEST, question())
    segments = audio_of(answered)
    assert len(spoken(8000)) > 1_000_000
    assert b"".join(segment.audio for segment in segments) == spoken(8000)
    assert [segment.segment for segment in segments] == list(range(len(segments)))
    assert (answered.response.audio, answered.response.audio_segments) == (None, len(segments))
    assert answered.response.degraded == []


@pytest.mark.parametrize("limit", [44 + len(spoken()), 43 + len(spoken())])
async def test_the_response_holds_the_audio_up_to_the_limit(nc: Connection, settings: SettingsFor, limit: int) -> None:
    async with serving(service, settings(max_response_audio=limit)):
        answered = await ask(nc, VOICE, REQUEST, question())
    assert (answered.response.audio is not None) == (limit >= 44 + len(spoken()))
    assert answered.response.audio_segments == len(audio_of(answered))


async def test_a_question_as_large_as_a_message_may_be(
    nc: Connection, settings: SettingsFor, models: FakeModels
) -> None:
    request = question(audio=b"\x10\x20" * 400_000, format="pcm", enable_tts=False)
    headers = len(b"NATS/1.0\r\nNats-Msg-Id: \r\n\r\n") + 32
    rest = nc.payload_room - headers - len(encode(request))
    request = request.model_copy(update={"audio": b"\x10\x20" * (400_000 + rest // 2)})
    assert nc.payload_room - headers - len(encode(request)) in (0, 1)
    async with serving(service, settings()):
        answered = await ask(nc, VOICE, REQUEST, request)
    assert answered.response.response == TEXT
    assert bytes(read_wav(models.stt.seen[0]["data"]).pcm) == request.audio


@pytest.mark.parametrize("max_payload", [100_000, 65_536, 32_768])
async def test_on_a_server_with_little_room_the_audio_is_left_to_the_segments(
    models: FakeModels, max_payload: int
) -> None:
    models.tts.per_character = 1000
    assert max(len(pcm_of(sentence, 1000)) for sentence in SENTENCES) > 65_536
    with nats_server() as server:
        config = server.data / "small.conf"
        config.write_text(f"max_payload: {max_payload}")
        server.kill()
        server.arguments = ("-c", str(config))
        server.start()
        async with connection(server.url) as nc:
            await streams.apply(Api(nc))
            own: dict[str, Any] = {"nats_url": server.url, "health_host": "127.0.0.1", "health_port": 0}
            own |= dict.fromkeys(("llm_url", "embeddings_url", "stt_url", "tts_url"), models.url)
            async with serving(service, Settings(**own)):
                answered = await ask(nc, VOICE, REQUEST, question(audio=b"", text="Why?"))
                alone = await call(nc, "ai.voice.ask", text="Why?", enable_rag=False)
    assert (answered.response.audio, answered.response.degraded) == (None, [])
    assert b"".join(segment.audio for segment in audio_of(answered)) == spoken(1000)
    assert (alone.get("audio"), alone["degraded"], alone["response"]) == (None, ["audio"], TEXT)


# -- by request and reply


@pytest.mark.parametrize("subject", ["ai.voice.ask", "ai.voice.user.alice.ask"])
async def test_in_json_the_audio_is_base64_both_ways(
    nc: Connection, settings: SettingsFor, models: FakeModels, subject: str
) -> None:
    audio = question_wav(0.3, PcmFormat(44_100, 2, 2))
    async with serving(service, settings()):
        answer = await call(nc, subject, audio=base64.b64encode(audio).decode(), enable_rag=False, request_id="r1")
    assert (answer["transcription"], answer["response"]) == ("How often does it need water?", TEXT)
    assert base64.b64decode(answer["audio"]) == wav(SPEECH, spoken())
    assert (answer["request_id"], answer["audio_segments"], answer["degraded"]) == ("r1", 0, [])
    assert models.stt.seen[0]["data"] == audio
    assert await stored(nc, "AI_EVENTS", "evt.>") == [], "nothing is kept of it"


async def test_in_messagepack_it_is_bytes(nc: Connection, settings: SettingsFor) -> None:
    body = msgpack.packb({"audio": question_wav(), "enable_rag": False})
    async with serving(service, settings()):
        answer = msgpack.unpackb((await nc.request("ai.voice.ask", body, 10)).data)
    assert answer["audio"] == wav(SPEECH, spoken())


async def test_audio_that_does_not_fit_a_reply_in_json_is_left_out_and_said(
    nc: Connection, settings: SettingsFor, models: FakeModels
) -> None:
    models.tts.per_character = 5900  # 800 KB: it fits as bytes, but not as base64
    body = {"text": "Why?", "enable_rag": False}
    async with serving(service, settings(max_response_audio=2**20)):
        in_json = await call(nc, "ai.voice.ask", **body)
        as_bytes = msgpack.unpackb((await nc.request("ai.voice.ask", msgpack.packb(body), 10)).data)
    assert (in_json.get("audio"), in_json["degraded"], in_json["response"]) == (None, ["audio"], TEXT)
    assert as_bytes["audio"] == wav(SPEECH, spoken(5900))
    assert as_bytes["degraded"] == []


# -- refused


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "audio: is empty"),
        ({"audio": "no base64!"}, "audio: is a string, but not base64"),
        ({"audio": base64.b64encode(b"garbage").decode()}, "audio: no WAV file"),
        ({"audio": "AAAA", "format": "aiff"}, "format: "),
        ({"audio": "AAAA", "format": "pcm", "sample_rate": 1}, "sample_rate: "),
        ({"text": "Why?", "speaker": "carl", "enable_rag": False}, "speaker: "),
    ],
)
async def test_what_is_wrong_with_a_question_is_named(
    nc: Connection, settings: SettingsFor, models: FakeModels, body: dict[str, Any], says: str
) -> None:
    models.tts.voices = ["anna"]
    async with serving(service, settings()):
        answer = await call(nc, "ai.voice.ask", **body)
    assert answer["error"]["type"] == "validation_error"
    assert says in answer["error"]["message"]
    assert models.stt.calls == 0


async def test_a_broken_recording_is_refused_once_and_kept_as_a_dead_letter(
    nc: Connection, settings: SettingsFor
) -> None:
    async with serving(service, settings()):
        answered = await ask(nc, VOICE, REQUEST, question(audio=b"garbage"))
        await until_settled(nc)
    assert answered.response.error is not None
    assert (answered.response.error.type, answered.events[-1].type) == ("validation_error", "error")
    assert len(await stored(nc, "DLQ", "dlq.>")) == 1


# -- without one of the endpoints


async def until_settled(nc: Connection) -> None:
    async def empty() -> bool:
        return int((await Api(nc).request("STREAM.INFO.AI_VOICE"))["state"]["messages"]) == 0

    await until(empty, "the work queue is empty")


@pytest.mark.parametrize("stage", ["stt", "llm"])
async def test_without_stt_or_llm_an_error_says_where_it_failed(
    nc: Connection, settings: SettingsFor, models: FakeModels, stage: str
) -> None:
    getattr(models, stage).refusals = 1000
    async with serving(service, settings()):
        answer = await call(nc, "ai.voice.ask", audio=base64.b64encode(question_wav()).decode(), enable_rag=False)
    assert (answer["error"]["type"], answer["error"]["stage"]) == ("downstream_unavailable", stage)
    assert answer["error"]["retryable"] is True
    assert bool(answer["transcription"]) is (stage == "llm")  # what was understood is told all the same


async def test_an_llm_that_is_back_answers_what_was_understood_before(
    nc: Connection, settings: SettingsFor, models: FakeModels
) -> None:
    models.llm.refusals = 3
    async with serving(service, settings()):
        answered = await ask(nc, VOICE, REQUEST, question())
    assert (answered.response.response, answered.response.transcription) == (TEXT, "How often does it need water?")
    types: list[str] = [event.type for event in answered.events]
    assert types[:2] == ["transcript", "restart"]
    assert (types.count("transcript"), models.stt.calls) == (1, 1)


@pytest.mark.parametrize(
    ("missing", "degraded"),
    [("embeddings_url", "embeddings"), ("milvus_uri", "vectors"), ("tts_url", "tts")],
)
async def test_what_can_be_done_without_is_done_without(
    nc: Connection, settings: SettingsFor, milvus: str, missing: str, degraded: str
) -> None:
    there = {"milvus_uri": milvus, "milvus_timeout": 20, missing: "http://127.0.0.1:9"}
    async with serving(service, settings(**there)):
        answered = await ask(nc, VOICE, REQUEST, question(enable_rag=True))
    assert (answered.response.response, answered.response.degraded) == (TEXT, [degraded])


async def test_without_the_reranker_the_passages_keep_their_order(
    nc: Connection, settings: SettingsFor, models: FakeModels, milvus: str
) -> None:
    models.stt.text = "cactus water weekly"
    there = settings(milvus_uri=milvus, milvus_timeout=20, reranker_url="http://127.0.0.1:9")
    async with serving(service, there):
        answered = await ask(nc, VOICE, REQUEST, question(enable_rag=True))
    assert ([source.id for source in answered.response.sources], answered.response.degraded) == (["p1"], ["reranker"])


async def test_a_hanging_voice_leaves_the_text_its_deadline(
    nc: Connection, settings: SettingsFor, models: FakeModels
) -> None:
    models.tts.hangs = True
    async with serving(service, settings()):
        answered = await ask(nc, VOICE, REQUEST, question(deadline_ms=1500))
        await until(lambda: models.tts.aborted == models.tts.calls, "the voice saw the calls given up")
    assert (answered.response.success, answered.response.response) == (True, TEXT)
    assert (answered.response.degraded, answered.response.audio_segments) == (["tts"], 0)


async def test_a_worker_that_stops_finishes_what_it_says(
    nc: Connection, settings: SettingsFor, models: FakeModels
) -> None:
    go_on = asyncio.Event()
    models.llm.script = ["Water it once", go_on, " a week."]
    async with serving(service, settings()) as runtime:
        asking = asyncio.ensure_future(ask(nc, VOICE, REQUEST, question()))
        await until(lambda: models.llm.calls, "the LLM is asked")

        async def let_through() -> None:
            await until(lambda: "draining" in runtime.health.ready, "it drains")
            go_on.set()

        letting = asyncio.ensure_future(let_through())
    await letting
    assert (await asking).response.response == "Water it once a week."
