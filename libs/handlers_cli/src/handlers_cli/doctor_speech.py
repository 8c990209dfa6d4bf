"""The speech endpoints as `handlers doctor` sees them: a second of silence to transcribe, a word to speak."""

from contextlib import aclosing

import aiohttp

from handler_core.audio import PcmFormat, wav
from handler_core.clients.failures import UpstreamError
from handler_core.clients.stt import STT
from handler_core.clients.tts import TTS
from handler_core.clients.voices import VoicesFolder
from handler_core.config import Settings, STTSettings, TTSSettings, masked
from handler_core.errors import HandlerError, InvalidRequest
from handlers_cli.doctor_findings import Finding, Stopwatch, fail, ok, warn
from handlers_cli.doctor_settings import origin
from handlers_cli.doctor_upstreams import after, asked_once, failed

_SILENCE = wav(PcmFormat(16_000), bytes(32_000))


async def check_stt(session: aiohttp.ClientSession, settings: STTSettings, timeout: float) -> list[Finding]:
    """One second of silence, in which a model may well hear something."""
    url = settings.stt_url
    client = STT(asked_once(session, "stt", url, settings.stt_api_key, timeout), settings.stt_model)
    watch = Stopwatch()
    try:
        await client.transcribe(_SILENCE, language=settings.stt_language, voiced=0.0, deadline=after(timeout))
    except HandlerError as error:
        return [_without_voice(settings, "stt_url", failed("STT_URL", url, error), error)]
    return [ok("STT_URL", f"{masked(url)}: one second of silence in {watch}")]


async def check_tts(session: aiohttp.ClientSession, settings: TTSSettings, timeout: float) -> list[Finding]:
    """The engine, its voices, and the first audio of a word."""
    url, folder = settings.tts_url, settings.voices_dir
    client = TTS(
        asked_once(session, "tts", url, settings.tts_api_key, timeout),
        engine=settings.tts_engine,
        model=settings.tts_model,
        speaker=settings.tts_speaker,
        language=settings.tts_language,
        names=settings.tts_voice_names,
        sample_rate=settings.tts_sample_rate,
        folder=None if folder is None else VoicesFolder(folder, settings.tts_voices_path),
    )
    try:
        engine = await client.engine(after(timeout))
        voices = await client.voices(after(timeout))
        watch = Stopwatch()
        async with aclosing(client.speak("Ready.", deadline=after(timeout))) as chunks:
            async for _ in chunks:
                break
    except InvalidRequest as error:
        return [fail("TTS_SPEAKER", f"{masked(url)}: {error.message}", "set TTS_SPEAKER to a voice that it has")]
    except HandlerError as error:
        return [_without_voice(settings, "tts_url", failed("TTS_URL", url, error), error)]
    return [ok("TTS_URL", f"{masked(url)}: {engine}, {len(voices)} voices, first audio in {watch}")]


def _without_voice(settings: Settings, field: str, finding: Finding, error: HandlerError) -> Finding:
    """Who has set no endpoint, and has none, uses no voice: worth a word, and no failure."""
    refused = isinstance(error, UpstreamError) and error.status not in (None, 404)
    if refused or origin(field, type(settings).model_fields[field]) is not None:
        return finding
    return warn(finding.check, f"{finding.found}; only voice needs it", finding.fix)
