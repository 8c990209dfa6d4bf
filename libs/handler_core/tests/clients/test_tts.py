"""Speech: each kind of server as it really answers, and as it answers on a bad day."""

import asyncio
import json
import os
import random
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from handler_core.audio import PcmFormat, wav, wav_header
from handler_core.clients.failures import Failures, UpstreamError
from handler_core.clients.http import Backoff, Upstream
from handler_core.clients.tts import TTS, AudioChunk, VoiceInfo, VoicesFolder
from handler_core.clients.tts_audio import SpeechReader
from handler_core.deadline import Deadline
from handler_core.errors import DeadlineExceeded, DownstreamUnavailable, InvalidRequest

SOUND = array("h", [(n * 977) % 20_001 - 10_000 for n in range(1, 4_000)]).tobytes()
HISS = array("h", [n % 7 - 3 for n in range(4_000)]).tobytes()
RATE = PcmFormat(24_000)
NUMBERS = {"speaker_embedding": [0.25, -1.5e-05], "gpt_cond_latent": [[0.5, 1.0], [2.0, -3.0]]}
Answer = Callable[[web.Request], Any]


@dataclass
class Server:
    """A speech server: `seen` holds (path, what was sent) of each request for speech or a clone."""

    url: str = ""
    seen: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    running: int = 0
    most: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def sent(self) -> dict[str, Any]:
        return self.seen[-1][1]


def speech(data: bytes = SOUND, kind: str = "audio/pcm", status: int = 200) -> Answer:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=data, status=status, headers={"Content-Type": kind})

    return answer


def pieces(*data: bytes, kind: str = "audio/pcm", then: str = "end") -> Answer:
    """Speech piece by piece, after which the answer ends, breaks off, or hangs."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": kind})
        await response.prepare(request)
        for piece in data:
            await response.write(piece)
            await asyncio.sleep(0)
        if then == "hang":
            await asyncio.Event().wait()
        if then == "break":
            assert request.transport is not None
            request.transport.abort()
        return response

    return answer


@asynccontextmanager
async def running(app: web.Application, server: Server) -> AsyncIterator[Server]:
    runner = TestServer(app, handler_cancellation=True, shutdown_timeout=0)
    async with runner:
        server.url = str(runner.make_url("")).rstrip("/")
        yield server


def watched(server: Server, answer: Answer, read: Callable[[web.Request], Any]) -> Answer:
    async def handle(request: web.Request) -> web.StreamResponse:
        server.seen.append((request.path, await read(request)))
        server.running += 1
        server.most = max(server.most, server.running)
        try:
            result: web.StreamResponse = await answer(request)
        except asyncio.CancelledError:
            server.gone.set()
            raise
        finally:
            server.running -= 1
        return result

    return handle


async def form(request: web.Request) -> dict[str, Any]:
    return dict(await request.post()) or dict(request.query)


async def body(request: web.Request) -> dict[str, Any]:
    found: dict[str, Any] = await request.json()
    return found


def coqui(answer: Answer | None = None, *, voices: str | None = "Claribel Dervla en u\nAnn en u\n", post: bool = True,
          bare: int = 400) -> tuple[web.Application, Server]:  # fmt: skip
    """Coqui's server: a form or a query, WAV back; without a text 400, or 500 where it is old."""
    server, app = Server(), web.Application()
    answer = watched(server, answer or speech(wav(PcmFormat(22_050), SOUND), "audio/wav"), form)

    async def tts(request: web.Request) -> web.StreamResponse:
        values = await form(request)
        if not values.get("text"):
            return web.json_response({"error": "Text parameter is required"}, status=bare)
        result: web.StreamResponse = await answer(request)
        return result

    app.router.add_get("/api/tts", tts)
    if post:
        app.router.add_post("/api/tts", tts)
    if voices is not None:
        app.router.add_get("/voices", speech(voices.encode(), "text/html; charset=utf-8"))
    return app, server


def openai(answer: Answer | None = None, *, voices: Any = None) -> tuple[web.Application, Server]:
    server, app = Server(), web.Application()
    app.router.add_post("/v1/audio/speech", watched(server, answer or speech(), body))
    if voices is not None:
        app.router.add_get("/v1/audio/voices", speech(json.dumps(voices).encode(), "application/json"))
    return app, server


