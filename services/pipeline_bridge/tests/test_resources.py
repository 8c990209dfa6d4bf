"""Following runs by one list and watch, in the emulated cluster and on a server that answers as it is told."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from handler_core.clients.failures import UpstreamError
from handler_core.clients.http import Backoff
from handler_core.contract.pipeline import RunStatus
from handler_core.errors import Transient
from handler_core.telemetry import Metrics
from handler_core.testing import until
from local_cluster.resources import WORKFLOWS
from local_cluster.testing import RunningCluster, running
from pipeline_bridge import resources as resources_module
from pipeline_bridge.cluster import Cluster
from pipeline_bridge.engine import MANAGED_BY, MANAGER, Changes, Observed, RunGone
from pipeline_bridge.resources import Resources

LIST = "GET /apis/argoproj.io/v1alpha1/namespaces/{namespace}/workflows"
GET = LIST + "/{name}"
WATCH = LIST.replace("GET", "WATCH")
QUICK = Backoff(initial=0.01, maximum=0.05, jitter=0.01, longest_wait=5.0)
STATES = {
    "": RunStatus.PENDING,
    "Pending": RunStatus.PENDING,
    "Running": RunStatus.RUNNING,
    "Succeeded": RunStatus.SUCCEEDED,
    "Failed": RunStatus.FAILED,
}


def observe(workflow: dict[str, Any]) -> Observed:
    phase = (workflow.get("status") or {}).get("phase", "")
    return Observed(workflow["metadata"]["name"], STATES[phase], phase)


def seen(name: str, phase: str) -> Observed:
    return Observed(name, STATES[phase], phase)


def manifest(name: str, phase: str = "") -> dict[str, Any]:
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"name": name, "namespace": "argo", "labels": {MANAGED_BY: MANAGER}},
        "spec": {"workflowTemplateRef": {"name": "document-ingestion"}},
        "status": {"phase": phase},
    }


class Runs:
    """The emulated cluster, with the workflows in it as the test has them be."""

    def __init__(self, running: RunningCluster) -> None:
        self.running = running
        self.faults = running.faults
        self.calls = running.calls

    def make(self, name: str, phase: str = "Pending") -> None:
        self.running.store.create(WORKFLOWS, "argo", manifest(name, phase))

    def move(self, name: str, phase: str) -> None:
        self.running.store.merge_patch(WORKFLOWS, "argo", name, {"status": {"phase": phase}})

    def delete(self, name: str) -> None:
        self.running.store.delete(WORKFLOWS, "argo", name)

    async def watched(self, times: int = 1) -> None:
        """Wait until a watch is being answered, the one of that number."""
        await self.faults.until(WATCH, times)
        await until(lambda: self.faults.open[WATCH] == 1, "the watch is open")


@asynccontextmanager
async def connected(url: str, folder: Path) -> AsyncIterator[Cluster]:
    config = folder / "kubeconfig"
    config.write_text(
        json.dumps(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": url}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
            }
        )
    )
    cluster = await Cluster.connect(kubeconfig=str(config))
    try:
        yield cluster
    finally:
        await cluster.close()


@pytest.fixture
async def runs() -> AsyncIterator[Runs]:
    async with running(hold=True, bookmark_seconds=60) as cluster:
        yield Runs(cluster)


@pytest.fixture
async def cluster(runs: Runs, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with connected(runs.running.url, tmp_path) as cluster:
        yield cluster


def workflows(cluster: Cluster, **arguments: Any) -> Resources:
    return Resources(
        cluster, "argoproj.io", "v1alpha1", "workflows", "argo", observe, **{"backoff": QUICK, **arguments}
    )


@asynccontextmanager
async def serving(resources: Resources) -> AsyncIterator[Resources]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(resources.serve())
        try:
            yield resources
        finally:
            task.cancel()


async def expect(changes: Changes, name: str, *phases: str) -> None:
    for phase in phases:
        assert await changes.next() == seen(name, phase)


# --- calls


async def test_an_object_is_made_read_changed_and_missed(cluster: Cluster) -> None:
    resources = workflows(cluster)
    assert (await resources.create(manifest("a")))["metadata"]["uid"]
    found = await resources.get("a")
    assert found is not None
    assert found["spec"]["workflowTemplateRef"]["name"] == "document-ingestion"
    patched = await resources.patch("a", {"spec": {"shutdown": "Stop"}})
    assert patched is not None
    assert patched["spec"]["shutdown"] == "Stop"
    assert await resources.get("b") is None
    assert await resources.patch("b", {}) is None


async def test_a_name_that_is_taken_is_a_conflict(cluster: Cluster) -> None:
    resources = workflows(cluster)
    await resources.create(manifest("a"))
    with pytest.raises(UpstreamError) as raised:
        await resources.create(manifest("a"))
    assert raised.value.status == 409


# --- what is followed


async def test_every_change_of_a_run_is_told_in_order(runs: Runs, cluster: Cluster) -> None:
    async with serving(workflows(cluster)) as resources:
        made = await resources.create(manifest("a"))
        with resources.follow("a", observe(made)) as changes:
            await expect(changes, "a", "")
            await runs.watched()
            for phase in ("Pending", "Running", "Succeeded"):
                runs.move("a", phase)
            await expect(changes, "a", "Pending", "Running", "Succeeded")


async def test_nothing_is_asked_while_nothing_is_followed(runs: Runs, cluster: Cluster) -> None:
    runs.make("a")
    async with serving(workflows(cluster)) as resources:
        await asyncio.sleep(0)
        assert not runs.calls
        for times in (1, 2):
            with resources.follow("a") as changes:
                await expect(changes, "a", "Pending")
                await runs.watched(times)
            await until(lambda: not runs.faults.open[WATCH], "the watch is given up")
        calls = runs.calls.copy()
        await asyncio.sleep(0.05)
        assert runs.calls == calls


async def test_ending_the_service_ends_the_watch(runs: Runs, cluster: Cluster) -> None:
    runs.make("a")
    resources = workflows(cluster)
    with resources.follow("a"):
        async with serving(resources):
            await runs.watched()
        await until(lambda: not runs.faults.open[WATCH], "the watch is given up")


async def test_one_watch_follows_five_hundred_runs(runs: Runs, cluster: Cluster) -> None:
    names = [f"run-{number}" for number in range(500)]
    resources = workflows(cluster)
    for name in names:
        runs.make(name)

    async def to_the_end(name: str) -> None:
        with resources.follow(name) as changes:
            await expect(changes, name, "Pending", "Running", "Succeeded")

    async with serving(resources), asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(to_the_end(name))
        await runs.watched()
        for phase in ("Running", "Succeeded"):
            for name in names:
                runs.move(name, phase)
    assert runs.calls == {LIST: 5, WATCH: 1}


async def test_two_followers_of_a_run_are_both_told_until_each_leaves(runs: Runs, cluster: Cluster) -> None:
    runs.make("a")
    async with serving(workflows(cluster)) as resources:
        with resources.follow("a") as first:
            with resources.follow("a") as second:
                await expect(first, "a", "Pending")
                await expect(second, "a", "Pending")
            await runs.watched()
            runs.move("a", "Running")
            await expect(first, "a", "Running")


async def test_what_happens_between_making_a_run_and_following_it_is_not_lost(runs: Runs, cluster: Cluster) -> None:
    runs.make("other")
    async with serving(workflows(cluster)) as resources:
        with resources.follow("other") as other:
            await expect(other, "other", "Pending")
            await runs.watched()
            made = await resources.create(manifest("a"))
            runs.move("a", "Succeeded")
            runs.move("other", "Running")
            await expect(other, "other", "Running")
            with resources.follow("a", observe(made)) as changes:
                await expect(changes, "a", "", "Succeeded")
    assert GET not in runs.calls


async def test_a_run_taken_over_while_others_are_followed_is_known_already(runs: Runs, cluster: Cluster) -> None:
    runs.make("a", "Running")
    runs.make("other")
    async with serving(workflows(cluster)) as resources:
        with resources.follow("other") as other:
            await expect(other, "other", "Pending")
            await runs.watched()
            with resources.follow("a") as changes:
                await expect(changes, "a", "Running")
    assert runs.calls == {LIST: 1, WATCH: 1}


async def test_looking_at_a_run_that_has_ended_is_tried_again_after_a_failure(runs: Runs, cluster: Cluster) -> None:
    runs.make("a", "Succeeded")
    runs.make("other")
    async with serving(workflows(cluster)) as resources:
        with resources.follow("other") as other:
            await expect(other, "other", "Pending")
            await runs.watched()
            runs.faults.add(status=503, times=2, match={"path": "/workflows/a$"})
            with resources.follow("a") as changes:
                await expect(changes, "a", "Succeeded")
    assert runs.calls[GET] == 3


async def test_runs_of_other_bridges_are_known_and_those_of_others_are_not(runs: Runs, cluster: Cluster) -> None:
    foreign = manifest("foreign", "Running")
    foreign["metadata"]["labels"] = {}
    runs.running.store.create(WORKFLOWS, "argo", foreign)
    runs.make("ours")
    runs.make("followed")
    async with serving(workflows(cluster)) as resources:
        with resources.follow("followed") as changes:
            await expect(changes, "followed", "Pending")
            await runs.watched()
            runs.move("ours", "Running")
            runs.move("followed", "Running")
            await expect(changes, "followed", "Running")
            assert set(resources._known) == {"followed", "ours"}
            runs.move("ours", "Succeeded")
            runs.move("followed", "Succeeded")
            await expect(changes, "followed", "Succeeded")
    assert "followed" not in resources._known


async def test_what_is_kept_of_runs_that_nobody_follows_is_bounded(
    runs: Runs, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources_module, "_UNFOLLOWED", 3)
    resources = workflows(cluster)
    with resources.follow("run-0"):
        for number in range(8):
            await resources.create(manifest(f"run-{number}"))
        assert list(resources._known) == ["run-0", "run-5", "run-6", "run-7"]


async def test_an_object_that_is_not_understood_is_passed_over(runs: Runs, cluster: Cluster) -> None:
    runs.make("a")
    runs.make("odd", "Unheard-of")
    async with serving(workflows(cluster)) as resources:
        with resources.follow("a") as changes, resources.follow("odd") as odd:
            await expect(changes, "a", "Pending")
            await runs.watched()
            runs.move("odd", "Running")
            await expect(odd, "odd", "Running")


# --- whatever disturbs the connection is mended


DISTURBANCES: dict[str, dict[str, Any]] = {
    "reset": {"reset": True},
    "unavailable": {"status": 503},
    "internal error": {"status": 500},
    "too many requests": {"status": 429},
    "forbidden": {"status": 403},
    "too old, as a status": {"status": 410},
    "garbage": {"garbage": True},
    "garbage within": {"garbage": True, "cut_after": 40},
    "cut at once": {"cut_after": 0},
    "cut in the middle of a line": {"cut_after": 30},
    "reset in the middle of a line": {"cut_after": 30, "reset": True},
    "no answer": {"stall": True},
    "silent in the middle of a line": {"cut_after": 30, "stall": True},
}


@pytest.mark.parametrize("fault", DISTURBANCES.values(), ids=DISTURBANCES.keys())
async def test_a_change_missed_while_the_watch_is_disturbed_is_found(
    runs: Runs, cluster: Cluster, fault: dict[str, Any]
) -> None:
    runs.make("a")
    async with serving(workflows(cluster, stall_timeout=0.1)) as resources:
        with resources.follow("a") as changes:
            await expect(changes, "a", "Pending")
            await runs.watched()
            watches = runs.calls[WATCH]
            runs.faults.add(**fault, times=2, match={"watch": True})
            runs.faults.restart()
            runs.move("a", "Running")
            await runs.faults.until(WATCH, watches + 1)
            await expect(changes, "a", "Running")
            runs.move("a", "Succeeded")
            await expect(changes, "a", "Succeeded")


@pytest.mark.parametrize(
    "fault", [fault for name, fault in DISTURBANCES.items() if "answer" not in name and "silent" not in name]
)
async def test_a_list_that_fails_is_tried_again(runs: Runs, cluster: Cluster, fault: dict[str, Any]) -> None:
    runs.make("a")
    runs.faults.add(**fault, times=3, match={"watch": False, "path": "/workflows$"})
    async with serving(workflows(cluster)) as resources:
        with resources.follow("a") as changes:
            await expect(changes, "a", "Pending")
            await runs.watched()
    assert runs.calls[LIST] == 4


async def test_a_version_too_old_within_the_watch_is_listed_afresh(runs: Runs, cluster: Cluster) -> None:
    runs.make("a")
    metrics = Metrics()
    async with serving(workflows(cluster, metrics=metrics)) as resources:
        with resources.follow("a") as changes:
            await expect(changes, "a", "Pending")
            await runs.watched()
            assert 'handler_pipeline_runs_watched{resource="workflows",namespace="argo"} 1' in metrics.render()
            runs.move("a", "Running")
            await expect(changes, "a", "Running")
            runs.running.store.compact(watches=True)
            runs.move("a", "Succeeded")
            await expect(changes, "a", "Succeeded")
            await runs.watched(2)
    assert runs.calls == {LIST: 2, WATCH: 2}
    assert 'namespace="argo",outcome="http_410"} 1' in metrics.render()


async def test_a_list_whose_next_page_is_too_old_begins_afresh(runs: Runs, cluster: Cluster) -> None:
    for number in range(150):
        runs.make(f"run-{number:03}")
    runs.faults.add(status=410, skip=1, match={"watch": False})
    async with serving(workflows(cluster)) as resources:
        with resources.follow("run-149") as changes:
            await expect(changes, "run-149", "Pending")
    assert runs.calls[LIST] == 4


async def test_a_run_is_not_gone_because_a_list_is_garbage(runs: Runs, cluster: Cluster) -> None:
    runs.make("a")
    async with serving(workflows(cluster, poll_interval=0.02)) as resources:
        with resources.follow("a") as changes:
            await expect(changes, "a", "Pending")
            lists = runs.calls[LIST]
            runs.faults.add(garbage=True, times=3, match={"watch": False})
            await runs.faults.until(LIST, lists + 5)
            runs.move("a", "Running")
            await expect(changes, "a", "Running")


async def test_a_watch_gone_silent_is_given_up(runs: Runs, cluster: Cluster) -> None:
    runs.make("a")
    async with serving(workflows(cluster, stall_timeout=0.1)) as resources:
        with resources.follow("a") as changes:
            await expect(changes, "a", "Pending")
            await runs.watched()
            runs.faults.silence()
            runs.move("a", "Running")
            await expect(changes, "a", "Running")


async def test_a_poll_finds_what_a_watch_keeps_to_itself(runs: Runs, cluster: Cluster) -> None:
    runs.make("a")
    async with serving(workflows(cluster, poll_interval=0.1)) as resources:
        with resources.follow("a") as changes:
            await expect(changes, "a", "Pending")
            await runs.watched()
            runs.faults.silence()
            runs.move("a", "Running")
            await expect(changes, "a", "Running")


async def test_a_server_that_restarts_is_waited_for(runs: Runs, cluster: Cluster) -> None:
    runs.make("a")
    metrics = Metrics()
    async with serving(workflows(cluster, metrics=metrics)) as resources:
        with resources.follow("a") as changes:
            await expect(changes, "a", "Pending")
            await runs.watched()
            await runs.running.stop()
            runs.move("a", "Running")
            runs.running.store.compact()
            await until(lambda: 'outcome="unreachable"' in metrics.render(), "it was tried to connect")
            await runs.running.start()
            await expect(changes, "a", "Running")
            await until(lambda: runs.faults.open[WATCH] == 1, "the watch is open")
            runs.move("a", "Succeeded")
            await expect(changes, "a", "Succeeded")


async def test_retry_after_is_waited_for(runs: Runs, cluster: Cluster) -> None:
    runs.make("a")
    runs.faults.add(status=429, retry_after=1, match={"watch": False})
    began = asyncio.get_running_loop().time()
    async with serving(workflows(cluster)) as resources:
        with resources.follow("a") as changes:
            await expect(changes, "a", "Pending")
    assert asyncio.get_running_loop().time() - began >= 1.0


# --- runs that are gone


async def test_the_last_state_of_a_deleted_run_counts(runs: Runs, cluster: Cluster) -> None:
    runs.make("a")
    async with serving(workflows(cluster)) as resources:
        with resources.follow("a") as changes:
            await expect(changes, "a", "Pending")
            await runs.watched()
            runs.move("a", "Succeeded")
            runs.delete("a")
            await expect(changes, "a", "Succeeded")


async def test_a_run_deleted_before_its_end_is_gone(runs: Runs, cluster: Cluster) -> None:
    runs.make("a", "Running")
    async with serving(workflows(cluster)) as resources:
        with resources.follow("a") as changes:
            await expect(changes, "a", "Running")
            await runs.watched()
            runs.delete("a")
            with pytest.raises(RunGone, match="a is no longer there"):
                await changes.next()
    assert runs.calls == {LIST: 1, WATCH: 1, GET: 1}


async def test_a_run_deleted_while_nobody_watched_is_gone(runs: Runs, cluster: Cluster) -> None:
    runs.make("a", "Running")
    async with serving(workflows(cluster)) as resources:
        with resources.follow("a") as changes:
            await expect(changes, "a", "Running")
            await runs.watched()
            await runs.running.stop()
            runs.delete("a")
            await runs.running.start()
            with pytest.raises(RunGone):
                await changes.next()


async def test_a_run_that_never_was_is_gone(runs: Runs, cluster: Cluster) -> None:
    async with serving(workflows(cluster)) as resources:
        with resources.follow("a") as changes, pytest.raises(RunGone):
            await changes.next()


async def test_whoever_knows_how_a_lost_run_ended_is_asked(runs: Runs, cluster: Cluster) -> None:
    asked: list[str] = []

    async def lost(name: str) -> Observed | None:
        asked.append(name)
        if len(asked) < 3:
            raise Transient("the archive is not there")
        return seen(name, "Failed") if name == "a" else None

    runs.make("a", "Running")
    async with serving(workflows(cluster, lost=lost)) as resources:
        with resources.follow("a") as changes:
            await expect(changes, "a", "Running")
            await runs.watched()
            runs.delete("a")
            await expect(changes, "a", "Failed")
            with resources.follow("b") as other, pytest.raises(RunGone):
                await other.next()
    assert asked == ["a", "a", "a", "b"]


async def test_a_run_that_loses_our_label_is_looked_at_from_then_on(runs: Runs, cluster: Cluster) -> None:
    runs.make("a")
    async with serving(workflows(cluster, poll_interval=0.05)) as resources:
        with resources.follow("a") as changes:
            await expect(changes, "a", "Pending")
            await runs.watched()
            runs.running.store.merge_patch(WORKFLOWS, "argo", "a", {"metadata": {"labels": {MANAGED_BY: None}}})
            runs.move("a", "Running")
            await expect(changes, "a", "Running")
            runs.move("a", "Succeeded")
            await expect(changes, "a", "Succeeded")


# --- versions, told by a server that says just what the test wants


def workflow(version: int, phase: str, name: str = "a") -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": str(version)}, "status": {"phase": phase}}


class Script:
    """An API server that lists and tells what it is given."""

    def __init__(self) -> None:
        self.lists: list[dict[str, Any]] = []
        """What the next lists answer; the last one again and again."""
        self.watches: list[list[dict[str, Any]]] = []
        """The events of the next watches, which then end; without one more a watch stays open."""
        self.item = workflow(0, "")
        """The one object that there is, under whatever name."""
        self.asked: list[str] = []
        """Resource versions that were watched from."""
        self.tell: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        """Events for a watch that stays open."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if not request.path.endswith("/workflows"):
            return web.json_response(self.item)
        if "watch" not in request.query:
            return web.json_response(self.lists.pop(0) if len(self.lists) > 1 else self.lists[0])
        self.asked.append(request.query["resourceVersion"])
        response = web.StreamResponse()
        await response.prepare(request)
        for event in self.watches.pop(0) if self.watches else ():
            await response.write(json.dumps(event).encode() + b"\n")
        while not self.watches and len(self.asked) > 1:
            await response.write(json.dumps(await self.tell.get()).encode() + b"\n")
        return response


