"""`/v1/audio/transcriptions` over HTTP."""

import asyncio
import os
import signal
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import soxr
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer

from handler_core.audio import PcmFormat, read_wav, wav
from local_inference.accounting import STATS
from local_inference.faults import Fault, Faults
from local_inference.keys import TRANSCRIBER
from local_inference.settings import EngineName
from local_inference.transcriber import PocketSphinx

Client = TestClient[Any, Any]
Serve = Callable[..., Awaitable[Client]]

PATH = "/v1/audio/transcriptions"
MONO = PcmFormat(16_000)
SECOND = wav(MONO, bytes(32_000))
QUESTION = "what is a dead letter"


async def post(client: Client, file: bytes = SECOND, **fields: str) -> ClientResponse:
    form = aiohttp.FormData()
    form.add_field("file", file, filename="speech.wav", content_type="audio/wav")
    for name, value in fields.items():
        form.add_field(name, value)
    return await client.post(PATH, data=form)


def app_of(client: Client) -> aiohttp.web.Application:
    assert isinstance(client.server, TestServer)
    return client.server.app


def processes(client: Client) -> list[Process]:
    transcriber = app_of(client)[TRANSCRIBER]
    assert isinstance(transcriber, PocketSphinx)
    return transcriber._idle


async def text_of(response: ClientResponse) -> str:
    assert response.status == 200, await response.text()
    text: str = (await response.json())["text"]
    return text


def variants(file: bytes) -> dict[str, bytes]:
    """The same speech in other widths, rates and numbers of channels."""
    samples = np.frombuffer(read_wav(file).pcm, dtype="<i2")
    stereo = np.repeat(soxr.resample(samples, 16_000, 44_100), 2)
    wide = np.zeros((len(samples), 3), dtype="u1")
    wide[:, 1:] = samples.view("u1").reshape(-1, 2)
    return {
        "44.1 kHz stereo": wav(PcmFormat(44_100, 2, 2), stereo.tobytes()),
        "8 bit": wav(PcmFormat(16_000, 1), (samples // 256 + 128).astype("u1").tobytes()),
        "24 bit": wav(PcmFormat(16_000, 3), wide.tobytes()),
        "32 bit": wav(PcmFormat(16_000, 4), (samples.astype("<i4") << 16).tobytes()),
        "size unknown": file[:40] + b"\xff\xff\xff\xff" + file[44:],
    }


async def test_each_kind_of_wav_file_is_recognised(serve: Serve, audio: Path) -> None:
    client = await serve()
    for name, file in variants((audio / "stop.wav").read_bytes()).items():
        assert await text_of(await post(client, file)) == "stop", name


async def test_verbose_json_tells_segments_and_words(serve: Serve, audio: Path) -> None:
    client = await serve()
    fields = {"response_format": "verbose_json", "timestamp_granularities[]": "word", "language": "en", "model": "any"}
    response = await post(client, (audio / "two_sentences.wav").read_bytes(), **fields)
    body = await response.json()
    assert {name: body[name] for name in ("task", "language", "duration", "text")} == {
        "task": "transcribe",
        "language": "english",
        "duration": 3.195,
        "text": f"{QUESTION} stop",
    }
    first, second = body["segments"]
    assert [first["text"], second["text"]] == [QUESTION, "stop"]
    assert [first["id"], second["id"]] == [0, 1]
    assert 0 < first["start"] < first["end"] < second["start"] < second["end"] < body["duration"]
    for segment in (first, second):
        assert -1 < segment["avg_logprob"] <= 0
        assert 0 <= segment["no_speech_prob"] < 0.6
        assert 0 < segment["compression_ratio"] < 2.4
    assert [word["word"] for word in body["words"]] == [*QUESTION.split(), "stop"]
    assert body["words"][-1]["end"] == second["end"]


async def test_thirty_seconds_of_silence_hold_no_word_in_any_format(serve: Serve) -> None:
    client = await serve()
    silence = wav(MONO, bytes(30 * 32_000))
    assert await text_of(await post(client, silence)) == ""
    assert await (await post(client, silence, response_format="text")).text() == "\n"
    verbose = await (await post(client, silence, response_format="verbose_json")).json()
    assert (verbose["text"], verbose["segments"], verbose["duration"]) == ("", [], 30)
    assert "words" not in verbose


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"", "file: empty"),
        (b"garbage", "file: no WAV file, but unknown data"),
        (b"ID3\4\0\0\0\0\0\0" + bytes(100), "file: no WAV file, but mp3"),
        (b"OggS" + bytes(100), "file: no WAV file, but ogg"),
        (SECOND[:30], "file: a WAV file whose format is cut off"),
        (SECOND[:20] + b"\3\0" + SECOND[22:], "file: a WAV file with codec 0x0003 (floating point); only PCM is read"),
        (wav(MONO, b""), "file: the WAV file holds no audio"),
    ],
)
async def test_a_file_that_is_no_speech_is_refused(serve: Serve, file: bytes, message: str) -> None:
    client = await serve()
    response = await post(client, file)
    error = (await response.json())["error"]
    assert response.status == 400
    assert (error["param"], error["message"], error["type"]) == ("file", message, "invalid_request_error")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("response_format", "srt", "'json', 'verbose_json' or 'text'"),
        ("language", "de", "only English (en)"),
        ("temperature", "2", "less than or equal to 1"),
        ("temperature", "warm", "valid number"),
        ("timestamp_granularities[]", "letter", "'word' or 'segment'"),
    ],
)
async def test_a_wrong_field_is_named(serve: Serve, field: str, value: str, words: str) -> None:
    client = await serve()
    response = await post(client, **{field: value})
    error = (await response.json())["error"]
    assert response.status == 400
    assert error["param"].startswith(field)
    assert words in error["message"]


