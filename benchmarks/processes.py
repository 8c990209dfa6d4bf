"""Processes that a benchmark starts: each is ended by its id, whatever happens meanwhile."""

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "bench"
BIN = Path(sys.executable).parent
PYTHON = sys.executable
GRACE = 10.0
"""Seconds between asking a process to end and ending it."""


class BenchmarkError(Exception):
    """A run that can't be finished; the message says why."""


def say(text: str) -> None:
    """Progress goes to stderr, so that the tables alone reach stdout."""
    print(text, file=sys.stderr, flush=True)


@contextlib.asynccontextmanager
async def running(command: tuple[str, ...], env: Mapping[str, str], log: Path) -> AsyncIterator[Process]:
    """A process for the length of a block, in the checkout's root, its output in `log`.

    It has a session of its own, so that an interrupt at the terminal reaches the benchmark only, which then ends
    its processes in order.
    """
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, env={**_surroundings(), **env}, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        await _end(process)


def _surroundings() -> dict[str, str]:
    """The environment without what would change a candidate: telemetry, another NATS."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "NATS_"))}


def end_of(log: Path) -> str:
    """What a process said last."""
    return log.read_text(errors="replace")[-2_000:]


async def _end(process: Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(GRACE):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def nats_server() -> AsyncIterator[str]:
    """A NATS server with JetStream on a free port of the loopback and an empty data folder; gives its URL."""
    with tempfile.TemporaryDirectory(prefix="bench-nats-") as folder:
        data = Path(folder)
        command = (
            str(BIN / "nats-server"),
            "--addr",
            "127.0.0.1",
            "--port",
            "-1",
            "--jetstream",
            "--store_dir",
            folder,
        )
        async with running((*command, "--ports_file_dir", folder), {}, data / "nats-server.log") as process:
            yield await _url(process, data)


async def _url(process: Process, data: Path) -> str:
    ports = data / f"nats-server_{process.pid}.ports"
    while process.returncode is None:
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            return str(json.loads(ports.read_text())["nats"][0])
        await asyncio.sleep(0.01)
    raise BenchmarkError(f"nats-server ended with {process.returncode}:\n{end_of(data / 'nats-server.log')}")