@asynccontextmanager
async def scripted(script: Script, folder: Path) -> AsyncIterator[Resources]:
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", script.handle)
    server = TestServer(app, host="127.0.0.1")
    await server.start_server()
    try:
        url = str(server.make_url("")).rstrip("/")
        async with connected(url, folder) as cluster, serving(workflows(cluster)) as resources:
            yield resources
    finally:
        await server.close()


def listed(version: int, *items: dict[str, Any]) -> dict[str, Any]:
    return {"items": list(items), "metadata": {"resourceVersion": str(version)}}


def told(kind: str, object: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "object": object}


async def test_a_watch_that_ends_goes_on_from_its_last_version_bookmarks_included(tmp_path: Path) -> None:
    script = Script()
    script.lists = [listed(10, workflow(7, "Pending"))]
    script.watches = [
        [told("MODIFIED", workflow(12, "Running")), told("BOOKMARK", {"metadata": {"resourceVersion": "15"}})],
    ]
    async with scripted(script, tmp_path) as resources:
        with resources.follow("a") as changes:
            await expect(changes, "a", "Pending", "Running")
            script.tell.put_nowait(told("MODIFIED", workflow(16, "Succeeded")))
            await expect(changes, "a", "Succeeded")
    assert script.asked == ["10", "15"]


