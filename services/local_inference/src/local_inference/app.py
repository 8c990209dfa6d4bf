"""The application: routes, and the engines' life."""

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web

from local_inference import chat, control, coqui, embeddings, rerank, speech, transcriptions
from local_inference.accounting import FAULTS, STATS, Stats, account, report
from local_inference.engine import Engine, MiniLM, ModelMissing
from local_inference.faults import FaultInjector
from local_inference.keys import ENGINE, ONE_AT_A_TIME, SETTINGS, SYNTHESIZER, TRANSCRIBER
from local_inference.settings import EngineName, Settings, SpeechEngine
from local_inference.synthesizer import Synthesizer, has_flite
from local_inference.transcriber import PocketSphinx, Transcriber


def create_app(settings: Settings, engine: Engine | None = None) -> web.Application:
    """The server as an application, to be run with `handler_cancellation=True` (as aiohttp's test server does).

    Args:
        settings: `host` and `port` are not looked at.
        engine: a started engine to use, which stays the caller's to close. By default the one that the settings name
            is started before the application serves, and closed with it. Speech is always by the settings.
    """
    app = web.Application(middlewares=[report, account], client_max_size=settings.max_body_bytes)
    app[SETTINGS] = settings
    app[STATS] = Stats()
    app[FAULTS] = FaultInjector(settings.faults)
    app[ENGINE] = engine or make_engine(settings)
    app[TRANSCRIBER], app[SYNTHESIZER] = make_speech(settings)
    app[ONE_AT_A_TIME] = asyncio.Lock()
    app.cleanup_ctx.append(_speech_life)
    if engine is None:
        app.cleanup_ctx.append(_engine_life)
    app.add_routes(
        [
            web.post("/v1/chat/completions", chat.completions),
            web.post("/v1/embeddings", embeddings.openai),
            web.post("/embed", embeddings.tei),
            web.post("/rerank", rerank.tei),
            web.post("/v1/rerank", rerank.cohere),
            web.post("/v2/rerank", rerank.cohere),
            web.post("/v1/audio/transcriptions", transcriptions.transcriptions),
            web.post("/v1/audio/speech", speech.openai),
            web.get("/v1/audio/voices", speech.voices),
            web.get("/api/tts", coqui.tts, allow_head=False),
            web.post("/api/tts", coqui.tts),
            web.get("/voices", coqui.voices),
            web.post("/tts_stream", coqui.stream),
            web.post("/clone_speaker", coqui.clone_speaker),
            web.get("/studio_speakers", coqui.studio_speakers),
            web.get("/languages", coqui.languages),
            web.get("/v1/models", control.models),
            web.get("/info", control.info),
            web.get("/health", control.health),
            web.get("/stats", control.stats),
            web.get("/faults", control.show_faults),
            web.put("/faults", control.put_faults),
            web.delete("/faults", control.clear_faults),
        ]
    )
    return app


def make_engine(settings: Settings) -> Engine:
    """The engine that the settings name, not yet started."""
    if settings.engine is EngineName.ECHO:
        from local_inference.echo import Echo

        return Echo(settings.echo_dimensions, settings.echo_tokens)
    return MiniLM(settings.threads)


def make_speech(settings: Settings) -> tuple[Transcriber, Synthesizer]:
    """The engines for speech that the settings name; each loads what it needs with its first request."""
    if settings.engine is EngineName.ECHO:
        from local_inference.echo import EchoSynthesizer, EchoTranscriber

        return EchoTranscriber(), EchoSynthesizer()
    return PocketSphinx(settings.transcribers), _synthesizer(settings)


def _synthesizer(settings: Settings) -> Synthesizer:
    if settings.speech_engine is SpeechEngine.FLITE or (settings.speech_engine is SpeechEngine.AUTO and has_flite()):
        from local_inference.flite import Flite

        return Flite(settings.threads)
    from local_inference.espeak import Espeak

    return Espeak()


async def _speech_life(app: web.Application) -> AsyncIterator[None]:
    if app[SETTINGS].speech_engine is SpeechEngine.FLITE and not has_flite():
        raise ModelMissing("SPEECH_ENGINE=flite: there is no flite command here; espeak needs none")
    yield
    await app[TRANSCRIBER].close()


async def _engine_life(app: web.Application) -> AsyncIterator[None]:
    engine = app[ENGINE]
    try:
        await engine.start()
        yield
    finally:
        engine.close()
