"""A run is started once and seen to its end, whatever becomes of the bridge that follows it.

Real processes of `pipeline_bridge` and NATS; the cluster is emulated over HTTP.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from handler_core import pipelines, streams
from handler_core.codec import decode
from handler_core.connection import Connection
from handler_core.contract.pipeline import PipelineStatus, TriggerRequest
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, connection, free_port, nats_server, stored, until
from handler_core.testing_workers import Worker, service_process
from local_cluster.store import RAY_JOBS, WORKFLOWS
from local_cluster.testing import RunningCluster, running

TAKEOVER = streams.PIPELINE_BRIDGE.ack_wait + 2
CATALOGUE = """
pipelines:
  ingest:
    engine: argo
    template: document-ingestion
    parameters: {source: {type: string, required: true}}
  ask: {engine: kubeflow, pipeline: rag-query, parameters: {question: {type: string, required: true}}}
  train: {engine: rayjob, template: train.yaml}
"""
RAYJOB = """
apiVersion: ray.io/v1
kind: RayJob
spec:
  entrypoint: python train.py
  rayClusterSpec:
    headGroupSpec: {rayStartParams: {}, template: {spec: {containers: [{name: head, image: ray}]}}}
"""
PARAMETERS = {"ingest": {"source": "s3://x"}, "ask": {"question": "?"}, "train": {}}
"""Of the pipeline of each engine."""
MANY = 500
ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def nats() -> Iterator[NatsServer]:
    with nats_server() as server:
        yield server


@pytest.fixture
async def nc(nats: NatsServer) -> AsyncIterator[Connection]:
    async with connection(nats.url) as nc:
        await streams.apply(Api(nc))
        for name in ("AI_PIPELINE", "AI_PIPELINE_STATUS", "DLQ"):
            await Api(nc).request(f"STREAM.PURGE.{name}")
        yield nc


@pytest.fixture
async def cluster() -> AsyncIterator[RunningCluster]:
    async with running(hold=True, tokens=["secret"]) as cluster:
        yield cluster


class Bridges:
    """Bridges of one installation, each a process."""

    def __init__(self, nats: NatsServer, cluster: RunningCluster, folder: Path, stack: contextlib.ExitStack) -> None:
        catalogue, token = folder / "pipelines.yaml", folder / "token"
        catalogue.write_text(CATALOGUE)
        (folder / "train.yaml").write_text(RAYJOB)
        token.write_text("secret\n")
        self._environment = {
            "NATS_URL": nats.url, "PIPELINES_FILE": str(catalogue), "KUBECONFIG": str(cluster.kubeconfig(folder / "k")),
            "KUBEFLOW_HOST": cluster.url, "KUBEFLOW_TOKEN_PATH": str(token), "KUBEFLOW_POLL_INTERVAL": "0.2",
        }  # fmt: skip
        self._stack = stack

    async def start(self) -> Worker:
        worker = self._stack.enter_context(service_process("pipeline_bridge", self._environment))
        await until(worker.ready, "the bridge is ready")
        return worker


@pytest.fixture
def bridges(nats: NatsServer, nc: Connection, cluster: RunningCluster, tmp_path: Path) -> Iterator[Bridges]:
    with contextlib.ExitStack() as stack:
        yield Bridges(nats, cluster, tmp_path, stack)


async def trigger(nc: Connection, pipeline: str = "ingest", **parameters: str) -> str:
    request = TriggerRequest(request_id=uuid.uuid4().hex, pipeline=pipeline, parameters=parameters)
    await pipelines.trigger(Api(nc), request)
    return str(request.request_id)


async def told(nc: Connection, request_id: str, *states: str, timeout: float = 30) -> list[PipelineStatus]:
    """What is told up to the first of these states; up to the end without any."""
    found = []
    async with aclosing(pipelines.statuses(nc, request_id)) as statuses, asyncio.timeout(timeout):
        async for status in statuses:
            found.append(status)
            if status.status in states:
                break
    return found


async def kept(nc: Connection, request_id: str) -> list[PipelineStatus]:
    found = await stored(nc, "AI_PIPELINE_STATUS", f"evt.pipeline.status.{request_id}")
    return [decode(each.data, PipelineStatus) for each in found]


async def settled(nc: Connection) -> None:
    async def empty() -> bool:
        return int((await Api(nc).request("STREAM.INFO.AI_PIPELINE"))["state"]["messages"]) == 0

    await until(empty, "every trigger is settled")


def states(statuses: list[PipelineStatus]) -> list[str]:
    return [status.status.value for status in statuses]


def made(cluster: RunningCluster) -> list[int]:
    """How many runs were created on each engine."""
    return [len(cluster.store.objects(WORKFLOWS)), cluster.kubeflow.created, len(cluster.store.objects(RAY_JOBS))]


def advance(cluster: RunningCluster, status: PipelineStatus, state: str) -> None:
    """Put a run into a state, by Argo's word for it."""
    if status.engine == "argo":
        cluster.workflows.advance(status.run_id, state)
    elif status.engine == "kubeflow":
        cluster.kubeflow.advance(status.run_id, state.upper())
    else:
        cluster.rayjobs.advance(status.run_id, {"Succeeded": "Complete"}.get(state, state))


