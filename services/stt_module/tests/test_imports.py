"""What a worker that is ready has not loaded: each of these costs memory and start that nobody who speaks asked for."""

import os
import signal
import subprocess
import sys

import aiohttp

from handler_core.connection import Connection
from handler_core.testing import NatsServer, free_port, until
from handler_core.testing_imports import offenders, probe

NEVER = [
    "pandas", "numpy", "pymilvus", "grpc", "google.protobuf", "kubernetes", "opentelemetry", "typer", "pkg_resources",
    "handler_core.otlp", "handler_core.testing", "unittest", "uvloop", "tkinter",
]  # fmt: skip


async def test_a_ready_worker_has_loaded_nothing_that_it_does_not_need(nats: NatsServer, nc: Connection) -> None:
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environment |= {"NATS_URL": nats.url, "STT_URL": "http://127.0.0.1:9"}
    environment |= {"HEALTH_HOST": "127.0.0.1", "HEALTH_PORT": str(port)}
    running = subprocess.Popen(
        [sys.executable, "-c", probe("stt_module")], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:

        async def ready() -> bool:
            try:
                async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/readyz") as answer:
                    return answer.status == 200
            except aiohttp.ClientConnectionError:
                return False

        await until(ready, "the worker is ready")
        running.send_signal(signal.SIGTERM)
        output, _ = running.communicate(timeout=20)
        assert offenders(output, NEVER) == []
    finally:
        running.kill()
        running.wait()