def xtts(answer: Answer | None = None, *, speakers: Any = None, clone: Any = NUMBERS) -> tuple[web.Application, Server]:
    """xtts-streaming-server, which sends all speakers' numbers at once."""
    server, app = Server(), web.Application()
    all_speakers = {"Claribel Dervla": NUMBERS, 'Ann "A" {é}': {**NUMBERS, "speaker_embedding": [7.0]}}
    data = json.dumps(all_speakers if speakers is None else speakers).encode()
    app.router.add_get(
        "/studio_speakers", pieces(*(data[n : n + 31] for n in range(0, len(data), 31)), kind="application/json")
    )

    async def cloned(request: web.Request) -> web.Response:
        upload = (await request.post())["wav_file"]
        assert isinstance(upload, web.FileField)
        server.seen.append((request.path, {"file": upload.filename, "data": upload.file.read()}))
        return web.json_response(clone)

    app.router.add_post("/clone_speaker", cloned)
    app.router.add_post(
        "/tts_stream", watched(server, answer or pieces(SOUND[:999], SOUND[999:], kind="audio/wav"), body)
    )
    return app, server


def client(session: Any, server: Server, *, timeout: float = 30.0, **options: Any) -> TTS:
    soon = Backoff(initial=0.001, maximum=0.01, jitter=0.001)
    return TTS(Upstream(session, "tts", server.url, timeout=timeout, backoff=soon), **options)


async def say(tts: TTS, text: str = "Hello there.", **options: Any) -> list[AudioChunk]:
    return [chunk async for chunk in tts.speak(text, deadline=options.pop("deadline", Deadline.after(30)), **options)]


async def heard(tts: TTS, text: str = "Hello there.", **options: Any) -> tuple[PcmFormat, bytes]:
    chunks = await say(tts, text, **options)
    assert all(chunk.pcm for chunk in chunks)
    [format] = {chunk.format for chunk in chunks}
    return format, b"".join(chunk.pcm for chunk in chunks)


async def failure(tts: TTS, **options: Any) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await say(tts, **options)
    return caught.value


@pytest.fixture
def folder(tmp_path: Path) -> VoicesFolder:
    (tmp_path / "eve.wav").write_bytes(wav(RATE, SOUND))
    return VoicesFolder(tmp_path, "/srv/voices")


# --- finding the engine


@pytest.mark.parametrize(
    ("made", "name"),
    [(coqui, "coqui"), (lambda: coqui(bare=500), "coqui"), (lambda: coqui(post=False), "coqui"), (openai, "openai"),
     (xtts, "xtts")],
)  # fmt: skip
async def test_the_engine_is_found_once_and_spoken_to_in_its_form(session, made, name):
    app, server = made()
    async with running(app, server):
        tts = client(session, server)
        for _ in range(2):
            _, pcm = await heard(tts)
            assert pcm == SOUND
        assert await tts.engine(Deadline.after(30)) == name


async def test_where_no_engine_is_known_the_error_tells_what_was_tried(session):
    app = web.Application()
    app.router.add_get("/api/{rest:.*}", speech(b"<html>", "text/html"))
    async with running(app, Server()) as server:
        error = await failure(client(session, server))
    assert "/tts_stream 404, /api/tts 200 text/html, /v1/audio/speech 404" in error.message


@pytest.mark.parametrize("status", [401, 403, 503])
async def test_a_server_that_cannot_be_asked_is_not_taken_for_another(session, status):
    app, server = web.Application(), Server()
    app.router.add_route("*", "/{rest:.*}", speech(b"no", "text/plain", status))
    async with running(app, server):
        error = await failure(client(session, server))
    assert (error.status, error.retryable) == (status, status == 503)


async def test_a_named_engine_is_not_looked_for(session):
    app, server = openai()
    async with running(app, server):
        tts = client(session, server, engine="openai")
        assert await tts.engine(Deadline.after(-1)) == "openai"


# --- Coqui


