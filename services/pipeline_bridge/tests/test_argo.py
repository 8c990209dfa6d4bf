"""Argo's own: what its phases mean, templates that are missing, and workflows that only the archive knows."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from handler_core.clients.failures import UpstreamError
from handler_core.clients.http import new_session
from handler_core.contract.pipeline import RunStatus
from handler_core.errors import InvalidRequest
from handler_core.tasks import background
from local_cluster.store import WORKFLOWS
from local_cluster.testing import RunningCluster, running
from pipeline_bridge import argo as argo_module
from pipeline_bridge.api import Api
from pipeline_bridge.argo import Argo
from pipeline_bridge.cluster import Cluster
from pipeline_bridge.engine import CANCEL_ANNOTATION, Observed, Run, RunGone, run_name
from pipeline_bridge.states import of_workflow

NAME = run_name("ingest", "r1")
RUN = Run(
    request_id="r1",
    pipeline="ingest",
    engine="argo",
    namespace="pipelines",
    name=NAME,
    reference={"template": "document-ingestion"},
    parameters={"source": "s3://documents"},
    timeout=60.0,
)
ASKED = {"annotations": {CANCEL_ANNOTATION: "why"}}


@pytest.mark.parametrize(
    ("phase", "spec", "metadata", "status"),
    [
        (None, {}, {}, "pending"),
        ("", {}, {}, "pending"),
        ("Pending", {}, {}, "pending"),
        ("Running", {}, {}, "running"),
        ("Succeeded", {}, {}, "succeeded"),
        ("Failed", {}, {}, "failed"),
        ("Error", {}, {}, "failed"),
        ("Unheard-of", {}, {}, "pending"),
        ("Failed", {"shutdown": "Stop"}, {}, "canceled"),
        ("Failed", {"shutdown": "Terminate"}, {}, "canceled"),
        ("Failed", {"shutdown": ""}, {}, "failed"),
        ("Error", {"shutdown": "Stop"}, {}, "canceled"),
        ("Failed", {}, ASKED, "canceled"),
        ("Error", {}, ASKED, "canceled"),
        ("Succeeded", {"shutdown": "Stop"}, ASKED, "succeeded"),
        ("Running", {"shutdown": "Stop"}, ASKED, "running"),
        ("Running", {"suspend": True}, {}, "pending"),
        ("Running", {"suspend": False}, {}, "running"),
        ("Failed", {"suspend": True}, {}, "failed"),
        ("Succeeded", {"suspend": True}, {}, "succeeded"),
    ],
)
def test_phases(phase: str | None, spec: dict[str, Any], metadata: dict[str, Any], status: str) -> None:
    workflow = {"metadata": {"name": "w", **metadata}, "spec": spec, "status": {"phase": phase, "message": "said"}}
    assert of_workflow(workflow) == Observed("w", RunStatus(status), phase or "", "said")


@pytest.mark.parametrize("absent", [{}, {"status": None}, {"status": {}, "spec": None}])
def test_a_workflow_that_nobody_has_looked_at_is_pending(absent: dict[str, Any]) -> None:
    assert of_workflow({"metadata": {"name": "w"}, **absent}) == Observed("w", RunStatus.PENDING, "")


@pytest.fixture
async def cluster() -> AsyncIterator[RunningCluster]:
    async with running() as cluster:
        cluster.workflows.hold(NAME)
        yield cluster


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with new_session() as session:
        yield session


@pytest.fixture
async def access(cluster: RunningCluster, tmp_path: Path) -> AsyncIterator[Cluster]:
    access = await Cluster.connect(kubeconfig=str(cluster.kubeconfig(tmp_path / "kubeconfig")))
    yield access
    await access.close()


async def test_an_expression_among_the_parameters_is_refused_and_nothing_created(
    access: Cluster, cluster: RunningCluster
) -> None:
    run = RUN.model_copy(update={"parameters": {"source": "s3://{{workflow.serviceAccountName}}"}})
    with pytest.raises(InvalidRequest, match=r"parameters\.source"):
        await Argo(access).submit(run)
    assert not cluster.store.objects(WORKFLOWS)


async def test_a_template_that_is_not_there_ends_the_run_with_what_argo_says(
    access: Cluster, cluster: RunningCluster
) -> None:
    cluster.workflows.release(NAME)
    argo = Argo(access)
    run = RUN.model_copy(update={"reference": {"template": "no-such-template"}})
    async with background(argo.serve()), asyncio.timeout(10):
        submitted = await argo.submit(run)
        with argo.follow(run, submitted.run_id) as changes:
            while not (observed := await changes.next()).status.final:
                pass
    assert (observed.status, observed.raw) == (RunStatus.FAILED, "Error")
    assert "no-such-template" in observed.message


async def test_a_workflow_that_is_gone_is_asked_of_the_argo_server(
    access: Cluster, cluster: RunningCluster, session: aiohttp.ClientSession
) -> None:
    argo = Argo(access, server=Api(session, "argo", cluster.url))
    submitted = await argo.submit(RUN)
    cluster.workflows.advance(NAME, "Failed", "exit code 1")
    cluster.store.delete(WORKFLOWS, "pipelines", NAME)
    assert await argo.describe(RUN, submitted.run_id) == Observed(NAME, RunStatus.FAILED, "Failed", "exit code 1")
    async with background(argo.serve()), asyncio.timeout(10):
        with argo.follow(RUN, "never-was") as changes, pytest.raises(RunGone, match="no longer there"):
            await changes.next()
        fresh = Argo(access, server=Api(session, "argo", cluster.url))
        async with background(fresh.serve()):
            with fresh.follow(RUN, NAME) as changes:
                assert (await changes.next()).message == "exit code 1"


async def test_without_an_argo_server_a_workflow_that_is_gone_is_gone(access: Cluster, cluster: RunningCluster) -> None:
    argo = Argo(access)
    async with background(argo.serve()), asyncio.timeout(10):
        with argo.follow(RUN, NAME) as changes, pytest.raises(RunGone):
            await changes.next()
    assert await argo.describe(RUN) is None


async def test_an_argo_server_that_fails_is_no_answer(
    access: Cluster, cluster: RunningCluster, session: aiohttp.ClientSession
) -> None:
    argo = Argo(access, server=Api(session, "argo", cluster.url))
    for fault in ({"status": 503}, {"garbage": True}):
        cluster.faults.add(**fault, match={"path": "^/api/v1/"})
        with pytest.raises(UpstreamError) as caught:
            await argo.lost("pipelines", NAME)
        assert caught.value.retryable
    assert await argo.lost("pipelines", NAME) is None


async def test_a_workflow_that_goes_on_is_not_lost(
    access: Cluster, cluster: RunningCluster, session: aiohttp.ClientSession
) -> None:
    argo = Argo(access, server=Api(session, "argo", cluster.url))
    await argo.submit(RUN)
    with pytest.raises(UpstreamError, match="goes on") as caught:
        await argo.lost("pipelines", NAME)
    assert caught.value.retryable


async def test_the_shutdown_that_somebody_else_asked_for_stands(access: Cluster, cluster: RunningCluster) -> None:
    cluster.workflows.hold(stops=True)
    argo = Argo(access)
    await argo.submit(RUN)
    cluster.store.merge_patch(WORKFLOWS, "pipelines", NAME, {"spec": {"shutdown": "Terminate"}})
    await argo.cancel(RUN, NAME, "stop")
    workflow = cluster.store.get(WORKFLOWS, "pipelines", NAME)
    assert workflow["spec"]["shutdown"] == "Terminate"
    assert workflow["metadata"]["annotations"][CANCEL_ANNOTATION] == "stop"


@pytest.mark.parametrize(
    ("phase", "spec", "patched"),
    [
        ("Running", {}, {"shutdown": "Stop"}),
        ("", {}, {"shutdown": "Terminate"}),
        ("Pending", {}, {"shutdown": "Terminate"}),
        ("Pending", {"shutdown": "Stop"}, {"shutdown": "Terminate"}),
        ("Running", {"shutdown": "Stop"}, {}),
        ("Pending", {"shutdown": "Terminate"}, {}),
        ("Running", {"suspend": True}, {"shutdown": "Stop", "suspend": None}),
        ("Running", {"suspend": True, "shutdown": "Stop"}, {"suspend": None}),
    ],
)
def test_how_a_workflow_is_stopped(phase: str, spec: dict[str, Any], patched: dict[str, Any]) -> None:
    argo = Argo.__new__(Argo)
    assert argo.stop({"metadata": {"name": "w"}, "spec": spec, "status": {"phase": phase}}) == patched


async def test_a_suspended_workflow_is_resumed_to_be_stopped(access: Cluster, cluster: RunningCluster) -> None:
    cluster.workflows.hold(NAME)
    argo = Argo(access)
    await argo.submit(RUN)
    cluster.workflows.advance(NAME, "Running")
    cluster.store.merge_patch(WORKFLOWS, "pipelines", NAME, {"spec": {"suspend": True}})
    await argo.cancel(RUN, NAME, "stop")
    workflow = await cluster.workflows.until(NAME, "Failed")
    assert "suspend" not in workflow["spec"]


async def test_an_argo_server_that_refuses_leaves_the_end_unknown(
    access: Cluster, cluster: RunningCluster, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    argo = Argo(access, server=Api(session, "argo", cluster.url))
    cluster.faults.add(status=403, match={"path": "^/api/v1/"})
    assert await argo.lost("pipelines", NAME) is None
    cluster.faults.add(status=503, times=2, match={"path": "^/api/v1/"})
    with pytest.raises(UpstreamError):
        await argo.lost("pipelines", NAME)
    monkeypatch.setattr(argo_module, "ASK_FOR", 0.0)
    assert await argo.lost("pipelines", NAME) is None