async def test_a_server_set_back_to_a_backup_is_believed(tmp_path: Path) -> None:
    script = Script()
    script.lists = [listed(1000, workflow(990, "Running")), listed(500, workflow(490, "Pending"))]
    script.watches = [[told("ERROR", {"code": 504, "message": "Too large resource version"})]]
    async with scripted(script, tmp_path) as resources:
        with resources.follow("a") as changes:
            await expect(changes, "a", "Running", "Pending")
            script.tell.put_nowait(told("MODIFIED", workflow(501, "Running")))
            await expect(changes, "a", "Running")
    assert script.asked == ["1000", "500"]


async def test_a_list_older_than_what_was_read_beside_it_is_passed_over(tmp_path: Path) -> None:
    script = Script()
    script.lists = [listed(10, workflow(7, "Pending")), listed(30, workflow(20, "Running"))]
    script.watches = [[]]
    script.item = workflow(31, "Succeeded")  # an answer that overtook the second list
    async with scripted(script, tmp_path) as resources:
        with resources.follow("a") as changes:
            await expect(changes, "a", "Pending")
            await resources.get("a")
            await expect(changes, "a", "Succeeded")
            script.tell.put_nowait(told("ERROR", {"code": 410, "message": "too old resource version"}))
            await until(lambda: script.asked[-1] == "30", "it is listed and watched again")
            script.tell.put_nowait(told("MODIFIED", workflow(32, "Failed")))
            await expect(changes, "a", "Failed")


