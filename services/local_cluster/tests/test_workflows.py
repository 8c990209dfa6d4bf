"""Workflows that pass through Argo's phases by themselves, by hand, and when they are stopped."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from handler_core.tasks import background
from local_cluster.steering import Pace
from local_cluster.store import WORKFLOW_TEMPLATES, WORKFLOWS, Object, Store
from local_cluster.testing import running
from local_cluster.workflows import COMPLETED_LABEL, PHASE_LABEL, Workflows

LONG = 3600.0
AT_ONCE = Pace(0, 0)


@asynccontextmanager
async def controller(pace: Pace = AT_ONCE) -> AsyncIterator[Workflows]:
    store = Store()
    create_template(store, "ingest")
    workflows = Workflows(store, pace)
    async with background(workflows.serve()):
        yield workflows


def create_template(store: Store, name: str, **spec: Any) -> None:
    body = {"apiVersion": "argoproj.io/v1alpha1", "kind": "WorkflowTemplate", "metadata": {"name": name}, "spec": spec}
    store.create(WORKFLOW_TEMPLATES, "argo", body)


def create(workflows: Workflows, name: str, *, annotations: dict[str, str] | None = None, **spec: Any) -> Object:
    body = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"name": name, "annotations": annotations or {}},
        "spec": {"workflowTemplateRef": {"name": "ingest"}, **spec},
    }
    return workflows._store.create(WORKFLOWS, "argo", body)


def patch(workflows: Workflows, name: str, **spec: Any) -> None:
    workflows._store.merge_patch(WORKFLOWS, "argo", name, {"spec": spec})


async def test_a_workflow_passes_through_all_its_phases_each_of_which_is_seen() -> None:
    async with controller() as workflows:
        watch = workflows._store.watch(WORKFLOWS, workflows._store.version)
        create(workflows, "quick")
        done = await workflows.until("quick", "Succeeded")
        phases = [event.object.get("status", {}).get("phase") for event in await watch.next()]
        assert phases == [None, "Pending", "Running", "Succeeded"]
        assert done["metadata"]["labels"] == {PHASE_LABEL: "Succeeded", COMPLETED_LABEL: "true"}
        assert done["status"]["startedAt"].endswith("Z")
        assert done["status"]["finishedAt"].endswith("Z")


@pytest.mark.parametrize("phase", ["Succeeded", "Failed", "Error"])
async def test_an_annotation_says_how_a_workflow_ends(phase: str) -> None:
    async with controller() as workflows:
        create(workflows, "asked", annotations={"local-cluster/outcome": phase.lower()})
        assert ("message" in (await workflows.until("asked", phase))["status"]) == (phase != "Succeeded")


async def test_parameters_say_how_a_workflow_ends_and_when() -> None:
    async with controller(Pace(0, LONG)) as workflows:
        parameters = [{"name": "outcome", "value": "Failed"}, {"name": "running_seconds", "value": "0"}]
        create(workflows, "asked", arguments={"parameters": parameters})
        await workflows.until("asked", "Failed")


async def test_a_workflow_of_an_unknown_template_ends_in_error() -> None:
    async with controller() as workflows:
        create(workflows, "lost", workflowTemplateRef={"name": "nope"})
        ended = await workflows.until("lost", "Error")
        assert ended["status"]["message"] == 'workflowtemplates.argoproj.io "nope" not found'


async def test_a_workflow_without_a_parameter_that_its_template_wants_fails() -> None:
    async with controller() as workflows:
        wanted = [{"name": "source"}, {"name": "size", "value": "512"}]
        create_template(workflows._store, "strict", arguments={"parameters": wanted})
        create(workflows, "without", workflowTemplateRef={"name": "strict"})
        assert "spec.arguments.source.value" in (await workflows.until("without", "Failed"))["status"]["message"]
        given = {"parameters": [{"name": "source", "value": "s3://a"}]}
        create(workflows, "with", workflowTemplateRef={"name": "strict"}, arguments=given)
        await workflows.until("with", "Succeeded")


@pytest.mark.parametrize("strategy", ["Stop", "Terminate"])
async def test_a_workflow_that_is_shut_down_fails_even_while_it_is_held(strategy: str) -> None:
    async with controller() as workflows:
        workflows.hold()
        create(workflows, "stop")
        workflows.advance("stop", "Running")
        patch(workflows, "stop", shutdown=strategy)
        ended = await workflows.until("stop", "Failed")
        assert ended["status"]["message"] == f"Stopped with strategy '{strategy}'"


async def test_a_workflow_may_be_made_deaf_to_its_shutdown() -> None:
    async with controller() as workflows:
        workflows.hold("deaf", stops=True)
        create(workflows, "deaf")
        create(workflows, "other", shutdown="Stop")
        patch(workflows, "deaf", shutdown="Stop")
        await workflows.until("other", "Failed")
        assert "status" not in await workflows.until("deaf")
        workflows.advance("deaf", "Succeeded")
        assert (await workflows.until("deaf", "Succeeded"))["spec"]["shutdown"] == "Stop"


async def test_a_hold_takes_effect_at_once() -> None:
    async with controller() as workflows:
        create(workflows, "run")
        await workflows.until("run", "Running")
        workflows.hold("run")
        create(workflows, "other")
        await workflows.until("other", "Succeeded")
        await workflows.until("run", "Running")


async def test_a_suspended_workflow_waits_until_it_is_resumed() -> None:
    async with controller() as workflows:
        create(workflows, "asleep", suspend=True)
        create(workflows, "awake")
        await workflows.until("awake", "Succeeded")
        assert "status" not in await workflows.until("asleep")
        patch(workflows, "asleep", suspend=None)
        await workflows.until("asleep", "Succeeded")


async def test_a_workflow_that_takes_too_long_fails() -> None:
    async with controller(Pace(0, LONG)) as workflows:
        create(workflows, "late", activeDeadlineSeconds=0)
        assert (await workflows.until("late", "Failed"))["status"]["message"] == "Step exceeded its deadline"


async def test_the_clock_moves_no_workflow_before_its_time() -> None:
    async with controller(Pace(0, LONG)) as workflows:
        create(workflows, "slow")
        await workflows.until("slow", "Running")
        create(workflows, "quick", annotations={"local-cluster/running-seconds": "0.01"})
        await workflows.until("quick", "Succeeded")
        await workflows.until("slow", "Running")


@pytest.mark.parametrize("seconds", ["soon", "-1", "nan", "inf"])
async def test_a_time_that_makes_no_sense_is_as_none(seconds: str) -> None:
    async with controller() as workflows:
        create(workflows, "run", annotations={"local-cluster/running-seconds": seconds})
        await workflows.until("run", "Succeeded")


async def test_a_finished_workflow_goes_after_its_time_and_stays_in_the_archive() -> None:
    async with controller() as workflows:
        watch = workflows._store.watch(WORKFLOWS, workflows._store.version)
        create(workflows, "gone", ttlStrategy={"secondsAfterCompletion": LONG, "secondsAfterSuccess": 0})
        deleted = None
        while deleted is None:
            deleted = next((event for event in await watch.next() if event.type == "DELETED"), None)
        assert workflows.archive["argo", "gone"]["status"]["phase"] == "Succeeded"


async def test_a_template_may_say_how_long_its_workflows_stay() -> None:
    async with controller() as workflows:
        create_template(workflows._store, "brief", ttlStrategy={"secondsAfterFailure": 0})
        reference = {"name": "brief"}
        create(workflows, "fails", workflowTemplateRef=reference, annotations={"local-cluster/outcome": "Failed"})
        create(workflows, "works", workflowTemplateRef=reference)
        await workflows.until("works", "Succeeded")
        while [found["metadata"]["name"] for found in workflows._store.objects(WORKFLOWS)] != ["works"]:
            await asyncio.sleep(0)


async def test_advancing_refuses_what_is_not_there() -> None:
    async with controller() as workflows:
        workflows.hold()
        create(workflows, "run")
        with pytest.raises(KeyError):
            workflows.advance("nobody", "Running")
        with pytest.raises(ValueError, match="no phase of a Workflow"):
            workflows.advance("run", "running")


async def test_an_object_that_makes_no_sense_does_not_stop_the_others() -> None:
    async with controller() as workflows:
        create(workflows, "odd", ttlStrategy="soon", arguments={"parameters": "none"})
        create(workflows, "sound")
        await workflows.until("sound", "Succeeded")


async def test_the_controller_goes_on_when_the_history_is_forgotten() -> None:
    async with controller() as workflows:
        workflows.hold()
        create(workflows, "before")
        await workflows.until("before")
        workflows._store.delete(WORKFLOWS, "argo", "before")
        create(workflows, "between")
        workflows._store.compact(watches=True)
        workflows.release()
        create(workflows, "after")
        await workflows.until("between", "Succeeded")
        await workflows.until("after", "Succeeded")


async def test_a_workflow_of_the_same_name_begins_anew() -> None:
    async with controller(Pace(0, LONG)) as workflows:
        create(workflows, "again")
        await workflows.until("again", "Running")
        workflows._store.delete(WORKFLOWS, "argo", "again")
        create(workflows, "again", annotations={"local-cluster/running-seconds": "0"})
        await workflows.until("again", "Succeeded")


async def test_the_argo_server_shows_what_is_gone_from_its_archive() -> None:
    async with running(tokens=["secret"]) as cluster, aiohttp.ClientSession(cluster.url) as session:
        path, known = "/api/v1/workflows/argo/gone", {"Authorization": "Bearer secret"}
        async with session.get(path, headers=known) as response:
            assert (response.status, (await response.json())["code"]) == (404, 5)
        create(cluster.workflows, "gone", workflowTemplateRef={"name": "document-ingestion"})
        await cluster.workflows.until("gone", "Succeeded")
        cluster.store.delete(WORKFLOWS, "argo", "gone")
        async with session.get(path, headers=known) as response:
            assert (response.status, (await response.json())["status"]["phase"]) == (200, "Succeeded")
        async with session.get(path) as response:
            assert (response.status, (await response.json())["code"]) == (401, 16)
        cluster.workflows.archiving = False
        create(cluster.workflows, "lost", workflowTemplateRef={"name": "document-ingestion"})
        await cluster.workflows.until("lost", "Succeeded")
        cluster.store.delete(WORKFLOWS, "argo", "lost")
        async with session.get("/api/v1/workflows/argo/lost", headers=known) as response:
            assert response.status == 404
