"""A turn whose worker died in the middle: the next one goes on, and nothing is heard twice."""

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from handler_core import streams
from handler_core.answer import Answer
from handler_core.audio import wav
from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.consumer import PullConsumer
from handler_core.contract.base import Message
from handler_core.contract.stt import TranscriptEvent
from handler_core.contract.voice import VOICE, Segment, Transcript, VoiceEvent, VoiceRequest, VoiceResponse
from handler_core.delivery import Delivery
from handler_core.jetstream import Api
from handler_core.memory import Memory
from handler_core.testing import serving, stored, text_of, until
from handler_core.testing_voice import SPEECH, FakeModels, pcm_of, question_wav
from handler_core.voice_speech import standing
from voice_assistant.service import Settings, service

SettingsFor = Callable[..., Settings]

SENTENCES = ["Water it once a week.", "In winter a cactus needs much less.", "Mind the pot."]


def question(**fields: Any) -> VoiceRequest:
    own = {"request_id": uuid.uuid4().hex, "audio": question_wav(), "enable_rag": False}
    return VoiceRequest(**{**own, **fields})


def segments(*sentences: str, cut: int | None = None) -> list[Message]:
    """What a worker has streamed of these sentences; of the last one only `cut` bytes."""
    found: list[Message] = []
    for number, sentence in enumerate(sentences):
        last = cut is None or number < len(sentences) - 1
        pcm = pcm_of(sentence, 80)[: None if last else cut]
        found.append(
            Segment(
                segment=number, sentence=number, text=sentence, last=last, audio=pcm, sample_rate=SPEECH.sample_rate
            )
        )
    return found


async def begun(nc: Connection, request: VoiceRequest, *pieces: str | Message) -> None:
    """Have the request taken by a worker that streams these pieces and then dies."""
    died = asyncio.Event()

    async def process(delivery: Delivery) -> None:
        request_id = str(request.request_id)
        answer = Answer(nc, VOICE, request_id, attempt=delivery.attempt, streaming=True, source=delivery.identity)
        await answer.open()
        for piece in pieces:
            answer.write(piece)
        answer.close()
        await answer.pump()
        delivery.nak()
        died.set()

    consumer = PullConsumer(nc, streams.VOICE_ASSISTANT, process)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(consumer.run())
        await Api(nc).publish("ai.voice.request", encode(request), {})
        await died.wait()
        consumer.stop()


async def answered(nc: Connection, request: VoiceRequest) -> tuple[list[VoiceEvent], VoiceResponse]:
    """The events and the response that the stream keeps, once the turn is over."""
    subject = f"evt.{VOICE.prefix}.stream.{request.request_id}"

    async def ended() -> bool:
        newest = await Api(nc).last("AI_EVENTS", subject)
        return newest is not None and decode(newest.data, VoiceEvent).done

    await until(ended, "the answer is whole")
    events = [decode(event.data, VoiceEvent) for event in await stored(nc, "AI_EVENTS", subject)]
    [final] = await stored(nc, "AI_EVENTS", f"evt.{VOICE.prefix}.{request.request_id}")
    return events, decode(final.data, VoiceResponse)


def of_last(events: list[VoiceEvent], type: str) -> list[VoiceEvent]:
    """Those of the last attempt."""
    return [event for event in events if event.attempt == events[-1].attempt and event.type == type]


def heard(events: list[VoiceEvent]) -> bytes:
    return b"".join(segment.audio for segment in standing(events))


def pcm(*sentences: str) -> bytes:
    return b"".join(pcm_of(sentence, 80) for sentence in sentences)