async def test_coqui_gets_a_form_and_its_wav_is_read(session):
    app, server = coqui()
    async with running(app, server):
        tts = client(session, server, speaker="Ann")
        assert await heard(tts, "Hé & co?") == (PcmFormat(22_050), SOUND)
        assert server.sent() == {"text": "Hé & co?", "language_id": "en", "speaker_id": "Ann"}
        await heard(tts, speaker="Claribel Dervla", language="zh")
        assert server.sent() == {"text": "Hello there.", "language_id": "zh-cn", "speaker_id": "Claribel Dervla"}


@pytest.mark.parametrize(
    ("said", "sent_as"), [("de-AT", "de"), ("EN", "en"), ("zh-CN", "zh-cn"), ("zh-Hant-TW", "zh-cn"), ("pt-br", "pt")]
)
async def test_coqui_gets_a_language_as_its_models_name_it(session, said, sent_as):
    app, server = coqui()
    async with running(app, server):
        await heard(client(session, server), language=said)
        assert server.sent()["language_id"] == sent_as


async def test_coqui_clones_a_recording_by_its_path_there(session, folder):
    app, server = coqui()
    async with running(app, server):
        tts = client(session, server, folder=folder, speaker="Ann")
        for options in (
            {"speaker": "eve"},
            {"speaker_wav": "eve"},
            {"speaker_wav": "/srv/voices/eve.wav", "speaker": "Ann"},
        ):
            await heard(tts, **options)
            assert server.sent() == {"text": "Hello there.", "language_id": "en", "speaker_id": "",
                                     "speaker_wav": "/srv/voices/eve.wav"}  # fmt: skip


@pytest.mark.parametrize(
    "voices", [None, "<html><body>no voices here</body>", '{"name": "default", "gender": "u"}', ""]
)
async def test_without_a_list_of_voices_any_is_tried(session, voices):
    app, server = coqui(voices=voices)
    async with running(app, server):
        await heard(client(session, server), speaker="Bob")
        assert server.sent()["speaker_id"] == "Bob"


# --- OpenAI


async def test_openai_gets_json_and_its_bare_samples_are_read(session):
    app, server = openai()
    async with running(app, server):
        tts = client(session, server, engine="openai", model="tts-1", speaker="alloy")
        assert await heard(tts, speed=1.5) == (RATE, SOUND)
        assert server.sent() == {"model": "tts-1", "input": "Hello there.", "voice": "alloy", "speed": 1.5,
                                 "response_format": "pcm"}  # fmt: skip


async def test_what_is_not_known_is_not_sent(session):
    app, server = openai()
    async with running(app, server):
        await heard(client(session, server))
        assert server.sent() == {"input": "Hello there.", "response_format": "pcm"}


