"""The processes of a simulation: each in a session of its own, so that Ctrl-C reaches the simulation alone, which then
ends them in order; their output goes to files."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from handler_core.testing import free_port, nats_server_binary

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT = 30.0
_TICK = 0.02


class SimulationError(Exception):
    """The simulation cannot go on; the message says why."""


def launch(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> "subprocess.Popen[bytes]":
    """Start a process in the project's root, without what in our environment would make it another one."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "NATS_"))}
    with log.open("wb") as output:
        return subprocess.Popen(
            [*command], cwd=ROOT, env={**inherited, **(environment or {})}, stdin=subprocess.DEVNULL, stdout=output,
            stderr=output, start_new_session=True,
        )  # fmt: skip


def end_of(log: Path) -> str:
    """What a process said last."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def kill(process: "subprocess.Popen[bytes]") -> None:
    """End a process as the loss of its node would, and wait for that."""
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
        process.wait(10)


@dataclass(frozen=True)
class Nats:
    """Where the server listens."""

    url: str
    monitor: str


@contextlib.asynccontextmanager
async def nats_server(folder: Path) -> AsyncIterator[Nats]:
    """A NATS server with JetStream and its monitoring port, both on free ports of the loopback.

    Raises:
        SimulationError: it does not start.
    """
    log = folder / "nats.log"
    command = [nats_server_binary(), "-a", "127.0.0.1", "-p", "-1", "-m", "-1", "-js", "-sd", str(folder / "nats"),
               "--ports_file_dir", str(folder)]  # fmt: skip
    process = launch(command, log)
    try:
        told = folder / f"nats-server_{process.pid}.ports"

        async def listens() -> bool:
            with contextlib.suppress(OSError, json.JSONDecodeError, LookupError):
                ports = json.loads(told.read_text())
                return bool(ports["nats"] and ports["monitoring"])
            return False

        await _started(process, listens, log, "nats-server")
        ports = json.loads(told.read_text())
        yield Nats(ports["nats"][0], ports["monitoring"][0])
    finally:
        kill(process)


@contextlib.asynccontextmanager
async def upstream(folder: Path, seconds: tuple[float, float]) -> AsyncIterator[str]:
    """The stand-in for the LLM, whose answers take from the first to the second of `seconds`; gives its URL.

    Raises:
        SimulationError: it does not start.
    """
    port, log = free_port(), folder / "upstream.log"
    command = [sys.executable, "-m", "tools.scale_sim.upstream", "--port", str(port), "--seconds", *map(str, seconds)]
    process = launch(command, log)
    url = f"http://127.0.0.1:{port}"
    try:
        async with aiohttp.ClientSession() as session:

            async def answers() -> bool:
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    async with session.get(f"{url}/health") as response:
                        return response.status == 200
                return False

            await _started(process, answers, log, "the upstream")
        yield url
    finally:
        kill(process)


async def _started(
    process: "subprocess.Popen[bytes]", condition: Callable[[], Awaitable[bool]], log: Path, what: str
) -> None:
    give_up = time.monotonic() + START_TIMEOUT
    while not await condition():
        if process.poll() is not None or time.monotonic() > give_up:
            raise SimulationError(f"{what} did not start:\n{end_of(log)}")
        await asyncio.sleep(_TICK)
