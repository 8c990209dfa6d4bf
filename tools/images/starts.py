"""How soon a service is ready, and what it holds: in its image, and of the naive peer.

Ready: from the moment in which the image's command is executed, in the container and as its first process, until its
readiness says 200. The container's own set-up, before that moment, is the engine's and does not count; nor does that of
the naive peer's process, which is timed from just before it is started.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handler_core.testing import free_port
from handler_core.testing_images import INTERPRETER, PYTHON, SERVICES, Container, Engine

ROOT = Path(__file__).resolve().parents[2]
NAIVE = (sys.executable, "-m", "benchmarks.start.naive")
PATIENCE = 60.0
ASK_EVERY = 0.002
"""Seconds between two looks whether a service is ready."""
TELL_AND_EXECUTE = """
import os, sys, time
os.write(1, b'%r\\n' % time.monotonic())
os.execv(sys.argv[1], sys.argv[1:])
"""


class ReportError(Exception):
    """What went wrong, and what to do next."""


@dataclass(frozen=True)
class Surroundings:
    """What a service's container is started with."""

    environment: Mapping[str, str]
    options: tuple[str, ...] = ()


@dataclass
class Running:
    """A service that is ready."""

    pid: int
    url: str
    ready_ms: float

    @property
    def rss(self) -> float:
        """Resident memory in MiB: the kernel's VmRSS, whose kB are 1,024 bytes, by 1,024."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


@contextlib.contextmanager
def image(engine: Engine, service: str, around: Surroundings) -> Iterator[Running]:
    """A container of a service's image, ready, for the length of the block; then told to end, which it has to obey.

    Raises:
        ReportError: it was not ready in time, or did not end with 0.
    """
    assert service in SERVICES, service
    command = _command(engine, engine.built(service))
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with engine.service(
        service, around.environment, "-c", TELL_AND_EXECUTE, *command, options=(*PYTHON, *around.options), **pipes
    ) as container:
        ready = _until_ready(container.url + container.ready_path, container.process, service)
        assert container.process.stdout is not None
        began = float(container.process.stdout.readline())
        yield Running(container.pid, container.url, (ready - began) * 1000)
        _end(container, service)


def _command(engine: Engine, name: str) -> list[str]:
    """What an image executes."""
    config = (engine.inspect(name) or {})["Config"]
    command = [*(config.get("Entrypoint") or []), *(config.get("Cmd") or [])]
    if command[:1] != [INTERPRETER]:
        raise ReportError(f"{name} executes {command}, and not Python itself")
    return command


def _end(container: Container, service: str) -> None:
    code, _, _ = container.stop()
    if code:
        raise ReportError(f"{service} ended with {code} when it was told to end")


@contextlib.contextmanager
def naive(environment: Mapping[str, str]) -> Iterator[Running]:
    """`benchmarks/start/naive.py` in this environment, ready, for the length of the block."""
    port = free_port()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "NATS_"))}
    own, url = {"HEALTH_HOST": "127.0.0.1", "HEALTH_PORT": str(port)}, f"http://127.0.0.1:{port}"
    began = time.monotonic()
    process = subprocess.Popen(
        NAIVE, cwd=ROOT, env={**clean, **environment, **own}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        ready = _until_ready(f"{url}/readyz", process, "the naive peer")
        yield Running(process.pid, url, (ready - began) * 1000)
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
    finally:
        process.kill()
        process.wait()


def _until_ready(url: str, process: "subprocess.Popen[Any]", name: str) -> float:
    """When `url` first said 200, on the clock that all processes share."""
    host, _, path = url.removeprefix("http://").partition("/")
    address, port = host.split(":")
    request = f"GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        with contextlib.suppress(OSError), socket.create_connection((address, int(port)), timeout=5) as connection:
            connection.sendall(request)
            if b" 200 " in connection.recv(64):
                return time.monotonic()
        if process.poll() is not None:
            raise ReportError(f"{name} ended with {process.returncode} before it was ready; its tests tell more")
        time.sleep(ASK_EVERY)
    raise ReportError(f"{name} was not ready within {PATIENCE:g} s")
