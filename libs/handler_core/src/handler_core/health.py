"""`/livez`, `/readyz` and `/metrics` over HTTP, for probes and scrapers."""

import asyncio
import json
import math
import time
from collections.abc import Callable

from handler_core.pages import Page, Pages
from handler_core.telemetry import Metrics

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
        self._pages = Pages({"/livez": self._live, "/readyz": self._readiness, "/metrics": self._scrape})
        metrics.gauge("handler_loop_lag_seconds", "How late the event loop ran last.", lambda: self._lag)
        self.alive["loop"] = self._check_loop

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port, which the system chose if 0 was asked for.

        Raises:
            OSError: the port is taken.
        """
        port = await self._pages.start(host, port)
        self._due = time.monotonic()
        self._measure_lag()
        return port

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._pages.stop()

    def _measure_lag(self) -> None:
        now = time.monotonic()
        self._lag = max(0.0, now - self._due)
        self._due = now + LAG_INTERVAL
        self._timer = asyncio.get_running_loop().call_later(LAG_INTERVAL, self._measure_lag)

    def _check_loop(self) -> str:
        lag = max(self._lag, time.monotonic() - self._due)
        return f"the event loop lags by {lag:.1f} s" if lag > MAX_LAG else ""

    def _live(self) -> Page:
        return self._answer(self.alive)

    def _readiness(self) -> Page:
        return self._answer(self.ready)

    @staticmethod
    def _answer(checks: dict[str, Check]) -> Page:
        results = {name: check() or "ok" for name, check in checks.items()}
        good = all(result == "ok" for result in results.values())
        text = json.dumps({"status": "ok" if good else "unavailable", "checks": results})
        return Page(200 if good else 503, "application/json", text)

    def _scrape(self) -> Page:
        return Page(200, "text/plain; version=0.0.4", self._metrics.render())
