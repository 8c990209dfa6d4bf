"""What takes part in a turn: the handlers to compare, and the models and the vector store that answer them at once."""

import asyncio
import contextlib
import json
import os
import shutil
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import BUILD, PYTHON, BenchmarkError, end_of, running, say

MAX_IN_FLIGHT = 200
BINARIES = BUILD / "turns"
START_PATIENCE = 10.0
LOAD_ENV = {"GOMAXPROCS": "1"}
UPSTREAMS_ENV = {"GOMAXPROCS": str(max(1, (os.cpu_count() or 1) // 2))}
"""Threads that spin for work would take turns with the candidate on a small machine, and show in its percentiles."""


@dataclass(frozen=True)
class Candidate:
    """A handler that answers the questions."""

    name: str
    """Its key in `turns.json`."""
    label: str
    command: tuple[str, ...]


CANDIDATES = (
    Candidate("ours", "chat_handler", (PYTHON, "-m", "chat_handler")),
    Candidate("nats_go", "nats.go", (str(BINARIES / "nats_go"),)),
)


async def build() -> bool:
    """Build the load, the upstreams and the candidate in Go; false, with a word, where there is no Go to do it."""
    if shutil.which("go") is None:
        say("skipped: turns (its load and its upstreams need `go`, which is not on the PATH)")
        return False
    say("building the turns' load, upstreams and nats.go handler")
    BINARIES.mkdir(parents=True, exist_ok=True)
    log = BUILD / "turns_build.log"
    command = ("go", "build", "-C", "benchmarks/turns", "-trimpath", "-o", f"{BINARIES}/", "./...")
    async with running(command, {}, log) as process:
        if await process.wait():
            say(f"skipped: turns (its programs in Go did not build)\n{end_of(log)}")
            return False
    return True


@contextlib.asynccontextmanager
async def upstreams(folder: Path) -> AsyncIterator[tuple[Process, dict[str, str]]]:
    """Run the upstreams; gives their process, and the settings with which a handler finds them."""
    log = folder / "upstreams.log"
    async with running((str(BINARIES / "upstreams"),), UPSTREAMS_ENV, log) as process:
        urls = await _addresses(process, log)
        models = dict.fromkeys(("LLM_URL", "EMBEDDINGS_URL", "RERANKER_URL"), urls["models"])
        yield process, {**models, "MILVUS_URI": urls["milvus"]}


async def _addresses(process: Process, log: Path) -> Mapping[str, str]:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_PATIENCE):
            while process.returncode is None:
                line, end, _ = log.read_text().partition("\n")
                if end:
                    addresses: dict[str, str] = json.loads(line)
                    return addresses
                await asyncio.sleep(0.01)
    raise BenchmarkError(f"the upstreams did not start:\n{end_of(log)}")


@contextlib.asynccontextmanager
async def handler(candidate: Candidate, url: str, settings: Mapping[str, str], log: Path) -> AsyncIterator[Process]:
    """Run a candidate; it takes questions as soon as it can, which the first of them waits for."""
    env = {
        **settings,
        "NATS_URL": url,
        "MAX_IN_FLIGHT": str(MAX_IN_FLIGHT),
        "HEALTH_HOST": "127.0.0.1",
        "HEALTH_PORT": "0",
    }
    async with running(candidate.command, env, log) as process:
        yield process
