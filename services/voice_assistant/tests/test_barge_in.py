"""Somebody speaks while an answer is played: it ends, and what is remembered of it is what was heard."""

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.contract.stt import TranscriptEvent
from handler_core.contract.voice import VOICE, Segment, Transcript, VoiceEvent, VoiceRequest
from handler_core.jetstream import Api
from handler_core.memory import Memory
from handler_core.testing import Answered, ask, serving, stored, until
from handler_core.testing_voice import FakeModels
from voice_assistant.playback import Interrupted, Playback
from voice_assistant.service import Settings, service

SettingsFor = Callable[..., Settings]

REQUEST = "ai.voice.request"
SLOWLY = 800
"""Samples of a character, at 8000 a second: ten characters a second."""


def question(**fields: Any) -> VoiceRequest:
    own = {"request_id": uuid.uuid4().hex, "text": "Why?", "enable_rag": False, "session_id": "s1"}
    return VoiceRequest(**{**own, **fields})


async def interrupt(nc: Connection, session: str = "s1", **fields: Any) -> None:
    event = TranscriptEvent(**{"type": "interrupt", "timestamp": time.time(), **fields})
    await Api(nc).publish(f"evt.voice.transcription.{session}", encode(event), {})


async def remembered(nc: Connection, user: str | None = None) -> list[tuple[str, str]]:
    return [(turn.query, turn.response) for turn in await Memory(nc).recall(user, "s1")]


async def streamed(nc: Connection, request: VoiceRequest) -> list[VoiceEvent]:
    subject = f"evt.voice.response.stream.{request.request_id}"
    return [decode(event.data, VoiceEvent) for event in await stored(nc, "AI_EVENTS", subject)]


def canceled(answered: Answered[Any]) -> str:
    assert answered.response.error is not None
    assert (answered.response.success, answered.response.error.retryable) == (False, False)
    assert answered.events[-1].type == "error"
    return f"{answered.response.error.type}: {answered.response.error.message}"


# -- while the turn runs


async def test_an_answer_in_the_making_ends_and_what_was_heard_is_remembered(
    nc: Connection, settings: SettingsFor, models: FakeModels
) -> None:
    models.tts.per_character = SLOWLY
    models.llm.script = ["Water it once a week. In winter ", asyncio.Event()]
    request = question()
    async with serving(service, settings()):
        asking = asyncio.ensure_future(ask(nc, VOICE, REQUEST, request))

        async def spoken() -> bool:
            return any(event.last for event in await streamed(nc, request))

        await until(spoken, "the first sentence is spoken")
        await interrupt(nc, request_id=request.request_id, played_ms=1300)  # 13 characters of 21
        answered = await asking
        await until(lambda: models.llm.aborted == 1, "the LLM saw the call given up")
    assert canceled(answered) == "canceled: interrupted by speech"
    assert (answered.response.transcription, answered.response.response) == ("Why?", "Water it once…")
    assert (answered.response.audio, answered.response.audio_segments > 0) == (None, True)
    assert await remembered(nc) == [("Why?", "Water it once…")]
    assert await stored(nc, "DLQ", "dlq.>") == []


@pytest.mark.parametrize("stage", ["stt", "llm", "tts"])
async def test_an_answer_of_which_nothing_was_heard_is_remembered_as_asked(
    nc: Connection, settings: SettingsFor, models: FakeModels, stage: str
) -> None:
    endpoint = getattr(models, stage)
    endpoint.hangs = True
    request = question(text="", audio=b"\x10\x20" * 1000, format="pcm")
    async with serving(service, settings()):
        asking = asyncio.ensure_future(ask(nc, VOICE, REQUEST, request))
        await until(lambda: endpoint.calls, "it is asked")
        await interrupt(nc)
        answered = await asking
        await until(lambda: endpoint.aborted, "it saw the call given up")
    assert canceled(answered) == "canceled: interrupted by speech"
    asked = "" if stage == "stt" else "How often does it need water?"
    assert answered.response.transcription == asked
    assert await remembered(nc) == ([] if stage == "stt" else [(asked, "…")])


async def test_the_next_question_knows_where_the_answer_was_broken_off(
    nc: Connection, settings: SettingsFor, models: FakeModels
) -> None:
    models.tts.hangs = True
    request = question()
    async with serving(service, settings()):
        asking = asyncio.ensure_future(ask(nc, VOICE, REQUEST, request))
        await until(lambda: models.tts.calls, "the voice is asked")
        await interrupt(nc)
        await asking
        models.tts.hangs = False
        await ask(nc, VOICE, REQUEST, question(text="And now?"))
    assert [message["content"] for message in models.llm.prompts[1][1:]] == ["Why?", "…", "And now?"]