async def test_killed_between_submission_and_first_status_the_runs_are_found_again(
    nc: Connection, cluster: RunningCluster, bridges: Bridges
) -> None:
    first = await bridges.start()
    posts = {"method": "POST", "path": "/(workflows|runs|rayjobs)$"}
    cluster.faults.add(match=posts, cut_after=1, stall=True, times=3)
    ids = [await trigger(nc, pipeline, **parameters) for pipeline, parameters in PARAMETERS.items()]
    await until(lambda: made(cluster) == [1, 1, 1], "the runs were created")
    assert [await kept(nc, request_id) for request_id in ids] == [[], [], []]
    first.process.kill()
    await bridges.start()
    for request_id in ids:
        advance(cluster, (await told(nc, request_id, "submitted", timeout=TAKEOVER + 10))[0], "Succeeded")
        await told(nc, request_id)
    await settled(nc)

    for request_id in ids:
        statuses = await kept(nc, request_id)
        assert states(statuses)[-1] == "succeeded"
        assert [status.status.final for status in statuses].count(True) == 1
    assert made(cluster) == [1, 1, 1]
    assert await stored(nc, "DLQ", "dlq.>") == []


async def test_killed_during_a_watch_the_next_follows_to_the_end(
    nc: Connection, cluster: RunningCluster, bridges: Bridges
) -> None:
    first = await bridges.start()
    ids = [await trigger(nc, pipeline, **PARAMETERS[pipeline]) for pipeline in ("ingest", "train")]
    submitted = [(await told(nc, request_id, "submitted"))[0] for request_id in ids]
    for request_id, status in zip(ids, submitted, strict=True):
        advance(cluster, status, "Running")
        await told(nc, request_id, "running")
    first.process.kill()
    for status in submitted:
        advance(cluster, status, "Succeeded")  # while nobody looks
    await bridges.start()
    for request_id in ids:
        found = await told(nc, request_id, timeout=TAKEOVER + 10)
        assert states(found) == ["submitted", "running", "succeeded"]
    await settled(nc)

    assert [states(await kept(nc, request_id)) for request_id in ids] == [["submitted", "running", "succeeded"]] * 2
    assert made(cluster) == [1, 0, 1]


async def test_one_that_slept_finds_the_run_followed_by_another(
    nc: Connection, cluster: RunningCluster, bridges: Bridges
) -> None:
    asleep = await bridges.start()
    request_id = await trigger(nc, source="s3://x")
    [submitted] = await told(nc, request_id, "submitted")
    asleep.process.send_signal(signal.SIGSTOP)
    other = await bridges.start()
    await until(other.busy, "another follows the run", timeout=TAKEOVER + 10)
    cluster.workflows.advance(submitted.run_id, "Running")
    await told(nc, request_id, "running")
    asleep.process.send_signal(signal.SIGCONT)
    cluster.workflows.advance(submitted.run_id, "Succeeded")
    await told(nc, request_id)
    await until(asleep.idle, "the one that slept has given up")
    await settled(nc)

    assert states(await kept(nc, request_id)) == ["submitted", "running", "succeeded"]


