"""What it costs to follow many runs at once, beside a bridge that has a watch for each.

The cluster is emulated (`local_cluster`), in a process of its own. All runs are triggered at once and told by hand to
wait, to run and to succeed. Told: memory with all of them followed, open watches, calls to the API server for all of
it, processor time, and how long a change takes from the cluster's answer to the client of the status.
"""

import asyncio
import socket
import statistics
import tempfile
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import aiohttp
import msgpack
import psutil  # type: ignore[import-untyped]

from benchmarks.processes import PYTHON, BenchmarkError, end_of, nats_server, running, say
from handler_core import pipelines, streams
from handler_core.config import NatsSettings
from handler_core.connection import Connection, connect
from handler_core.contract.pipeline import TriggerRequest
from handler_core.jetstream import Api

RUNS = 500
PATIENCE = 120.0
SETTLE = 2.0
CATALOGUE = "pipelines: {batch: {engine: argo, template: batch-inference, timeout: 1h}}\n"
CANDIDATES = {"pipeline_bridge": "pipeline_bridge", "naive": "benchmarks.pipelines.naive"}
HEADINGS = {
    "rss_before_mb": "MB before",
    "rss_followed_mb": "MB, all followed",
    "watches": "open watches",
    "calls": "API calls",
    "cpu_seconds": "CPU s",
    "delay_ms": "status after, ms",
    "delay_p95_ms": "p95",
}


@dataclass(frozen=True)
class Round:
    """One candidate with all its runs, from the first trigger to the last end."""

    rss_before_mb: float
    rss_followed_mb: float
    watches: int
    calls: int
    cpu_seconds: float
    delay_ms: float
    delay_p95_ms: float


async def run(rounds: int) -> dict[str, object]:
    """Measure both in turn; gives the content of `pipelines.json`, and prints the table."""
    found: dict[str, list[Round]] = {name: [] for name in CANDIDATES}
    for number in range(1, rounds + 1):
        for name, module in CANDIDATES.items():
            measured = await _round(name, module)
            say(f"round {number}/{rounds}  {name:16} {measured.rss_followed_mb:6.1f} MB  {measured.calls:5} calls")
            found[name].append(measured)
    medians = {name: _medians(each) for name, each in found.items()}
    print(f"\n{RUNS} runs" + " " * 9 + "".join(f"{heading:>18}" for heading in HEADINGS.values()))
    for name, values in medians.items():
        print(f"{name:16}" + "".join(f"{values[key]:18.1f}" for key in HEADINGS))
    return {"runs": RUNS, **medians}


def _medians(rounds: list[Round]) -> dict[str, float]:
    return {
        field.name: round(statistics.median(getattr(each, field.name) for each in rounds), 1) for field in fields(Round)
    }


async def _round(name: str, module: str) -> Round:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-pipelines-")))
        nats = await stack.enter_async_context(nats_server())
        nc = await connect(NatsSettings(nats_url=nats), "benchmark")
        stack.push_async_callback(nc.close)
        await streams.apply(Api(nc))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        cluster, port = Cluster(http, _free_port()), _free_port()
        (folder / "pipelines.yaml").write_text(CATALOGUE)
        kubeconfig = folder / "kubeconfig"
        listening = {"HOST": "127.0.0.1", "PORT": str(cluster.port), "LOG_LEVEL": "error"}
        served = (PYTHON, "-m", "local_cluster", "--write-kubeconfig", str(kubeconfig))
        await stack.enter_async_context(running(served, listening, folder / "cluster.log"))
        await _until_answers(http, f"{cluster.url}/version")
        await cluster.post("hold")
        environment = {
            "NATS_URL": nats, "KUBECONFIG": str(kubeconfig), "PIPELINES_FILE": str(folder / "pipelines.yaml"),
            "HEALTH_HOST": "127.0.0.1", "HEALTH_PORT": str(port), "LOG_LEVEL": "warning", "MAX_IN_FLIGHT": "1000",
        }  # fmt: skip
        log = folder / f"{name}.log"
        process = await stack.enter_async_context(running((PYTHON, "-m", module), environment, log))
        try:
            async with asyncio.timeout(PATIENCE):
                return await _measure(nc, cluster, psutil.Process(process.pid))
        except (TimeoutError, psutil.NoSuchProcess) as error:
            raise BenchmarkError(f"{name} was not done in {PATIENCE:g} s ({error!r}):\n{end_of(log)}") from None