@pytest.mark.parametrize(
    "fields",
    [{"request_id": "another"}, {"session": "s2"}, {"type": "transcript", "transcript": "um"}, {"type": "status"}],
)
async def test_what_concerns_another_answer_does_not_end_it(
    nc: Connection, settings: SettingsFor, models: FakeModels, fields: dict[str, Any]
) -> None:
    go_on = asyncio.Event()
    models.llm.script = ["Water it once", go_on, " a week."]
    async with serving(service, settings()):
        asking = asyncio.ensure_future(ask(nc, VOICE, REQUEST, question()))
        await until(lambda: models.llm.calls, "the LLM is asked")
        await interrupt(nc, **fields)
        await nc.publish("ai.voice.transcription.s1", b"no event at all")
        await nc.flush()
        go_on.set()
        answered = await asking
    assert (answered.response.success, answered.response.response) == (True, "Water it once a week.")


async def test_a_reply_is_interrupted_too(nc: Connection, settings: SettingsFor, models: FakeModels) -> None:
    models.llm.hangs = True
    async with serving(service, settings()):
        asking = asyncio.ensure_future(
            nc.request("ai.voice.ask", b'{"text": "Why?", "session_id": "s1", "enable_rag": false}', 10)
        )
        await until(lambda: models.llm.calls, "the LLM is asked")
        await interrupt(nc)
        reply = (await asking).data
    assert b'"type":"canceled"' in reply
    assert await remembered(nc) == [("Why?", "…")]


async def test_of_an_answer_in_the_making_that_nobody_is_streamed_nothing_was_heard(
    nc: Connection, settings: SettingsFor, models: FakeModels
) -> None:
    models.tts.per_character = SLOWLY
    models.llm.script = ["Water it once a week. In winter ", asyncio.Event()]
    async with serving(service, settings()):
        asking = asyncio.ensure_future(ask(nc, VOICE, REQUEST, question(enable_streaming=False)))
        await until(lambda: models.tts.spoken, "the first sentence is made")
        await interrupt(nc, played_ms=1300)
        answered = await asking
    assert (answered.response.response, answered.response.audio) == ("…", None)
    assert await remembered(nc) == [("Why?", "…")]


async def test_an_interrupt_while_the_connection_was_lost_is_found_afterwards(
    nc: Connection, settings: SettingsFor, models: FakeModels
) -> None:
    models.llm.hangs = True
    async with serving(service, settings()) as runtime:
        asking = asyncio.ensure_future(ask(nc, VOICE, REQUEST, question()))
        await until(lambda: models.llm.calls, "the LLM is asked")
        runtime.nc.abort()
        await until(lambda: not runtime.nc.is_connected, "the connection is lost")
        await interrupt(nc)
        assert canceled(await asking) == "canceled: interrupted by speech"


# -- before it


async def test_an_answer_interrupted_while_its_question_was_queued_is_not_begun(
    nc: Connection, settings: SettingsFor, models: FakeModels
) -> None:
    request = question()
    responses = await nc.subscribe(VOICE.response_subject(str(request.request_id)))
    await interrupt(nc)  # of an earlier answer, which is over
    await Api(nc).publish(REQUEST, encode(request), {})
    await interrupt(nc, type="transcript", transcript="Stop")
    await interrupt(nc, request_id=request.request_id)
    await interrupt(nc, type="transcript", transcript="Stop it")
    async with serving(service, settings()):
        await responses.next_msg(10)
    assert (models.llm.calls, models.tts.calls) == (0, 0)
    assert await remembered(nc) == [("Why?", "…")]


async def test_an_interrupt_before_the_question_does_not_matter(nc: Connection, settings: SettingsFor) -> None:
    await interrupt(nc)
    async with serving(service, settings()):
        answered = await ask(nc, VOICE, REQUEST, question())
    assert answered.response.success


async def test_without_the_stream_of_events_nothing_is_known_and_the_reply_comes(
    nc: Connection, settings: SettingsFor
) -> None:
    await Api(nc).request("STREAM.DELETE.AI_EVENTS")
    async with serving(service, settings()):
        body = b'{"text": "Why?", "session_id": "s1", "enable_rag": false}'
        reply = (await nc.request("ai.voice.ask", body, 10)).data
    assert b'"success":true' in reply


# -- after it, while it is played


