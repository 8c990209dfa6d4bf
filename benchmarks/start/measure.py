"""How soon a handler is ready and what it then holds, beside one that imports everything at the top.

Ready: from just before the process is started until `/readyz` first says 200, asked every few milliseconds, against a
real NATS server with the streams and the consumer in place. Upstreams are named but not there: no start needs them.
Resident memory is read a little later, so that what is put off until just after the start counts too.
"""

import asyncio
import contextlib
import socket
import statistics
import tempfile
import time
from asyncio.subprocess import Process
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from benchmarks.processes import PYTHON, BenchmarkError, end_of, nats_server, running, say
from handler_core import streams
from handler_core.config import NatsSettings
from handler_core.connection import connect
from handler_core.jetstream import Api

ASK_EVERY = 0.004
"""Seconds between two looks at `/readyz`."""
PATIENCE = 60.0
SETTLE = 2.0
"""Seconds from ready until memory is read."""
NOWHERE = "http://127.0.0.1:9"
UPSTREAMS = dict.fromkeys(("LLM_URL", "EMBEDDINGS_URL", "RERANKER_URL", "MILVUS_URI"), NOWHERE)
CANDIDATES = {
    "chat_handler": (PYTHON, "-m", "chat_handler"),
    "naive": (PYTHON, "-m", "benchmarks.start.naive"),
}


@dataclass(frozen=True)
class Start:
    """One start of one process."""

    ready_ms: float
    rss_mb: float
    """Mebibytes."""


async def run(rounds: int) -> dict[str, object]:
    """Measure both in turn; gives the content of `start.json`, and prints the table."""
    starts: dict[str, list[Start]] = {name: [] for name in CANDIDATES}
    with tempfile.TemporaryDirectory(prefix="bench-start-") as folder:
        async with nats_server() as url:
            await _provision(url)
            for number in range(rounds + 1):
                for name, command in CANDIDATES.items():
                    start = await _start(command, url, Path(folder) / f"{name}.log")
                    if not number:
                        continue  # this one has compiled the modules and warmed the page cache
                    say(f"round {number}/{rounds}  {name:14} ready {start.ready_ms:6.0f} ms  {start.rss_mb:6.1f} MB")
                    starts[name].append(start)
    _print_table(starts)
    return {
        name: {
            "ready_ms": round(statistics.median(start.ready_ms for start in found), 1),
            "rss_mb": round(statistics.median(start.rss_mb for start in found), 1),
        }
        for name, found in starts.items()
    }


async def _provision(url: str) -> None:
    connection = await connect(NatsSettings(nats_url=url), "benchmark")
    try:
        await streams.apply(Api(connection))
    finally:
        await connection.close()


async def _start(command: tuple[str, ...], url: str, log: Path) -> Start:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    env = {**UPSTREAMS, "NATS_URL": url, "HEALTH_HOST": "127.0.0.1", "HEALTH_PORT": str(port)}
    began = time.perf_counter()
    async with running(command, env, log) as process:
        try:
            async with asyncio.timeout(PATIENCE):
                await _until_ready(process, port)
        except TimeoutError:
            raise BenchmarkError(f"{command[-1]} was not ready in {PATIENCE:g} s:\n{end_of(log)}") from None
        ready = time.perf_counter() - began
        if process.returncode is None:
            await asyncio.sleep(SETTLE)
        if process.returncode is not None:
            raise BenchmarkError(f"{command[-1]} ended with {process.returncode}:\n{end_of(log)}")
        rss = psutil.Process(process.pid).memory_info().rss
    return Start(ready * 1000, rss / 2**20)


async def _until_ready(process: Process, port: int) -> None:
    """Return as soon as `/readyz` says 200, or the process has ended."""
    while process.returncode is None:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                if b" 200 " in await reader.readline():
                    return
            finally:
                writer.close()
        await asyncio.sleep(ASK_EVERY)


def _print_table(starts: dict[str, list[Start]]) -> None:
    print(f"\n{'start':16}{'ready ms':>10}{'lowest':>10}{'highest':>10}{'rss MB':>10}")
    for name, found in starts.items():
        ready = [start.ready_ms for start in found]
        rss = statistics.median(start.rss_mb for start in found)
        print(f"{name:16}{statistics.median(ready):>10.0f}{min(ready):>10.0f}{max(ready):>10.0f}{rss:>10.1f}")
