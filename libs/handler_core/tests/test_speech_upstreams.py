"""The speech clients that settings describe: which URL, key, names and limits each call gets, and what spans tell."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from handler_core.audio import PcmFormat, wav
from handler_core.clients.http import new_session
from handler_core.config import LOCAL, STTSettings, TTSSettings, load
from handler_core.deadline import Deadline
from handler_core.telemetry import Metrics
from handler_core.tracing import active
from handler_core.upstreams import stt, tts

SOUND = b"\0\x40" * 100
NEVER = Deadline.never()


class Listener:
    """Stands in for a tracer: keeps the names, attributes and events of the spans below it."""

    traceparent = ""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []

    def child(
        self, name: str, kind: str = "internal", attributes: Mapping[str, Any] | None = None, **_: Any
    ) -> "Listener":
        below = Listener()
        below.told = self.told
        self.told.append((name, dict(attributes or {})))
        return below

    def set(self, attributes: Mapping[str, Any]) -> None:
        self.told.append(("set", dict(attributes)))

    def event(self, name: str, attributes: Mapping[str, Any] | None = None) -> None:
        self.told.append((name, {}))

    def end(self, **_: Any) -> None:
        self.told.append(("end", {}))


@pytest.fixture
async def server() -> AsyncIterator[tuple[str, list[web.Request]]]:
    seen: list[web.Request] = []

    async def transcribe(request: web.Request) -> web.Response:
        seen.append(request)
        await request.read()
        return web.json_response({"text": "Yes."})

    async def speak(request: web.Request) -> web.Response:
        seen.append(request)
        await request.read()
        return web.Response(body=SOUND, content_type="audio/pcm")

    app = web.Application()
    app.router.add_post("/ear/v1/audio/transcriptions", transcribe)
    app.router.add_post("/mouth/v1/audio/speech", speak)
    async with TestServer(app) as running:
        yield str(running.make_url("")).rstrip("/"), seen


async def test_the_settings_reach_the_calls(server: tuple[str, list[web.Request]], tmp_path: Path) -> None:
    url, seen = server
    (tmp_path / "eve.wav").write_bytes(wav(PcmFormat(16_000), SOUND))
    ears = STTSettings(stt_url=f"{url}/ear/v1", stt_api_key="key-s", stt_model="w", stt_language="de")
    mouth = TTSSettings(
        tts_url=f"{url}/mouth", tts_api_key="key-t", tts_model="m", tts_speaker="a", tts_voices="b, a,",
        tts_sample_rate=16_000, tts_max_chars=50, voices_dir=tmp_path,
    )  # fmt: skip
    metrics = Metrics()
    async with new_session() as session:
        heard = await stt(session, ears, metrics).transcribe(b"RIFF", deadline=NEVER)
        assert heard.text == "Yes."
        speech = tts(session, mouth, metrics)
        [chunk] = [chunk async for chunk in speech.speak("Hi.", deadline=NEVER)]
        assert chunk == (SOUND, PcmFormat(16_000))
        assert await speech.limit("ja", deadline=NEVER) == 50
        assert [voice.name for voice in await speech.voices(NEVER)] == ["a", "b", "eve"]
    assert [request.headers["Authorization"] for request in seen] == ["Bearer key-s", "Bearer key-t"]
    assert (await seen[1].json())["model"] == "m"
    assert 'upstream="stt",outcome="ok"' in metrics.render()
    assert 'upstream="tts",outcome="ok"' in metrics.render()


async def test_each_call_is_a_span_with_those_of_its_requests_below(server: tuple[str, list[web.Request]]) -> None:
    url, _ = server
    listener = Listener()
    active.set(listener)  # type: ignore[arg-type]
    async with new_session() as session:
        await stt(session, STTSettings(stt_url=f"{url}/ear", stt_model="w")).transcribe(b"RIFF", deadline=NEVER)
        mouth = TTSSettings(tts_url=f"{url}/mouth", tts_engine="openai", tts_model="m")
        async for _chunk in tts(session, mouth).speak("Hi.", deadline=NEVER):
            pass
    names = [name for name, _ in listener.told]
    assert names == [
        "transcribe w",
        "POST",
        "set",
        "end",
        "end",
        "speak m",
        "set",
        "POST",
        "set",
        "tts.first_audio",
        "end",
        "end",
    ]
    assert listener.told[0][1]["gen_ai.request.model"] == "w"
    assert listener.told[0][1]["stt.audio_bytes"] == 4
    assert listener.told[5][1]["tts.characters"] == 3
    assert listener.told[6][1] == {"tts.engine": "openai"}


def test_the_settings_have_the_names_users_know(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STT_URL", "WHISPER_URL", "TTS_URL", "VOICES_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert (load(STTSettings).stt_url, load(TTSSettings).tts_url, load(TTSSettings).voices_dir) == (LOCAL, LOCAL, None)
    monkeypatch.setenv("WHISPER_URL", "http://ray:8000/whisper")
    monkeypatch.setenv("VOICES_DIR", "/voices")
    assert load(STTSettings).stt_url == "http://ray:8000/whisper"
    assert load(TTSSettings).voices_dir == Path("/voices")