async def test_an_answer_interrupted_while_it_is_played_is_remembered_as_far_as_it_was_heard(
    nc: Connection, settings: SettingsFor, models: FakeModels
) -> None:
    models.tts.per_character = SLOWLY
    request = question(user_id="alice")
    async with serving(service, settings()):
        answered = await ask(nc, VOICE, REQUEST, request)
        assert len(await remembered(nc, "alice")) == 1
        await ask(nc, VOICE, REQUEST, question(text="And why not?", user_id="alice", session_id="s1", enable_tts=False))
        await interrupt(nc, request_id=request.request_id, played_ms=4200)  # 21 characters and 21 of the next 35

        async def amended() -> bool:
            return (await remembered(nc, "alice"))[0][1].endswith("…")

        await until(amended, "it is amended")
        await interrupt(nc, request_id=request.request_id, played_ms=100)  # once only
        kept = await remembered(nc, "alice")
    assert answered.response.success
    assert kept[0] == ("Why?", "Water it once a week. In winter a cactus…"), "of seven words three fifths"
    assert [query for query, _ in kept] == ["Why?", "And why not?"], "in its place"


async def test_an_interrupt_that_names_the_next_answer_ends_the_one_that_is_being_heard(
    nc: Connection, settings: SettingsFor, models: FakeModels
) -> None:
    models.tts.per_character = SLOWLY
    async with serving(service, settings()):
        await ask(nc, VOICE, REQUEST, question())
        models.llm.hangs = True
        following = question(text="And now?")
        asking = asyncio.ensure_future(ask(nc, VOICE, REQUEST, following))
        await until(lambda: models.llm.calls == 2, "the next one is being made")
        await interrupt(nc, request_id=following.request_id)
        assert canceled(await asking) == "canceled: interrupted by speech"

        async def amended() -> bool:
            return (await remembered(nc))[0][1].endswith("…")

        await until(amended, "what was being heard is cut as well")
        kept = await remembered(nc)
    assert [query for query, _ in kept] == ["Why?", "And now?"]
    assert kept[1][1] == "…"


