"""Coqui's endpoints over HTTP: `/api/tts`, and XTTS streaming."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from handler_core.audio import PcmFormat, peak, read_wav, wav
from local_inference.accounting import STATS
from local_inference.faults import Fault, Faults
from local_inference.keys import SYNTHESIZER
from local_inference.settings import EngineName
from local_inference.synthesizer import CHUNK

Client = TestClient[Any, Any]
Serve = Callable[..., Awaitable[Client]]

PATH = "/api/tts"
SPEECH_FORMAT = PcmFormat(24_000)


async def speaker(client: Client, name: str) -> dict[str, Any]:
    numbers: dict[str, Any] = (await (await client.get("/studio_speakers")).json())[name]
    return numbers


async def test_fields_come_by_query_or_form_and_never_by_json(serve: Serve) -> None:
    client = await serve(speech_engine="espeak")
    fields = {"text": "Hello there", "speaker_id": "en-gb", "language_id": "en", "style_wav": ""}
    multipart = aiohttp.FormData(fields, default_to_multipart=True)
    for response in (
        await client.get(PATH, params=fields),
        await client.post(PATH, params=fields),
        await client.post(PATH, data=fields),
        await client.post(PATH, data=multipart),
    ):
        assert (response.status, response.content_type) == (200, "audio/wav")
        speech = read_wav(await response.read())
        assert (speech.format, speech.truncated) == (SPEECH_FORMAT, False)
        assert peak(speech.pcm) > 0.1
    refused = await client.post(PATH, json=fields)
    assert refused.status == 400
    assert await refused.json() == {"error": "text: is required, as a field of the query or of a form"}
    assert (await (await client.get("/stats")).json())["speech"]["requests"] == 5


async def test_the_voices_are_lines_of_name_language_gender(serve: Serve) -> None:
    client = await serve(speech_engine="espeak")
    lines = (await (await client.get("/voices")).text()).splitlines()
    assert lines[0] == "en-us en u"
    assert all(len(line.split()) == 3 for line in lines)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": " "}, "text: is required"),
        ({"speaker_id": "Ana"}, "speaker_id: there is no voice 'Ana'; there are: en-us, "),
        ({"language_id": "de"}, "language_id: only en is spoken, not 'de'"),
        ({"speaker_wav": "/no/such/file.wav"}, "speaker_wav: there is no such file"),
        ({"speaker_wav": "a\0b"}, "speaker_wav: there is no such file"),
        ({"speaker_wav": __file__}, "speaker_wav: no WAV file, but unknown data"),
    ],
)
async def test_a_wrong_field_is_named(serve: Serve, fields: dict[str, str], message: str) -> None:
    client = await serve(speech_engine="espeak")
    response = await client.post(PATH, data={"text": "Hello"} | fields)
    assert response.status == 400
    assert (await response.json())["error"].startswith(message)


async def test_a_recording_is_checked_and_the_default_voice_speaks(serve: Serve, audio: Path) -> None:
    client = await serve(speech_engine="espeak")
    plain = await (await client.get(PATH, params={"text": "Hello"})).read()
    path = str(audio / "yes.wav")
    by_path = await (await client.get(PATH, params={"text": "Hello", "speaker_wav": path, "speaker_id": ""})).read()
    form = aiohttp.FormData({"text": "Hello"})
    form.add_field("speaker_wav", (audio / "yes.wav").read_bytes(), filename="yes.wav")
    by_file = await (await client.post(PATH, data=form)).read()
    assert [len(by_path), len(by_file)] == pytest.approx([len(plain)] * 2, rel=0.05)  # espeak-ng's varies by a little
    form = aiohttp.FormData({"text": "Hello"})
    form.add_field("speaker_wav", b"ID3", filename="yes.mp3")
    assert (await client.post(PATH, data=form)).status == 400


async def test_one_text_is_spoken_at_a_time(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await serve(name=EngineName.ECHO)
    assert isinstance(client.server, TestServer)
    app = client.server.app
    synthesizer, speaking = app[SYNTHESIZER], []
    finish, speak = asyncio.Event(), synthesizer.speak

    async def slowly(text: str, voice: str, speed: float) -> AsyncIterator[bytes]:
        speaking.append(text)
        await finish.wait()
        assert len(speaking) == 1
        async for pcm in speak(text, voice, speed):
            yield pcm
        speaking.remove(text)

    monkeypatch.setattr(synthesizer, "speak", slowly)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(client.get(PATH, params={"text": text})) for text in ("one", "two", "three")]
        while app[STATS].speech.in_flight < 3 or not speaking:
            await asyncio.sleep(0.001)
        finish.set()
    assert [task.result().status for task in tasks] == [200, 200, 200]


async def test_errors_and_cuts_are_injected(serve: Serve) -> None:
    client = await serve(name=EngineName.ECHO, faults=Faults(speech=Fault(error_rate=1)))
    response = await client.get(PATH, params={"text": "Hello"})
    assert (response.status, await response.json()) == (503, {"error": "injected fault: HTTP 503"})
    response = await client.post("/tts_stream", json={})
    assert (response.status, await response.json()) == (503, {"detail": "injected fault: HTTP 503"})
    await client.put("/faults", json={"speech": {"cut_after_tokens": 1}})
    response = await client.get(PATH, params={"text": "Hello"})
    with pytest.raises(aiohttp.ClientPayloadError):
        await response.read()


async def test_xtts_streams_the_voice_of_the_embedding(serve: Serve) -> None:
    client = await serve(speech_engine="espeak")
    assert await (await client.get("/languages")).json() == ["en"]
    spoken = {}
    for name in ("en-us", "en-gb"):
        body = {"text": "Hello there. And again.", "language": "en", "stream_chunk_size": "20"}
        response = await client.post("/tts_stream", json=body | await speaker(client, name))
        assert (response.status, response.content_type, response.content_length) == (200, "audio/wav", None)
        data = await response.read()
        assert data[40:44] == bytes(4)
        spoken[name] = read_wav(data)
        response = await client.post("/tts_stream", json=body | await speaker(client, name) | {"add_wav_header": False})
        assert len(await response.read()) == pytest.approx(len(spoken[name].pcm), rel=0.05)
    assert spoken["en-us"].format == SPEECH_FORMAT
    assert spoken["en-us"].pcm != spoken["en-gb"].pcm


async def test_xtts_cannot_clone_but_takes_a_recording(serve: Serve) -> None:
    client = await serve(name=EngineName.ECHO)
    form = aiohttp.FormData()
    form.add_field("wav_file", wav(PcmFormat(16_000), bytes(3200)), filename="me.wav")
    numbers = await (await client.post("/clone_speaker", data=form)).json()
    assert numbers == await speaker(client, "echo")
    response = await client.post("/tts_stream", json={"text": "Hello", "language": "en"} | numbers)
    assert len(await response.read()) == 44 + 3 * CHUNK
    for field, file in (("wav_file", b"ID3"), ("other", b"")):
        form = aiohttp.FormData()
        form.add_field(field, file, filename="me.wav")
        response = await client.post("/clone_speaker", data=form)
        assert response.status == 422
        assert (await response.json())["detail"][0]["loc"] == ["body", "wav_file"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"text": ""}, "text"),
        ({"language": "de"}, "language"),
        ({"speaker_embedding": [0.5] * 512}, "speaker_embedding"),
        ({"gpt_cond_latent": None}, "gpt_cond_latent"),
        ({"stream_chunk_size": "many"}, "stream_chunk_size"),
    ],
)
async def test_xtts_names_a_wrong_field_as_fastapi_does(serve: Serve, change: dict[str, Any], field: str) -> None:
    client = await serve(name=EngineName.ECHO)
    body = {"text": "Hello", "language": "en"} | await speaker(client, "echo")
    response = await client.post("/tts_stream", json=body | change)
    assert response.status == 422
    assert (await response.json())["detail"][0]["loc"] == ["body", field]
