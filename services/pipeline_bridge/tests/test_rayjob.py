"""Ray's own: a state is told by two words, and only the operator's is final."""

import asyncio
from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from handler_core.contract.pipeline import RunStatus
from handler_core.tasks import background
from local_cluster.store import RAY_JOBS
from local_cluster.testing import RunningCluster, running
from pipeline_bridge.cluster import Cluster
from pipeline_bridge.engine import CANCEL_ANNOTATION, Observed, Run, run_name
from pipeline_bridge.rayjob import RayJobs
from pipeline_bridge.states import of_ray_job

NAME = run_name("train", "r1")
RUN = Run(
    request_id="r1",
    pipeline="train",
    engine="rayjob",
    namespace="ray",
    name=NAME,
    reference={
        "manifest": {
            "spec": {
                "entrypoint": "python train.py",
                "backoffLimit": 1,
                "rayClusterSpec": {"headGroupSpec": {"template": {"spec": {"containers": [{"name": "ray"}]}}}},
            }
        }
    },
    parameters={},
    timeout=60.0,
)
JOB_STATUSES = ("", "PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED")
BEGUN = {"RUNNING", "STOPPED", "SUCCEEDED", "FAILED"}


def job(deployment: str, ray: str, *, canceled: bool = False, **status: str) -> dict[str, Any]:
    annotations = {CANCEL_ANNOTATION: "why"} if canceled else {}
    return {
        "metadata": {"name": "j", "annotations": annotations},
        "status": {"jobDeploymentStatus": deployment, "jobStatus": ray, **status},
    }


def expected(deployment: str, ray: str, canceled: bool) -> str:
    """The whole table, said another way."""
    if deployment == "Complete":
        return {"SUCCEEDED": "succeeded", "STOPPED": "canceled"}.get(ray, "failed")
    if deployment in {"Failed", "ValidationFailed"}:
        return "failed" if deployment == "Failed" else "error"
    if deployment == "Suspended" and canceled:
        return "canceled"
    return "running" if deployment in {"Running", "Suspending"} and ray in BEGUN else "pending"


@pytest.mark.parametrize("canceled", [False, True])
@pytest.mark.parametrize(
    "deployment",
    ["", "Initializing", "Running", "Complete", "Failed", "ValidationFailed", "Suspending", "Suspended", "Retrying",
     "Waiting", "Scheduled", "Unheard-of"],
)  # fmt: skip
def test_states(deployment: str, canceled: bool) -> None:
    for ray in JOB_STATUSES:
        observed = of_ray_job(job(deployment, ray, canceled=canceled))
        assert observed.status.value == expected(deployment, ray, canceled), ray
        assert observed.raw == f"{deployment}/{ray}"


@pytest.mark.parametrize("ray", JOB_STATUSES)
def test_what_ray_says_is_never_final_by_itself(ray: str) -> None:
    for deployment, canceled in product(["", "Initializing", "Running", "Retrying", "Waiting", "Suspending"], [0, 1]):
        assert not of_ray_job(job(deployment, ray, canceled=bool(canceled))).status.final


def test_the_message_is_the_operators_or_its_reason() -> None:
    assert of_ray_job(job("Failed", "", reason="DeadlineExceeded", message="too long")).message == "too long"
    assert of_ray_job(job("Failed", "", reason="DeadlineExceeded")).message == "DeadlineExceeded"
    assert of_ray_job(job("Failed", "FAILED")).message == ""


@pytest.mark.parametrize("absent", [{}, {"status": None}, {"status": {}}])
def test_a_job_that_nobody_has_looked_at_is_pending(absent: dict[str, Any]) -> None:
    assert of_ray_job({"metadata": {"name": "j"}, **absent}) == Observed("j", RunStatus.PENDING, "/")


@pytest.fixture
async def cluster() -> AsyncIterator[RunningCluster]:
    async with running(hold=True) as cluster:
        yield cluster


@pytest.fixture
async def ray(cluster: RunningCluster, tmp_path: Path) -> AsyncIterator[RayJobs]:
    access = await Cluster.connect(kubeconfig=str(cluster.kubeconfig(tmp_path / "kubeconfig")))
    engine = RayJobs(access)
    async with background(engine.serve()), asyncio.timeout(10):
        yield engine
    await access.close()


async def test_a_failed_try_is_not_the_end(ray: RayJobs, cluster: RunningCluster) -> None:
    await ray.submit(RUN)
    seen = []
    with ray.follow(RUN, NAME) as changes:
        for state in ("Running/RUNNING", "Running/FAILED", "Retrying/FAILED", "Initializing/", "Running/RUNNING"):
            seen.append((await changes.next()).status.value)
            cluster.rayjobs.advance(NAME, state)
        cluster.rayjobs.advance(NAME, "Complete/SUCCEEDED")
        while not (observed := await changes.next()).status.final:
            seen.append(observed.status.value)
    assert observed.raw == "Complete/SUCCEEDED"
    assert set(seen) == {"pending", "running"}


async def test_a_canceled_job_is_suspended(ray: RayJobs, cluster: RunningCluster) -> None:
    await ray.submit(RUN)
    cluster.rayjobs.advance(NAME, "Running/RUNNING")
    await ray.cancel(RUN, NAME, "stop")
    assert cluster.store.get(RAY_JOBS, "ray", NAME)["spec"]["suspend"] is True
    with ray.follow(RUN, NAME) as changes:
        while not (observed := await changes.next()).status.final:
            pass
    assert (observed.status, observed.raw.partition("/")[0]) == (RunStatus.CANCELED, "Suspended")


async def test_a_job_that_waits_suspended_is_canceled_by_the_word_alone(ray: RayJobs, cluster: RunningCluster) -> None:
    await ray.submit(RUN)
    cluster.store.merge_patch(RAY_JOBS, "ray", NAME, {"spec": {"suspend": True}})
    cluster.rayjobs.advance(NAME, "Suspended")
    with ray.follow(RUN, NAME) as changes:
        assert (await changes.next()).status is RunStatus.PENDING
        await ray.cancel(RUN, NAME, "stop")
        while not (observed := await changes.next()).status.final:
            pass
    assert observed.status is RunStatus.CANCELED
