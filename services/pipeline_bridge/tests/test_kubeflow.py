"""Kubeflow Pipelines has no unique names and no watch: still one run a request, and few calls to follow many."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from handler_core.clients.failures import UpstreamError
from handler_core.clients.http import new_session
from handler_core.contract.pipeline import RunStatus
from handler_core.errors import InvalidRequest, NotFound
from handler_core.tasks import background
from local_cluster.testing import RunningCluster, running
from pipeline_bridge.api import Api
from pipeline_bridge.engine import Changes, Observed, Run, RunGone, run_name
from pipeline_bridge.kubeflow import Kubeflow
from pipeline_bridge.states import of_run

RUNS = "/apis/v2beta1/runs"
LIST, CREATE = f"GET {RUNS}", f"POST {RUNS}"
GET, TERMINATE = f"GET {RUNS}/{{run_id}}", f"POST {RUNS}/{{run_id}}:terminate"


def run(request_id: str = "r1", *, namespace: str = "", parameters: dict[str, Any] | None = None, **named: Any) -> Run:
    return Run(
        request_id=request_id,
        pipeline="ask",
        engine="kubeflow",
        namespace=namespace,
        name=run_name("ask", request_id),
        reference={"pipeline": "rag-query", "version": None, "experiment": None, **named},
        parameters=parameters or {},
        timeout=60.0,
    )


@pytest.fixture
async def cluster() -> AsyncIterator[RunningCluster]:
    async with running(hold=True, kubeflow_experiments="nightly") as cluster:
        yield cluster


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with new_session() as session:
        yield session


def bridge(session: aiohttp.ClientSession, cluster: RunningCluster, **api: Any) -> Kubeflow:
    return Kubeflow(Api(session, "kubeflow", cluster.url, **api), poll_interval=0.02, settle=0.0)


@pytest.fixture
async def kubeflow(session: aiohttp.ClientSession, cluster: RunningCluster) -> AsyncIterator[Kubeflow]:
    engine = bridge(session, cluster)
    async with background(engine.serve()), asyncio.timeout(20):
        yield engine


async def last(changes: Changes) -> Observed:
    while not (observed := await changes.next()).status.final:
        pass
    return observed


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (None, "pending"),
        ("RUNTIME_STATE_UNSPECIFIED", "pending"),
        ("PENDING", "pending"),
        ("PAUSED", "pending"),
        ("RUNNING", "running"),
        ("CANCELING", "running"),
        ("SUCCEEDED", "succeeded"),
        ("SKIPPED", "succeeded"),
        ("FAILED", "failed"),
        ("CANCELED", "canceled"),
        ("UNHEARD_OF", "pending"),
        (7, "pending"),
    ],
)
def test_states(state: Any, status: str) -> None:
    shown = {"run_id": "i", "error": {"code": 13, "message": "said"}} | ({} if state is None else {"state": state})
    raw = state if isinstance(state, str) else ""
    assert of_run(shown) == Observed("i", RunStatus(status), raw, "said")


def test_a_failure_that_its_history_explains_is_no_failure() -> None:
    history = [{"state": "RUNNING"}, {"state": "CANCELING"}, {"state": "FAILED", "error": {"message": "stopped"}}]
    stopped = of_run({"run_id": "i", "state": "FAILED", "state_history": history})
    assert stopped == Observed("i", RunStatus.CANCELED, "FAILED", "stopped")
    assert of_run({"run_id": "i", "state": "FAILED", "state_history": [None, "x", {}]}).status is RunStatus.FAILED
    assert of_run({"run_id": "i", "error": "x", "state_history": "x"}) == Observed("i", RunStatus.PENDING, "")


async def test_a_run_has_what_the_request_asked_for(kubeflow: Kubeflow, cluster: RunningCluster) -> None:
    parameters = {"question": "why?", "top_k": 3, "filters": {"tags": ["a", None]}}
    submitted = await kubeflow.submit(run(parameters=parameters, version="1", experiment="nightly"))
    [made] = cluster.kubeflow.runs.values()
    assert made["run_id"] == submitted.run_id
    assert made["display_name"] == run_name("ask", "r1")
    assert made["runtime_config"]["parameters"] == parameters
    assert made["experiment_id"] == cluster.kubeflow.experiment_id("nightly")
    assert made["pipeline_version_reference"] == {
        "pipeline_id": cluster.kubeflow.pipeline_id("rag-query"),
        "pipeline_version_id": cluster.kubeflow.version_id("rag-query", "1"),
    }


async def test_without_a_version_the_newest_is_run(kubeflow: Kubeflow, cluster: RunningCluster) -> None:
    await kubeflow.submit(run())
    [made] = cluster.kubeflow.runs.values()
    newest = cluster.kubeflow.version_id("rag-query", "2")
    assert made["pipeline_version_reference"]["pipeline_version_id"] == newest
    assert made["experiment_id"] == cluster.kubeflow.experiment_id("Default")


async def test_ids_do_as_well_as_names(kubeflow: Kubeflow, cluster: RunningCluster) -> None:
    server = cluster.kubeflow
    ids: dict[str, Any] = {
        "pipeline": server.pipeline_id("rag-query"),
        "version": server.version_id("rag-query", "1"),
        "experiment": server.experiment_id("nightly"),
    }
    await kubeflow.submit(run(**ids))
    [made] = server.runs.values()
    assert made["pipeline_version_reference"]["pipeline_version_id"] == ids["version"]
    assert made["experiment_id"] == ids["experiment"]


async def test_names_with_characters_of_urls_are_found(kubeflow: Kubeflow, cluster: RunningCluster) -> None:
    for name in ("a+b", "100%25", 'say "hi" & go', "größe"):
        cluster.kubeflow.add_pipeline(name, ["1"])
        await kubeflow.submit(run(name, pipeline=name))
        assert cluster.kubeflow.created
    wanted = {cluster.kubeflow.pipeline_id(name) for name in ("a+b", "100%25", 'say "hi" & go', "größe")}
    made = {each["pipeline_version_reference"]["pipeline_id"] for each in cluster.kubeflow.runs.values()}
    assert made == wanted


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"pipeline": "no-such"}, "no pipeline 'no-such'"),
        ({"pipeline": "00000000-0000-4000-8000-000000000000"}, "no pipeline '00000000-"),
        ({"version": "9"}, "no pipeline version '9'"),
        ({"experiment": "nowhere"}, "no experiment 'nowhere'"),
        ({"pipeline": "empty"}, "pipeline 'empty' has no version"),
        ({"pipeline": "twice"}, "2 of pipeline 'twice': give the id"),
    ],
)
async def test_what_a_run_refers_to_must_be_there(
    kubeflow: Kubeflow, cluster: RunningCluster, named: dict[str, Any], message: str
) -> None:
    for name, versions in (("empty", []), ("twice", ["1"]), ("twice", ["1"])):
        cluster.kubeflow.add_pipeline(name, versions)
    with pytest.raises(NotFound, match=message) as caught:
        await kubeflow.submit(run(**named))
    assert not caught.value.retryable
    assert not cluster.kubeflow.runs


async def test_names_are_looked_up_once_in_a_while(kubeflow: Kubeflow, cluster: RunningCluster) -> None:
    for request in ("r1", "r2", "r3"):
        await kubeflow.submit(run(request, version="1", experiment="nightly"))
    lookups = {call: times for call, times in cluster.calls.items() if not call.startswith((LIST, CREATE))}
    assert sum(lookups.values()) == 3


async def test_a_pipeline_that_was_replaced_is_looked_up_again(kubeflow: Kubeflow, cluster: RunningCluster) -> None:
    await kubeflow.submit(run("r1", version="1"))
    cluster.kubeflow.pipelines.clear()
    cluster.kubeflow.versions.clear()
    cluster.kubeflow.add_pipeline("rag-query", ["1"])
    with pytest.raises(UpstreamError, match="not found"):
        await kubeflow.submit(run("r2", version="1"))
    await kubeflow.submit(run("r2", version="1"))


async def test_with_many_users_a_run_is_of_its_namespaces_experiment(session: aiohttp.ClientSession) -> None:
    async with running(hold=True, kubeflow_namespace="team") as cluster, asyncio.timeout(20):
        kubeflow = bridge(session, cluster)
        async with background(kubeflow.serve()):
            submitted = await kubeflow.submit(run(namespace="team"))
            assert await kubeflow.submit(run(namespace="team")) == submitted
            [made] = cluster.kubeflow.runs.values()
            assert made["experiment_id"] == cluster.kubeflow.experiment_id("Default")
            with kubeflow.follow(run(namespace="team"), submitted.run_id) as changes:
                cluster.kubeflow.delete(submitted.run_id)
                with pytest.raises(RunGone):
                    await last(changes)
            with pytest.raises(NotFound, match="no experiment 'Default'"):
                await kubeflow.submit(run(namespace="nobody"))


async def test_an_expression_among_the_parameters_is_refused(kubeflow: Kubeflow, cluster: RunningCluster) -> None:
    with pytest.raises(InvalidRequest, match=r"parameters\.question"):
        await kubeflow.submit(run(parameters={"question": {"text": ["{{workflow.name}}"]}}))
    assert not cluster.calls[CREATE]


async def test_a_run_is_created_once_however_often_it_is_submitted(kubeflow: Kubeflow, cluster: RunningCluster) -> None:
    first = await kubeflow.submit(run())
    cluster.kubeflow.advance(first.run_id, "RUNNING")
    again = await kubeflow.submit(run())
    assert (again.run_id, again.status) == (first.run_id, RunStatus.RUNNING)
    assert cluster.kubeflow.created == 1


@pytest.mark.parametrize("answer", [{"drop_response": True}, {"cut_after": 20}])
async def test_a_run_whose_creation_was_not_answered_is_found_by_the_next_attempt(
    kubeflow: Kubeflow, cluster: RunningCluster, answer: dict[str, Any]
) -> None:
    cluster.faults.add(**answer, match={"method": "POST", "path": "/runs$"})
    with pytest.raises(UpstreamError) as caught:
        await kubeflow.submit(run())
    assert caught.value.retryable
    assert cluster.kubeflow.created == 1
    found = await kubeflow.submit(run())
    assert cluster.kubeflow.created == 1
    assert [found.run_id] == list(cluster.kubeflow.runs)


async def test_a_worker_that_died_before_it_looked_again_leaves_no_second_run(
    kubeflow: Kubeflow, cluster: RunningCluster
) -> None:
    cluster.faults.add(status=503, skip=1, match={"method": "GET", "path": "/runs$"})
    with pytest.raises(UpstreamError):
        await kubeflow.submit(run())
    await kubeflow.submit(run())
    assert cluster.kubeflow.created == 1


async def test_of_two_bridges_that_submit_at_once_both_keep_the_same_run(
    session: aiohttp.ClientSession, cluster: RunningCluster
) -> None:
    first, second = bridge(session, cluster), bridge(session, cluster)
    # Both have looked before either creates, and both have created before either looks again.
    posts = asyncio.Barrier(2)
    for engine in (first, second):
        create = engine._api.create

        async def together(run: Run, create: Any = create) -> Any:
            await posts.wait()
            created = await create(run)
            await posts.wait()
            return created

        engine._api.create = together  # type: ignore[method-assign]
    async with asyncio.timeout(20):
        kept = await asyncio.gather(first.submit(run()), second.submit(run()))
        assert kept[0].run_id == kept[1].run_id
        assert cluster.kubeflow.created == 2
        [other] = [run_id for run_id in cluster.kubeflow.runs if run_id != kept[0].run_id]
        await cluster.kubeflow.until(other, "CANCELED")
    assert cluster.kubeflow.runs[kept[0].run_id]["state"] == "PENDING"
    assert (await first.submit(run())).run_id == kept[0].run_id


async def test_what_another_bridge_creates_a_moment_later_is_seen(
    session: aiohttp.ClientSession, cluster: RunningCluster
) -> None:
    kubeflow = Kubeflow(Api(session, "kubeflow", cluster.url), settle=0.1)
    async with asyncio.TaskGroup() as tasks:
        submitted = tasks.create_task(kubeflow.submit(run()))
        await cluster.kubeflow.until(run_name("ask", "r1"))
        [mine] = cluster.kubeflow.runs.values()
        named = {name: mine[name] for name in ("display_name", "description")}
        other = cluster.kubeflow.create({**named, "pipeline_version_reference": mine["pipeline_version_reference"]})
        cluster.kubeflow.runs[other["run_id"]]["created_at"] = "2020-01-01T00:00:00Z"
    assert submitted.result().run_id == other["run_id"]
    await cluster.kubeflow.until(mine["run_id"], "CANCELED")


async def test_the_oldest_of_several_runs_stays(kubeflow: Kubeflow, cluster: RunningCluster) -> None:
    ids = []
    for created in ("2026-01-01T00:00:01Z", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00.5Z", ""):
        body = {
            "display_name": run_name("ask", "r1"),
            "description": "Request r1",
            "pipeline_version_reference": {"pipeline_id": cluster.kubeflow.pipeline_id("rag-query")},
        }
        ids.append(cluster.kubeflow.create(body)["run_id"])
        cluster.kubeflow.runs[ids[-1]]["created_at"] = created
    cluster.kubeflow.advance(ids[2], "SUCCEEDED")
    assert (await kubeflow.submit(run())).run_id == ids[1]
    for other in (ids[0], ids[3]):
        await cluster.kubeflow.until(other, "CANCELED")
    assert cluster.kubeflow.runs[ids[2]]["state"] == "SUCCEEDED"
    described = await kubeflow.describe(run())
    assert described is not None
    assert described.run_id == ids[1]


async def test_a_run_that_somebody_else_named_so_is_left_alone(kubeflow: Kubeflow, cluster: RunningCluster) -> None:
    body = {
        "display_name": run_name("ask", "r1"),
        "pipeline_version_reference": {"pipeline_id": cluster.kubeflow.pipeline_id("rag-query")},
    }
    other = cluster.kubeflow.create(body)["run_id"]
    assert (await kubeflow.submit(run())).run_id != other
    assert cluster.kubeflow.runs[other]["state"] == "PENDING"


async def test_another_name_in_other_letters_is_another_run(kubeflow: Kubeflow, cluster: RunningCluster) -> None:
    other = await kubeflow.submit(run("r0"))
    cluster.kubeflow.runs[other.run_id]["display_name"] = run_name("ask", "r1").upper()
    await kubeflow.submit(run())
    assert cluster.kubeflow.created == 2


@pytest.mark.parametrize("status", [400, 403, 404, 422])
async def test_a_refused_run_is_a_final_error_with_the_servers_message(
    kubeflow: Kubeflow, cluster: RunningCluster, status: int
) -> None:
    cluster.faults.add(status=status, message="no such parameter", match={"method": "POST", "path": "/runs$"})
    with pytest.raises(UpstreamError, match="no such parameter") as caught:
        await kubeflow.submit(run())
    assert not caught.value.retryable


async def test_a_busy_server_is_asked_again_when_it_says(kubeflow: Kubeflow, cluster: RunningCluster) -> None:
    cluster.faults.add(status=429, retry_after=7, match={"path": "/runs$"})
    with pytest.raises(UpstreamError) as caught:
        await kubeflow.submit(run())
    assert (caught.value.retryable, caught.value.retry_after) == (True, 7.0)


async def test_a_body_that_does_not_end_is_given_up(session: aiohttp.ClientSession, cluster: RunningCluster) -> None:
    cluster.faults.add(piece_delay=0.05, piece_size=1, match={"path": "/runs$"})
    with pytest.raises(UpstreamError, match="timed out") as caught:
        await bridge(session, cluster, timeout=0.1).submit(run())
    assert caught.value.retryable


@pytest.mark.parametrize("garbage", [{"garbage": True}, {"cut_after": 1}])
async def test_an_answer_that_makes_no_sense_is_an_error(
    kubeflow: Kubeflow, cluster: RunningCluster, garbage: dict[str, Any]
) -> None:
    cluster.faults.add(**garbage, match={"path": "/runs$"})
    with pytest.raises(UpstreamError) as caught:
        await kubeflow.submit(run())
    assert caught.value.retryable


async def test_a_token_that_was_renewed_is_taken_up(session: aiohttp.ClientSession, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    async with running(hold=True, tokens=["first"]) as cluster:
        kubeflow = bridge(session, cluster, token=token)
        await kubeflow.submit(run("r1"))
        cluster.tokens.clear()
        cluster.tokens.add("second")
        with pytest.raises(UpstreamError, match="HTTP 401") as caught:
            await kubeflow.submit(run("r2"))
        assert not caught.value.retryable
        token.write_text("second")
        await kubeflow.submit(run("r2"))
        token.unlink()
        with pytest.raises(UpstreamError, match="HTTP 401"):
            await kubeflow.submit(run("r3"))
        token.write_bytes(b"\xff\n")  # half written: nothing is sent that was not read
        with pytest.raises(UpstreamError, match="HTTP 401"):
            await kubeflow.submit(run("r3"))


async def test_a_token_renewed_during_a_call_is_taken_up_at_once(
    session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    async with running(hold=True, tokens=["new"]) as cluster:
        cluster.faults.add(delay=0.05, match={"path": "/runs$"})
        async with asyncio.TaskGroup() as tasks:
            submitted = tasks.create_task(bridge(session, cluster, token=token).submit(run()))
            await cluster.faults.until(LIST)
            token.write_text("new")
        assert submitted.result().run_id in cluster.kubeflow.runs


async def test_a_token_that_is_echoed_is_masked(
    session: aiohttp.ClientSession, cluster: RunningCluster, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("ey.secret." + "x" * 400)
    cluster.faults.add(status=403, message=f"no: {token.read_text()}", match={"path": "/runs$"})
    with pytest.raises(UpstreamError) as caught:
        await bridge(session, cluster, token=token).submit(run())
    assert "secret" not in str(caught.value)


async def test_a_run_is_followed_to_its_end(kubeflow: Kubeflow, cluster: RunningCluster) -> None:
    submitted = await kubeflow.submit(run())
    with kubeflow.follow(run(), submitted.run_id) as changes:
        assert await changes.next() == submitted
        cluster.kubeflow.advance(submitted.run_id, "RUNNING")
        assert (await changes.next()).status is RunStatus.RUNNING
        cluster.kubeflow.advance(submitted.run_id, "FAILED", "out of memory")
        assert await changes.next() == Observed(submitted.run_id, RunStatus.FAILED, "FAILED", "out of memory")


async def test_nothing_is_asked_while_nothing_is_followed(kubeflow: Kubeflow, cluster: RunningCluster) -> None:
    submitted = await kubeflow.submit(run())
    with kubeflow.follow(run(), submitted.run_id) as changes:
        await changes.next()
    before = cluster.calls[GET]
    await asyncio.sleep(0.1)  # five intervals
    assert cluster.calls[GET] <= before + 1


async def test_many_runs_are_followed_with_a_call_for_each_hundred(
    session: aiohttp.ClientSession, cluster: RunningCluster
) -> None:
    pipeline = {"pipeline_id": cluster.kubeflow.pipeline_id("rag-query")}
    runs = [
        cluster.kubeflow.create({"display_name": f"run-{number}", "pipeline_version_reference": pipeline})["run_id"]
        for number in range(250)
    ]
    for number in range(500):  # of others, and newer
        cluster.kubeflow.create({"display_name": f"other-{number}", "pipeline_version_reference": pipeline})
    kubeflow = Kubeflow(Api(session, "kubeflow", cluster.url), poll_interval=30.0)
    with ExitStack() as following:
        changes = [following.enter_context(kubeflow.follow(run(), run_id)) for run_id in runs]
        async with background(kubeflow.serve()), asyncio.timeout(20):
            for each in changes:
                assert (await each.next()).status is RunStatus.PENDING
    assert (cluster.calls[LIST], cluster.calls[GET]) == (3, 0)


async def test_a_server_that_cannot_list_by_id_is_asked_for_each(
    session: aiohttp.ClientSession, cluster: RunningCluster
) -> None:
    kubeflow = bridge(session, cluster)
    submitted = [await kubeflow.submit(run(f"r{number}")) for number in range(15)]
    cluster.faults.add(status=400, message="no support for filtering", times=None, match={"path": "/runs$"})
    with ExitStack() as following:
        changes = [following.enter_context(kubeflow.follow(run(), each.run_id)) for each in submitted]
        async with background(kubeflow.serve()), asyncio.timeout(20):
            for each in changes:
                await each.next()


async def test_a_run_that_is_deleted_is_gone_and_the_others_go_on(kubeflow: Kubeflow, cluster: RunningCluster) -> None:
    submitted = [await kubeflow.submit(run(f"r{number}")) for number in range(12)]
    with ExitStack() as following:
        changes = [following.enter_context(kubeflow.follow(run(), each.run_id)) for each in submitted]
        cluster.kubeflow.delete(submitted[0].run_id)
        with pytest.raises(RunGone, match="no run"):
            await last(changes[0])
        for each, run_changes in zip(submitted[1:], changes[1:], strict=True):
            cluster.kubeflow.advance(each.run_id, "SUCCEEDED")
            assert (await last(run_changes)).status is RunStatus.SUCCEEDED


async def test_a_proxy_that_lost_its_way_ends_no_run(kubeflow: Kubeflow, cluster: RunningCluster) -> None:
    submitted = await kubeflow.submit(run())
    cluster.faults.add(status=404, times=4, match={"path": "^/apis/v2beta1"})
    with kubeflow.follow(run(), submitted.run_id) as changes:
        assert (await changes.next()).status is RunStatus.PENDING
        cluster.kubeflow.advance(submitted.run_id, "SUCCEEDED")
        assert (await last(changes)).status is RunStatus.SUCCEEDED


@pytest.mark.parametrize(
    "fault", [{"status": 429, "retry_after": 0}, {"status": 503}, {"reset": True}, {"garbage": True}]
)
async def test_failures_do_not_end_the_following(
    kubeflow: Kubeflow, cluster: RunningCluster, fault: dict[str, Any]
) -> None:
    submitted = await kubeflow.submit(run())
    cluster.faults.add(**fault, times=3, match={"method": "GET", "path": "/runs"})
    with kubeflow.follow(run(), submitted.run_id) as changes:
        await changes.next()
        cluster.kubeflow.advance(submitted.run_id, "SUCCEEDED")
        assert (await last(changes)).status is RunStatus.SUCCEEDED
    assert cluster.calls[GET] >= 4


async def test_a_server_that_asks_for_a_pause_gets_it(kubeflow: Kubeflow, cluster: RunningCluster) -> None:
    submitted = await kubeflow.submit(run())
    cluster.faults.add(status=429, retry_after=60, match={"path": "/runs/"})
    with kubeflow.follow(run(), submitted.run_id):
        await cluster.faults.until(GET)
        await asyncio.sleep(0.2)  # ten intervals
        assert cluster.calls[GET] == 1


@pytest.mark.parametrize("terminated", ["CANCELED", "FAILED"])
async def test_what_becomes_of_a_canceled_run_comes_through_follow(
    kubeflow: Kubeflow, cluster: RunningCluster, terminated: str
) -> None:
    cluster.kubeflow.terminated_state = terminated
    cluster.kubeflow.hold(stops=True)
    submitted = await kubeflow.submit(run())
    with kubeflow.follow(run(), submitted.run_id) as changes:
        await kubeflow.cancel(run(), submitted.run_id, "no longer needed")
        await kubeflow.cancel(run(), submitted.run_id, "again")
        assert cluster.calls[TERMINATE] == 1
        while (observed := await changes.next()).raw != "CANCELING":
            pass
        assert observed.status is RunStatus.RUNNING
        cluster.kubeflow.runs[submitted.run_id]["state_history"] = []  # real servers do not note it
        cluster.kubeflow.advance(submitted.run_id, terminated)
        assert (await last(changes)).status is RunStatus.CANCELED
    assert not kubeflow._stopping


async def test_of_all_runs_of_the_name_only_the_known_one_goes_on(kubeflow: Kubeflow, cluster: RunningCluster) -> None:
    other, known = [(await kubeflow.submit(run(each))).run_id for each in ("r2", "r1")]
    twin, ended = (cluster.kubeflow.create(cluster.kubeflow.runs[known])["run_id"] for _ in range(2))
    cluster.kubeflow.advance(ended, "SUCCEEDED")
    await kubeflow.stop_others(run(), known, "why")
    await cluster.kubeflow.until(twin, "CANCELED")
    states = {each: cluster.kubeflow.runs[each]["state"] for each in (known, other, ended)}
    assert states == {known: "PENDING", other: "PENDING", ended: "SUCCEEDED"}
    await kubeflow.stop_others(run(), "", "why")
    await cluster.kubeflow.until(known, "CANCELED")
    assert cluster.calls[TERMINATE] == 2


async def test_a_run_that_has_ended_or_is_gone_is_left_as_it_is(kubeflow: Kubeflow, cluster: RunningCluster) -> None:
    submitted = await kubeflow.submit(run())
    cluster.kubeflow.advance(submitted.run_id, "SUCCEEDED")
    await kubeflow.cancel(run(), submitted.run_id, "too late")
    cluster.kubeflow.delete(submitted.run_id)
    await kubeflow.cancel(run(), submitted.run_id, "too late")
    assert not cluster.calls[TERMINATE]


async def test_a_run_that_ends_while_it_is_canceled_has_ended(kubeflow: Kubeflow, cluster: RunningCluster) -> None:
    submitted = await kubeflow.submit(run())
    cluster.faults.add(delay=0.05, match={"method": "POST", "path": ":terminate$"})
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(kubeflow.cancel(run(), submitted.run_id, "stop"))
        await cluster.faults.until(TERMINATE)
        cluster.kubeflow.advance(submitted.run_id, "FAILED")
    described = await kubeflow.describe(run(), submitted.run_id)
    assert described is not None
    assert described.status is RunStatus.FAILED


async def test_a_cancel_that_is_refused_says_so(kubeflow: Kubeflow, cluster: RunningCluster) -> None:
    submitted = await kubeflow.submit(run())
    cluster.faults.add(status=403, message="not yours", match={"method": "POST", "path": ":terminate$"})
    with pytest.raises(UpstreamError, match="not yours"):
        await kubeflow.cancel(run(), submitted.run_id, "stop")


async def test_a_run_is_described_by_its_name_or_its_id(kubeflow: Kubeflow) -> None:
    assert await kubeflow.describe(run()) is None
    submitted = await kubeflow.submit(run())
    assert await kubeflow.describe(run()) == submitted
    assert await kubeflow.describe(run(), submitted.run_id) == submitted
    assert await kubeflow.describe(run(), "00000000-0000-4000-8000-000000000000") is None
