"""`handlers say` and `handlers voices`, against a real NATS server and a stand-in for tts_module."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from handler_core import streams
from handler_core.audio import read_wav
from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.contract.control import CancelRequest
from handler_core.contract.errors import ErrorInfo, ErrorType
from handler_core.contract.tts import VoiceInfo, VoicesResponse
from handler_core.errors import HandlerError, InvalidRequest, Transient
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, stored
from handlers_cli import waiting
from handlers_cli.main import app
from handlers_cli.say import Options, say
from handlers_cli.settings import CliSettings
from handlers_cli.sound import NoSound
from handlers_cli.voices import voices

HANDLERS = Path(sys.executable).parent / "handlers"
TEXT = "one two three four five"


async def said(config: CliSettings, text: str = TEXT, **changed: Any) -> None:
    fields = {"text": text, **changed.pop("fields", {})}
    options = {"output": None, "play": False, "json": False, "timeout": 20.0, "verbose": False}
    await say(config, fields, Options(**{**options, **changed}))


def level(data: bytes) -> list[int]:
    """Which chunks a file holds, in its order: of each its own sample value."""
    format, pcm, truncated = read_wav(data)
    assert (format.sample_rate, format.width, format.channels, truncated) == (24_000, 2, 1, False)
    return [int.from_bytes(pcm[place : place + 2], "little") for place in range(0, len(pcm), 4800)]


async def test_the_audio_is_written_and_what_it_took_is_said(
    config: CliSettings, tts_module: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "out.wav"
    place.write_bytes(b"an older file")
    await said(config, output=str(place), fields={"speaker": "anna", "language": "de", "speed": 1.5, "session_id": "s"})
    assert level(place.read_bytes()) == [1, 2, 3, 4, 5]
    assert capsys.readouterr().out.startswith(f"{place}: 0.50 s of audio, the first after 0.")
    (request,) = tts_module.seen
    assert (request.text, request.speaker, request.language, request.speed, request.session_id) == (
        *(TEXT, "anna", "de"),
        *(1.5, "s"),
    )
    assert request.deadline_ms == 20_000
    assert [path.name for path in tmp_path.iterdir()] == ["out.wav"]


async def test_chunks_are_written_in_their_order_however_they_come(
    config: CliSettings, tts_module: Any, tmp_path: Path
) -> None:
    tts_module.order = lambda indexes: [indexes[2], indexes[0], indexes[1], *reversed(indexes[3:])]
    await said(config, output=str(tmp_path / "out.wav"))
    assert level((tmp_path / "out.wav").read_bytes()) == [1, 2, 3, 4, 5]


async def test_what_others_in_the_session_ask_for_is_left_alone(
    config: CliSettings, tts_module: Any, tmp_path: Path
) -> None:
    await asyncio.gather(
        *(
            said(config, " ".join(["x"] * n), output=str(tmp_path / f"{n}.wav"), fields={"session_id": "s"})
            for n in (3, 5)
        )
    )
    assert [len(level((tmp_path / f"{n}.wav").read_bytes())) for n in (3, 5)] == [3, 5]


async def test_json_is_one_object(
    config: CliSettings, tts_module: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await said(config, output=str(tmp_path / "out.wav"), json=True)
    record = json.loads(capsys.readouterr().out)
    assert (record["duration_ms"], record["sample_rate"], record["chunks"]) == (500.0, 24_000, 5)
    assert record["request_id"] == tts_module.seen[0].request_id
    assert record["first_audio_ms"] <= record["total_ms"]


@pytest.mark.parametrize(
    ("error", "said_of_it"),
    [
        (
            ErrorInfo(type=ErrorType.VALIDATION_ERROR, message="speaker: no voice 'x'", retryable=False),
            "error: validation_error: speaker: no voice 'x'\nhandlers voices lists those that there are\n",
        ),
        (
            ErrorInfo(type=ErrorType.BUSY, message="full", retryable=True, retry_after_ms=1500),
            "error: busy: full (try again in 1.5 s)\n",
        ),
    ],
)
async def test_an_error_is_said_and_no_file_is_left(
    config: CliSettings,
    tts_module: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    error: ErrorInfo,
    said_of_it: str,
) -> None:
    tts_module.error = error
    with pytest.raises(typer.Exit) as ended:
        await said(config, output=str(tmp_path / "out.wav"))
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err == said_of_it
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"output": "x.wav", "text": " \n"}, "text: is empty"),
        ({"output": None}, "where is the audio to go"),
        ({"output": "-", "json": True}, "stdout is where the audio goes"),
        ({"output": "/nowhere/at/all.wav"}, "there is no folder /nowhere/at"),
        ({"output": "/"}, "is a folder"),
        ({"output": "x.wav", "fields": {"session_id": "a.b"}}, "session_id"),
        ({"output": "x.wav", "text": "x" * 20_001}, "text: String should have at most"),
    ],
)
async def test_what_cannot_be_is_said_before_anything_is_asked(changed: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        await said(CliSettings(nats_url="nats://127.0.0.1:1"), **changed)


async def test_where_nobody_speaks_it_says_so_and_gives_up_in_time(
    nc: Connection,
    config: CliSettings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "PATIENCE", 0.05)
    monkeypatch.setattr("handlers_cli.say.GRACE", 0.0)
    with pytest.raises(typer.Exit):
        await said(config, output=str(tmp_path / "out.wav"), timeout=0.5)
    told = capsys.readouterr().err
    assert "nobody takes work from AI_TTS: is a tts_module running?" in told
    assert "not spoken within 0.5 s" in told


async def test_a_full_queue_says_when_to_try_again(
    nc: Connection, config: CliSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await Api(nc).request("STREAM.UPDATE.AI_TTS", {**streams.AI_TTS.config(), "max_msgs": 1})
    await Api(nc).publish("ai.voice.tts.request.s", b"", {})
    with pytest.raises(typer.Exit):
        await said(config, output=str(tmp_path / "out.wav"))
    assert "busy: the queue AI_TTS is full (try again in 1 s)" in capsys.readouterr().err


async def test_audio_that_the_stream_has_lost_is_an_error_and_no_shorter_file(
    nc: Connection, config: CliSettings, tts_module: Any, tmp_path: Path
) -> None:
    tts_module.order = lambda indexes: indexes[:2] + indexes[3:]
    with pytest.raises(Transient, match="3 chunks of the audio are no longer stored"):
        await said(config, output=str(tmp_path / "out.wav"))
    assert list(tmp_path.iterdir()) == []


# -- playing


async def test_it_is_played_while_it_comes(
    config: CliSettings, tts_module: Any, sounddevice: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    await said(config, play=True)
    assert len(sounddevice.played) == 5 * 4800
    assert sounddevice.opened == [{"samplerate": 24_000, "channels": 1, "dtype": "int16"}]
    assert capsys.readouterr().out.startswith("0.50 s of audio")


async def test_without_a_device_nothing_is_asked_for(config: CliSettings, tts_module: Any, sounddevice: Any) -> None:
    sounddevice.devices = False
    with pytest.raises(NoSound, match="there is no output device"):
        await said(config, play=True)
    assert tts_module.seen == []


async def test_a_device_that_fails_in_the_middle_is_said(
    config: CliSettings, tts_module: Any, sounddevice: Any
) -> None:
    def fail() -> None:
        raise sounddevice.PortAudioError("unplugged")

    sounddevice.writing = fail
    with pytest.raises(NoSound, match="the output device failed: unplugged"):
        await said(config, play=True)


# -- as a process


def environment(nats: NatsServer) -> dict[str, str]:
    return {**os.environ, "NATS_URL": nats.url}


async def test_a_pipe_gets_the_audio_alone_and_its_text_from_another(nats: NatsServer, tts_module: Any) -> None:
    process = await asyncio.create_subprocess_exec(
        *(str(HANDLERS), "say", "-", "-o", "-"),
        env=environment(nats),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    audio, told = await process.communicate("eins zwei\n drei Füße".encode())
    assert process.returncode == 0, told
    assert level(audio) == [1, 2, 3, 4]
    assert b"0.40 s of audio" in told
    assert tts_module.seen[0].text == "eins zwei\n drei Füße"


async def test_ctrl_c_cancels_the_request_and_leaves_no_file(
    nats: NatsServer, nc: Connection, tts_module: Any, tmp_path: Path
) -> None:
    tts_module.silent = True
    process = await asyncio.create_subprocess_exec(
        *(str(HANDLERS), "say", TEXT, "-o", str(tmp_path / "out.wav")), env=environment(nats), stderr=subprocess.PIPE
    )
    await tts_module.arrived.wait()
    process.send_signal(signal.SIGINT)
    _, told = await process.communicate()
    assert process.returncode == 130, told
    request_id = tts_module.seen[0].request_id
    assert f"canceled {request_id}".encode() in told
    assert b"Traceback" not in told
    (cancel,) = await stored(nc, "AI_CONTROL", f"ai.turn.cancel.{request_id}")
    assert decode(cancel.data, CancelRequest).request_id == request_id
    assert list(tmp_path.iterdir()) == []


async def test_a_pipe_that_is_closed_ends_it_with_a_word(nats: NatsServer, nc: Connection, tts_module: Any) -> None:
    process = await asyncio.create_subprocess_exec(
        *(str(HANDLERS), "say", "word " * 40, "-o", "-"),
        env=environment(nats),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    await process.stdout.readexactly(44)
    process.stdout._transport.close()  # type: ignore[attr-defined]
    _, told = await process.communicate()
    assert process.returncode in (0, 1)
    assert b"Traceback" not in told


# -- voices


async def reply(nc: Connection, response: VoicesResponse) -> list[str]:
    asked: list[str] = []

    async def answer(message: Any) -> None:
        asked.append(message.subject)
        await nc.publish(message.reply, encode(response))

    await nc.subscribe("ai.voice.tts.voices.*", cb=answer)
    assert await nc.responds(5)
    return asked


async def test_voices_are_listed(nc: Connection, config: CliSettings, capsys: pytest.CaptureFixture[str]) -> None:
    known = [VoiceInfo(name="slt", kind="builtin", language="en"), VoiceInfo(name="me\x1b[2J", kind="custom")]
    asked = await reply(nc, VoicesResponse(engine="coqui", voices=known, default="slt"))
    await voices(config, refresh=False, json=False, wait=5)
    await voices(config, refresh=True, json=True, wait=5)
    head, first, second, whole = capsys.readouterr().out.splitlines()
    assert head.split() == ["VOICE", "KIND", "LANGUAGE"]
    assert first.split() == ["slt", "(default)", "builtin", "en"]
    assert second.split() == ["me\\x1b[2J", "custom", "-"]
    assert json.loads(whole)["engine"] == "coqui"
    assert asked == ["ai.voice.tts.voices.list", "ai.voice.tts.voices.refresh"]


async def test_an_engine_without_named_voices_is_said(
    nc: Connection, config: CliSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    await reply(nc, VoicesResponse(engine="openai"))
    await voices(config, refresh=False, json=False, wait=5)
    assert "openai names no voices" in capsys.readouterr().err


async def test_voices_that_cannot_be_told_are_an_error(nc: Connection, config: CliSettings) -> None:
    with pytest.raises(Transient, match="no tts_module is running"):
        await voices(config, refresh=False, json=False, wait=5)
    down = ErrorInfo(type=ErrorType.DOWNSTREAM_UNAVAILABLE, message="tts: HTTP 503", retryable=True)
    await reply(nc, VoicesResponse(error=down, success=False))
    with pytest.raises(HandlerError, match="tts: HTTP 503"):
        await voices(config, refresh=False, json=False, wait=5)


@pytest.mark.parametrize("command", ["say", "voices", "listen", "talk"])
def test_help_needs_no_settings_and_has_an_example(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", "nonsense")
    shown = CliRunner().invoke(app, [command, "--help"])
    assert (shown.exit_code, "Example: " in shown.stdout) == (0, True)