@pytest.mark.parametrize(
    ("kind", "format"),
    [
        ("audio/pcm", RATE),
        ("audio/pcm;rate=22050", PcmFormat(22_050)),
        ("audio/L16; rate=16000; channels=2", PcmFormat(16_000, 2, 2)),
        ("application/octet-stream", RATE),
        ("audio/wav", RATE),
    ],
)
async def test_the_content_type_may_tell_the_rate(session, kind, format):
    app, server = openai(speech(SOUND[: len(SOUND) // 4 * 4], kind))
    async with running(app, server):
        assert await heard(client(session, server)) == (format, SOUND[: len(SOUND) // 4 * 4])


async def test_a_server_that_sends_wav_all_the_same_is_understood(session):
    app, server = openai(speech(wav(PcmFormat(44_100, 2, 2), SOUND[:-2] * 2), "audio/pcm;rate=24000"))
    async with running(app, server):
        assert await heard(client(session, server)) == (PcmFormat(44_100, 2, 2), SOUND[:-2] * 2)


async def test_a_server_that_refuses_pcm_is_asked_for_wav_and_remembered(session):
    async def answer(request: web.Request) -> web.StreamResponse:
        if (await request.json())["response_format"] == "pcm":
            return web.json_response({"error": {"message": "Unsupported response_format"}}, status=400)
        return web.Response(body=wav(RATE, SOUND), content_type="audio/wav")

    app, server = openai(answer)
    async with running(app, server):
        tts = client(session, server)
        assert (await heard(tts))[1] == (await heard(tts))[1] == SOUND
        assert [sent["response_format"] for _, sent in server.seen] == ["pcm", "wav", "wav"]


async def test_a_voice_that_openai_refuses_is_told_with_those_it_has(session):
    app, server = openai(speech(b'{"detail": "no voice"}', "application/json", 400), voices={"voices": ["a", "b"]})
    async with running(app, server):
        tts = client(session, server)
        with pytest.raises(InvalidRequest, match=r"^speaker: no voice 'zed'; there are a, b$"):
            await say(tts, speaker="zed")
        assert (await failure(tts, speaker="a")).status == 400  # a known voice: it is something else


@pytest.mark.parametrize("status", [400, 404, 422])
async def test_a_voice_of_no_list_that_is_refused_by_name_is_the_requests_mistake(session, status):
    app, server = openai(speech(b'{"detail": [{"loc": ["body", "voice"], "msg": "unknown"}]}', "", status))
    async with running(app, server):
        with pytest.raises(InvalidRequest, match=r"^speaker: 'zed' is refused: tts: HTTP 4.*voice: unknown$"):
            await say(client(session, server), speaker="zed")
        assert (await failure(client(session, server))).status == status  # which named no voice


async def test_what_is_refused_for_something_else_is_not_laid_to_the_voice(session):
    app, server = openai(speech(b'{"detail": "the model is not loaded"}', "application/json", 404))
    async with running(app, server):
        assert (await failure(client(session, server), speaker="zed")).status == 404


async def test_a_recordings_name_is_the_voice_for_openai(session, folder):
    app, server = openai()
    async with running(app, server):
        await heard(client(session, server, folder=folder), speaker_wav="eve.wav")
        assert server.sent()["voice"] == "eve"


# --- XTTS


async def test_xtts_gets_a_speakers_numbers_with_each_text(session):
    app, server = xtts()
    async with running(app, server):
        tts = client(session, server)
        assert await heard(tts) == (RATE, SOUND)
        assert server.sent() == {**NUMBERS, "text": "Hello there.", "language": "en", "add_wav_header": False,
                                 "stream_chunk_size": "20"}  # fmt: skip
        await heard(tts, 'Quote " {x}', speaker='Ann "A" {é}', language="pt-br")
        assert server.sent()["speaker_embedding"] == [7.0]
        assert (server.sent()["text"], server.sent()["language"]) == ('Quote " {x}', "pt")


def counted(app: web.Application, path: str) -> list[str]:
    """Grows with each request for that path."""
    seen: list[str] = []

    async def count(request: web.Request, _: web.StreamResponse) -> None:
        if request.path == path:
            seen.append(path)

    app.on_response_prepare.append(count)
    return seen


@pytest.mark.parametrize("speaker", [None, "Claribel Dervla", 'Ann "A" {é}'])
async def test_first_sentences_of_a_voice_at_once_read_the_speakers_once(session, speaker):
    app, server = xtts()
    reads = counted(app, "/studio_speakers")
    async with running(app, server):
        tts = client(session, server, engine="xtts", concurrency=8)
        await asyncio.gather(*(heard(tts, speaker=speaker) for _ in range(8)))
        assert len(reads) == 1
        assert server.sent()["speaker_embedding"] == (
            [7.0] if speaker == 'Ann "A" {é}' else NUMBERS["speaker_embedding"]
        )


async def test_first_sentences_of_a_recording_at_once_clone_it_once(session, folder):
    app, server = xtts()
    async with running(app, server):
        tts = client(session, server, engine="xtts", concurrency=8, folder=folder)
        await asyncio.gather(*(heard(tts, speaker="eve") for _ in range(8)))
    assert [path for path, _ in server.seen].count("/clone_speaker") == 1


async def test_a_speaker_that_xtts_does_not_have_is_refused_with_those_it_has(session):
    app, server = xtts()
    reads = counted(app, "/studio_speakers")
    async with running(app, server):
        tts = client(session, server, engine="xtts")
        for _ in range(3):
            with pytest.raises(InvalidRequest, match=r"^speaker: no voice 'Bob'; there are Ann .*, Claribel Dervla$"):
                await say(tts, speaker="Bob")
        assert (len(reads), server.seen) == (2, [])


async def test_waiting_for_speakers_counts_against_the_deadline(session):
    app, server = xtts()
    held = asyncio.Event()

    async def hold(request: web.Request, _: web.StreamResponse) -> None:
        held.set()
        if request.path == "/studio_speakers":
            await asyncio.Event().wait()

    app.on_response_prepare.append(hold)
    async with running(app, server):
        tts = client(session, server, engine="xtts", concurrency=2)
        first = asyncio.ensure_future(say(tts))
        await held.wait()
        with pytest.raises(DeadlineExceeded, match="no voice before the deadline"):
            await say(tts, deadline=Deadline.after(0.05))
        first.cancel()
        await asyncio.wait([first])


async def test_xtts_clones_a_recording_once_and_again_when_it_changes(session, folder):
    app, server = xtts(clone={"speaker_embedding": [9.0], "gpt_cond_latent": [[1.0]]})
    async with running(app, server):
        tts = client(session, server, folder=folder)
        for _ in range(2):
            await heard(tts, speaker="eve")
        assert server.sent()["speaker_embedding"] == [9.0]
        (folder.path / "eve.wav").write_bytes(wav(RATE, SOUND * 2))
        await tts.refresh(Deadline.after(30))
        await heard(tts, speaker="eve")
    assert [path for path, _ in server.seen] == [
        "/clone_speaker", "/tts_stream", "/tts_stream", "/clone_speaker", "/tts_stream",
    ]  # fmt: skip
    assert server.seen[0][1] == {"file": "eve.wav", "data": wav(RATE, SOUND)}


@pytest.mark.parametrize("clone", [None, [], {}, {"speaker_embedding": []}, {**NUMBERS, "gpt_cond_latent": "x"}])
async def test_a_clone_that_is_no_voice_is_an_error(session, folder, clone):
    app, server = xtts(clone=clone)
    async with running(app, server):
        error = await failure(client(session, server, folder=folder), speaker="eve")
    assert "answered with no voice" in error.message


@pytest.mark.parametrize("speakers", [[], "x", {"Ann": [1]}, {"Ann": {}}, {"Ann": {"speaker_embedding": {}}}])
async def test_speakers_that_are_none_are_an_error(session, speakers):
    app, server = xtts(speakers=speakers)
    async with running(app, server):
        error = await failure(client(session, server))
    assert error.outcome == "invalid"


async def test_xtts_without_speakers_needs_a_recording(session, folder):
    app, server = xtts(speakers={})
    async with running(app, server):
        tts = client(session, server, folder=folder)
        with pytest.raises(InvalidRequest, match="speaker: needed"):
            await say(tts)
        await heard(tts, speaker="eve")


async def test_a_wav_header_before_the_stream_is_taken_away(session):
    header = wav_header(PcmFormat(24_000), 0)
    app, server = xtts(pieces(header[:7], header[7:30], header[30:] + SOUND[:1], SOUND[1:], kind="audio/wav"))
    async with running(app, server):
        assert await heard(client(session, server)) == (RATE, SOUND)


# --- requests that are refused here


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"text": " \n"}, "text: empty"),
        ({"text": "x" * 251}, "text: 251 characters, the most at once are 250"),
        ({"text": "字" * 83, "language": "zh-cn"}, "text: 83 characters, the most at once are 82"),
        ({"speaker": "Bob"}, "speaker: no voice 'Bob'; there are Ann, Claribel Dervla, eve"),
        ({"speaker_wav": "/etc/passwd"}, "speaker_wav: no custom voice '/etc/passwd'; there are eve"),
        ({"speaker_wav": "/srv/voices/../eve.wav"}, "speaker_wav: no custom voice"),
        ({"speaker_wav": "Ann"}, "speaker_wav: no custom voice"),
        ({"speed": 5.0}, "speed: must be from 0.25 to 4"),
        ({"speed": float("nan")}, "speed: must be"),
    ],
)
async def test_a_request_that_cannot_be_is_refused_by_field(session, folder, options, text):
    app, server = coqui()
    async with running(app, server):
        with pytest.raises(InvalidRequest) as caught:
            await say(client(session, server, folder=folder), **options)
    assert caught.value.message.startswith(text)
    assert server.seen == []


async def test_limits_are_the_engines_by_language_or_the_settings(session):
    app, server = coqui()
    async with running(app, server):
        never = Deadline.never()
        for engine, limits in (
            ("xtts", [250, 82, 71, 203, 250]),
            ("coqui", [250, 82, 71, 203, 250]),
            ("openai", [4096] * 5),
        ):
            tts = client(session, server, engine=engine)
            assert [await tts.limit(code, deadline=never) for code in ("en", "zh-CN", "ja", "pt", "xx")] == limits
        assert await client(session, server, language="ja").limit(deadline=never) == 71
        assert await client(session, server, max_chars=40).limit("en", deadline=never) == 40


# --- answers that are no speech


@pytest.mark.parametrize(
    ("data", "kind", "text"),
    [
        (b"ID3\4" + SOUND, "audio/pcm", "mp3 instead of PCM or WAV"),
        (b"OggS" + SOUND, "audio/pcm", "ogg instead"),
        (b"fLaC" + SOUND, "", "flac instead"),
        (SOUND, "audio/mpeg", "audio/mpeg instead"),
        (SOUND, "audio/aac", "audio/aac instead"),
        (b'{"error": {"message": "out of memory"}}', "application/json",
         "application/json instead of PCM or WAV: out of memory"),
        (b'{"detail": "no GPU"}', "audio/pcm", "audio/pcm instead of PCM or WAV: no GPU"),
        (b"<!DOCTYPE html><h1>Sign in</h1>", "text/html", "text/html instead of PCM or WAV: Sign in"),
        (b"no", "text/plain", "text/plain instead of PCM or WAV: no"),
        (b"", "audio/pcm", "answered with nothing"),
        (b"\1", "audio/pcm", "answered with no samples"),
        (wav(RATE, b""), "audio/wav", "answered with no samples"),
        (b"RIFF\0\0\0\0WAVEjunk", "audio/wav", "a WAV file without a format"),
        (HISS, "audio/pcm", "answered with silence"),
        (b"\0" * 100_000, "audio/pcm", "answered with silence"),
        (wav(RATE, HISS), "audio/wav", "answered with silence"),
        (wav(PcmFormat(8_000, 1), b"\x80" * 500), "audio/wav", "answered with silence"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("made", [openai, coqui])
async def test_an_answer_that_is_no_speech_is_an_error_before_any_audio(session, made, data, kind, text):
    app, server = made(speech(data, kind))
    async with running(app, server):
        stream = client(session, server, engine=made.__name__).speak("Hi.", deadline=Deadline.after(30))
        with pytest.raises(UpstreamError) as caught:
            await anext(stream)
    assert text in caught.value.message
    assert caught.value.outcome == "invalid"


@pytest.mark.parametrize("first", [12, 400, 2000])
def test_samples_that_begin_like_an_mp3_are_not_taken_for_one(first: int) -> None:
    pcm = array("h", [-1, 0xE0, *[300, -300] * 2000]).tobytes()
    reader = SpeechReader(Failures("tts", []), 24_000, "audio/pcm")
    chunks = [reader.feed(pcm[:first]), reader.feed(pcm[first:]), reader.end()]
    assert b"".join(chunk.pcm for chunk in chunks if chunk is not None) == pcm


def test_an_mp3_without_a_tag_is_still_told_however_it_is_cut() -> None:
    mp3 = (b"\xff\xfb\x90\x00" + bytes(413)) * 8
    reader = SpeechReader(Failures("tts", []), 24_000, "audio/pcm")
    with pytest.raises(UpstreamError, match="mp3 instead"):
        _ = [reader.feed(mp3[place : place + 100]) for place in range(0, len(mp3), 100)]


async def test_too_much_speech_is_an_error(session, monkeypatch):
    monkeypatch.setattr("handler_core.clients.tts_audio.MAX_SPEECH", 1000)
    app, server = openai()
    async with running(app, server):
        error = await failure(client(session, server))
    assert ("more than 1000 bytes" in error.message, error.retryable) == (True, False)


@pytest.mark.parametrize(
    "answer",
    [
        pieces(SOUND[:1000], then="break"),
        speech(wav(RATE, SOUND)[:-1000], "audio/wav"),
        pieces(wav(RATE, SOUND)[:1000], then="break", kind="audio/wav"),
    ],
)
async def test_speech_that_ends_in_the_middle_is_told_apart(session, answer):
    app, server = openai(answer)
    async with running(app, server):
        error = await failure(client(session, server))
    assert (error.outcome, error.retryable) == ("broken", True)


async def test_speech_that_stops_coming_times_out(session):
    app, server = openai(pieces(SOUND[:1000], then="hang"))
    async with running(app, server):
        assert (await failure(client(session, server, timeout=0.1))).outcome == "timeout"
        with pytest.raises(DeadlineExceeded):
            await say(client(session, server), deadline=Deadline.after(0.1))


async def test_silence_at_the_begin_is_kept_but_waits_for_sound(session):
    app, server = openai(pieces(b"\0" * 5001, HISS, b"\0" + SOUND[:101], SOUND[101:], b"\0" * 50))
    async with running(app, server):
        chunks = await say(client(session, server))
    assert b"".join(chunk.pcm for chunk in chunks)[:5000] == b"\0" * 5000
    assert len(chunks[0].pcm) > 5000 + len(HISS) - 2


@given(
    st.binary(min_size=1, max_size=300),
    st.lists(st.integers(1, 40), max_size=30),
    st.sampled_from([None, 1, 2, 3, 4]),
    st.sampled_from([1, 2]),
)
def test_no_cut_splits_a_sample_or_loses_one(noise: bytes, cuts: list[int], width: int | None, channels: int) -> None:
    format = PcmFormat(24_000, width or 2, channels)
    data = b"\x55\x55\x55\x55" * 2 * channels * 3 + noise
    data = data[: len(data) // (12 * channels) * 12 * channels]
    whole = data if width is None else wav(format, data)
    reader = SpeechReader(Failures("tts", []), 24_000, f"audio/pcm; rate=24000; channels={channels}")
    found, place = [], 0
    for cut in [*cuts, len(whole)]:
        found.append(reader.feed(whole[place : place + cut]))
        place += cut
    chunks = [chunk for chunk in (*found, reader.end()) if chunk is not None]
    assert all(chunk.pcm and len(chunk.pcm) % (2 * channels) == 0 for chunk in chunks)
    assert {chunk.format for chunk in chunks} == {PcmFormat(24_000, 2, channels)}
    pcm = b"".join(chunk.pcm for chunk in chunks)
    assert len(pcm) == len(data) // format.width * 2
    if format.width == 2:
        assert pcm == data


@given(
    st.lists(st.binary(max_size=60), max_size=20),
    st.sampled_from(["", "audio/wav", "audio/pcm;rate=0", "AUDIO/L16;rate=99999999"]),
)
def test_no_bytes_break_the_reader(data: list[bytes], kind: str) -> None:
    for start in (b"", b"RIFF\0\0\0\0WAVE", b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0"):
        reader = SpeechReader(Failures("tts", []), 24_000, kind)
        try:
            for piece in [start, *data]:
                reader.feed(piece)
            reader.end()
        except DownstreamUnavailable:
            pass


# --- slots


async def test_one_utterance_at_a_time_and_waiting_counts_against_the_deadline(session):
    app, server = openai(pieces(SOUND, then="hang"))
    async with running(app, server):
        tts = client(session, server, engine="openai")
        async with aclosing(tts.speak("one", deadline=Deadline.after(30))) as first:
            await anext(first)
            with pytest.raises(DeadlineExceeded, match="no free slot"):
                await say(tts, deadline=Deadline.after(0.05))
            assert len(server.seen) == 1
        await server.gone.wait()  # leaving early closes the connection
        async with aclosing(tts.speak("two", deadline=Deadline.after(30))) as second:
            await anext(second)
    assert server.most == 1


async def test_as_many_as_the_setting_says_run_at_once(session):
    app, server = openai(pieces(SOUND, then="hang"))
    async with running(app, server):
        tts = client(session, server, engine="openai", concurrency=2)
        one, two = (tts.speak("x", deadline=Deadline.after(30)) for _ in range(2))
        async with aclosing(one), aclosing(two):
            await anext(one)
            await anext(two)
            assert server.most == 2


async def test_a_failed_or_canceled_call_frees_its_slot(session):
    answers = [speech(b""), pieces(SOUND, then="hang"), speech()]

    async def answer(request: web.Request) -> Any:
        return await answers.pop(0)(request)

    app, server = openai(answer)
    async with running(app, server):
        tts = client(session, server, engine="openai")
        await failure(tts)
        task = asyncio.ensure_future(say(tts))
        while len(server.seen) < 2:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await heard(tts))[1] == SOUND


# --- voices


@pytest.mark.parametrize(
    ("made", "names"),
    [
        (coqui, ["Ann", "Claribel Dervla"]),
        (xtts, ['Ann "A" {é}', "Claribel Dervla"]),
        (lambda: openai(voices={"voices": ["b", "a"]}), ["a", "b"]),
        (lambda: openai(voices=[{"id": "b", "name": "B"}, {"name": "a"}]), ["a", "b"]),
        (lambda: openai(voices={"data": [{"voice_id": "a", "language": "en"}, {"x": 1}, None, 7, ""]}), ["a"]),
        (lambda: openai(voices={"voices": None}), ["x", "y"]),
        (lambda: openai(voices="none"), ["x", "y"]),
        (openai, ["x", "y"]),
    ],
)
async def test_voices_are_the_engines_and_then_the_folders(session, folder, made, names):
    app, server = made()
    async with running(app, server):
        found = await client(session, server, folder=folder, names=["y", "x"]).voices(Deadline.after(30))
    assert [voice.name for voice in found] == [*names, "eve"]
    assert found[-1] == VoiceInfo("eve", "custom")
    assert {voice.kind for voice in found[:-1]} == {"builtin"}


async def test_a_refresh_reads_folder_and_engine_anew(session, folder):
    voices = {"voices": ["a"]}
    app, server = openai()

    async def listing(request: web.Request) -> web.Response:
        return web.json_response(voices)

    app.router.add_get("/v1/audio/voices", listing)
    async with running(app, server):
        tts, never = client(session, server, folder=folder), Deadline.never()
        assert [voice.name for voice in await tts.voices(never)] == ["a", "eve"]
        voices["voices"] = ["b", "eve"]
        (folder.path / "zoe.wav").write_bytes(wav(RATE, SOUND))
        os.utime(folder.path, ns=(1, 1))
        assert [voice.name for voice in await tts.voices(never)] == ["a", "eve", "zoe"]
        assert [(voice.name, voice.kind) for voice in await tts.refresh(never)] == [
            ("b", "builtin"), ("eve", "custom"), ("zoe", "custom"),
        ]  # fmt: skip


async def test_voices_of_an_engine_that_is_down_are_an_error_and_not_an_empty_list(session):
    app, server = openai()
    app.router.add_get("/v1/audio/voices", speech(b"", status=503))
    async with running(app, server):
        with pytest.raises(UpstreamError):
            await client(session, server).voices(Deadline.after(30))


async def test_many_speakers_are_read_in_pieces_of_any_size(session):
    numbers = [round(random.uniform(-1, 1), 6) for _ in range(500)]
    speakers = {f"Voice {n}": {"gpt_cond_latent": [numbers], "speaker_embedding": [float(n)]} for n in range(40)}
    app, server = xtts(speakers=speakers)
    async with running(app, server):
        tts = client(session, server)
        assert len(await tts.voices(Deadline.after(30))) == 40
        for number in (39, 0, 17):
            await heard(tts, speaker=f"Voice {number}")
            assert server.sent()["speaker_embedding"] == [number]
            assert server.sent()["gpt_cond_latent"] == [numbers]
