"""`/v1/audio/speech` over HTTP, and the engines behind it."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer

from handler_core.audio import PcmFormat, peak, read_wav
from local_inference.accounting import STATS
from local_inference.espeak import Espeak
from local_inference.faults import Fault, Faults
from local_inference.flite import Flite
from local_inference.settings import EngineName
from local_inference.synthesizer import CHUNK, Synthesizer, UnknownVoice, sentences

Client = TestClient[Any, Any]
Serve = Callable[..., Awaitable[Client]]

PATH = "/v1/audio/speech"
QUESTION = "What is a dead letter?"
needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="the flite command is not installed")
ENGINES = [pytest.param("espeak", id="espeak"), pytest.param("flite", id="flite", marks=needs_flite)]


async def say(client: Client, text: str = QUESTION, **fields: Any) -> bytes:
    response = await client.post(PATH, json={"model": "any", "input": text, **fields})
    assert response.status == 200, await response.text()
    return await response.read()


async def whole(synthesizer: Synthesizer, text: str, speed: float = 1) -> bytes:
    return b"".join([pcm async for pcm in synthesizer.speak(text, await synthesizer.voice(None), speed)])


def engine(name: str) -> Synthesizer:
    return Flite() if name == "flite" else Espeak()


@pytest.mark.parametrize("name", ENGINES)
async def test_wav_and_pcm_hold_the_same_speech(serve: Serve, name: str) -> None:
    client = await serve(speech_engine=name)
    response = await client.post(PATH, json={"input": QUESTION, "response_format": "wav"})
    wav = read_wav(await response.read())
    assert response.content_type == "audio/wav"
    assert (wav.format, wav.truncated) == (PcmFormat(24_000), False)
    assert 0.7 < wav.format.seconds(len(wav.pcm)) < 3
    assert peak(wav.pcm) > 0.1
    response = await client.post(PATH, json={"input": QUESTION, "response_format": "pcm"})
    assert (response.content_type, response.content_length) == ("audio/pcm", None)
    assert len(await response.read()) == pytest.approx(len(wav.pcm), rel=0.05)  # espeak-ng's varies by a little


@needs_flite
async def test_what_flite_says_is_what_pocketsphinx_hears(serve: Serve) -> None:
    client = await serve(speech_engine="flite")
    form = aiohttp.FormData()
    form.add_field("file", await say(client, f"{QUESTION} What happens when a worker dies?"), filename="speech.wav")
    heard = await (await client.post("/v1/audio/transcriptions", data=form)).json()
    assert heard["text"].startswith("what is a dead letter")


@pytest.mark.parametrize("name", ENGINES)
async def test_speed_is_heeded(name: str) -> None:
    synthesizer = engine(name)
    lengths = [len(await whole(synthesizer, QUESTION, speed)) for speed in (0.5, 1, 2, 4)]
    assert all(slower > 1.4 * faster for slower, faster in pairwise(lengths))


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(
    "text",
    [
        "-voice kal --help -o x",
        "…",
        "\u4e16\u754c",
        "caf\xe9 \u2014 \u201cna\xefve\u201d",
        "a\0b",
        "<b>&</b>",
        "\ud800",
    ],
)
async def test_no_text_is_more_than_text(name: str, text: str) -> None:
    pcm = await whole(engine(name), text)
    assert len(pcm) % 2 == 0
    assert len(pcm) > 0


@pytest.mark.parametrize("name", ENGINES)
async def test_sentences_come_one_by_one(name: str) -> None:
    synthesizer = engine(name)
    pieces = [pcm async for pcm in synthesizer.speak("One. Two!\nThree", await synthesizer.voice(None), 1)]
    assert len(pieces) == 3
    assert all(peak(piece) > 0.05 for piece in pieces)


@pytest.mark.parametrize("name", ENGINES)
async def test_voices_differ_and_unknown_ones_are_refused(name: str) -> None:
    synthesizer = engine(name)
    first, second, *_ = await synthesizer.voices()
    assert await synthesizer.voice(None) == await synthesizer.voice("") == first
    spoken = [b"".join([pcm async for pcm in synthesizer.speak("Hello there", voice, 1)]) for voice in (first, second)]
    assert spoken[0] != spoken[1]
    with pytest.raises(UnknownVoice, match=f"there is no voice 'alloy'; there are: {first}, {second}"):
        await synthesizer.voice("alloy")


@pytest.mark.parametrize("name", ENGINES)
async def test_many_at_once_do_not_get_in_each_others_way(name: str) -> None:
    synthesizer = engine(name)
    texts = ["Yes", QUESTION, "A somewhat longer sentence, which takes its time."] * 2
    alone = [len(await whole(synthesizer, text)) for text in texts]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(whole(synthesizer, text)) for text in texts]
    assert [len(task.result()) for task in tasks] == pytest.approx(alone, rel=0.1)


def test_sentences_end_where_a_reader_pauses() -> None:
    assert sentences("One. Two? It is $2.50!\n\nThree … four") == ["One.", "Two?", "It is $2.50!", "Three …", "four"]
    assert sentences(" . ") == ["."]


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "input", "required"),
        ({"input": "  "}, "input", "nothing to say"),
        ({"input": "a" * 4097}, "input", "at most 4096"),
        ({"input": 7}, "input", "string"),
        ({"input": "a", "response_format": "mp3"}, "response_format", "'wav' or 'pcm'"),
        ({"input": "a", "speed": 0.2}, "speed", "greater than or equal to 0.25"),
        ({"input": "a", "speed": 5}, "speed", "less than or equal to 4"),
        ({"input": "a", "voice": "alloy"}, "voice", "there is no voice 'alloy'; there are: en-us, en-gb"),
        ({"input": "a", "voice": "--help"}, "voice", "there is no voice '--help'"),
    ],
)
async def test_a_wrong_field_is_named(serve: Serve, body: object, param: str, words: str) -> None:
    client = await serve(speech_engine="espeak")
    response = await client.post(PATH, json=body)
    error = (await response.json())["error"]
    assert (response.status, error["param"]) == (400, param)
    assert error["message"].startswith(f"{param}: ")
    assert words in error["message"]


async def test_the_voices_are_listed(serve: Serve) -> None:
    client = await serve(speech_engine="espeak")
    assert (await (await client.get("/v1/audio/voices")).json())["voices"][:2] == ["en-us", "en-gb"]


async def test_the_echo_engine_makes_a_tone_as_long_as_the_text(serve: Serve) -> None:
    client = await serve(name=EngineName.ECHO)
    tone = await say(client, "0123456789" * 5, voice="any", response_format="pcm")
    assert len(tone) == 30 * CHUNK  # 60 ms a character
    spectrum = np.abs(np.fft.rfft(np.frombuffer(tone, dtype="<i2")))
    assert spectrum.argmax() == 240 * 3
    assert len(await say(client, "0123456789" * 5, speed=2, response_format="pcm")) == 15 * CHUNK
    assert peak(read_wav(await say(client, "a")).pcm) > 0.1


@pytest.mark.parametrize("response_format", ["wav", "pcm"])
async def test_a_cut_drops_the_connection_after_the_chunks(serve: Serve, response_format: str) -> None:
    client = await serve(name=EngineName.ECHO, faults=Faults(speech=Fault(cut_after_tokens=2)))
    response = await client.post(PATH, json={"input": QUESTION, "response_format": response_format})
    received = bytearray()

    async def receive() -> None:
        async for data in response.content.iter_any():
            received.extend(data)

    with pytest.raises(aiohttp.ClientPayloadError):
        await receive()
    assert len(received) == 2 * CHUNK + (44 if response_format == "wav" else 0)


async def test_delay_comes_between_the_chunks(serve: Serve) -> None:
    client = await serve(name=EngineName.ECHO, faults=Faults(speech=Fault(token_delay_ms=20)))
    started = asyncio.get_running_loop().time()
    assert len(await say(client, "01234", response_format="pcm")) == 3 * CHUNK
    assert asyncio.get_running_loop().time() - started > 0.039  # two waits at least, whatever the machine does


async def test_other_faults_and_counts_of_the_family(serve: Serve) -> None:
    client = await serve(name=EngineName.ECHO, faults=Faults(speech=Fault(error_rate=1)))
    body = {"input": QUESTION}
    assert (await client.post(PATH, json=body)).status == 503
    await client.put("/faults", json={"speech": {"token_delay_ms": 3_600_000}})
    assert isinstance(client.server, TestServer)
    tally = client.server.app[STATS].speech
    response = await client.post(PATH, json=body | {"response_format": "pcm"})
    assert len(await response.content.readexactly(CHUNK)) == CHUNK
    response.close()
    while tally.in_flight:
        await asyncio.sleep(0.001)
    assert (await (await client.get("/stats")).json())["speech"] == {"requests": 2, "in_flight": 0, "aborted": 1}