async def test_a_missing_file_is_named(serve: Serve) -> None:
    client = await serve()
    for data in (aiohttp.FormData({"model": "any"}), aiohttp.FormData({"file": "text"}), b'{"file": "x"}'):
        response = await client.post(PATH, data=data)
        assert (response.status, (await response.json())["error"]["param"]) == (400, "file")


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary=x"])
async def test_a_body_that_is_no_form_is_refused(serve: Serve, content_type: str) -> None:
    client = await serve()
    response = await client.post(PATH, data=b"no form", headers={"Content-Type": content_type})
    assert response.status == 400
    assert "form" in (await response.json())["error"]["message"]


async def test_a_file_over_the_limit_is_refused(serve: Serve) -> None:
    client = await serve(max_body_bytes=20_000)
    assert (await post(client)).status == 413


async def test_the_server_answers_while_it_recognises(serve: Serve, audio: Path) -> None:
    client = await serve(transcribers=1)
    await post(client)
    (process,) = processes(client)
    os.kill(process.pid, signal.SIGSTOP)  # from here on recognition takes as long as we like
    async with asyncio.TaskGroup() as group:
        work = group.create_task(post(client, (audio / "stop.wav").read_bytes()))
        waiting = group.create_task(post(client, SECOND))
        while app_of(client)[STATS].transcription.in_flight < 2:
            assert (await client.get("/health")).status == 200
        assert not work.done()
        os.kill(process.pid, signal.SIGCONT)
    assert await text_of(work.result()) == "stop"
    assert await text_of(waiting.result()) == ""
    assert processes(client) == [process]


async def test_requests_at_once_have_processes_of_their_own(serve: Serve, audio: Path) -> None:
    client = await serve(transcribers=2)
    names = {"stop.wav": "stop", "yes.wav": "yes"}
    async with asyncio.TaskGroup() as group:
        tasks = {text: group.create_task(post(client, (audio / name).read_bytes())) for name, text in names.items()}
    assert {await text_of(task.result()) for task in tasks.values()} == set(names.values())
    assert len(processes(client)) == 2


async def test_a_client_that_leaves_ends_the_recognition(serve: Serve) -> None:
    client = await serve(transcribers=1)
    await post(client)
    (process,) = processes(client)
    os.kill(process.pid, signal.SIGSTOP)
    tally = app_of(client)[STATS].transcription
    async with asyncio.TaskGroup() as group:
        request = group.create_task(post(client))
        while process in processes(client):
            await asyncio.sleep(0.001)
        request.cancel()
    assert await process.wait() == -signal.SIGKILL
    while tally.in_flight:
        await asyncio.sleep(0.001)
    assert tally.aborted == 1
    assert (await post(client)).status == 200


async def test_a_recogniser_that_dies_is_replaced(serve: Serve) -> None:
    client = await serve(transcribers=1)
    await post(client)
    (process,) = processes(client)
    os.kill(process.pid, signal.SIGSTOP)
    async with asyncio.TaskGroup() as group:
        request = group.create_task(post(client))
        while process in processes(client):
            await asyncio.sleep(0.001)
        process.kill()
    response = request.result()
    assert (response.status, (await response.json())["error"]["type"]) == (503, "server_error")
    assert (await post(client)).status == 200
    (process,) = processes(client)
    process.kill()
    await process.wait()
    assert (await post(client)).status == 200


async def test_the_echo_engine_hears_two_words_a_second(serve: Serve) -> None:
    client = await serve(name=EngineName.ECHO)
    assert await text_of(await post(client, wav(MONO, bytes(2 * 32_000)))) == "token token token end."
    body = await (await post(client, SECOND, response_format="verbose_json")).json()
    (segment,) = body["segments"]
    assert (segment["text"], segment["start"], segment["end"]) == ("token end.", 0, 1)
    assert (segment["avg_logprob"], segment["no_speech_prob"]) == (0, 0)


async def test_faults_of_the_family(serve: Serve) -> None:
    client = await serve(name=EngineName.ECHO, faults=Faults(transcription=Fault(error_rate=1, error_status=500)))
    assert (await post(client)).status == 500
    assert (await client.put("/faults", json={"transcription": {"cut_after_tokens": 0}})).status == 200
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await post(client)
    await client.put("/faults", json={"transcription": {"rate_limit": 0.1}})
    assert [(await post(client)).status, (await post(client)).status] == [200, 429]
    await client.put("/faults", json={"transcription": {"hang": True}})
    tally = app_of(client)[STATS].transcription
    async with asyncio.TaskGroup() as group:
        request = group.create_task(post(client))
        while not tally.in_flight:
            await asyncio.sleep(0.001)
        request.cancel()
    while tally.in_flight:
        await asyncio.sleep(0.001)
    assert (await (await client.get("/stats")).json())["transcription"] == {"requests": 5, "in_flight": 0, "aborted": 1}
