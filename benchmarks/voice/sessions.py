"""How many live sessions one worker listens to on one core, at the pace of life.

Each session sends 16 kHz audio in chunks of 20 or 100 ms, speech and pauses by turns. The worker has a core of its own
(where there are two or more); the server, the load and the speech-to-text endpoint, which answers at once, share the
others. A level holds when not one chunk was looked at more than `LATE` seconds after the server had stored it.
"""

import asyncio
import contextlib
import json
import os
import socket
import tempfile
import urllib.request
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from benchmarks.processes import PYTHON, ROOT, BenchmarkError, end_of, nats_server, running, say
from benchmarks.voice.programs import BINARIES, models

from handler_core import streams
from handler_core.config import NatsSettings
from handler_core.connection import connect
from handler_core.jetstream import Api

LATE = 0.1
SECONDS = 8.0
LEVELS = (100, 200, 300, 400, 500, 600, 800, 1000, 1200)
CHUNKS = (20, 100)
SPEECH = ROOT / "tests" / "audio" / "dead_letter.wav"
LAG = "handler_stt_chunk_lag_seconds"


@dataclass(frozen=True)
class Level:
    """What came of so many sessions."""

    sessions: int
    chunks: int
    late: int
    """Chunks that were looked at more than `LATE` seconds after they had been stored."""
    core: float
    """Share of a core that the worker used."""
    behind_ms: float
    """How far the load itself fell behind its own pace, at worst."""
    finals: int
    errors: int

    @property
    def held(self) -> bool:
        return self.late == 0 and self.errors == 0 and self.finals > 0


async def run() -> dict[str, dict[str, float]]:
    """Find the highest level that holds, for each size of chunk; gives `stt_sessions_per_core` of `voice.json`."""
    print(
        f"\n{'sessions':>10}{'chunk ms':>10}{'chunks/s':>10}{'core':>8}{'late':>8}{'finals':>8}{'load behind ms':>16}"
    )
    result: dict[str, dict[str, float]] = {}
    for chunk_ms in CHUNKS:
        held: Level | None = None
        for sessions in LEVELS:
            level = await _level(sessions, chunk_ms)
            print(f"{sessions:>10}{chunk_ms:>10}{level.chunks / SECONDS:>10.0f}{level.core:>8.2f}{level.late:>8}"
                  f"{level.finals:>8}{level.behind_ms:>16.0f}", flush=True)  # fmt: skip
            if not level.held:
                break
            held = level
        result[f"chunks_{chunk_ms}_ms"] = (
            {"sessions": held.sessions, "core": held.core} if held else {"sessions": 0, "core": 0.0}
        )
    return result


async def _level(sessions: int, chunk_ms: int) -> Level:
    """Run a fresh worker on a fresh server."""
    say(f"{sessions} sessions, chunks of {chunk_ms} ms")
    with tempfile.TemporaryDirectory(prefix="bench-voice-") as name:
        folder = Path(name)
        async with nats_server() as url, models(folder) as upstream:
            await _provision(url)
            async with _worker(url, upstream, sessions, folder) as (process, port):
                own, others = _cores()
                worker = psutil.Process(process.pid)
                worker.cpu_affinity(own)
                for other in psutil.Process().children():
                    if other.pid != process.pid:
                        other.cpu_affinity(others)
                before = worker.cpu_times()
                told = await _speak(url, sessions, chunk_ms, folder, others)
                after = worker.cpu_times()
                chunks, soon = await asyncio.to_thread(_lag, port)
                if process.returncode is not None:
                    raise BenchmarkError(f"stt_module ended:\n{end_of(folder / 'worker.log')}")
    used = after.user + after.system - before.user - before.system
    expected = told["chunks"]
    if chunks < expected:
        say(f"only {chunks:.0f} of {expected} chunks were looked at")
    late = int(max(chunks, expected) - soon)
    return Level(sessions, told["chunks"], late, round(used / told["seconds"], 2), told["behind_ms"],
                 told["finals"], told["errors"])  # fmt: skip


def _cores() -> tuple[list[int], list[int]]:
    cores = sorted(os.sched_getaffinity(0))
    return cores[:1], cores[1:] or cores


async def _provision(url: str) -> None:
    connection = await connect(NatsSettings(nats_url=url), "benchmark")
    try:
        await streams.apply(Api(connection))
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def _worker(
    url: str, upstream: Mapping[str, str], sessions: int, folder: Path
) -> AsyncIterator[tuple[Process, int]]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    env = {**upstream, "NATS_URL": url, "HEALTH_HOST": "127.0.0.1", "HEALTH_PORT": str(port), "LOG_LEVEL": "warning",
           "MAX_SESSIONS": str(sessions + 8), "STT_CONCURRENCY": "32"}  # fmt: skip
    async with running((PYTHON, "-m", "stt_module"), env, folder / "worker.log") as process:
        async with asyncio.timeout(30):
            while not await asyncio.to_thread(_ready, port):
                if process.returncode is not None:
                    raise BenchmarkError(f"stt_module ended:\n{end_of(folder / 'worker.log')}")
                await asyncio.sleep(0.05)
        yield process, port


def _ready(port: int) -> bool:
    with contextlib.suppress(OSError):
        return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2).status == 200)
    return False


async def _speak(url: str, sessions: int, chunk_ms: int, folder: Path, cores: list[int]) -> dict[str, Any]:
    log = folder / "speakers.log"
    command = (str(BINARIES / "speakers"), "-url", url, "-sessions", str(sessions), "-seconds", str(SECONDS),
               "-chunk-ms", str(chunk_ms), "-wav", str(SPEECH))  # fmt: skip
    async with running(command, {"GOMAXPROCS": "1"}, log) as process:
        psutil.Process(process.pid).cpu_affinity(cores)
        if await process.wait():
            raise BenchmarkError(f"the load failed:\n{end_of(log)}")
    told: dict[str, Any] = json.loads(log.read_text())
    return told


def _lag(port: int) -> tuple[float, float]:
    """How many chunks the worker has looked at, and how many of them within `LATE`."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    count = soon = 0.0
    for line in text.splitlines():
        if line.startswith(f"{LAG}_count"):
            count += float(line.rpartition(" ")[2])
        elif line.startswith(f"{LAG}_bucket") and f'le="{LATE:g}"' in line:
            soon += float(line.rpartition(" ")[2])
    return count, soon
