"""The image of the voice assistant, run as in production, asked aloud."""

import asyncio
import json
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from handler_core.audio import read_wav
from handler_core.connection import Connection
from handler_core.contract.voice import VOICE, VoiceRequest
from handler_core.jetstream import Api
from handler_core.testing import ask, text_of
from handler_core.testing_images import Container
from handler_core.testing_voice import FakeModels, question_wav

SERVICE = "voice_assistant"
AUDIO = Path(__file__).parents[1] / "audio"

Start = Callable[..., AbstractContextManager[Container]]


async def test_it_understands_a_spoken_question_and_speaks_the_answer(
    start: Start, nc: Connection, models: str, milvus: str
) -> None:
    names = ("LLM_URL", "EMBEDDINGS_URL", "RERANKER_URL", "STT_URL", "TTS_URL")
    with start(SERVICE, MILVUS_URI=milvus, **dict.fromkeys(names, models)) as container:
        await container.ready()
        request = VoiceRequest(audio=(AUDIO / "dead_letter.wav").read_bytes(), request_id=uuid.uuid4().hex)
        answered = await ask(nc, VOICE, "ai.voice.request", request, timeout=60)
        code, _, logged = await container.ended()
    response = answered.response
    assert response.error is None
    assert response.transcription == json.loads((AUDIO / "texts.json").read_text())["dead_letter.wav"]["recognised"]
    assert [source.id for source in response.sources][:1] == ["letters"]
    assert text_of([event for event in answered.events if event.type != "transcript"]) == response.response != ""
    assert response.degraded == []
    segments = [event for event in answered.events if event.type == "audio"]
    assert len(segments) == response.audio_segments > 0
    assert response.audio is not None
    spoken = read_wav(response.audio)
    assert spoken.format.seconds(len(spoken.pcm)) > 1
    assert code == 0, logged


async def test_told_to_end_it_finishes_the_turn_it_is_in(start: Start, nc: Connection, fakes: FakeModels) -> None:
    go_on = asyncio.Event()
    fakes.llm.script = ["Water it once a week. ", go_on, "Mind the pot."]
    request = VoiceRequest(audio=question_wav(), request_id=uuid.uuid4().hex, enable_rag=False)
    events = await nc.subscribe(VOICE.stream_subject(str(request.request_id)))
    with start(SERVICE, LLM_URL=fakes.url, STT_URL=fakes.url, TTS_URL=fakes.url) as container:
        await container.ready()
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(ask(nc, VOICE, "ai.voice.request", request))
            await events.next_msg(10)
            ending = tasks.create_task(container.ended())
            await container.becomes(503)
            go_on.set()
    code, _, logged = ending.result()
    assert code == 0, logged
    answered = asked.result()
    assert answered.response.response == "Water it once a week. Mind the pot."
    assert fakes.tts.spoken == ["Water it once a week.", "Mind the pot."]
    assert "restart" not in [event.type for event in answered.events]
    assert (await Api(nc).request("STREAM.INFO.AI_VOICE"))["state"]["messages"] == 0