async def _measure(nc: Connection, cluster: "Cluster", process: Any) -> Round:
    await _bound(nc)
    await asyncio.sleep(SETTLE)
    before, cpu = _resident(process), process.cpu_times()
    heard = Heard()
    await nc.subscribe("ai.pipeline.status.*", cb=heard.take)
    ids = [uuid.uuid4().hex for _ in range(RUNS)]
    for request_id in ids:
        await pipelines.trigger(Api(nc), TriggerRequest(request_id=request_id, pipeline="batch"))
    await heard.all(ids, "submitted")
    await asyncio.sleep(SETTLE)
    followed, watches = _resident(process), await cluster.watches()
    delays = []
    for phase in ("Pending", "Running", "Succeeded"):
        for request_id in ids:
            await cluster.post("advance", engine="argo", name=heard.runs[request_id], phase=phase)
            heard.changed[request_id, phase.lower()] = time.perf_counter()
        await heard.all(ids, phase.lower())
        delays += [heard.at[key] - heard.changed[key] for key in ((each, phase.lower()) for each in ids)]
    spent = process.cpu_times()
    calls = await cluster.calls()
    return Round(
        before,
        followed,
        watches,
        calls,
        spent.user + spent.system - cpu.user - cpu.system,
        1000 * statistics.median(delays),
        1000 * statistics.quantiles(delays, n=20)[-1],
    )


class Heard:
    """The statuses that a client has been told, and when."""

    def __init__(self) -> None:
        self.at: dict[tuple[str, str], float] = {}
        self.changed: dict[tuple[str, str], float] = {}
        self.runs: dict[str, str] = {}
        self._news = asyncio.Event()

    async def take(self, message: Any) -> None:
        told = msgpack.unpackb(message.data)
        self.at.setdefault((told["request_id"], told["status"]), time.perf_counter())
        self.runs[told["request_id"]] = told["run_id"]
        self._news.set()

    async def all(self, ids: list[str], status: str) -> None:
        while any((request_id, status) not in self.at for request_id in ids):
            self._news.clear()
            await self._news.wait()


class Cluster:
    """The emulated cluster's control."""

    def __init__(self, http: aiohttp.ClientSession, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._http = http

    async def post(self, action: str, **body: Any) -> None:
        async with self._http.post(f"{self.url}/control/{action}", json=body) as answer:
            answer.raise_for_status()

    async def _calls(self) -> dict[str, Any]:
        async with self._http.get(f"{self.url}/control/calls") as answer:
            return dict(await answer.json())

    async def calls(self) -> int:
        """All but the creation of runs, of which each candidate needs one a run."""
        told = (await self._calls())["calls"]
        return sum(count for call, count in told.items() if not call.startswith("POST"))

    async def watches(self) -> int:
        told = (await self._calls())["open"]
        return sum(count for call, count in told.items() if call.startswith("WATCH"))


async def _bound(nc: Connection) -> None:
    """Wait until somebody pulls from the queue."""
    while not (await Api(nc).request("CONSUMER.INFO.AI_PIPELINE.pipeline_bridge"))["num_waiting"]:
        await asyncio.sleep(0.05)


async def _until_answers(http: aiohttp.ClientSession, url: str) -> None:
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        try:
            async with http.get(url) as answer:
                if answer.status == 200:
                    return
        except aiohttp.ClientConnectionError:
            await asyncio.sleep(0.02)
    raise BenchmarkError(f"{url} did not answer")


def _resident(process: Any) -> float:
    return float(process.memory_info().rss) / 2**20


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
