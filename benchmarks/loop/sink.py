"""An OTLP/HTTP collector that takes everything and keeps nothing."""

import contextlib
from collections.abc import AsyncIterator

from aiohttp import web


class Sink:
    """Where telemetry goes, in rounds that have it on."""

    def __init__(self) -> None:
        self.endpoint = ""
        """For `OTEL_EXPORTER_OTLP_ENDPOINT`."""
        self.traces = 0
        """Requests to `/v1/traces` so far."""

    async def take(self, request: web.Request) -> web.Response:
        await request.read()
        self.traces += request.path == "/v1/traces"
        return web.Response(content_type="application/x-protobuf")


@contextlib.asynccontextmanager
async def sink() -> AsyncIterator[Sink]:
    """A collector on a free port of the loopback."""
    taker = Sink()
    app = web.Application(client_max_size=1 << 28)
    app.router.add_post("/{path:.*}", taker.take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        taker.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield taker
    finally:
        await runner.cleanup()
