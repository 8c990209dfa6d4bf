"""The module as a process, and what it does when it is told to end, or NATS is away, in the middle of a text."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

from handler_core import streams
from handler_core.connection import Connection
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, connection, free_port, nats_server, process, serving, until
from handler_core.testing_imports import offenders, probe
from tts_module.service import service

NEVER = [
    "pandas", "numpy", "pymilvus", "grpc", "google.protobuf", "opentelemetry", "typer", "handler_core.otlp",
    "handler_core.testing", "unittest", "uvloop", "tkinter",
]  # fmt: skip


class Module:
    """A running `python -m tts_module`."""

    def __init__(self, process: "subprocess.Popen[Any]", port: int) -> None:
        self.process = process
        self._url = f"http://127.0.0.1:{port}"

    async def becomes(self, path: str, status: int) -> None:
        async def condition() -> bool:
            try:
                async with aiohttp.ClientSession() as session, session.get(self._url + path) as answer:
                    return answer.status == status
            except aiohttp.ClientConnectionError:
                return False

        await until(condition, f"{path} answers {status}")

    async def ended(self) -> int:
        return int(await asyncio.to_thread(self.process.wait, 20))


def environment(nats_url: str, engine: Any, port: int, **more: str) -> dict[str, str]:
    return {
        "NATS_URL": nats_url, "TTS_URL": engine.url, "HEALTH_HOST": "127.0.0.1", "HEALTH_PORT": str(port),
        "LOG_FORMAT": "json", **more,
    }  # fmt: skip


async def test_told_to_end_it_finishes_the_text_it_speaks(nats: NatsServer, caller: Any, engine: Any) -> None:
    gate, port = asyncio.Event(), free_port()
    engine.gates[caller.sentences[1]] = gate
    with process("tts_module", environment(nats.url, engine, port)) as running:
        module = Module(running, port)
        await module.becomes("/readyz", 200)
        await caller.ask()
        await until(lambda: len(caller.chunks) > 1, "it is in the middle")
        running.send_signal(signal.SIGTERM)
        await module.becomes("/readyz", 503)
        gate.set()
        assert await module.ended() == 0
    end = await caller.end()
    assert (end.status, end.attempt) == ("completed", 1)
    assert caller.audio() == engine.spoken(caller.text)


async def test_what_is_not_finished_in_time_goes_on_elsewhere_at_once(
    nats: NatsServer, caller: Any, engine: Any, settings: Any
) -> None:
    gate, port = asyncio.Event(), free_port()
    engine.gates[caller.sentences[1]] = gate
    with process("tts_module", environment(nats.url, engine, port, DRAIN_TIMEOUT="0.2")) as running:
        module = Module(running, port)
        await module.becomes("/readyz", 200)
        await caller.ask()
        await until(lambda: len(caller.chunks) > 1, "it is in the middle")
        running.send_signal(signal.SIGTERM)
        assert await module.ended() == 0
    gate.set()
    async with serving(service, settings()):
        end = await caller.end()
    assert (end.status, end.attempt) == ("completed", 2)
    assert caller.audio() == engine.spoken(caller.text)
    assert engine.inputs().count(caller.sentences[0]) == 1


@pytest.fixture
def own_nats() -> Iterator[NatsServer]:
    with nats_server() as server:
        yield server


@pytest.fixture
async def own_nc(own_nats: NatsServer) -> AsyncIterator[Connection]:
    async with connection(own_nats.url) as nc:
        await streams.apply(Api(nc))
        yield nc


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_nats_is_restarted_in_the_middle_of_a_text(
    own_nats: NatsServer, own_nc: Connection, caller: Any, settings: Any, engine: Any, how: str
) -> None:
    there = type(caller)(own_nc)
    await there.listen()
    gate = engine.gates[there.sentences[1]] = asyncio.Event()
    async with serving(service, settings(nats_url=own_nats.url, chunk_bytes=4096)) as runtime:
        await there.ask()
        await until(lambda: len(there.chunks) > 5, "it is in the middle")
        getattr(own_nats, how)()
        await until(lambda: not runtime.nc.is_connected, "the connection is lost")
        gate.set()
        own_nats.start()
        await until(lambda: runtime.nc.is_connected and own_nc.is_connected, "it is back")

        async def ended() -> bool:
            return (await there.log())[-1].subject.split(".")[3] == "status"

        await until(ended, "the end is stored")
        log = await there.log()
    chunks = [there.chunk(stored) for stored in log if stored.subject.split(".")[3] == "audio"]
    assert b"".join(chunk.audio for chunk in chunks) == engine.spoken(there.text)
    assert [chunk.chunk_index for chunk in chunks] == list(range(len(chunks)))
    assert chunks[-1].is_last


async def test_a_wrong_setting_ends_it_with_one_line_that_names_it(capfd: pytest.CaptureFixture[str]) -> None:
    with process("tts_module", {"CHUNK_BYTES": "1"}) as running:
        assert await asyncio.to_thread(running.wait, 20) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("setting CHUNK_BYTES: ")


async def test_a_ready_module_has_loaded_nothing_that_it_does_not_need(
    nats: NatsServer, nc: Connection, engine: Any
) -> None:
    port = free_port()
    added = environment(nats.url, engine, port)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    running = subprocess.Popen(
        [sys.executable, "-c", probe("tts_module")], env={**clean, **added}, stdout=subprocess.PIPE, text=True
    )
    try:
        await Module(running, port).becomes("/readyz", 200)
        running.send_signal(signal.SIGTERM)
        output, _ = await asyncio.to_thread(running.communicate, timeout=20)
    finally:
        running.kill()
        running.wait()
    assert offenders(output, NEVER) == []
