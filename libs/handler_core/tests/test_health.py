"""The probes' answers over HTTP."""

import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from handler_core import health as health_module
from handler_core.health import Health
from handler_core.telemetry import Metrics


@pytest.fixture
async def health() -> AsyncIterator[Health]:
    health = Health(Metrics())
    yield health
    await health.stop()


@pytest.fixture
async def url(health: Health) -> str:
    return f"http://127.0.0.1:{await health.start('127.0.0.1', 0)}"


async def get(url: str) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.json()


async def test_alive_and_ready_with_nothing_to_complain_of(url: str) -> None:
    assert await get(f"{url}/livez") == (200, {"status": "ok", "checks": {"loop": "ok"}})
    assert await get(f"{url}/readyz") == (200, {"status": "ok", "checks": {}})


async def test_each_check_is_named_with_what_is_wrong(health: Health, url: str) -> None:
    health.ready["nats"] = lambda: ""
    health.ready["consumer A/b"] = lambda: "consumer A/b is missing"
    assert await get(f"{url}/readyz") == (
        503,
        {"status": "unavailable", "checks": {"nats": "ok", "consumer A/b": "consumer A/b is missing"}},
    )
    assert (await get(f"{url}/livez"))[0] == 200


async def test_a_dead_part_fails_liveness(health: Health, url: str) -> None:
    health.alive["nats"] = lambda: "closed"
    status, answer = await get(f"{url}/livez")
    assert (status, answer["checks"]) == (503, {"loop": "ok", "nats": "closed"})


async def test_a_blocked_loop_fails_liveness_until_it_runs_again(
    health: Health, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_module, "MAX_LAG", 0.05)
    time.sleep(health_module.LAG_INTERVAL + 0.1)
    status, answer = await get(f"{url}/livez")
    assert status == 503
    assert answer["checks"]["loop"].startswith("the event loop lags by 0.")
    monkeypatch.setattr(health_module, "MAX_LAG", 60.0)
    assert (await get(f"{url}/livez"))[0] == 200


async def test_metrics_are_plain_text_of_the_format_version(url: str) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = await response.text()
    assert "# TYPE handler_loop_lag_seconds gauge\nhandler_loop_lag_seconds " in text


@pytest.mark.parametrize("path", ["/", "/livez/x", "/metrics2"])
async def test_there_is_nothing_else(url: str, path: str) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"{url}{path}") as response:
        assert response.status == 404


async def test_a_taken_port_is_an_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        health = Health(Metrics())
        with pytest.raises(OSError, match="address already in use"):
            await health.start("127.0.0.1", taken.getsockname()[1])
        await health.stop()
