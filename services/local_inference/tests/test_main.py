"""The process: its command line, its settings, its start and its end."""

import asyncio
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest


@asynccontextmanager
async def run(*arguments: str, **environment: str) -> AsyncIterator[Process]:
    env = {**os.environ, "ENGINE": "echo", "PORT": "0", "LOG_FORMAT": "json", **environment}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "local_inference", *arguments, stdout=PIPE, stderr=PIPE, env=env
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_says_where_it_serves_and_stops_when_told_with_requests_open(number: signal.Signals) -> None:
    async with run(FAULTS__CHAT__HANG="true") as process, aiohttp.ClientSession() as session:
        assert process.stderr is not None
        line = json.loads(await process.stderr.readline())
        async with session.get(f"{line['url']}/health") as response:
            assert (response.status, await response.json()) == (200, {"status": "ok", "engine": "echo"})
        body = {"messages": [{"role": "user", "content": "Hello"}]}
        async with asyncio.TaskGroup() as group:
            hanging = group.create_task(_post(session, f"{line['url']}/v1/chat/completions", body))
            while (await _get(session, f"{line['url']}/stats"))["chat"]["in_flight"] == 0:
                pass
            process.send_signal(number)
            assert await process.wait() == 0
            assert isinstance(await hanging, aiohttp.ClientError)
        assert await process.stderr.read() == b""


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"PORT": "many"}, "setting PORT: Input should be a valid integer"),
        ({"ENGINE": "gpu"}, "setting ENGINE: Input should be 'minilm' or 'echo'"),
        (
            {"FAULTS__CHAT__ERROR_RATE": "2"},
            "setting FAULTS__CHAT__ERROR_RATE: Input should be less than or equal to 1",
        ),
        ({"FAULTS": "{"}, "setting FAULTS: is not a JSON object"),
    ],
)
async def test_a_wrong_setting_ends_it_with_one_line(environment: dict[str, str], line: str) -> None:
    async with run(**environment) as process:
        out, err = await process.communicate()
    assert (process.returncode, out) == (2, b"")
    assert err.decode().startswith(f"local_inference: {line}")
    assert err.count(b"\n") == 1


async def test_a_taken_port_ends_it_with_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with run(PORT=str(port)) as process:
            _, err = await process.communicate()
    assert process.returncode == 1
    assert err.decode().startswith(f"local_inference: cannot listen on 127.0.0.1:{port}: ")
    assert err.count(b"\n") == 1


async def test_an_engine_that_is_not_installed_ends_it_with_one_line() -> None:
    async with run(ENGINE="minilm", SPEECH_ENGINE="flite", PATH="") as process:
        _, err = await process.communicate()
    assert process.returncode == 1
    message = "SPEECH_ENGINE=flite: there is no flite command here; espeak needs none"
    assert err.decode() == f"local_inference: {message}\n"


async def test_print_config_shows_what_is_in_force() -> None:
    async with run("--print-config", FAULTS__RERANK__HANG="true") as process:
        out, _ = await process.communicate()
    assert process.returncode == 0
    assert {"ENGINE=echo", "HOST=127.0.0.1", 'FAULTS={"rerank":{"hang":true}}'} <= set(out.decode().splitlines())


async def _post(session: aiohttp.ClientSession, url: str, body: object) -> Exception | None:
    try:
        async with session.post(url, json=body):
            return None
    except aiohttp.ClientError as error:
        return error


async def _get(session: aiohttp.ClientSession, url: str) -> dict[str, dict[str, int]]:
    async with session.get(url) as response:
        stats: dict[str, dict[str, int]] = await response.json()
        return stats
