"""Runs as Kubernetes resources: one for each request whatever happens, followed to its end, stopped on demand."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from handler_core.clients.failures import UpstreamError
from handler_core.contract.pipeline import RunStatus
from handler_core.errors import Internal, NotFound
from handler_core.tasks import background
from local_cluster.store import RAY_JOBS, WORKFLOWS, Resource
from local_cluster.testing import RunningCluster, running
from pipeline_bridge.argo import Argo
from pipeline_bridge.cluster import Cluster
from pipeline_bridge.engine import CANCEL_ANNOTATION, Changes, Observed, Run, run_name
from pipeline_bridge.rayjob import RayJobs
from pipeline_bridge.resource_engine import ResourceEngine

CONTAINERS = {"spec": {"containers": [{"name": "ray", "image": "ray"}]}}
REFERENCES: dict[str, dict[str, Any]] = {
    "argo": {"template": "document-ingestion"},
    "rayjob": {"manifest": {"spec": {"rayClusterSpec": {"headGroupSpec": {"template": CONTAINERS}}}}},
}


class Place(NamedTuple):
    """An engine and what it works on."""

    engine: ResourceEngine
    cluster: RunningCluster
    kind: str
    resource: Resource
    controller: Any

    def run(self, request_id: str = "r1", namespace: str = "pipelines") -> Run:
        return Run(
            request_id=request_id,
            pipeline="ingest",
            engine=self.kind,
            namespace=namespace,
            name=run_name("ingest", request_id),
            reference=REFERENCES[self.kind],
            parameters={"source": "s3://documents"} if self.kind == "argo" else {"source": "$(HOME)"},
            timeout=60.0,
        )

    def resources(self) -> list[Any]:
        return self.cluster.store.objects(self.resource)

    def annotations(self, name: str) -> dict[str, str]:
        found = self.cluster.store.get(self.resource, "pipelines", name)["metadata"]["annotations"]
        assert isinstance(found, dict)
        return found

    @property
    def phases(self) -> tuple[str, str, str]:
        """What the kind calls running, succeeded and failed."""
        return ("Running", "Succeeded", "Failed") if self.kind == "argo" else ("Running", "Complete", "Failed")


@pytest.fixture
async def cluster() -> AsyncIterator[RunningCluster]:
    async with running(hold=True) as cluster:
        yield cluster


@pytest.fixture(params=["argo", "rayjob"])
async def place(request: pytest.FixtureRequest, cluster: RunningCluster, tmp_path: Path) -> AsyncIterator[Place]:
    access = await Cluster.connect(kubeconfig=str(cluster.kubeconfig(tmp_path / "kubeconfig")))
    kind = request.param
    engine: ResourceEngine = Argo(access) if kind == "argo" else RayJobs(access)
    resource = WORKFLOWS if kind == "argo" else RAY_JOBS
    async with background(engine.serve()):
        yield Place(engine, cluster, kind, resource, cluster.workflows if kind == "argo" else cluster.rayjobs)
    await access.close()


async def ended(changes: Changes) -> list[Observed]:
    """All that is observed until the run ends."""
    seen: list[Observed] = []
    async with asyncio.timeout(10):
        while not seen or not seen[-1].status.final:
            seen.append(await changes.next())
    return seen


def statuses(seen: list[Observed]) -> list[str]:
    return [each.status.value for each in seen]


async def test_a_run_is_created_once_however_often_it_is_submitted(place: Place) -> None:
    first = await place.engine.submit(place.run())
    assert first.status is RunStatus.PENDING
    assert first.run_id == run_name("ingest", "r1")
    assert await place.engine.submit(place.run()) == first
    assert len(place.resources()) == 1
    await place.engine.submit(place.run("r2"))
    assert len(place.resources()) == 2


async def test_a_run_whose_creation_was_not_answered_is_found_by_the_next_attempt(place: Place) -> None:
    place.cluster.faults.add(drop_response=True, match={"method": "POST"})
    with pytest.raises(UpstreamError) as caught:
        await place.engine.submit(place.run())
    assert caught.value.retryable
    place.controller.advance(run_name("ingest", "r1"), place.phases[0])
    assert (await place.engine.submit(place.run())).status is RunStatus.RUNNING
    assert len(place.resources()) == 1


async def test_two_bridges_that_submit_at_once_get_the_same_run(place: Place) -> None:
    both = await asyncio.gather(*(place.engine.submit(place.run()) for _ in range(2)))
    assert both[0].run_id == both[1].run_id
    assert len(place.resources()) == 1


@pytest.mark.parametrize("annotations", [{"slim-handlers.dev/request-id": "another"}, {}])
async def test_a_name_that_another_request_has_is_a_final_error(place: Place, annotations: dict[str, str]) -> None:
    made = place.engine.manifest(place.run())
    taken = {**made, "metadata": {**made["metadata"], "annotations": annotations}}
    place.cluster.store.create(place.resource, "pipelines", taken)
    for attempt in (place.engine.submit, place.engine.describe):
        with pytest.raises(Internal, match="of another request") as caught:
            await attempt(place.run())
        assert not caught.value.retryable
    assert len(place.resources()) == 1


async def test_a_conflict_over_a_name_that_is_free_again_is_worth_another_attempt(place: Place) -> None:
    place.cluster.faults.add(status=409, message="object is being deleted", match={"method": "POST"})
    with pytest.raises(UpstreamError, match="being deleted") as caught:
        await place.engine.submit(place.run())
    assert caught.value.retryable
    await place.engine.submit(place.run())


@pytest.mark.parametrize("status", [400, 403, 422])
async def test_a_refused_run_is_a_final_error_with_the_servers_message(place: Place, status: int) -> None:
    place.cluster.faults.add(
        status=status, message="admission webhook denied the request: no", match={"method": "POST"}
    )
    with pytest.raises(UpstreamError, match="admission webhook denied the request: no") as caught:
        await place.engine.submit(place.run())
    assert not caught.value.retryable
    assert not place.resources()


async def test_missing_rights_are_a_final_error(place: Place) -> None:
    place.cluster.forbidden.add("create")
    with pytest.raises(UpstreamError, match="forbidden") as caught:
        await place.engine.submit(place.run())
    assert not caught.value.retryable


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_busy_server_is_asked_again_when_it_says(place: Place, status: int) -> None:
    place.cluster.faults.add(status=status, retry_after=7, match={"method": "POST"})
    with pytest.raises(UpstreamError) as caught:
        await place.engine.submit(place.run())
    assert (caught.value.retryable, caught.value.retry_after) == (True, 7.0)
    assert not place.resources()


async def test_an_engine_that_is_not_installed_is_named(place: Place) -> None:
    message = "the server could not find the requested resource"
    place.cluster.faults.add(status=404, message=message, match={"method": "POST"})
    with pytest.raises(NotFound, match="is the engine installed there") as caught:
        await place.engine.submit(place.run())
    assert f"{place.resource.plural} of {place.resource.api_version}" in caught.value.message
    assert not caught.value.retryable


async def test_a_namespace_that_is_not_there_is_named(place: Place) -> None:
    place.cluster.faults.add(status=404, message='namespaces "pipelines" not found', match={"method": "POST"})
    with pytest.raises(NotFound, match='namespaces "pipelines" not found') as caught:
        await place.engine.submit(place.run())
    assert "installed" not in caught.value.message


async def test_a_run_is_followed_to_its_end(place: Place) -> None:
    submitted = await place.engine.submit(place.run())
    with place.engine.follow(place.run(), submitted.run_id) as changes:
        assert await changes.next() == submitted
        place.controller.advance(submitted.run_id, place.phases[0])
        assert (await changes.next()).status is RunStatus.RUNNING
        place.controller.advance(submitted.run_id, place.phases[2], "out of memory")
        last = await changes.next()
    assert (last.status, last.message) == (RunStatus.FAILED, "out of memory")


async def test_a_takeover_is_told_the_present_state(place: Place) -> None:
    name = run_name("ingest", "r1")
    place.cluster.store.create(place.resource, "pipelines", place.engine.manifest(place.run()))
    place.controller.advance(name, place.phases[0])
    with place.engine.follow(place.run(), name) as changes:
        async with asyncio.timeout(10):
            assert (await changes.next()).status is RunStatus.RUNNING


async def test_runs_of_other_namespaces_are_followed_as_they_come_up(place: Place) -> None:
    for namespace in ("pipelines", "other"):
        run = place.run(namespace, namespace)
        submitted = await place.engine.submit(run)
        with place.engine.follow(run, submitted.run_id) as changes:
            place.controller.advance(submitted.run_id, place.phases[1])
            assert statuses(await ended(changes))[-1] == "succeeded"


async def test_what_becomes_of_a_canceled_run_comes_through_follow(place: Place) -> None:
    submitted = await place.engine.submit(place.run())
    place.controller.advance(submitted.run_id, place.phases[0])
    with place.engine.follow(place.run(), submitted.run_id) as changes:
        await place.engine.cancel(place.run(), submitted.run_id, "no longer needed")
        await place.engine.cancel(place.run(), submitted.run_id, "again")
        seen = await ended(changes)
    assert statuses(seen)[-1] == "canceled"
    assert place.annotations(submitted.run_id)[CANCEL_ANNOTATION] == "no longer needed"


async def test_a_run_that_is_canceled_and_succeeds_first_has_succeeded(place: Place) -> None:
    place.controller.hold(stops=True)
    submitted = await place.engine.submit(place.run())
    with place.engine.follow(place.run(), submitted.run_id) as changes:
        await place.engine.cancel(place.run(), submitted.run_id, "stop")
        place.controller.advance(submitted.run_id, place.phases[1])
        assert (await ended(changes))[-1].status is RunStatus.SUCCEEDED


async def test_a_run_that_has_ended_or_is_gone_is_left_as_it_is(place: Place) -> None:
    submitted = await place.engine.submit(place.run())
    place.controller.advance(submitted.run_id, place.phases[2])
    await place.engine.cancel(place.run(), submitted.run_id, "too late")
    assert CANCEL_ANNOTATION not in place.annotations(submitted.run_id)
    await place.engine.cancel(place.run(), "never-was", "too late")
    place.cluster.store.delete(place.resource, "pipelines", submitted.run_id)
    await place.engine.cancel(place.run(), submitted.run_id, "too late")


async def test_a_run_that_fails_while_it_is_canceled_has_failed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted = await place.engine.submit(place.run())
    looked_at = place.engine.stop

    def stop(resource: dict[str, Any]) -> dict[str, Any]:
        place.controller.advance(submitted.run_id, place.phases[2])
        return looked_at(resource)

    monkeypatch.setattr(place.engine, "stop", stop)
    await place.engine.cancel(place.run(), submitted.run_id, "stop")
    assert CANCEL_ANNOTATION not in place.annotations(submitted.run_id)
    described = await place.engine.describe(place.run())
    assert described is not None
    assert described.status is RunStatus.FAILED


async def test_a_run_that_changes_all_the_time_is_canceled_by_a_later_attempt(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = await place.engine.submit(place.run())
    place.cluster.faults.add(status=409, times=5, match={"method": "PATCH"})
    with pytest.raises(UpstreamError) as caught:
        await place.engine.cancel(place.run(), submitted.run_id, "stop")
    assert caught.value.retryable
    await place.engine.cancel(place.run(), submitted.run_id, "stop")
    assert CANCEL_ANNOTATION in place.annotations(submitted.run_id)


async def test_a_run_that_is_not_known_is_stopped_and_no_other(place: Place) -> None:
    await place.engine.stop_others(place.run(), "", "why")  # there is none
    run_id = (await place.engine.submit(place.run())).run_id
    await place.engine.stop_others(place.run(), run_id, "why")
    await place.engine.stop_others(place.run().model_copy(update={"request_id": "r2"}), "", "why")
    assert CANCEL_ANNOTATION not in place.annotations(run_id)
    await place.engine.stop_others(place.run(), "", "why")
    assert place.annotations(run_id)[CANCEL_ANNOTATION] == "why"


async def test_a_run_is_described_by_its_name(place: Place) -> None:
    assert await place.engine.describe(place.run()) is None
    submitted = await place.engine.submit(place.run())
    assert await place.engine.describe(place.run()) == submitted
