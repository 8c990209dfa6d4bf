"""What a voice assistant that is ready has not loaded: each of these costs memory and start that nobody asked for."""

import os
import signal
import subprocess
import sys

import aiohttp

from handler_core.connection import Connection
from handler_core.testing import NatsServer, free_port, until
from handler_core.testing_imports import offenders, probe

NEVER = [
    "pandas", "numpy", "pymilvus", "kubernetes", "kubernetes_asyncio", "requests", "opentelemetry", "typer",
    "handler_core.otlp", "handler_core.testing", "handler_core.testing_voice", "milvus_lite", "unittest", "tkinter",
    "uvloop", "webrtcvad", "wave", "audioop",
]  # fmt: skip


async def test_a_ready_service_has_loaded_nothing_that_it_does_not_need(nats: NatsServer, nc: Connection) -> None:
    port = free_port()
    names = ("LLM_URL", "EMBEDDINGS_URL", "RERANKER_URL", "MILVUS_URI", "STT_URL", "TTS_URL")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environment |= dict.fromkeys(names, "http://127.0.0.1:9")
    environment |= {"NATS_URL": nats.url, "HEALTH_HOST": "127.0.0.1", "HEALTH_PORT": str(port)}
    command = [sys.executable, "-c", probe("voice_assistant")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as running:
        try:

            async def ready() -> bool:
                url = f"http://127.0.0.1:{port}/readyz"
                try:
                    async with aiohttp.ClientSession() as session, session.get(url) as answer:
                        return answer.status == 200
                except aiohttp.ClientConnectionError:
                    return False

            await until(ready, "the service is ready")
            running.send_signal(signal.SIGTERM)
            output, _ = running.communicate(timeout=20)
        finally:
            running.kill()
    assert offenders(output, NEVER) == []
