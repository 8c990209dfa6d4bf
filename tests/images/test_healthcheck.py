"""The check of health, and what tests ask engines and containers, as they are: no image is needed."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web

from handler_core.testing_images import USER, Container, Engine

CHECK = Path(__file__).parents[2] / "docker/healthcheck.py"


async def check(**environment: str) -> tuple[int | None, bytes]:
    """Its exit code, and what it said."""
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", str(CHECK), env=environment, stderr=asyncio.subprocess.PIPE
    )
    _, said = await running.communicate()
    return running.returncode, said


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "::1"])
@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
async def test_a_service_is_asked_whether_it_lives_wherever_it_listens(host: str, status: int, code: int) -> None:
    async def alive(_: web.Request) -> web.Response:
        return web.Response(status=status)

    app = web.Application()
    app.router.add_get("/livez", alive)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, 0).start()
        port = runner.addresses[0][1]
        assert await check(HEALTH_PORT=str(port), HEALTH_PATH="") == (code, b"")
    finally:
        await runner.cleanup()


async def test_an_empty_port_is_the_default_one() -> None:
    code, said = await check(HEALTH_PORT="")
    assert code in (0, 1)  # whatever listens there on this machine
    assert said == b""


async def test_a_containers_user_is_asked_for_inside_it(tmp_path: Path) -> None:
    asked = tmp_path / "engine"
    asked.write_text('#!/bin/sh\n[ "$1 $2" = "exec one" ] && shift 3 && exec "$TEST_PYTHON" "$@"\n')
    asked.chmod(0o755)
    engine = Engine(("env", f"TEST_PYTHON={sys.executable}", str(asked)))
    with subprocess.Popen(["true"], text=True) as process:
        user = await Container("one", process, engine).user()
    assert "/proc/1/" in USER
    assert user == str(Path("/proc/1").stat().st_uid)


def test_an_engine_that_is_named_is_tried_in_all_ways_that_are_known_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONTAINER_OPTIONS", raising=False)
    monkeypatch.setattr(Engine, "_starts", lambda engine: "runc" in engine.command)
    monkeypatch.setenv("CONTAINER_ENGINE", "podman")
    assert Engine.find().command == ("podman", "--runtime", "runc")
    monkeypatch.setenv("CONTAINER_ENGINE", "podman --remote --runtime runc")
    assert Engine.find().command == ("podman", "--remote", "--runtime", "runc")
