"""A run is started once and seen to its end, whatever becomes of the bridge that follows it.

Real processes of `pipeline_bridge` and NATS; the cluster is emulated over HTTP.
"""

import asyncio
import contextlib
import signal
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
from handler_core.testing import NatsServer, connection, nats_server, stored, until
from handler_core.testing_workers import Worker, service_process
from local_cluster.store import WORKFLOWS
from local_cluster.testing import RunningCluster, running

TAKEOVER = streams.PIPELINE_BRIDGE.ack_wait + 2
CATALOGUE = """
pipelines:
  ingest:
    engine: argo
    template: document-ingestion
    parameters: {source: {type: string, required: true}}
  ask: {engine: kubeflow, pipeline: rag-query, parameters: {question: {type: string, required: true}}}
"""
MANY = 500

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


@pytest.mark.parametrize("pipeline", ["ingest", "ask"])
async def test_killed_between_submission_and_first_status_the_run_is_found_again(
    nc: Connection, cluster: RunningCluster, bridges: Bridges, pipeline: str
) -> None:
    first = await bridges.start()
    posts = "/workflows$" if pipeline == "ingest" else "/runs$"
    cluster.faults.add(match={"method": "POST", "path": posts}, cut_after=1, stall=True)
    request_id = await trigger(nc, pipeline, **({"source": "s3://x"} if pipeline == "ingest" else {"question": "?"}))
    await until(lambda: cluster.store.objects(WORKFLOWS) or cluster.kubeflow.created, "the run was created")
    assert await kept(nc, request_id) == []
    first.process.kill()
    await bridges.start()
    [submitted] = await told(nc, request_id, "submitted", timeout=TAKEOVER + 10)
    if pipeline == "ingest":
        cluster.workflows.advance(submitted.run_id, "Succeeded")
    else:
        cluster.kubeflow.advance(submitted.run_id, "SUCCEEDED")
    await told(nc, request_id)
    await settled(nc)

    assert states(await kept(nc, request_id))[-1] == "succeeded"
    assert [status.status.final for status in await kept(nc, request_id)].count(True) == 1
    assert len(cluster.store.objects(WORKFLOWS)) + cluster.kubeflow.created == 1
    assert await stored(nc, "DLQ", "dlq.>") == []


async def test_killed_during_a_watch_the_next_follows_to_the_end(
    nc: Connection, cluster: RunningCluster, bridges: Bridges
) -> None:
    first = await bridges.start()
    request_id = await trigger(nc, source="s3://x")
    [submitted] = await told(nc, request_id, "submitted")
    cluster.workflows.advance(submitted.run_id, "Running")
    await told(nc, request_id, "running")
    first.process.kill()
    cluster.workflows.advance(submitted.run_id, "Succeeded")  # while nobody looks
    await bridges.start()
    found = await told(nc, request_id, timeout=TAKEOVER + 10)
    await settled(nc)

    assert states(found) == states(await kept(nc, request_id)) == ["submitted", "running", "succeeded"]
    assert len(cluster.store.objects(WORKFLOWS)) == 1


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