async def test_a_rollout_hands_every_run_over_at_once(
    nc: Connection, cluster: RunningCluster, bridges: Bridges
) -> None:
    leaving = await bridges.start()
    ids = [await trigger(nc, source=f"s3://{number}") for number in range(20)]
    runs = [(await told(nc, request_id, "submitted"))[0].run_id for request_id in ids]
    other = await bridges.start()
    leaving.process.terminate()
    assert await asyncio.to_thread(leaving.process.wait, 20) == 0
    await until(lambda: _follows(other, 20), "the other follows them all")
    for run in runs:
        cluster.workflows.advance(run, "Succeeded")
    for request_id in ids:
        assert states(await told(nc, request_id)) == ["submitted", "succeeded"]
    assert len(cluster.store.objects(WORKFLOWS)) == 20


async def _follows(worker: Worker, count: int) -> bool:
    return await worker.metric("handler_pipeline_runs") == count


async def test_one_worker_follows_500_runs_by_one_watch(
    nc: Connection, cluster: RunningCluster, bridges: Bridges
) -> None:
    worker = await bridges.start()
    before = worker.resident
    ids = [await trigger(nc, source=f"s3://{number}") for number in range(MANY)]
    await until(lambda: _follows(worker, MANY), "all are taken")
    for request_id in ids:
        await told(nc, request_id, "submitted")
    reads = {call: n for call, n in cluster.calls.items() if not call.startswith("POST") and "/workflows" in call}
    watches = {call: n for call, n in cluster.faults.open.items() if call.startswith("WATCH") and n}
    grown = worker.resident - before
    for workflow in list(cluster.store.objects(WORKFLOWS)):
        cluster.workflows.advance(workflow["metadata"]["name"], "Succeeded")
    for request_id in ids:
        assert states(await told(nc, request_id))[-1] == "succeeded"
    await settled(nc)

    assert list(watches.values()) == [1], watches
    assert sum(reads.values()) <= 12, reads  # a list has 100 a page
    assert len(cluster.store.objects(WORKFLOWS)) == MANY
    assert grown < 40, f"{grown:.1f} MiB for {MANY} runs"


# --- the development stack, as `make run-cluster` starts it


@contextlib.contextmanager
def stack(folder: Path) -> Iterator[tuple[Worker, str]]:
    """The processes of Procfile.cluster with ports and a folder of their own: its bridge, and the URL of its NATS."""
    lines = (ROOT / "Procfile.cluster").read_text()
    ports = {port: str(free_port()) for port in sorted(set(re.findall(r"\b(?:4222|8\d{3})\b", lines)))}
    for port, own in ports.items():
        lines = re.sub(rf"\b{port}\b", own, lines)
    procfile = folder / "Procfile"
    procfile.write_text(lines.replace(".data/run", str(folder)))
    nats_url = f"nats://127.0.0.1:{ports['4222']}"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    pace = {"PENDING_SECONDS": "1", "RUNNING_SECONDS": "1"}
    running = subprocess.Popen(
        [sys.executable, "-m", "honcho", "-f", str(procfile), "-d", str(ROOT), "start"],
        env={**os.environ, **pace, "PATH": path, "NATS_URL": nats_url},
        start_new_session=True,
    )
    try:
        yield Worker(running, int(ports["8084"])), nats_url
    finally:
        running.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)


async def test_with_the_emulated_cluster_a_pipeline_is_run_and_watched_to_its_end(tmp_path: Path) -> None:
    with stack(tmp_path) as (bridge, nats_url):
        await until(bridge.ready, "the bridge is ready", timeout=60)
        command = ("handlers_cli.main", "pipeline", "run", "document-ingestion", "--watch", "--json")
        run = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *command, env={**os.environ, "NATS_URL": nats_url}, stdout=subprocess.PIPE
        )
        printed, _ = await run.communicate()

    shown = [json.loads(line) for line in printed.splitlines()]
    seen = [status["status"] for status in shown if status["status"] != "pending"]
    assert seen == ["submitted", "running", "succeeded"]
    assert run.returncode == 0