async def test_an_event_older_than_what_was_read_since_is_passed_over(tmp_path: Path) -> None:
    script = Script()
    script.lists = [listed(10, workflow(7, "Pending"))]
    script.watches = [[]]
    script.item = workflow(20, "Running")
    async with scripted(script, tmp_path) as resources:
        with resources.follow("a") as changes:
            await expect(changes, "a", "Pending")
            await resources.get("a")
            await expect(changes, "a", "Running")
            script.tell.put_nowait(told("MODIFIED", workflow(9, "Pending")))
            script.tell.put_nowait(told("MODIFIED", workflow(21, "Succeeded")))
            await expect(changes, "a", "Succeeded")


async def test_an_answer_overtaken_by_the_watch_is_passed_over(tmp_path: Path) -> None:
    script = Script()
    script.lists = [listed(10, workflow(7, "Pending"))]
    script.watches = [[told("MODIFIED", workflow(12, "Running"))]]
    script.item = workflow(7, "Pending")
    async with scripted(script, tmp_path) as resources:
        with resources.follow("a") as changes:
            await expect(changes, "a", "Pending", "Running")
            await resources.get("a")
            script.tell.put_nowait(told("MODIFIED", workflow(13, "Failed")))
            await expect(changes, "a", "Failed")


@pytest.mark.parametrize("answer", [{}, {"items": []}, {"items": 3, "metadata": {"resourceVersion": "1"}}])
async def test_a_list_that_is_none_is_asked_for_again(tmp_path: Path, answer: dict[str, Any]) -> None:
    script = Script()
    script.lists = [answer, listed(10, workflow(7, "Running"))]
    async with scripted(script, tmp_path) as resources:
        with resources.follow("a") as changes:
            await expect(changes, "a", "Running")


