"""An OTLP/HTTP collector that takes everything and counts the spans afterwards."""

import contextlib
from collections.abc import AsyncIterator

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Sink:
    """Where telemetry goes, in rounds that have it on."""

    def __init__(self) -> None:
        self.endpoint = ""
        """For `OTEL_EXPORTER_OTLP_ENDPOINT`."""
        self._requests: list[bytes] = []

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        if request.path == "/v1/traces":
            self._requests.append(body)
        return web.Response(content_type="application/x-protobuf")

    def spans(self) -> int:
        """How many spans have come since this was asked last; only now are they looked at."""
        requests, self._requests = self._requests, []
        groups = (group for body in requests for group in ExportTraceServiceRequest.FromString(body).resource_spans)
        return sum(len(scope.spans) for group in groups for scope in group.scope_spans)


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
