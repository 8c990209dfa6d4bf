"""`/livez`, `/readyz` and `/metrics` over HTTP, for probes and scrapers."""

import asyncio
import math
import time
from collections.abc import Callable

import structlog
from aiohttp import web

from handler_core.telemetry import Metrics

log = structlog.get_logger("handler_core.health")

Check = Callable[[], str]
"""Says what is wrong, or nothing: an empty string."""


def ended(task: asyncio.Task[None]) -> Check:
    """Whether a task that is to run as long as the process has ended."""
    return lambda: "its task has ended" if task.done() else ""


LAG_INTERVAL = 0.5
MAX_LAG = 5.0
"""Seconds that the event loop may be blocked before the process counts as dead."""


class Health:
    """The checks of one process and the server that tells of them.

    Liveness asks whether a restart would help (a stuck loop, a dead task, a closed connection); readiness whether the
    process does its work. An upstream that is down is neither.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.alive: dict[str, Check] = {}
        self.ready: dict[str, Check] = {}
        self._metrics = metrics
        self._lag = 0.0
        self._due = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._runner: web.AppRunner | None = None
        metrics.gauge("handler_loop_lag_seconds", "How late the event loop ran last.", lambda: self._lag)
        self.alive["loop"] = self._check_loop

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port, which the system chose if 0 was asked for.

        Raises:
            OSError: the port is taken.
        """
        app = web.Application()
        app.router.add_get("/livez", self._live)
        app.router.add_get("/readyz", self._readiness)
        app.router.add_get("/metrics", self._scrape)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        self._due = time.monotonic()
        self._measure_lag()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._runner is not None:
            await self._runner.cleanup()

    def _measure_lag(self) -> None:
        now = time.monotonic()
        self._lag = max(0.0, now - self._due)
        self._due = now + LAG_INTERVAL
        self._timer = asyncio.get_running_loop().call_later(LAG_INTERVAL, self._measure_lag)

    def _check_loop(self) -> str:
        lag = max(self._lag, time.monotonic() - self._due)
        return f"the event loop lags by {lag:.1f} s" if lag > MAX_LAG else ""

    async def _live(self, _: web.Request) -> web.Response:
        return self._answer(self.alive)

    async def _readiness(self, _: web.Request) -> web.Response:
        return self._answer(self.ready)

    @staticmethod
    def _answer(checks: dict[str, Check]) -> web.Response:
        results = {name: check() or "ok" for name, check in checks.items()}
        good = all(result == "ok" for result in results.values())
        return web.json_response(
            {"status": "ok" if good else "unavailable", "checks": results}, status=200 if good else 503
        )

    async def _scrape(self, _: web.Request) -> web.Response:
        return web.Response(text=self._metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4"})