async def test_objects_without_what_every_object_has_are_passed_over(tmp_path: Path) -> None:
    script = Script()
    odd: list[Any] = [None, "text", {}, {"metadata": None}, {"metadata": {"name": "b", "resourceVersion": 3}}]
    script.lists = [listed(10, *odd, workflow(7, "Running"))]
    async with scripted(script, tmp_path) as resources:
        with resources.follow("a") as changes:
            await expect(changes, "a", "Running")


# --- the whole way


async def test_a_pod_follows_a_run_over_tls_by_its_service_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(hold=True, tls=True, tokens=["first"]) as emulated:
        runs = Runs(emulated)
        runs.make("a")
        folder = emulated.service_account(tmp_path / "account")
        for name, value in emulated.in_cluster.items():
            monkeypatch.setenv(name, value)
        cluster = await Cluster.connect(service_account=folder)
        try:
            async with serving(workflows(cluster)) as resources:
                with resources.follow("a") as changes:
                    await expect(changes, "a", "Pending")
                    await runs.watched()
                    emulated.tokens.clear()
                    emulated.tokens.add("second")
                    emulated.service_account(tmp_path / "account")
                    await emulated.restart()
                    runs.move("a", "Running")
                    await expect(changes, "a", "Running")
        finally:
            await cluster.close()


async def test_what_was_seen_while_another_run_was_followed_is_not_told_once_nobody_watches(
    runs: Runs, cluster: Cluster
) -> None:
    runs.make("r1")
    runs.make("r2")
    resources = workflows(cluster)
    async with serving(resources):
        with resources.follow("r1") as changes:
            await expect(changes, "r1", "Pending")
            await runs.watched()
        await until(lambda: runs.faults.open[WATCH] == 0, "nobody watches")
        runs.move("r2", "Running")
        with resources.follow("r2") as changes:
            await expect(changes, "r2", "Running")
