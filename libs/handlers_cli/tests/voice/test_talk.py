"""`handlers talk`, against a real NATS server and a stand-in for voice_assistant."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
import typer

from handler_core.audio import PcmFormat, read_wav, wav
from handler_core.codec import decode
from handler_core.connection import Connection
from handler_core.contract.answer import Stage
from handler_core.contract.chat import Citation, Source
from handler_core.contract.control import CancelRequest
from handler_core.contract.errors import ErrorInfo, ErrorType
from handler_core.errors import InvalidRequest, Transient
from handler_core.testing import NatsServer, stored
from handlers_cli import waiting
from handlers_cli.cancel import cancel
from handlers_cli.settings import CliSettings
from handlers_cli.talk import Options, talk

HANDLERS = Path(sys.executable).parent / "handlers"
RAW = PcmFormat(16_000)
DOWN = ErrorInfo(type=ErrorType.DOWNSTREAM_UNAVAILABLE, message="llm: HTTP 503", retryable=True, stage="llm")


@pytest.fixture
def question(tmp_path: Path, lib: Any) -> Path:
    place = tmp_path / "question.wav"
    place.write_bytes(wav(RAW, lib.tone(0.2, RAW)))
    return place


async def talked(config: CliSettings, place: Path | str | None, **changed: Any) -> None:
    fields = {"enable_streaming": not changed.get("ask"), **changed.pop("fields", {})}
    made = {
        "output": None,
        "play": False,
        "ask": False,
        "json": False,
        "trace": False,
        "verbose": False,
        "timeout": 20.0,
    }
    await talk(config, fields, Options(None if place is None else str(place), **{**made, **changed}))


def samples(place: Path) -> bytes:
    format, pcm, _ = read_wav(place.read_bytes())
    assert format == PcmFormat(24_000)
    return bytes(pcm)


async def test_what_was_understood_the_answer_and_its_audio(
    config: CliSettings, voice_assistant: Any, question: Path, lib: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    voice_assistant.response = {
        "sources": [Source(id="1", text="It is.", score=0.5, metadata={"source": "docs/it.md"})],
        "citations": [Citation(index=1, source_id="1", start=0)],
        "degraded": ["reranker"],
    }
    fields = {"session_id": "s", "language": "en", "speaker": "anna", "collection": "docs", "enable_rag": False}
    await talked(config, question, fields=fields)
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert lines[:2] == ["> well?", "Yes, it is."]
    assert "cited  docs/it.md" in told.out
    answer = question.with_name("question.answer.wav")
    assert f"{answer}: 0.20 s of audio" in lines
    assert [line.split()[0] for line in lines[-2:]] == ["transcribe", "total"]
    assert told.err == "answered without: reranker\n"
    assert samples(answer) == lib.segment(0) + lib.segment(1)
    (request,) = voice_assistant.seen
    assert (request.audio, request.format) == (question.read_bytes(), "wav")
    assert {name: getattr(request, name) for name in fields} == fields


async def test_the_default_name_is_never_one_that_is_taken_and_a_named_one_is_replaced(
    config: CliSettings, voice_assistant: Any, question: Path, tmp_path: Path
) -> None:
    for _ in range(3):
        await talked(config, question)
    await talked(config, question, output=str(tmp_path / "mine.wav"))
    first = (tmp_path / "mine.wav").stat().st_ino
    await talked(config, question, output=str(tmp_path / "mine.wav"))
    assert (tmp_path / "mine.wav").stat().st_ino != first
    names = {path.name for path in tmp_path.iterdir()}
    taken = {f"question.answer{number}.wav" for number in ("", "-2", "-3")}
    assert names == {"question.wav", "mine.wav", *taken}


async def test_a_question_as_a_user_goes_over_the_users_subject(
    config: CliSettings, voice_assistant: Any, question: Path, nc: Connection
) -> None:
    await talked(config, question, fields={"user_id": "alice"})
    (message,) = await stored(nc, "AI_VOICE", "ai.voice.>")
    assert message.subject == "ai.voice.user.alice.request"


async def test_request_and_reply_brings_the_same_at_once(
    config: CliSettings, voice_assistant: Any, question: Path, lib: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    await talked(config, question, ask=True)
    assert samples(question.with_name("question.answer.wav")) == lib.segment(0) + lib.segment(1)
    assert capsys.readouterr().out.splitlines()[:2] == ["> well?", "Yes, it is."]


async def test_json_is_the_final_response_without_its_audio(
    config: CliSettings, voice_assistant: Any, question: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await talked(config, question, json=True)
    record = json.loads(capsys.readouterr().out)
    assert (record["transcription"], record["response"]) == ("well?", "Yes, it is.")
    assert record["output"] == str(question.with_name("question.answer.wav"))
    assert "audio" not in record


async def test_a_trace_shows_when_the_first_audio_came(
    config: CliSettings, voice_assistant: Any, question: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voice_assistant.response = {"stages": [Stage(name="stt", start_ms=0, ms=10), Stage(name="llm", start_ms=10, ms=5)]}
    await talked(config, question, trace=True)
    told = capsys.readouterr().out
    for name in ("stt", "llm", "stored", "transcript", "first text", "first audio", "final"):
        assert f"\n  {name} " in told


# -- audio that is replaced


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([(0, 1), (1, 1), (0, 2)], [(0, 2)]),
        ([(0, 1), (1, 1), (2, 1), (1, 2), (2, 2)], [(0, 1), (1, 2), (2, 2)]),
        ([(0, 1), (1, 2), (1, 1)], [(0, 1), (1, 2)]),
        ([(1, 1), (0, 1)], [(0, 1), (1, 1)]),
    ],
    ids=["from the first", "from the middle", "an older one changes nothing", "late"],
)
async def test_a_segment_of_a_later_attempt_replaces_that_and_what_follows(
    config: CliSettings, voice_assistant: Any, question: Path, lib: Any, events: Any, expected: Any
) -> None:
    voice_assistant.events = [
        lib.audio(number, attempt=attempt, audio=lib.segment(10 * attempt + number)) for number, attempt in events
    ]
    voice_assistant.response = {"audio_segments": len(expected)}
    await talked(config, question)
    made = samples(question.with_name("question.answer.wav"))
    assert made == b"".join(lib.segment(10 * attempt + number) for number, attempt in expected)


async def test_segments_left_over_from_an_attempt_that_said_more_are_dropped(
    config: CliSettings, voice_assistant: Any, question: Path, lib: Any
) -> None:
    voice_assistant.events = [lib.audio(number) for number in range(3)]
    voice_assistant.response = {"audio_segments": 2}
    await talked(config, question)
    assert samples(question.with_name("question.answer.wav")) == lib.segment(0) + lib.segment(1)


async def test_an_answer_that_begins_anew_says_so(
    config: CliSettings, voice_assistant: Any, question: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voice_assistant.events = [
        {"type": "transcript", "content": "well?"},
        {"type": "chunk", "content": "Ye"},
        {"type": "restart", "attempt": 2},
        {"type": "chunk", "content": "No.", "attempt": 2},
    ]
    await talked(config, question)
    told = capsys.readouterr().out
    assert told.startswith("> well?\nYe\n(the worker was lost; another one answers anew)\n\nNo.\n")
    assert not list(question.parent.glob("*answer*"))


async def test_where_nothing_was_understood_it_says_so(
    config: CliSettings, voice_assistant: Any, question: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voice_assistant.events = [{"type": "transcript", "content": ""}, {"type": "chunk", "content": "Sorry?"}]
    voice_assistant.response = {"transcription": ""}
    await talked(config, question)
    assert capsys.readouterr().out.startswith("> (nothing was understood)\nSorry?\n")


# -- what goes wrong


async def test_an_error_is_said_with_what_had_been_understood(
    config: CliSettings, voice_assistant: Any, question: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voice_assistant.events = [{"type": "transcript", "content": "well?"}]
    voice_assistant.response = {"error": DOWN, "response": ""}
    with pytest.raises(typer.Exit) as ended:
        await talked(config, question)
    assert ended.value.exit_code == 1
    assert capsys.readouterr() == ("> well?\n", "error: downstream_unavailable: llm: HTTP 503\n")


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"fields": {"collection": "no such"}}, "collection"),
        ({"fields": {"user_id": "a.b"}}, "user_id"),
        ({"output": "-", "json": True}, "stdout is where the audio goes"),
        ({"output": "/nowhere/x.wav"}, "there is no folder"),
    ],
)
async def test_what_cannot_be_is_said_before_anybody_speaks(
    question: Path, changed: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        await talked(CliSettings(nats_url="nats://127.0.0.1:1"), question, **changed)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [(b"", "empty"), (b"hello", "no WAV file, but unknown data"), (b"RIFF\0\0\0\0WAVEdata", "WAV file without")],
)
async def test_a_file_that_is_no_audio_is_named(
    config: CliSettings, nc: Connection, tmp_path: Path, data: bytes, complaint: str
) -> None:
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(InvalidRequest, match=rf"a\.wav: {complaint}|a\.wav: a {complaint}"):
        await talked(config, tmp_path / "a.wav")


async def test_what_does_not_fit_into_a_message_is_made_smaller_or_refused(
    config: CliSettings, voice_assistant: Any, tmp_path: Path, lib: Any
) -> None:
    cd = PcmFormat(44_100, 2, 2)
    (tmp_path / "long.wav").write_bytes(wav(cd, bytes(8 * cd.bytes_per_second)))
    await talked(config, tmp_path / "long.wav")
    (request,) = voice_assistant.seen
    format, pcm, _ = read_wav(request.audio)
    assert (format, round(format.seconds(len(pcm)), 1)) == (RAW, 8.0)
    (tmp_path / "longer.wav").write_bytes(wav(RAW, bytes(40 * RAW.bytes_per_second)))
    with pytest.raises(InvalidRequest, match="40 s do not fit into one message, which holds 32 s; handlers listen"):
        await talked(config, tmp_path / "longer.wav")
    (tmp_path / "longer.ogg").write_bytes(b"OggS" + bytes(1 << 20))
    with pytest.raises(InvalidRequest, match=r"bytes of ogg do not fit"):
        await talked(config, tmp_path / "longer.ogg")


async def test_what_is_compressed_goes_as_it_is(config: CliSettings, voice_assistant: Any, tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_bytes(b"fLaC" + bytes(60))
    await talked(config, tmp_path / "a.dat", fields={"request_id": "mine"})
    assert (voice_assistant.seen[0].format, voice_assistant.seen[0].request_id) == ("flac", "mine")


async def test_a_name_that_was_used_before_gives_the_answer_of_then(
    config: CliSettings, voice_assistant: Any, question: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        capsys.readouterr()
        await talked(config, question, fields={"request_id": "mine"})
    assert len(voice_assistant.seen) == 1
    assert capsys.readouterr().out.startswith("> well?\nYes, it is.\n")


async def test_where_nobody_answers_it_says_so_and_gives_up(
    nc: Connection,
    config: CliSettings,
    question: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "PATIENCE", 0.05)
    monkeypatch.setattr("handlers_cli.talk.GRACE", 0.0)
    with pytest.raises(typer.Exit):
        await talked(config, question, timeout=0.4)
    told = capsys.readouterr().err
    assert "nobody takes work from AI_VOICE: is a voice_assistant running?" in told
    assert "no answer within 0.4 s" in told
    with pytest.raises(Transient, match="no voice_assistant is running"):
        await talked(config, question, ask=True)


# -- the sound card


async def test_from_the_microphone_to_the_speaker(
    config: CliSettings,
    voice_assistant: Any,
    lib: Any,
    sounddevice: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO()))
    monkeypatch.chdir(tmp_path)
    sounddevice.speech = lib.tone(0.6, RAW, 0.001) + lib.tone(0.3, RAW) + lib.tone(2, RAW, 0.001)
    await talked(config, None, play=True)
    format, pcm, _ = read_wav(voice_assistant.seen[0].audio)
    assert format == RAW
    assert bytes(pcm) == sounddevice.speech[: len(pcm)]
    assert bytes(sounddevice.played) == lib.segment(0) + lib.segment(1)
    assert list(tmp_path.iterdir()) == []
    await talked(config, None)
    assert [path.name for path in tmp_path.iterdir()] == ["answer.wav"]


# -- as a process


async def test_a_pipe_gets_the_audio_alone(nats: NatsServer, voice_assistant: Any, question: Path, lib: Any) -> None:
    process = await asyncio.create_subprocess_exec(
        *(str(HANDLERS), "talk", "-", "-o", "-"),
        env={**os.environ, "NATS_URL": nats.url},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    heard, told = await process.communicate(question.read_bytes())
    assert process.returncode == 0, told
    assert bytes(read_wav(heard).pcm) == lib.segment(0) + lib.segment(1)
    assert told.startswith(b"> well?\nYes, it is.\n")


async def test_ctrl_c_cancels_the_turn(nats: NatsServer, nc: Connection, voice_assistant: Any, question: Path) -> None:
    voice_assistant.silent = True
    process = await asyncio.create_subprocess_exec(
        *(str(HANDLERS), "talk", str(question), "--request-id", "long"),
        env={**os.environ, "NATS_URL": nats.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    await voice_assistant.arrived.wait()
    process.send_signal(signal.SIGINT)
    _, told = await process.communicate()
    assert process.returncode == 130, told
    assert b"canceled long" in told
    (message,) = await stored(nc, "AI_CONTROL", "ai.turn.cancel.long")
    assert decode(message.data, CancelRequest).request_id == "long"


async def test_a_voice_turn_that_ended_is_known_to_cancel(
    config: CliSettings, voice_assistant: Any, question: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await talked(config, question, fields={"request_id": "mine"})
    capsys.readouterr()
    with pytest.raises(typer.Exit):
        await cancel(config, "mine", "", 20)
    assert capsys.readouterr().out == "mine was answered before; nothing to cancel\n"
