"""What a chat handler that is ready has not loaded: each of these costs memory and start that no question asked for."""

import os
import shutil
import signal
import subprocess
import sys

import aiohttp
import pytest

from handler_core.connection import Connection
from handler_core.testing import NatsServer, free_port, until
from handler_core.testing_imports import offenders, probe

NEVER = [
    "pandas", "numpy", "pymilvus", "kubernetes", "kubernetes_asyncio", "requests", "opentelemetry", "typer",
    "handler_core.otlp", "handler_core.testing", "milvus_lite", "unittest", "uvloop", "tkinter",
]  # fmt: skip
"""On any Python: that is for our own imports to see to."""
NOT_BEFORE_USED = [
    "stamina", "tenacity", "nkeys", "nacl", "pydantic.networks", "multiprocessing", "xml", "tarfile", "argparse",
    "_ssl", "_hashlib", "aiohttp.web",
]  # fmt: skip
"""Where imports are lazy."""


async def loaded(python: str, nats_url: str) -> str:
    port = free_port()
    nowhere = dict.fromkeys(("LLM_URL", "EMBEDDINGS_URL", "RERANKER_URL", "MILVUS_URI"), "http://127.0.0.1:9")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environment |= {**nowhere, "NATS_URL": nats_url, "HEALTH_HOST": "127.0.0.1", "HEALTH_PORT": str(port)}
    running = subprocess.Popen(
        [python, "-c", probe("chat_handler")], env=environment, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    try:

        async def ready() -> bool:
            try:
                async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/readyz") as answer:
                    return answer.status == 200
            except aiohttp.ClientConnectionError:
                return False

        await until(ready, "the service is ready")
        running.send_signal(signal.SIGTERM)
        output, _ = running.communicate(timeout=20)
        return output
    finally:
        running.kill()
        running.wait()


async def test_a_ready_service_has_loaded_nothing_that_it_does_not_need(nats: NatsServer, nc: Connection) -> None:
    assert offenders(await loaded(sys.executable, nats.url), NEVER) == []


async def test_with_lazy_imports_it_has_loaded_nothing_that_is_not_used_yet(nats: NatsServer, nc: Connection) -> None:
    python = sys.executable if sys.version_info >= (3, 15) else shutil.which("python3.15")
    if python is None:
        pytest.skip("no Python 3.15 here; tests/images looks at the same in the image")
    installed = subprocess.run([python, "-c", "import chat_handler.service"], check=False, capture_output=True)
    if installed.returncode:
        pytest.skip(f"{python} has no chat_handler; tests/images looks at the same in the image")
    assert offenders(await loaded(python, nats.url), [*NEVER, *NOT_BEFORE_USED]) == []


async def test_what_was_loaded_is_told_with_who_asked_for_it() -> None:
    done = subprocess.run([sys.executable, "-c", probe("calendar")], capture_output=True, text=True, check=True)
    [told] = offenders(done.stdout, ["argparse"])
    assert told.startswith("argparse <- __main__ <- ")
