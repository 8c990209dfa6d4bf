"""How many live sessions one worker listens to on one core, at the pace of life.

Each session sends 16 kHz audio in chunks of 20 or 100 ms, speech and pauses by turns. The worker is bound to one core;
the server, the load and the speech-to-text endpoint, which answers at once, may use all. Sessions begin one after the
other within 6 s; the `SECONDS` after that are measured. A level holds when not one chunk was looked at more than `LATE`
seconds after the server had stored it, and none was left out.
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
LEVELS = (100, 200, 300, 400, 500, 600, 800, 1000)
MODES = {"chunks_20_ms": (20, True), "chunks_20_ms_no_partials": (20, False), "chunks_100_ms": (100, True)}
"""By name in `voice.json`: milliseconds of a chunk, and whether there are partial transcripts."""
SPEECH = ROOT / "tests" / "audio" / "dead_letter.wav"
LOAD_LOG = "speakers.log"
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
    for mode, (chunk_ms, partials) in MODES.items():
        held: Level | None = None
        for sessions in LEVELS:
            level = await _level(sessions, chunk_ms, partials)
            print(f"{mode:26}{sessions:>10}{level.chunks / SECONDS:>10.0f}{level.core:>8.2f}{level.late:>8}"
                  f"{level.finals:>8}{level.behind_ms:>16.0f}", flush=True)  # fmt: skip
            if not level.held:
                break
            held = level
        result[mode] = {"sessions": held.sessions, "core": held.core} if held else {"sessions": 0, "core": 0.0}
    return result


async def _level(sessions: int, chunk_ms: int, partials: bool) -> Level:
    """Run a fresh worker on a fresh server."""
    say(f"{sessions} sessions, chunks of {chunk_ms} ms{', partial transcripts' if partials else ''}")
    with tempfile.TemporaryDirectory(prefix="bench-voice-") as name:
        folder = Path(name)
        async with nats_server() as url, models(folder) as upstream:
            await _provision(url)
            async with _worker(url, {**upstream, "PARTIALS": str(partials)}, sessions, folder) as (process, port):
                own, others = _cores()
                worker = psutil.Process(process.pid)
                worker.cpu_affinity(own)
                for other in psutil.Process().children():
                    if other.pid != process.pid:
                        other.cpu_affinity(others)
                speech = _speech(url, sessions, chunk_ms)
                async with running(speech, {"GOMAXPROCS": "1"}, folder / LOAD_LOG) as load:
                    psutil.Process(load.pid).cpu_affinity(others)
                    await _said(load, folder, "ramped")
                    before, (chunks, soon) = _cpu_seconds(worker), await asyncio.to_thread(_lag, port)
                    await _said(load, folder, "spoken")
                    after, (chunks_then, soon_then) = _cpu_seconds(worker), await asyncio.to_thread(_lag, port)
                    told = await _told(load, folder)
                all_chunks, _ = await asyncio.to_thread(_lag, port)
                if process.returncode is not None:
                    raise BenchmarkError(f"stt_module ended:\n{end_of(folder / 'worker.log')}")
    never = max(0, told["all_chunks"] - all_chunks)
    late = int((chunks_then - chunks) - (soon_then - soon) + never)
    return Level(sessions, told["chunks"], late, round((after - before) / told["seconds"], 2), told["behind_ms"],
                 told["finals"], told["errors"])  # fmt: skip


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _cores() -> tuple[list[int], list[int]]:
    cores = sorted(os.sched_getaffinity(0))
    return cores[:1], cores


async def _provision(url: str) -> None:
    connection = await connect(NatsSettings(nats_url=url), "benchmark")
    try:
        await streams.apply(Api(connection))
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def _worker(
    url: str, settings: Mapping[str, str], sessions: int, folder: Path
) -> AsyncIterator[tuple[Process, int]]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    env = {**settings, "NATS_URL": url, "HEALTH_HOST": "127.0.0.1", "HEALTH_PORT": str(port), "LOG_LEVEL": "warning",
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


def _speech(url: str, sessions: int, chunk_ms: int) -> tuple[str, ...]:
    return (str(BINARIES / "speakers"), "-url", url, "-sessions", str(sessions), "-seconds", str(SECONDS),
            "-chunk-ms", str(chunk_ms), "-wav", str(SPEECH))  # fmt: skip


async def _said(load: Process, folder: Path, word: str) -> None:
    """Wait until the load says so."""
    while f"{word}\n" not in (folder / LOAD_LOG).read_text():
        if load.returncode is not None:
            raise BenchmarkError(f"the load failed:\n{end_of(folder / LOAD_LOG)}")
        await asyncio.sleep(0.02)


async def _told(load: Process, folder: Path) -> dict[str, Any]:
    """What the load tells of itself at its end."""
    if await load.wait():
        raise BenchmarkError(f"the load failed:\n{end_of(folder / LOAD_LOG)}")
    told: dict[str, Any] = json.loads((folder / LOAD_LOG).read_text().splitlines()[-1])
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