async def test_a_listener_that_fails_costs_no_later_turn_of_a_session_anything(
    nc: Connection, settings: SettingsFor, models: FakeModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = []

    async def amend(*_: Any) -> None:
        failed.append(True)
        raise RuntimeError("unexpected")

    monkeypatch.setattr(Memory, "amend", amend)
    models.tts.per_character = SLOWLY
    body = b'{"text": "Why?", "session_id": "s1", "enable_rag": false}'
    async with serving(service, settings()):
        await nc.request("ai.voice.ask", body, 10)
        await interrupt(nc)
        await until(lambda: failed, "the listener fails")
        for _ in range(2):
            assert b'"success":true' in (await nc.request("ai.voice.ask", body, 10)).data


@pytest.mark.parametrize("by", ["stream", "response", "reply"])
async def test_without_the_time_played_it_counts_from_when_the_audio_left(
    nc: Connection, settings: SettingsFor, models: FakeModels, by: str
) -> None:
    models.tts.per_character = SLOWLY
    async with serving(service, settings()):
        if by == "reply":
            await nc.request("ai.voice.ask", b'{"text": "Why?", "session_id": "s1", "enable_rag": false}', 10)
        else:
            await ask(nc, VOICE, REQUEST, question(enable_streaming=by == "stream"))
        await interrupt(nc)

        async def amended() -> bool:
            return (await remembered(nc))[0][1].endswith("…")

        await until(amended, "it is amended")
        [(_, heard)] = await remembered(nc)
    assert "Water it once a week. In winter a cactus".startswith(heard.removesuffix("…"))


async def test_an_answer_that_was_heard_to_its_end_stays(
    nc: Connection, settings: SettingsFor, models: FakeModels
) -> None:
    async with serving(service, settings()):
        answered = await ask(nc, VOICE, REQUEST, question())
        await interrupt(nc, played_ms=60_000)
        await ask(nc, VOICE, REQUEST, question(enable_tts=False, text="Really?"))
        kept = await remembered(nc)
    assert kept[0] == ("Why?", answered.response.response.replace(" [1]", ""))


async def test_a_session_that_was_deleted_meanwhile_stays_deleted(
    nc: Connection, settings: SettingsFor, models: FakeModels
) -> None:
    models.tts.per_character = SLOWLY
    async with serving(service, settings()):
        await ask(nc, VOICE, REQUEST, question())
        await Memory(nc).forget(None, "s1")
        await interrupt(nc, played_ms=100)
    assert await remembered(nc) == []


async def test_nobody_listens_for_longer_than_it_is_played(
    nc: Connection, settings: SettingsFor, models: FakeModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voice_assistant.playback.LISTEN_ON", 0.1)
    models.tts.per_character = 8
    async with serving(service, settings()) as runtime:
        before = len(runtime.nc._subs)
        await ask(nc, VOICE, REQUEST, question())
        await ask(nc, VOICE, REQUEST, question(session_id=None))
        await until(lambda: len(runtime.nc._subs) == before, "it has stopped listening")


# -- what was heard


def played(pieces: list[tuple[int, str, float, bool]], at: float = 1000.0) -> Playback:
    playback = Playback("r1")
    playback.note(Transcript(content="Why?"))
    for number, (sentence, text, seconds, last) in enumerate(pieces):
        audio = bytes(int(seconds * 1000) * 2)
        segment = Segment(segment=number, sentence=sentence, text=text, last=last, audio=audio, sample_rate=1000)
        playback.note(segment, at)
    return playback


WHOLE = [(0, "One two three four.", 2.0, False), (0, "", 2.0, True), (1, "Five six.", 2.0, True)]


@pytest.mark.parametrize(
    ("seconds", "heard"),
    [
        (0.0, "…"),
        (0.9, "…"),
        (1.0, "One…"),
        (3.9, "One two three…"),
        (4.0, "One two three four. …"),
        (5.0, "One two three four. Five…"),
        (6.0, "One two three four. Five six. …"),
        (99.0, "One two three four. Five six. …"),
    ],
)
@pytest.mark.parametrize("told", [True, False])
def test_of_the_sentence_in_progress_as_many_words_as_its_share(seconds: float, heard: str, told: bool) -> None:
    playback = played(WHOLE)
    event = TranscriptEvent(type="interrupt", played_ms=seconds * 1000 if told else None, timestamp=1000 + seconds)
    playback.hear(event, event.timestamp)
    assert playback.heard() == heard


def test_a_pause_between_two_segments_is_not_counted_as_heard() -> None:
    playback = played(WHOLE[:2])
    late = Segment(segment=2, sentence=1, text="Five six.", last=True, audio=bytes(4000), sample_rate=1000)
    playback.note(late, 1010.0)
    playback.hear(TranscriptEvent(type="interrupt", timestamp=1011.0), 1011.0)
    assert playback.heard() == "One two three four. Five…"


def test_of_a_sentence_whose_audio_is_not_complete_the_length_is_guessed() -> None:
    playback = played([(0, "Ten words of which only a little has been spoken.", 1.0, False)])
    playback.hear(TranscriptEvent(type="interrupt", played_ms=1000, timestamp=0.0))
    assert playback.heard() == "Ten words of…"


def test_a_segment_that_is_replaced_was_not_heard() -> None:
    playback = played(WHOLE)
    segment = Segment(segment=2, sentence=1, text="Other words.", last=True, audio=bytes(4000), sample_rate=1000)
    playback.note(segment, 1000.0)
    playback.hear(TranscriptEvent(type="interrupt", played_ms=99_000, timestamp=0.0))
    assert playback.heard() == "One two three four. Other words. …"


def test_a_time_played_that_is_negative_is_none() -> None:
    playback = played(WHOLE)
    playback.hear(TranscriptEvent.model_construct(type="interrupt", played_ms=-1000.0, timestamp=1001.0))
    assert playback.heard() == "…"


@pytest.mark.parametrize(
    ("at", "heard"), [(999.9, None), (1000.0, "…"), (1003.0, "One two three…"), (1005.9, "One two three four. Five…")]
)
def test_an_interrupt_of_another_answer_ends_this_one_only_while_it_is_heard(at: float, heard: str | None) -> None:
    playback = played(WHOLE)
    playback.hear(TranscriptEvent(type="interrupt", request_id="r2", played_ms=100, timestamp=at), at)
    assert playback.interrupted.is_set() == (heard is not None)
    assert heard is None or playback.heard() == heard


def test_an_interrupt_of_another_answer_after_this_one_was_heard_leaves_it() -> None:
    for playback in (played(WHOLE), played([]), Playback("r1")):
        playback.hear(TranscriptEvent(type="interrupt", request_id="r2", timestamp=1006.0), 1006.0)
        assert not playback.interrupted.is_set()


async def test_what_begins_after_an_interrupt_ends_at_once() -> None:
    playback = Playback("r1")
    playback.hear(TranscriptEvent(type="interrupt", timestamp=0.0))
    with pytest.raises(Interrupted):
        async with playback.interruptible():
            raise AssertionError("not reached")


async def test_an_interrupt_after_the_block_leaves_what_follows_alone() -> None:
    playback = Playback("r1")
    async with playback.interruptible():
        pass
    playback.hear(TranscriptEvent(type="interrupt", timestamp=0.0))
    await asyncio.sleep(0)
    assert playback.interrupted.is_set()


async def test_a_time_limit_within_is_no_interrupt() -> None:
    with pytest.raises(TimeoutError):
        async with Playback("r1").interruptible():
            raise TimeoutError
