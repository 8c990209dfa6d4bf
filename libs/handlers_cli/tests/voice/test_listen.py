"""`handlers listen`, against a real NATS server and a stand-in for stt_module."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from handler_core import streams
from handler_core.audio import PcmFormat, wav
from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.contract.errors import ErrorInfo, ErrorType
from handler_core.contract.stt import StreamMessage
from handler_core.contract.voice import VoiceRequest
from handler_core.errors import InvalidRequest, Transient
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, connection, nats_server, stored, until
from handlers_cli import listen as module
from handlers_cli import transcripts, waiting
from handlers_cli.listen import Options, chunks, listen
from handlers_cli.main import app
from handlers_cli.settings import CliSettings
from handlers_cli.source import Pcm

HANDLERS = Path(sys.executable).parent / "handlers"
RAW = PcmFormat(16_000)
BROKEN = ErrorInfo(type=ErrorType.DOWNSTREAM_UNAVAILABLE, message="stt: HTTP 503", retryable=True)


@pytest.fixture
def speech(tmp_path: Path, lib: Any) -> Path:
    """A WAV file of three tenths of a second."""
    place = tmp_path / "speech.wav"
    place.write_bytes(wav(RAW, lib.tone(0.3, RAW)))
    return place


def options(place: Path | str | None, **changed: Any) -> Options:
    made = {"rate": None, "channels": None, "chunk_ms": 20, "fast": True, "partials": None, "json": False}
    more = {"respond": False, "play": False, "answers": None, "timeout": 20.0}
    return Options(place=None if place is None else str(place), **{**made, **more, **changed})


# -- what is sent


async def test_a_file_goes_out_in_chunks_with_their_count_between_start_and_end(
    config: CliSettings, stt_module: Any, speech: Path, lib: Any
) -> None:
    given = {"session_id": "talk", "language": "de", "user_id": "alice"}
    await listen(config, options(speech, config=given))
    kinds = [message.type for message in stt_module.seen]
    assert kinds == ["start", *["chunk"] * 15, "end"]
    assert [message.seq for message in stt_module.seen[1:-1]] == list(range(15))
    assert {len(message.audio) for message in stt_module.seen[1:-1]} == {640}
    assert stt_module.audio == lib.tone(0.3, RAW)
    start = stt_module.start
    assert (start.sample_rate, start.channels, start.language, start.user_id) == (16_000, 1, "de", "alice")
    assert (start.partials, start.turn) == (False, None), "nobody would see them, and none is to answer"


async def test_another_rate_is_resampled_and_the_last_chunk_may_be_shorter(
    config: CliSettings, stt_module: Any, tmp_path: Path, lib: Any
) -> None:
    cd = PcmFormat(44_100, 3, 2)
    (tmp_path / "cd.wav").write_bytes(wav(cd, lib.tone(0.31, cd)))
    await listen(config, options(tmp_path / "cd.wav", chunk_ms=100))
    assert stt_module.start.sample_rate == 16_000
    assert [len(message.audio) for message in stt_module.seen[1:4]] == [3200] * 3
    assert abs(len(stt_module.audio) / 32_000 - 0.31) < 0.002


async def test_it_goes_out_no_faster_than_it_is_spoken(config: CliSettings, stt_module: Any, speech: Path) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await listen(config, options(speech, fast=False))
    assert loop.time() - began >= 0.3


async def test_audio_that_waits_for_a_slow_server_goes_out_as_one_chunk(
    config: CliSettings, stt_module: Any, speech: Path, lib: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Api.publish

    async def slow(self: Api, subject: str, payload: bytes, headers: dict[str, str]) -> int:
        await asyncio.sleep(0.1)
        return await store(self, subject, payload, headers)

    monkeypatch.setattr(Api, "publish", slow)
    await listen(config, options(speech, fast=False))
    assert len(stt_module.seen) < 12
    assert stt_module.audio == lib.tone(0.3, RAW)


# -- what is printed


async def test_finals_are_printed_with_their_place(
    config: CliSettings, stt_module: Any, speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stt_module.text = "hello [bold]there\x1b[2J"
    await listen(config, options(speech))
    told = capsys.readouterr()
    assert told.out == "0:00.2-1:01.3  hello [bold]there\\x1b[2J\n"
    assert told.err == ""


async def test_partials_are_lines_where_they_are_asked_for(
    config: CliSettings, stt_module: Any, speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await listen(config, options(speech, partials=True))
    assert capsys.readouterr().out == "0:00.2  hello …\n0:00.2-1:01.3  hello there\n"
    assert stt_module.start.partials is True


async def test_on_a_terminal_a_partial_is_replaced_and_no_wider_than_it(
    config: CliSettings, stt_module: Any, speech: Path, monkeypatch: pytest.MonkeyPatch, lib: Any
) -> None:
    terminal = Console(force_terminal=True, width=40, highlight=False, soft_wrap=True, record=True, file=StringIO())
    monkeypatch.setattr(transcripts, "out", terminal)
    monkeypatch.setattr(module, "out", terminal)
    shown: list[str] = []
    update = transcripts.Live.update

    def spy(self: Any, line: Any, *, refresh: bool) -> None:
        shown.append(line.plain)
        update(self, line, refresh=refresh)

    monkeypatch.setattr(transcripts.Live, "update", spy)
    stt_module.script = lambda fake, message: (
        [lib.event(transcript=f"{'word ' * 20}last", is_partial=True), *fake.plain(message)]
        if message.type == "end"
        else fake.plain(message)
    )
    await listen(config, options(speech))
    assert shown[0].startswith("…")
    assert shown[0].endswith("word last")
    assert len(shown[0]) <= 36
    assert shown[1:] == ["hello", ""]
    assert "0:00.2-1:01.3  hello there" in terminal.export_text()
    assert stt_module.start.partials is True


async def test_json_is_one_event_a_line(
    config: CliSettings, stt_module: Any, speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await listen(config, options(speech, json=True))
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["type"] for event in events] == ["status", "transcript", "transcript", "status"]
    assert events[2]["transcript"] == "hello there"


async def test_what_happens_to_the_session_is_said(
    config: CliSettings, stt_module: Any, speech: Path, lib: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    busy = ErrorInfo(type=ErrorType.BUSY, message="full", retryable=True, retry_after_ms=1000)
    told = [
        lib.event(type="error", error=busy, status="waiting"),
        lib.event(type="status", status="resumed"),
        lib.event(type="status", status="listening"),
        lib.event(type="interrupt", played_ms=1230),
        lib.event(type="error", error=BROKEN),
    ]
    stt_module.script = lambda fake, message: [*(told if message.type == "end" else []), *fake.plain(message)]
    await listen(config, options(speech))
    lines = capsys.readouterr()
    assert lines.err.splitlines() == [
        "(all workers are full; what is said is kept until one is free)",
        "(another worker goes on with the session)",
        "(interrupted, 1.2 s into the answer)",
        "error: downstream_unavailable: stt: HTTP 503",
    ]
    assert "hello there" in lines.out


# -- how it ends


async def test_nothing_but_errors_is_exit_code_1(
    config: CliSettings, stt_module: Any, speech: Path, lib: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    stt_module.script = lambda fake, message: (
        [lib.event(type="error", error=BROKEN), lib.event(type="status", status="ended", reason="end")]
        if message.type == "end"
        else []
    )
    with pytest.raises(typer.Exit) as ended:
        await listen(config, options(speech))
    assert ended.value.exit_code == 1
    assert "nothing could be transcribed" in capsys.readouterr().err


async def test_silence_is_no_error(
    config: CliSettings, stt_module: Any, speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stt_module.text = ""
    await listen(config, options(speech))
    assert capsys.readouterr() == ("", "nothing was said\n")


async def test_an_error_that_ends_the_session_ends_the_command(
    config: CliSettings, stt_module: Any, speech: Path, lib: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    stt_module.script = lambda fake, message: [lib.event(type="error", error=BROKEN, status="ended")]
    with pytest.raises(typer.Exit) as ended:
        await listen(config, options(speech))
    assert ended.value.exit_code == 1
    assert "stt: HTTP 503" in capsys.readouterr().err


async def test_a_session_that_had_ended_is_begun_anew_with_all_that_was_asked_for(
    config: CliSettings, stt_module: Any, speech: Path, lib: Any
) -> None:
    def script(fake: Any, message: Any) -> list[Any]:
        if message.type == "chunk" and message.seq == 3 and len(fake.seen) < 10:
            return [lib.event(type="status", status="ended", reason="idle")]
        return list(fake.plain(message))

    stt_module.script = script
    await listen(config, options(speech, fast=False, config={"language": "de"}))
    starts = [place for place, message in enumerate(stt_module.seen) if message.type == "start"]
    assert [stt_module.seen[place].language for place in starts] == ["de", "de"]
    assert stt_module.seen[starts[1] + 1].seq == 0


async def test_where_nobody_listens_it_says_so_and_gives_up(
    nc: Connection,
    config: CliSettings,
    speech: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "PATIENCE", 0.05)
    with pytest.raises(typer.Exit):
        await listen(config, options(speech, timeout=0.4))
    told = capsys.readouterr().err
    assert "nobody takes work from AI_STT_SESSIONS: is a stt_module running?" in told
    assert "the session has not ended 0.4 s after its audio" in told


async def test_without_the_stream_it_fails_at_once(speech: Path) -> None:
    with nats_server() as server, pytest.raises(Transient, match="no stream AI_EVENTS; handlers streams apply"):
        await listen(CliSettings(nats_url=server.url), options(speech))


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"config": {"session_id": "a.b"}}, "session_id"),
        ({"config": {"language": "German"}}, "language"),
        ({"respond": True, "turn": {"collection": "no such"}}, "collection"),
        ({"answers": Path("/nowhere")}, "there is no such folder"),
    ],
)
async def test_what_cannot_be_is_said_before_anything_is_sent(
    speech: Path, changed: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        await listen(CliSettings(nats_url="nats://127.0.0.1:1"), options(speech, **changed))


@pytest.mark.parametrize("arguments", [["listen"], ["listen", "a.wav", "--microphone"], ["talk"]])
def test_one_source_has_to_be_given(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, "give a FILE, or -, or --microphone" in done.output) == (2, True)


# -- connections that are lost


async def test_a_lost_connection_loses_no_audio_and_no_transcript(speech: Path, lib: Any) -> None:
    # The server dies in the middle of the session, and comes back with what it had stored.
    with nats_server() as server:
        async with connection(server.url) as nc:
            await streams.apply(Api(nc))
        seconds = 1.0
        speech.write_bytes(wav(RAW, lib.tone(seconds, RAW)))
        async with asyncio.TaskGroup() as tasks:
            made = options(speech, fast=False, config={"session_id": "talk"})
            listening = tasks.create_task(listen(CliSettings(nats_url=server.url), made))
            await asyncio.sleep(0.4)
            server.kill()
            await asyncio.to_thread(server.start)
            async with connection(server.url) as nc:
                api, found = Api(nc), []
                while not found or found[-1].type != "end":
                    found = [decode(m.data, StreamMessage) for m in await stored(nc, "AI_STT", "ai.voice.stream.talk")]
                for last in (
                    lib.event(transcript="kept", is_final=True),
                    lib.event(type="status", status="ended", reason="end"),
                ):
                    await api.publish("evt.voice.transcription.talk", encode(last), {})
            await listening
    chunks = [message for message in found if message.type == "chunk"]
    assert [message.seq for message in chunks] == list(range(len(chunks)))
    assert b"".join(message.audio for message in chunks) == lib.tone(seconds, RAW)


# -- answers


async def test_each_transcript_is_answered_played_and_kept(
    config: CliSettings,
    stt_module: Any,
    voice_assistant: Any,
    speech: Path,
    lib: Any,
    sounddevice: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "answers"
    folder.mkdir()

    def script(fake: Any, message: Any) -> list[Any]:
        if message.type == "state_change" and message.state == "listening":
            return [lib.event(type="status", status="ended", reason="end")]
        if message.type == "chunk" and message.seq == 1:
            return [fake.final(request_id="turn-1")]
        return []

    stt_module.script = script
    await voice_assistant.answer(VoiceRequest(text="?", request_id="turn-1"))
    made = options(
        speech, fast=False, respond=True, play=True, answers=folder, turn={"speaker": "anna", "enable_rag": False}
    )
    await listen(config, made)
    assert stt_module.start.turn == {"speaker": "anna", "enable_rag": False}
    assert bytes(sounddevice.played) == lib.segment(0) + lib.segment(1)
    assert (folder / "turn-1.wav").read_bytes()[44:] == lib.segment(0) + lib.segment(1)
    assert [m.state for m in stt_module.seen if m.type == "state_change"] == ["responding", "listening"]
    assert capsys.readouterr().out.splitlines() == ["0:00.2-1:01.3  hello there", "< Yes, it is."]


async def test_speech_stops_an_answer_and_its_cancellation_is_no_error(
    config: CliSettings,
    stt_module: Any,
    voice_assistant: Any,
    speech: Path,
    lib: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long = [{"type": "transcript", "content": "?"}, *(lib.audio(n, audio=lib.segment(0, 10)) for n in range(3))]
    voice_assistant.events, voice_assistant.response = long, {"error": lib.CANCELED}
    stops: list[str] = []

    def script(fake: Any, message: Any) -> list[Any]:
        if message.type == "chunk" and message.seq == 1:
            return [fake.final(request_id="turn-1")]
        if message.type == "state_change":
            stops.append(message.state)
            return [lib.event(type="interrupt", played_ms=10)] if message.state == "responding" else []
        return [lib.event(type="status", status="ended", reason="end")] if message.type == "end" else []

    async def speaking_on(pcm: Pcm, milliseconds: int) -> AsyncIterator[bytes]:
        async for chunk in chunks(pcm, milliseconds):
            yield chunk
        await until(lambda: len(stops) == 2, "the answer is stopped")

    monkeypatch.setattr(module, "chunks", speaking_on)
    stt_module.script = script
    await voice_assistant.answer(VoiceRequest(text="?", request_id="turn-1"))
    await listen(config, options(speech, fast=False, respond=True))
    assert stops == ["responding", "listening"], "half a minute of answer is not waited for"
    assert "error" not in capsys.readouterr().err


async def test_a_turn_that_fails_is_said_and_is_exit_code_1(
    config: CliSettings, stt_module: Any, voice_assistant: Any, speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voice_assistant.response = {"error": BROKEN}
    stt_module.script = lambda fake, message: [
        item.model_copy(update={"request_id": "turn-1"}) if item.is_final else item for item in fake.plain(message)
    ]
    await voice_assistant.answer(VoiceRequest(text="?", request_id="turn-1"))
    with pytest.raises(typer.Exit):
        await listen(config, options(speech, respond=True, json=True))
    told = capsys.readouterr()
    answer = json.loads(told.out.splitlines()[-1])
    assert (answer["type"], answer["error"]["message"]) == ("answer", "stt: HTTP 503")


async def test_a_turn_that_nobody_answers_is_given_up(
    config: CliSettings, stt_module: Any, speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stt_module.script = lambda fake, message: [
        item.model_copy(update={"request_id": "turn-1"}) if item.is_final else item for item in fake.plain(message)
    ]
    with pytest.raises(typer.Exit):
        await listen(config, options(speech, respond=True, timeout=0.4))
    assert "no answer to turn-1 within 0.4 s; is a voice_assistant running?" in capsys.readouterr().err


# -- as a process


async def test_ctrl_c_ends_the_session_and_prints_what_it_heard(nats: NatsServer, stt_module: Any, lib: Any) -> None:
    process = await asyncio.create_subprocess_exec(
        *(str(HANDLERS), "listen", "-", "--rate", "16000"),
        env={**os.environ, "NATS_URL": nats.url},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(lib.tone(0.2, RAW))
    await process.stdin.drain()
    while not stt_module.audio:
        await asyncio.sleep(0.01)
    process.send_signal(signal.SIGINT)  # the pipe stays open: nothing else would end it
    out, told = await asyncio.gather(process.stdout.read(), process.stderr.read())  # type: ignore[union-attr]
    assert await process.wait() == 130, told
    assert stt_module.seen[-1].type == "end"
    assert out == b"0:00.2-1:01.3  hello there\n"
    assert b"Traceback" not in told
    process.stdin.close()
