"""The application: routes, and the engine's life."""

from collections.abc import AsyncIterator

from aiohttp import web

from local_inference import chat, control, embeddings, rerank
from local_inference.accounting import FAULTS, STATS, Stats, account, report
from local_inference.engine import Engine, MiniLM
from local_inference.faults import FaultInjector
from local_inference.keys import ENGINE, SETTINGS
from local_inference.settings import EngineName, Settings


def create_app(settings: Settings, engine: Engine | None = None) -> web.Application:
    """The server as an application, to be run with `handler_cancellation=True` (as aiohttp's test server does).

    Args:
        settings: `host` and `port` are not looked at.
        engine: a started engine to use, which stays the caller's to close. By default the one that the settings name
            is started before the application serves, and closed with it.
    """
    app = web.Application(middlewares=[report, account], client_max_size=settings.max_body_bytes)
    app[SETTINGS] = settings
    app[STATS] = Stats()
    app[FAULTS] = FaultInjector(settings.faults)
    app[ENGINE] = engine or make_engine(settings)
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


async def _engine_life(app: web.Application) -> AsyncIterator[None]:
    engine = app[ENGINE]
    try:
        await engine.start()
        yield
    finally:
        engine.close()
