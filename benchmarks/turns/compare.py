"""Chat turns a second, what a handler adds to a turn, and what CPU time it takes: ours beside one in Go.

The upstreams answer at once, so that a turn's time is the handler's, JetStream's and that of the calls between.
"""

import asyncio
import json
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from benchmarks.processes import BenchmarkError, end_of, nats_server, running, say
from benchmarks.turns.candidates import (
    BINARIES,
    CANDIDATES,
    LOAD_ENV,
    MAX_IN_FLIGHT,
    Candidate,
    build,
    handler,
    upstreams,
)
from benchmarks.turns.report import Figures, print_table, summary
from handler_core import streams
from handler_core.config import NatsSettings
from handler_core.connection import connect
from handler_core.jetstream import Api

CONCURRENCY = (1, 10, 50, MAX_IN_FLIGHT)
"""Turns in flight."""
MODES = {"llm": False, "rag": True}
"""`llm`: the LLM alone. `rag`: embed, search, rerank, LLM."""
SECONDS = 1.0
"""How long a measurement lasts, after as many turns as are in flight and before the last of them end."""
WARM_UP = 20
"""Turns in each mode before a process is measured."""

Samples = dict[tuple[str, int, str], list[Figures]]
"""By mode, turns in flight and candidate."""


@dataclass(frozen=True)
class _Bench:
    """One candidate at work, and who works beside it."""

    url: str
    folder: Path
    candidate: Candidate
    process: Process
    handler: psutil.Process
    upstreams: psutil.Process
    server: psutil.Process

    async def measure(self, concurrency: int, rag: bool, *, warm_up: int, seconds: float) -> Figures:
        """Keep so many turns in flight, measured once `warm_up` of them are done.

        Raises:
            BenchmarkError: the candidate ended, did not answer, or gave a wrong answer.
        """
        log = self.folder / "load.log"
        command = (str(BINARIES / "load"), "-url", self.url, f"-rag={str(rag).lower()}", "-concurrency",
                   str(concurrency), "-warm-up", str(warm_up), "-seconds", str(seconds))  # fmt: skip
        at_work = (self.handler, self.upstreams, self.server)
        before = [_cpu_seconds(process) for process in at_work]
        async with running(command, LOAD_ENV, log) as load:
            await self._end(load)
            if self.process.returncode is not None:
                raise BenchmarkError(
                    f"{self.candidate.label} ended with {self.process.returncode}:\n{end_of(self.log)}"
                )
            if load.returncode:
                raise BenchmarkError(f"{self.candidate.label}: {end_of(log)}\n{end_of(self.log)}")
        own, upstreams, server = (_cpu_seconds(process) - was for process, was in zip(at_work, before, strict=True))
        told: dict[str, Any] = json.loads(log.read_text())
        return Figures(
            turns_per_second=told["turns_per_second"],
            latency_ms=tuple(told["latency_ms"]),
            first_chunk_ms=tuple(told["first_chunk_ms"]),
            events_per_turn=told["events_per_turn"],
            turns=told["all_turns"],
            cpu_seconds=own,
            beside={"load": told["cpu_seconds"], "upstreams": upstreams, "nats_server": server},
        )

    async def _end(self, load: Process) -> None:
        """Wait for the end of the load, or of the candidate, which the load would wait for in vain."""
        ends = [asyncio.ensure_future(process.wait()) for process in (load, self.process)]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()

    @property
    def log(self) -> Path:
        return self.folder / f"{self.candidate.name}.log"


async def run(rounds: int) -> dict[str, object] | None:
    """Measure both in turn; gives the content of `turns.json`, and prints the tables. None where there is no Go."""
    if not await build():
        return None
    samples: Samples = {}
    with tempfile.TemporaryDirectory(prefix="bench-turns-") as folder:
        async with upstreams(Path(folder)) as (process, settings):
            for number in range(1, rounds + 1):
                for candidate in CANDIDATES:
                    async with aclosing(_round(candidate, Path(folder), process, settings)) as measured:
                        async for mode, concurrency, figures in measured:
                            samples.setdefault((mode, concurrency, candidate.name), []).append(figures)
                            say(
                                f"round {number}/{rounds}  {candidate.label:12}  {mode}  {concurrency:3} in flight"
                                f" {figures.turns_per_second:7.0f} turns/s {figures.latency_ms[0]:8.2f} ms"
                            )
    result = summary(samples)
    print_table(result)
    return result


async def _round(
    candidate: Candidate, folder: Path, upstream: Process, settings: dict[str, str]
) -> AsyncGenerator[tuple[str, int, Figures], None]:
    """Measure a candidate in a fresh process, on a fresh server, in each mode with each number of turns in flight."""
    async with nats_server() as url:
        connection = await connect(NatsSettings(nats_url=url), "benchmark")
        try:
            api = Api(connection)
            await streams.apply(api)
            async with handler(candidate, url, settings, folder / f"{candidate.name}.log") as process:
                at_work = psutil.Process(process.pid), psutil.Process(upstream.pid), _server()
                bench = _Bench(url, folder, candidate, process, *at_work)
                for rag in MODES.values():
                    await bench.measure(1, rag, warm_up=WARM_UP, seconds=0.1)
                for mode, rag in MODES.items():
                    for concurrency in CONCURRENCY:
                        figures = await bench.measure(concurrency, rag, warm_up=concurrency, seconds=SECONDS)
                        yield mode, concurrency, figures
            await _check_settled(api, candidate)
        finally:
            await connection.close()


async def _check_settled(api: Api, candidate: Candidate) -> None:
    """Raise unless every question was acknowledged, at its first delivery."""
    consumer = streams.CHAT_HANDLER
    info = await api.request(f"CONSUMER.INFO.{consumer.stream}.{consumer.name}")
    left = {name: info[name] for name in ("num_pending", "num_ack_pending", "num_redelivered") if info[name]}
    if left:
        raise BenchmarkError(f"{candidate.label} left questions behind: {left}")


def _server() -> psutil.Process:
    return next(child for child in psutil.Process().children() if child.name() == "nats-server")


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
