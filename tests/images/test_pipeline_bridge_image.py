"""The image of the pipeline bridge, run as in a cluster: read-only, not as root, with a pod's own access to an
emulated API server, over TLS."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, aclosing
from functools import partial
from pathlib import Path

import pytest

from handler_core import pipelines
from handler_core.connection import Connection
from handler_core.contract.pipeline import PipelineStatus, RunStatus, TriggerRequest
from handler_core.jetstream import Api
from handler_core.testing import until
from handler_core.testing_images import Container, Engine, importing
from local_cluster.store import WORKFLOWS
from local_cluster.testing import RunningCluster, running

TOKEN = "the-token-of-a-service-account"
FINAL = {status for status in RunStatus if status.final}

Start = Callable[..., AbstractContextManager[Container]]


@pytest.fixture
async def cluster() -> AsyncIterator[RunningCluster]:
    """A cluster whose runs move only by hand."""
    async with running(tls=True, tokens=[TOKEN], hold=True) as cluster:
        yield cluster


@pytest.fixture
def begin(start: Start, cluster: RunningCluster, tmp_path: Path) -> Start:
    """Starts a container as a pod of the cluster."""
    cluster.service_account(tmp_path / "account")
    return partial(start, "pipeline_bridge", SERVICE_ACCOUNT_DIR="/etc/pipelines/account", **cluster.in_cluster)


async def trigger(nc: Connection) -> str:
    request = TriggerRequest(pipeline="ingest", request_id=uuid.uuid4().hex)
    await pipelines.trigger(Api(nc), request)
    return str(request.request_id)


async def told(nc: Connection, request_id: str, *states: RunStatus) -> list[PipelineStatus]:
    """The statuses up to the first of these states; up to the final one without any."""
    found = []
    async with aclosing(pipelines.statuses(nc, request_id)) as statuses, asyncio.timeout(60):
        async for status in statuses:
            found.append(status)
            if status.status in (states or FINAL):
                break
    return found


async def queued(nc: Connection) -> int:
    """Triggers that are not settled."""
    return int((await Api(nc).request("STREAM.INFO.AI_PIPELINE"))["state"]["messages"])


async def test_it_follows_a_run_to_its_success_and_ends_in_order(
    begin: Start, nc: Connection, cluster: RunningCluster
) -> None:
    with begin() as container:
        await container.ready()
        assert [each.name for each in (await pipelines.catalogue(nc)).pipelines] == ["ingest"]
        request_id = await trigger(nc)
        submitted = await told(nc, request_id, RunStatus.SUBMITTED)
        for phase in ("Pending", "Running", "Succeeded"):
            cluster.workflows.advance(submitted[-1].run_id, phase)
            statuses = await told(nc, request_id, RunStatus(phase.lower()))
        code, _, logged = await container.ended()
    assert [status.status for status in statuses] == ["submitted", "pending", "running", "succeeded"]
    assert await queued(nc) == 0
    assert code == 0, logged
    assert TOKEN not in logged


async def test_stopped_it_hands_its_run_to_the_next_one_which_starts_no_other(
    begin: Start, nc: Connection, cluster: RunningCluster
) -> None:
    with begin() as container:
        await container.ready()
        request_id = await trigger(nc)
        name = (await told(nc, request_id, RunStatus.SUBMITTED))[-1].run_id
        cluster.workflows.advance(name, "Running")
        await told(nc, request_id, RunStatus.RUNNING)
        code, _, logged = await container.ended()
    assert code == 0, logged
    assert await queued(nc) == 1
    cluster.workflows.advance(name, "Succeeded")
    with begin():
        statuses = await told(nc, request_id)
        await until(lambda: _settled(nc), "the trigger is settled")
    assert [status.status for status in statuses] == ["submitted", "running", "succeeded"]
    assert [workflow["metadata"]["name"] for workflow in cluster.store.objects(WORKFLOWS)] == [name]


async def _settled(nc: Connection) -> bool:
    return await queued(nc) == 0


async def test_a_certificate_of_another_authority_is_not_trusted(
    begin: Start, nc: Connection, cluster: RunningCluster, tmp_path: Path
) -> None:
    async with running(tls=True) as other:
        other.service_account(tmp_path / "account", token=TOKEN)
    with begin() as container:
        await container.ready()
        request_id = await trigger(nc)
        line = await asyncio.wait_for(asyncio.to_thread(_first, container, "submit_failed"), 60)
        await container.ended()
    assert "certificate" in line
    assert await pipelines.latest(Api(nc), request_id) is None
    assert cluster.store.objects(WORKFLOWS) == []


def _first(container: Container, event: str) -> str:
    """The first line of the log that tells of an event."""
    assert container.process.stderr is not None
    return next(line for line in container.process.stderr if f'"{event}"' in line)


async def test_what_reads_kubeconfigs_can_be_imported(engine: Engine, image_of: Callable[[str], str]) -> None:
    code = "from pipeline_bridge import slim; kubernetes_config = slim.loaders()\n" + importing(
        "kubernetes_asyncio.config"
    )
    assert await engine.run(image_of("pipeline_bridge"), code) == (0, "", "")
