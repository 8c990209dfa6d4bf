"""RayJobs that pass through KubeRay's states: retries, suspension, deadlines, refusals."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from handler_core.tasks import background
from local_cluster.rayjobs import RayJobs
from local_cluster.steering import Pace
from local_cluster.store import RAY_JOBS, Object, Store

LONG = 3600.0
AT_ONCE = Pace(0, 0)


@asynccontextmanager
async def controller(pace: Pace = AT_ONCE) -> AsyncIterator[RayJobs]:
    rayjobs = RayJobs(Store(), pace)
    async with background(rayjobs.serve()):
        yield rayjobs


def create(
    rayjobs: RayJobs, name: str = "job", *, outcome: str = "", parameters: str | None = None, **spec: Any
) -> Object:
    env = [] if parameters is None else [{"name": "PIPELINE_PARAMETERS", "value": parameters}]
    head = {"template": {"spec": {"containers": [{"name": "ray-head", "env": env}]}}}
    body = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name, "annotations": {"local-cluster/outcome": outcome} if outcome else {}},
        "spec": {"shutdownAfterJobFinishes": True, "rayClusterSpec": {"headGroupSpec": head}, **spec},
    }
    return rayjobs._store.create(RAY_JOBS, "ray", body)


def patch(rayjobs: RayJobs, name: str = "job", **spec: Any) -> None:
    rayjobs._store.merge_patch(RAY_JOBS, "ray", name, {"spec": spec})


async def states(rayjobs: RayJobs, since: int, last: str) -> list[str]:
    """The states seen since a version, up to one."""
    watch, seen = rayjobs._store.watch(RAY_JOBS, since), [""]
    while seen[-1] != last:
        for event in await watch.next():
            if (state := rayjobs._state(event.object)) != seen[-1]:
                seen.append(state)
    return seen[1:]


async def test_a_job_passes_through_all_its_states_each_of_which_is_seen() -> None:
    async with controller() as rayjobs:
        since = rayjobs._store.version
        create(rayjobs)
        seen = await states(rayjobs, since, "Complete/SUCCEEDED")
        running = ["Running/PENDING", "Running/RUNNING", "Running/SUCCEEDED"]
        assert seen == ["/", "Initializing/", *running, "Complete/SUCCEEDED"]
        status = (await rayjobs.until("job", "Complete"))["status"]
        assert status["succeeded"] == 1
        assert {"jobId", "rayClusterName", "dashboardURL", "startTime", "endTime", "message"} <= set(status)


async def test_a_job_that_fails_has_a_reason() -> None:
    async with controller() as rayjobs:
        create(rayjobs, outcome="Failed")
        status = (await rayjobs.until("job", "Failed/FAILED"))["status"]
        assert (status["reason"], status["failed"]) == ("AppFailed", 1)
        assert "exit code 1" in status["message"]


async def test_a_job_that_was_stopped_is_complete_too() -> None:
    async with controller() as rayjobs:
        create(rayjobs, outcome="stopped")
        assert "succeeded" not in (await rayjobs.until("job", "Complete/STOPPED"))["status"]


@pytest.mark.parametrize("parameters", ['{"outcome": "Failed"}', '{"outcome": "failed", "running_seconds": 0}'])
async def test_the_parameters_in_the_heads_environment_say_how_a_job_ends(parameters: str) -> None:
    async with controller() as rayjobs:
        create(rayjobs, parameters=parameters)
        await rayjobs.until("job", "Failed")


@pytest.mark.parametrize("parameters", ["", "{", "[]", '{"outcome": {}, "running_seconds": []}'])
async def test_parameters_that_say_nothing_of_it_change_nothing(parameters: str) -> None:
    async with controller() as rayjobs:
        create(rayjobs, parameters=parameters, outcome="succeeded")
        create(rayjobs, "other", parameters='{"running_seconds": "0"}')
        await rayjobs.until("other", "Complete")
        await rayjobs.until("job", "Complete")


async def test_a_job_with_attempts_left_begins_again_and_is_not_final_in_between() -> None:
    async with controller() as rayjobs:
        since = rayjobs._store.version
        create(rayjobs, outcome="Failed", backoffLimit=1)
        seen = await states(rayjobs, since, "Failed/FAILED")
        once = ["/", "Initializing/", "Running/PENDING", "Running/RUNNING", "Running/FAILED"]
        assert seen == [*once, "Retrying/FAILED", *once, "Failed/FAILED"]
        assert (await rayjobs.until("job", "Failed"))["status"]["failed"] == 2


async def test_a_suspended_job_has_no_job_status_and_begins_again_when_resumed() -> None:
    async with controller(Pace(0, LONG)) as rayjobs:
        create(rayjobs)
        await rayjobs.until("job", "Running/RUNNING")
        since = rayjobs._store.version
        patch(rayjobs, suspend=True)
        assert await states(rayjobs, since, "Suspended/") == ["Running/RUNNING", "Suspending/RUNNING", "Suspended/"]
        suspended = await rayjobs.until("job", "Suspended")
        assert not {"jobId", "jobStatus", "rayClusterName", "message"} & set(suspended["status"])
        patch(rayjobs, suspend=False)
        await rayjobs.until("job", "Running")


async def test_a_held_job_is_suspended_all_the_same_unless_it_is_made_deaf() -> None:
    async with controller() as rayjobs:
        rayjobs.hold("held")
        rayjobs.hold("deaf", stops=True)
        create(rayjobs, "held", suspend=True)
        create(rayjobs, "deaf")
        rayjobs.advance("deaf", "Running")
        patch(rayjobs, "deaf", suspend=True)
        await rayjobs.until("held", "Suspended")
        await rayjobs.until("deaf", "Running")
        rayjobs.advance("deaf", "Complete")
        assert (await rayjobs.until("deaf", "Complete/SUCCEEDED"))["spec"]["suspend"] is True


async def test_a_job_that_has_ended_is_not_suspended() -> None:
    async with controller() as rayjobs:
        create(rayjobs)
        await rayjobs.until("job", "Complete")
        patch(rayjobs, suspend=True)
        create(rayjobs, "other")
        await rayjobs.until("other", "Complete")
        await rayjobs.until("job", "Complete")


@pytest.mark.parametrize(("pace", "job_status"), [(Pace(0, LONG), "RUNNING"), (Pace(LONG, 0), "")])
async def test_a_job_that_takes_too_long_fails_and_is_not_tried_again(pace: Pace, job_status: str) -> None:
    async with controller(pace) as rayjobs:
        create(rayjobs, activeDeadlineSeconds=0, backoffLimit=3)
        status = (await rayjobs.until("job", "Failed"))["status"]
        assert (status["reason"], status.get("jobStatus", "")) == ("DeadlineExceeded", job_status)
        assert "ActiveDeadlineSeconds: 0" in status["message"]


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"rayClusterSpec": None}, "one of RayClusterSpec or ClusterSelector must be set"),
        ({"suspend": True, "shutdownAfterJobFinishes": False}, "is not allowed to be suspended"),
        ({"suspend": True, "clusterSelector": {"ray.io/cluster": "a"}}, "doesn't support the suspend operation"),
        ({"shutdownAfterJobFinishes": False, "ttlSecondsAfterFinished": 5}, "cannot have TTLSecondsAfterFinished"),
    ],
)
async def test_a_spec_that_the_operator_refuses_fails_validation(spec: dict[str, Any], problem: str) -> None:
    async with controller() as rayjobs:
        create(rayjobs, **spec)
        status = (await rayjobs.until("job", "ValidationFailed"))["status"]
        assert problem in status["message"]
        assert status["reason"] == "ValidationFailed"


async def test_a_name_that_is_too_long_or_a_wish_fails_validation() -> None:
    async with controller() as rayjobs:
        create(rayjobs, "a" * 48)
        assert "47 characters" in (await rayjobs.until("a" * 48, "ValidationFailed"))["status"]["message"]
        create(rayjobs, outcome="ValidationFailed")
        await rayjobs.until("job", "ValidationFailed")


async def test_a_finished_job_stays_unless_the_operator_is_told_to_delete_it() -> None:
    async with controller() as rayjobs:
        create(rayjobs, "stays", ttlSecondsAfterFinished=0)
        await rayjobs.until("stays", "Complete")
        rayjobs.delete_finished = True
        create(rayjobs, "goes", ttlSecondsAfterFinished=0)
        await rayjobs.until("goes", "Complete")
        while "goes" in {found["metadata"]["name"] for found in rayjobs._store.objects(RAY_JOBS)}:
            await asyncio.sleep(0)
        assert [found["metadata"]["name"] for found in rayjobs._store.objects(RAY_JOBS)] == ["stays"]


@pytest.mark.parametrize(
    ("phase", "state"),
    [
        ("Running/PENDING", ("Running", "PENDING")),
        ("Running", ("Running", "RUNNING")),
        ("Running/", ("Running", "")),
        ("Waiting", ("Waiting", "")),
        ("Suspending/RUNNING", ("Suspending", "RUNNING")),
        ("Complete/FAILED", ("Complete", "FAILED")),
        ("Failed", ("Failed", "FAILED")),
        ("Retrying", ("Retrying", "FAILED")),
    ],
)
async def test_a_job_can_be_put_into_any_state(phase: str, state: tuple[str, str]) -> None:
    async with controller() as rayjobs:
        rayjobs.hold(stops=True)
        create(rayjobs)
        rayjobs.advance("job", phase, "by hand")
        status = (await rayjobs.until("job", phase))["status"]
        assert (status["jobDeploymentStatus"], status.get("jobStatus", ""), status["message"]) == (*state, "by hand")


async def test_there_are_no_other_states() -> None:
    async with controller() as rayjobs:
        rayjobs.hold()
        create(rayjobs)
        with pytest.raises(ValueError, match="no jobDeploymentStatus"):
            rayjobs.advance("job", "Done")
