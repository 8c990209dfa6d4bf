"""A voice turn, without NATS: heard, answered and spoken at once, and what it does when an endpoint is ill."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from handler_core.audio import PcmFormat, read_wav, wav
from handler_core.clients.breaker import CircuitBreaker
from handler_core.clients.embeddings import Embeddings
from handler_core.clients.http import Backoff, Upstream, new_session
from handler_core.clients.llm import LLM
from handler_core.clients.stt import STT
from handler_core.clients.tts import TTS
from handler_core.contract.base import Message
from handler_core.contract.session import SessionTurn
from handler_core.contract.voice import Segment, Transcript, VoiceEvent, VoiceRequest, VoiceResponse
from handler_core.deadline import Deadline
from handler_core.errors import DownstreamUnavailable, HandlerError, InvalidRequest
from handler_core.rag import Rag
from handler_core.testing import until
from handler_core.testing_voice import SPEECH, FakeModels, fake_models, pcm_of, question_wav
from handler_core.timings import Timings
from handler_core.voice import NOTHING_HEARD, Voice, voice_turn
from handler_core.voice_speech import Speaker, standing

ANSWER = ["Water it once a week", " [1]. ", "In winter a cactus ", "needs much less. ", "Mind the pot."]
SENTENCES = ["Water it once a week.", "In winter a cactus needs much less.", "Mind the pot."]


class NoStore:
    """A vector store that is not asked."""

    async def search(self, *_: Any, **__: Any) -> list[Any]:
        raise AssertionError("the turns here search nothing")


class Turns:
    """A voice with its fakes, and what turns have written."""

    def __init__(self, models: FakeModels, voice: Voice) -> None:
        self.models = models
        self.voice = voice
        self.written: list[str | Message] = []

    async def ask(self, request: VoiceRequest | None = None, **options: Any) -> VoiceResponse:
        return await voice_turn(self.voice, request or question(), write=self.written.append, **options)

    @property
    def text(self) -> str:
        return "".join(piece for piece in self.written if isinstance(piece, str))

    @property
    def segments(self) -> list[Segment]:
        return [piece for piece in self.written if isinstance(piece, Segment)]

    @property
    def transcripts(self) -> list[str]:
        return [piece.content for piece in self.written if isinstance(piece, Transcript)]

    def events(self, attempt: int = 1) -> list[VoiceEvent]:
        """What was written, as the events that another attempt finds."""
        events = []
        for seq, piece in enumerate(self.written):
            fields = {"type": "chunk", "content": piece} if isinstance(piece, str) else dict(piece)
            events.append(VoiceEvent(request_id="r1", seq=seq, attempt=attempt, timestamp=0.0, **fields))
        return events


def question(**fields: Any) -> VoiceRequest:
    return VoiceRequest(**{"audio": question_wav(), "enable_rag": False, **fields})


def pcm(sentences: list[str], per_character: int = 80) -> bytes:
    return b"".join(pcm_of(sentence, per_character) for sentence in sentences)


def heard(segments: list[Segment]) -> bytes:
    return b"".join(segment.audio for segment in segments)


@asynccontextmanager
async def running(timeout: float = 20.0, **changes: Any) -> AsyncIterator[Turns]:
    async with fake_models() as models, new_session() as session:

        def upstream(name: str) -> Upstream:
            return Upstream(session, name, models.url, timeout=timeout, attempts=2, backoff=Backoff(initial=0.01))

        models.llm.script = list(ANSWER)
        rag = Rag(LLM(upstream("llm"), "m"), Embeddings(upstream("embeddings"), "m"), NoStore())
        speaker = Speaker(TTS(upstream("tts")), **changes)
        yield Turns(models, Voice(STT(upstream("stt")), speaker, rag))


@pytest.fixture
async def turns() -> AsyncIterator[Turns]:
    async with running() as turns:
        yield turns


# -- the whole of it


async def test_a_question_is_heard_answered_and_spoken(turns: Turns) -> None:
    timings = Timings()
    response = await turns.ask(timings=timings)
    assert response.transcription == "How often does it need water?"
    assert response.language == "en"
    assert response.response == turns.text == "".join(ANSWER)
    assert turns.transcripts == [response.transcription]
    assert isinstance(turns.written[0], Transcript), "what was heard is shown first"
    assert [segment.text for segment in turns.segments if segment.text] == SENTENCES
    assert heard(turns.segments) == pcm(SENTENCES)
    assert response.audio == wav(SPEECH, pcm(SENTENCES))
    assert (response.audio_segments, response.sample_rate) == (len(turns.segments), SPEECH.sample_rate)
    assert (response.degraded, response.success) == ([], True)
    assert {"stt_ms", "llm_first_token_ms", "llm_ms", "tts_first_audio_ms", "tts_ms"} <= timings.as_dict().keys()
    assert timings.as_dict()["tts_first_audio_ms"] >= timings.as_dict()["stt_ms"]


async def test_the_first_audio_leaves_while_the_llm_still_writes(turns: Turns) -> None:
    go_on = asyncio.Event()
    turns.models.llm.script = ["Water it once a week. I", go_on, "n winter less."]
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(turns.ask())
        await until(lambda: turns.segments and turns.segments[-1].last, "the first sentence is spoken")
        go_on.set()
    assert heard(turns.segments) == pcm(["Water it once a week.", "In winter less."])
    assert asking.result().response == "Water it once a week. In winter less."


async def test_segments_are_numbered_through_and_tell_their_sentence_once(turns: Turns) -> None:
    turns.models.tts.per_character = 4000  # 170,000 bytes and more for each sentence
    response = await turns.ask()
    assert [segment.segment for segment in turns.segments] == list(range(response.audio_segments))
    assert max(len(segment.audio) for segment in turns.segments) <= 65_536
    for number, sentence in enumerate(SENTENCES):
        own = [segment for segment in turns.segments if segment.sentence == number]
        assert [segment.text for segment in own] == [sentence, *[""] * (len(own) - 1)]
        assert [segment.last for segment in own] == [False] * (len(own) - 1) + [True]
        assert heard(own) == pcm([sentence], 4000)


async def test_an_answer_too_long_for_one_message_is_in_its_segments_alone() -> None:
    async with running(max_bytes=len(pcm(SENTENCES)) + 43) as turns:
        response = await turns.ask()
        assert (response.audio, response.audio_segments) == (None, len(turns.segments))
        assert heard(turns.segments) == pcm(SENTENCES)
        assert response.degraded == []
        alone = await turns.ask(streamed=False)
        assert (alone.audio, alone.audio_segments, alone.degraded) == (None, 0, ["audio"])
    async with running(max_bytes=len(pcm(SENTENCES)) + 44) as turns:
        fits = await turns.ask(streamed=False)
        assert (fits.audio, fits.audio_segments) == (wav(SPEECH, pcm(SENTENCES)), 0)


async def test_what_was_said_before_and_the_options_reach_the_llm(turns: Turns) -> None:
    before = SessionTurn(request_id="r0", query="What is it?", response="A cactus.", timestamp=1.0)
    await turns.ask(question(system_prompt="Be brief."), history=[before])
    assert [message["content"] for message in turns.models.llm.prompts[0]] == [
        "Be brief.", "What is it?", "A cactus.", "How often does it need water?"
    ]  # fmt: skip


async def test_a_question_in_text_is_not_transcribed(turns: Turns) -> None:
    response = await turns.ask(VoiceRequest(text=" Why? ", enable_rag=False, language="de"))
    assert (response.transcription, response.language, turns.transcripts) == ("Why?", "de", ["Why?"])
    assert turns.models.stt.calls == 0


async def test_without_tts_no_voice_is_asked(turns: Turns) -> None:
    response = await turns.ask(question(enable_tts=False))
    assert (response.audio, response.audio_segments, response.degraded) == (None, 0, [])
    assert (response.response, turns.models.tts.calls) == ("".join(ANSWER), 0)


async def test_where_there_is_no_voice_the_answer_says_so(turns: Turns) -> None:
    voice = Voice(turns.voice.stt, None, turns.voice.rag)
    response = await voice_turn(voice, question())
    assert (response.response, response.degraded) == ("".join(ANSWER), ["tts"])


@pytest.mark.parametrize(("text", "understood"), [("how \ud800 often", "how ? often"), ("aé" * 40_000, "aé" * 32_768)])
async def test_a_transcript_that_is_endless_or_no_text_is_made_a_question(
    turns: Turns, text: str, understood: str
) -> None:
    turns.models.stt.text = text
    response = await turns.ask()
    assert (response.transcription, response.response) == (understood, "".join(ANSWER))
    assert turns.models.llm.prompts[0][-1]["content"] == understood


@pytest.mark.parametrize("text", ["", "  "])
async def test_nothing_understood_is_said_without_the_llm(turns: Turns, text: str) -> None:
    turns.models.stt.text = text
    response = await turns.ask()
    assert (response.transcription, response.response, turns.text) == ("", NOTHING_HEARD, NOTHING_HEARD)
    assert heard(turns.segments) == pcm([NOTHING_HEARD])
    assert (response.success, response.degraded, turns.models.llm.calls) == (True, [], 0)


async def test_silence_is_not_even_transcribed(turns: Turns) -> None:
    response = await turns.ask(question(audio=bytes(32_000), format="pcm"))
    assert (response.response, turns.transcripts) == (NOTHING_HEARD, [""])
    assert turns.models.stt.calls == 0


# -- what is asked


def mp3(frames: int = 3) -> bytes:
    return (b"\xff\xfb\x90\x00" + bytes(413)) * frames  # MPEG 1 layer III, 128 kbit/s, 44.1 kHz


FORMATS = {
    "wav": ("audio.wav", "audio/wav", question_wav()),
    "mp3": ("audio.mp3", "audio/mpeg", mp3()),
    "ogg": ("audio.ogg", "audio/ogg", b"OggS" + bytes(60)),
    "opus": ("audio.ogg", "audio/ogg", b"OggS" + bytes(60)),
    "webm": ("audio.webm", "audio/webm", b"\x1a\x45\xdf\xa3" + bytes(60)),
    "flac": ("audio.flac", "audio/flac", b"fLaC" + bytes(60)),
    "m4a": ("audio.m4a", "audio/mp4", b"\0\0\0\x20ftypM4A " + bytes(60)),
    "mp4": ("audio.m4a", "audio/mp4", b"\0\0\0\x20ftypisom" + bytes(60)),
}


@pytest.mark.parametrize("said", [None, "wav", "mp3"])
@pytest.mark.parametrize("format", FORMATS)
async def test_a_file_is_passed_on_as_what_it_is_whatever_it_is_called(
    turns: Turns, format: str, said: str | None
) -> None:
    filename, content_type, data = FORMATS[format]
    await turns.ask(question(audio=data, format=said or format, enable_tts=False))
    [seen] = turns.models.stt.seen
    assert (seen["filename"], seen["content_type"], seen["data"]) == (filename, content_type, data)


@pytest.mark.parametrize(
    "format",
    [PcmFormat(44_100), PcmFormat(44_100, 2, 2), PcmFormat(48_000, 3, 2), PcmFormat(8000, 1), PcmFormat(96_000, 4)],
)
async def test_samples_of_any_kind_are_taken_as_a_file_or_bare(turns: Turns, format: PcmFormat) -> None:
    file = question_wav(0.2, format)
    bare = {"sample_rate": format.sample_rate, "width": format.width, "channels": format.channels}
    await turns.ask(question(audio=file, enable_tts=False))
    await turns.ask(
        question(audio=file[44:] + b"\x01"[: format.frame_size - 1], format="pcm", enable_tts=False, **bare)
    )
    as_file, as_samples = (seen["data"] for seen in turns.models.stt.seen)
    assert as_file == as_samples == file


async def test_a_wav_that_breaks_off_is_passed_on_with_a_header_that_is_true(turns: Turns) -> None:
    file = question_wav(1.0)
    await turns.ask(question(audio=file[:10_000], enable_tts=False))
    sent = read_wav(turns.models.stt.seen[0]["data"])
    assert not sent.truncated
    assert bytes(sent.pcm) == file[44:10_000]


FLOAT = b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\x03\0\x01\0\x80\x3e\0\0\0\xfa\0\0\x04\0\x20\0data\x04\0\0\0\0\0\0\0"


@pytest.mark.parametrize(
    ("audio", "format", "says"),
    [
        (b"garbage", "wav", "no WAV file"),
        (b"RIFF\0\0\0\0WAVE", "wav", "without a format"),
        (FLOAT, "wav", "floating point"),
        (wav(PcmFormat(16_000), b""), "wav", "no samples"),
        (b"\x01\x01\x01", "pcm", "no samples"),
        (b"garbage", "mp3", "no mp3 file"),
        (b"garbage" * 1000, "ogg", "no ogg file"),
        (question_wav(301, PcmFormat(100, 1)), "wav", "301.0 s long"),
        (b"\1" * 16_000 * 301, "pcm", "301.0 s long"),
    ],
)
async def test_audio_that_cannot_be_read_is_refused_before_anybody_is_asked(
    turns: Turns, audio: bytes, format: str, says: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"^audio: .*{says}"):
        await turns.ask(question(audio=audio, format=format, sample_rate=4000, width=4))
    assert (turns.written, turns.models.stt.calls, turns.models.llm.calls) == ([], 0, 0)


async def test_a_collection_that_is_not_allowed_is_refused_before_anybody_is_asked(turns: Turns) -> None:
    rag = Rag(turns.voice.rag.llm, turns.voice.rag.embeddings, NoStore(), allowed=frozenset({"notes"}))
    with pytest.raises(InvalidRequest, match=r"^collection"):
        await voice_turn(Voice(turns.voice.stt, None, rag), question(collection="secret", user_id="alice"))
    assert turns.models.stt.calls == 0


async def test_the_language_and_the_voice_that_are_asked_for(turns: Turns) -> None:
    turns.models.tts.voices = ["anna", "ben"]
    response = await turns.ask(question(language="en", speaker="ben"))
    assert turns.models.stt.seen[0]["language"] == "en"
    assert response.degraded == []


async def test_a_voice_that_there_is_not_is_refused_by_name(turns: Turns) -> None:
    turns.models.tts.voices = ["anna", "ben"]
    go_on = asyncio.Event()
    turns.models.llm.script = ["Water it once a week. I", go_on]
    with pytest.raises(InvalidRequest, match=r"^speaker: .*carl.*anna, ben") as refused:
        await turns.ask(question(speaker="carl"))
    assert refused.value.stage == "tts"
    await until(lambda: turns.models.llm.aborted == 1, "the LLM saw the call given up")


# -- without one of the endpoints


async def test_without_stt_there_is_no_answer(turns: Turns) -> None:
    turns.models.stt.refusals = 2
    with pytest.raises(DownstreamUnavailable) as failed:
        await turns.ask()
    assert (failed.value.stage, failed.value.retryable) == ("stt", True)
    assert (turns.written, turns.models.llm.calls) == ([], 0)


async def test_without_the_llm_there_is_no_answer_but_what_was_heard_is_told(turns: Turns) -> None:
    turns.models.llm.refusals = 2
    with pytest.raises(DownstreamUnavailable) as failed:
        await turns.ask()
    assert (failed.value.stage, failed.value.retryable) == ("llm", True)
    assert turns.transcripts == ["How often does it need water?"]


async def test_without_a_voice_the_answer_is_in_text(turns: Turns) -> None:
    turns.models.tts.refusals = 100
    response = await turns.ask()
    assert (response.response, response.audio, response.audio_segments) == ("".join(ANSWER), None, 0)
    assert (response.degraded, response.success) == (["tts"], True)
    assert turns.models.llm.aborted == 0


async def test_a_voice_that_breaks_off_leaves_what_was_spoken(turns: Turns) -> None:
    turns.models.tts.broken = {"In winter": 100}
    response = await turns.ask()
    assert (response.response, response.degraded) == ("".join(ANSWER), ["tts"])
    assert response.audio_segments == len(turns.segments)
    assert heard(turns.segments).startswith(pcm(SENTENCES[:1]))
    assert pcm(SENTENCES[:2]).startswith(heard(turns.segments))
    assert response.audio == wav(SPEECH, heard(turns.segments))


async def test_a_voice_that_hangs_leaves_the_text_time_to_arrive(turns: Turns) -> None:
    turns.models.tts.hangs = True
    deadline = Deadline.after(1.0)
    response = await turns.ask(deadline=deadline)
    assert not deadline.expired
    assert (response.response, response.degraded, response.audio) == ("".join(ANSWER), ["tts"], None)
    await until(lambda: turns.models.tts.aborted, "the voice saw the call given up")


async def test_without_a_deadline_a_voice_that_hangs_is_given_up_after_its_timeout() -> None:
    async with running(timeout=0.3) as turns:
        turns.models.tts.hangs = True
        response = await turns.ask()
        assert (response.response, response.degraded) == ("".join(ANSWER), ["tts"])


async def test_a_voice_that_hangs_in_the_middle_leaves_what_was_spoken() -> None:
    async with running(timeout=0.3) as turns:
        turns.models.tts.gates = {"In winter": asyncio.Event()}
        response = await turns.ask()
        assert response.degraded == ["tts"]
        assert heard(turns.segments).startswith(pcm(SENTENCES[:1]))
        assert response.audio_segments == len(turns.segments)


async def test_a_voice_that_is_gone_costs_later_turns_nothing(turns: Turns) -> None:
    turns.models.tts.refusals = 1000
    for _ in range(3):
        assert (await turns.ask()).degraded == ["tts"]
    calls = turns.models.tts.calls
    assert (await turns.ask()).degraded == ["tts"]
    assert turns.models.tts.calls == calls, "it is left alone for a while"


async def test_a_voice_that_is_back_is_used_again() -> None:
    now = 0.0
    async with running(breaker=CircuitBreaker(2, 10.0, clock=lambda: now)) as turns:
        turns.models.tts.refusals = 4
        assert [(await turns.ask()).degraded for _ in range(3)] == [["tts"]] * 3
        now = 11.0
        assert [(await turns.ask()).degraded for _ in range(2)] == [[], []]


async def test_a_voice_that_hangs_costs_later_turns_nothing_either(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handler_core.voice_speech.PATIENCE", 0.05)
    turns.models.tts.hangs = True
    for _ in range(3):
        assert (await turns.ask(deadline=Deadline.after(0.4))).degraded == ["tts"]
    calls = turns.models.tts.calls
    assert (await turns.ask()).degraded == ["tts"]
    assert turns.models.tts.calls == calls, "it is left alone for a while"


@pytest.mark.parametrize("script", [[], ["Water it once"], ["Water it once a week. In winter"]])
async def test_a_voice_is_not_held_to_be_gone_because_the_llm_hangs(
    turns: Turns, monkeypatch: pytest.MonkeyPatch, script: list[str]
) -> None:
    monkeypatch.setattr("handler_core.voice_speech.PATIENCE", 0.0)
    turns.models.llm.script = [*script, asyncio.Event()]
    for _ in range(3):
        with contextlib.suppress(HandlerError):
            await turns.ask(deadline=Deadline.after(0.2))
    turns.models.llm.script = list(ANSWER)
    assert (await turns.ask()).degraded == []


@pytest.mark.parametrize("status", [400, 401, 413, 500])
async def test_what_the_endpoint_refuses_of_one_caller_silences_nobody_else(
    turns: Turns, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "no such language"}}, status=status)

    with monkeypatch.context() as patch:
        patch.setattr(turns.models.tts, "answer", refuse)
        for _ in range(3):
            response = await turns.ask(question(speaker="anna", language="tlh"))
            assert (response.degraded, response.response) == (["tts"], "".join(ANSWER))
    assert (await turns.ask()).degraded == []


async def test_a_voice_that_only_the_endpoint_knows_not_to_have_is_refused_and_silences_nobody_else(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "Invalid voice"}}, status=400)

    with monkeypatch.context() as patch:
        patch.setattr(turns.models.tts, "answer", refuse)
        for _ in range(3):
            with pytest.raises(InvalidRequest, match=r"^speaker: 'carl' is refused: .*Invalid voice"):
                await turns.ask(question(speaker="carl"))
    assert (await turns.ask()).degraded == []


async def test_a_voice_that_is_refused_in_the_middle_costs_the_answer_nothing(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    speak = turns.models.tts.answer

    async def answer(request: web.Request) -> web.StreamResponse:
        if (await request.json())["input"] == SENTENCES[0]:
            return await speak(request)
        return web.json_response({"error": {"message": "Invalid voice"}}, status=400)

    monkeypatch.setattr(turns.models.tts, "answer", answer)
    response = await turns.ask(question(speaker="carl"))
    assert (response.response, response.degraded) == ("".join(ANSWER), ["tts"])
    assert heard(turns.segments) == pcm(SENTENCES[:1])


@pytest.mark.parametrize("fails", ["limit", "speak"])
async def test_a_fault_of_ours_in_the_voice_costs_the_answer_nothing(
    turns: Turns, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a bug")

    assert turns.voice.speaker is not None
    monkeypatch.setattr(turns.voice.speaker.tts, fails, fail)
    with capture_logs() as logs:
        response = await turns.ask()
    assert (response.response, response.degraded) == ("".join(ANSWER), ["tts"])
    assert [entry["event"] for entry in logs if entry.get("exc_info")] == ["speech_failed"]


async def test_segments_and_their_text_fit_the_room_that_messages_have() -> None:
    async with running(segment_room=20_000) as turns:
        turns.models.tts.per_character = 4000
        response = await turns.ask()
        assert max(len(segment.audio) + len(segment.text) for segment in turns.segments) <= 20_000
        assert heard(turns.segments) == pcm(SENTENCES, 4000)
        assert response.degraded == []


# -- cancelled


@pytest.mark.parametrize("stage", ["stt", "llm", "tts"])
async def test_a_turn_that_is_cancelled_aborts_what_it_waits_for(turns: Turns, stage: str) -> None:
    endpoint = getattr(turns.models, stage)
    endpoint.hangs = True
    asking = asyncio.ensure_future(turns.ask())
    await until(lambda: endpoint.calls, "the endpoint is asked")
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()
    await until(lambda: endpoint.aborted == 1, "it saw the call given up")


# -- where another attempt broke off


def broken_off(turns: Turns, keep: Callable[[Segment], bool]) -> list[VoiceEvent]:
    """The events of a turn whose worker died, with the segments for which `keep` holds."""
    events = turns.events()
    turns.written.clear()
    return [event for event in events if event.type != "audio" or keep(Segment(**event.model_dump(exclude_none=True)))]


async def test_what_was_understood_and_spoken_is_not_done_again(turns: Turns) -> None:
    await turns.ask()
    earlier = broken_off(turns, lambda segment: segment.sentence < 2)
    turns.models.tts.spoken.clear()
    response = await turns.ask(earlier=earlier)
    assert turns.models.stt.calls == 1
    assert turns.transcripts == []
    assert turns.models.tts.spoken == ["Mind the pot."]
    assert response.transcription == "How often does it need water?"
    assert turns.segments[0].segment == len(standing(earlier))
    assert (response.audio, response.language) == (wav(SPEECH, pcm(SENTENCES)), "en")
    assert response.audio_segments == len(standing(earlier)) + len(turns.segments)


async def test_a_sentence_that_was_half_spoken_goes_on_where_it_broke_off(turns: Turns) -> None:
    turns.models.tts.per_character = 4000
    await turns.ask()
    broken = [segment for segment in turns.segments if segment.sentence == 1][1].segment
    earlier = broken_off(turns, lambda segment: segment.segment < broken)
    response = await turns.ask(earlier=earlier)
    assert turns.models.tts.spoken[-2:] == SENTENCES[1:]
    assert [segment.segment for segment in turns.segments] == list(range(broken, response.audio_segments))
    assert turns.segments[0].text == "", "the sentence has told its text already"
    assert heard([*standing(earlier), *turns.segments]) == pcm(SENTENCES, 4000)


async def test_an_answer_that_turns_out_differently_replaces_what_differs(turns: Turns) -> None:
    await turns.ask()
    earlier = broken_off(turns, lambda segment: True)
    turns.models.llm.script = ["Water it once a week. ", "In summer it needs more. ", "Good luck with it."]
    turns.models.tts.spoken.clear()
    response = await turns.ask(earlier=earlier)
    new = ["In summer it needs more.", "Good luck with it."]
    assert turns.models.tts.spoken == new
    first = next(segment for segment in standing(earlier) if segment.sentence == 1).segment
    assert turns.segments[0].segment == first
    again = [*earlier, *turns.events(attempt=2)]
    assert heard(standing(again)) == pcm([SENTENCES[0], *new])
    assert response.audio == wav(SPEECH, pcm([SENTENCES[0], *new]))
    assert response.audio_segments == len(standing(again))


async def test_an_answer_that_turns_out_shorter_counts_its_own_segments(turns: Turns) -> None:
    await turns.ask()
    earlier = broken_off(turns, lambda segment: True)
    turns.models.llm.script = ["Water it once a week."]
    response = await turns.ask(earlier=earlier)
    assert turns.segments == []
    assert response.audio == wav(SPEECH, pcm(SENTENCES[:1]))
    assert response.audio_segments == len([s for s in standing(earlier) if s.sentence == 0])


async def test_an_answer_that_is_the_same_is_spoken_by_nobody_again(turns: Turns) -> None:
    await turns.ask()
    earlier = broken_off(turns, lambda segment: True)
    turns.models.tts.spoken.clear()
    response = await turns.ask(earlier=earlier)
    assert (turns.models.tts.spoken, turns.segments, response.degraded) == ([], [], [])
    assert response.audio == wav(SPEECH, pcm(SENTENCES))


async def test_a_third_attempt_goes_on_from_what_the_second_replaced(turns: Turns) -> None:
    await turns.ask()
    earlier = broken_off(turns, lambda segment: True)
    turns.models.llm.script = ["Never water it at all. ", "It is a stone."]
    await turns.ask(earlier=earlier)
    both = [*earlier, *turns.events(attempt=2)]
    turns.written.clear()
    turns.models.tts.spoken.clear()
    response = await turns.ask(earlier=both)
    assert (turns.models.tts.spoken, turns.segments) == ([], [])
    assert response.audio == wav(SPEECH, pcm(["Never water it at all.", "It is a stone."]))


async def test_without_a_voice_at_the_second_attempt_what_the_first_spoke_stays(turns: Turns) -> None:
    await turns.ask()
    earlier = broken_off(turns, lambda segment: segment.sentence < 1)
    turns.models.tts.refusals = 100
    response = await turns.ask(earlier=earlier)
    assert response.degraded == ["tts"]
    assert response.audio_segments == len(standing(earlier))
    assert response.audio == wav(SPEECH, pcm(SENTENCES[:1]))