async def test_the_next_worker_goes_on_with_the_first_sentence_that_was_not_spoken(
    nc: Connection, settings: SettingsFor, models: FakeModels
) -> None:
    request = question()
    transcript = Transcript(content="How much water?", language="en")
    await begun(nc, request, transcript, "Water it once a", *segments(*SENTENCES[:2]))
    async with serving(service, settings()):
        events, response = await answered(nc, request)
    assert models.stt.calls == 0, "it is known what was asked"
    assert models.llm.prompts[0][-1]["content"] == "How much water?"
    assert models.tts.spoken == SENTENCES[2:]
    assert len(of_last(events, "restart")) == 1
    assert of_last(events, "transcript") == []
    assert of_last(events, "audio")[0].segment == 2
    assert heard(events) == pcm(*SENTENCES)
    assert response.audio == wav(SPEECH, pcm(*SENTENCES))
    assert response.audio_segments == len(standing(events))
    assert (response.transcription, response.language) == ("How much water?", "en")
    assert text_of(list(events)) == response.response


async def test_a_sentence_that_broke_off_goes_on_in_its_middle(
    nc: Connection, settings: SettingsFor, models: FakeModels
) -> None:
    request = question()
    await begun(nc, request, Transcript(content="Why?"), *segments(*SENTENCES[:2], cut=1000))
    async with serving(service, settings()):
        events, response = await answered(nc, request)
    assert models.tts.spoken == SENTENCES[1:]
    assert heard(events) == pcm(*SENTENCES)
    assert len({event.segment for event in events if event.type == "audio"}) == response.audio_segments


async def test_an_answer_that_is_another_one_replaces_what_differs(
    nc: Connection, settings: SettingsFor, models: FakeModels
) -> None:
    request = question()
    await begun(nc, request, Transcript(content="Why?"), *segments(*SENTENCES))
    new = ["Water it once a week.", "In summer it may want more.", "That is all there is to say."]
    models.llm.script = [f"{sentence} " for sentence in new]
    async with serving(service, settings()):
        events, response = await answered(nc, request)
    assert models.tts.spoken == new[1:]
    again = of_last(events, "audio")
    assert (again[0].segment, again[0].text) == (1, new[1])
    assert heard(events) == pcm(*new)
    assert response.audio == wav(SPEECH, pcm(*new))


async def test_a_worker_that_died_before_the_transcript_left_nothing_to_go_on_from(
    nc: Connection, settings: SettingsFor, models: FakeModels
) -> None:
    request = question()
    await begun(nc, request)
    async with serving(service, settings()):
        events, response = await answered(nc, request)
    assert (models.stt.calls, heard(events)) == (1, pcm(*SENTENCES))
    assert response.success


async def test_a_turn_that_fails_after_all_tells_what_an_earlier_worker_understood(
    nc: Connection, settings: SettingsFor, models: FakeModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "no such model"}}, status=404)

    monkeypatch.setattr(models.llm, "answer", refuse)
    request = question()
    await begun(nc, request, Transcript(content="How much water?"))
    async with serving(service, settings()):
        _, response = await answered(nc, request)
    assert response.error is not None
    assert (response.error.stage, response.transcription) == ("llm", "How much water?")


@pytest.mark.parametrize("played_ms", [None, 500])
async def test_what_was_heard_before_it_died_and_was_interrupted_is_remembered(
    nc: Connection, settings: SettingsFor, models: FakeModels, played_ms: float | None
) -> None:
    request = question(session_id="s1")
    long = Segment(segment=0, sentence=0, text="One two three four.", last=True, audio=bytes(32_000), sample_rate=8000)
    await begun(nc, request, Transcript(content="Count."), long)
    event = TranscriptEvent(type="interrupt", played_ms=played_ms, timestamp=time.time() + (0.0 if played_ms else 1.1))
    await Api(nc).publish("evt.voice.transcription.s1", encode(event), {})
    async with serving(service, settings()):
        _, response = await answered(nc, request)
        kept = await Memory(nc).recall(None, "s1")
    assert response.error is not None
    assert response.error.type == "canceled"
    assert (models.llm.calls, models.tts.calls) == (0, 0)
    assert [(turn.query, turn.response) for turn in kept] == [("Count.", response.response)]
    assert response.response == ("One…" if played_ms else "One two…")
