"""What goes wrong around the bridge, and what must not come of it: a second run, a lost one, an end that is untrue."""

import asyncio
import signal
import uuid
from typing import Any

import pytest

from handler_core import streams
from handler_core.codec import encode
from handler_core.connection import Connection
from handler_core.contract.pipeline import RunStatus, TriggerRequest
from handler_core.errors import Canceled, Internal
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, serving, until
from local_cluster.store import WORKFLOWS
from local_cluster.testing import RunningCluster
from pipeline_bridge import bridge
from pipeline_bridge import cluster as cluster_module
from pipeline_bridge.engine import run_name
from pipeline_bridge.log import RunLog
from pipeline_bridge.service import service

from .conftest import Caller, SettingsFor, states

FAR_AWAY = "404 page not found"


def shutdown(cluster: RunningCluster, request_id: str) -> Any:
    """How a workflow was told to stop, None if it was not."""
    return cluster.store.get(WORKFLOWS, "pipelines", run_name("ingest", request_id))["spec"].get("shutdown")


async def other_worker(nc: Connection, request_id: str, attempt: int) -> RunLog:
    """The log as a worker has it to which the same trigger was delivered as well."""
    record = await Api(nc).last("AI_PIPELINE_STATUS", f"evt.pipeline.run.{request_id}")
    assert record is not None
    log = RunLog(nc, request_id, source=record.headers["Run-Source"], attempt=lambda: attempt, received=0)
    await log.open()
    return log


async def test_a_time_limit_that_passes_while_the_end_is_being_stored_adds_nothing_to_it(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor, nats: NatsServer
) -> None:
    assert nats.process is not None
    async with serving(service, settings()) as runtime:
        request_id = await caller.trigger("short")
        name = run_name("short", request_id)
        await caller.until(request_id, "submitted")
        await until(lambda: any(call.startswith("WATCH") and n for call, n in cluster.faults.open.items()), "watched")
        nats.process.send_signal(signal.SIGSTOP)
        try:
            cluster.workflows.advance(name, "Succeeded")
            await asyncio.sleep(1.2)  # the pipeline's limit is 1 s, and counts on with NATS away
        finally:
            nats.process.send_signal(signal.SIGCONT)
        await caller.settled()
        assert 'handler_pipeline_runs_total{status="succeeded"} 1' in runtime.metrics.render()

    assert states(await caller.statuses(request_id)) == ["submitted", "succeeded"]


@pytest.mark.parametrize("attempt", [1, 2])
async def test_a_run_made_while_another_worker_tells_that_there_is_none_is_stopped(
    nc: Connection, caller: Caller, cluster: RunningCluster, settings: SettingsFor, attempt: int
) -> None:
    cluster.faults.add(match={"method": "POST", "path": "/workflows$"}, cut_after=1, stall=True)
    async with serving(service, settings()):
        request_id = await caller.trigger("ingest", source="s3://x")
        await until(lambda: cluster.store.objects(WORKFLOWS), "the run was made, and its maker does not know it")
        canceled = Canceled("canceled")
        other = await other_worker(nc, request_id, attempt)
        await other.tell(RunStatus.CANCELED, message=canceled.message, error=canceled.info())
        cluster.faults.restart()
        await until(lambda: shutdown(cluster, request_id), "the run is stopped")

    assert states(await caller.statuses(request_id)) == ["canceled"]


async def test_of_a_right_and_a_wrong_trigger_with_one_id_only_one_counts(
    nc: Connection, caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    ids = [uuid.uuid4().hex for _ in range(20)]
    async with serving(service, settings()), serving(service, settings()):
        for number, request_id in enumerate(ids):
            right = TriggerRequest(request_id=request_id, pipeline="ingest", parameters={"source": "s3://x"})
            wrong = right.model_copy(update={"parameters": {}})
            both = (right, wrong) if number % 2 else (wrong, right)
            await asyncio.gather(*(Api(nc).publish("ai.pipeline.trigger", encode(each), {}) for each in both))
        told = {request_id: (await caller.until(request_id, "submitted", "error"))[0] for request_id in ids}
        begun = [request_id for request_id, status in told.items() if status.status is RunStatus.SUBMITTED]
        for request_id in begun:
            cluster.workflows.advance(run_name("ingest", request_id), "Succeeded")
        await caller.settled()

    made = {workflow["metadata"]["name"] for workflow in cluster.store.objects(WORKFLOWS)}
    assert made == {run_name("ingest", request_id) for request_id in begun}
    for request_id in ids:
        expected = ["submitted", "succeeded"] if request_id in begun else ["error"]
        assert states(await caller.statuses(request_id)) == expected
    assert len(await caller.letters()) == len(ids) - len(begun)


async def test_a_run_that_failed_before_it_was_canceled_has_failed(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    async with serving(service, settings()):
        workflow = await caller.trigger("ingest", source="s3://x")
        job = await caller.trigger("train")
        run = await caller.trigger("ask", question="Why?")
        names = {each: (await caller.until(each, "submitted"))[0].run_id for each in (workflow, job, run)}
    cluster.workflows.advance(names[workflow], "Failed", "out of memory")
    cluster.rayjobs.advance(names[job], "Failed", "out of memory")
    cluster.kubeflow.advance(names[run], "FAILED", "out of memory")
    for each in names:
        await caller.cancel(each)
    async with serving(service, settings()):
        told = {each: (await caller.until(each))[-1] for each in names}

    assert {each.status for each in told.values()} == {RunStatus.FAILED}
    assert {each.message for each in told.values()} == {"out of memory"}


async def test_an_engine_without_bounds_to_its_messages_is_quoted_in_part(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    async with serving(service, settings()):
        request_id = await caller.trigger("ingest", source="s3://x")
        await caller.until(request_id, "submitted")
        cluster.workflows.advance(run_name("ingest", request_id), "Failed", "no room " * 90_000)
        told = await caller.until(request_id)

    assert states(told) == ["submitted", "failed"]
    assert told[-1].message.startswith("no room no room")


async def test_a_bridge_without_the_engine_of_a_run_leaves_it_to_another(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    async with serving(service, settings()):
        request_id = await caller.trigger("ask", question="Why?")
        [submitted] = await caller.until(request_id, "submitted")
    async with serving(service, settings(kubeflow_host=None)) as runtime:
        consumer = 'handler_messages_settled_total{consumer="pipeline_bridge",outcome="nak",stream="AI_PIPELINE"}'
        await until(lambda: f"{consumer} 0" not in runtime.metrics.render(), "it is handed on")
    async with serving(service, settings()):
        cluster.kubeflow.advance(submitted.run_id, "SUCCEEDED")
        assert states(await caller.until(request_id))[-1] == "succeeded"

    assert await caller.letters() == []


async def test_triggers_wait_for_the_stream_of_the_statuses(
    nc: Connection, caller: Caller, settings: SettingsFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "ATTEMPTS", 1)
    await Api(nc).request("STREAM.DELETE.AI_PIPELINE_STATUS")
    request_id = await caller.trigger("ingest", source="s3://x")
    async with serving(service, settings()) as runtime:
        followed = "handler_pipeline_runs 1"
        await until(lambda: followed in runtime.metrics.render(), "the trigger was taken")
        await asyncio.sleep(0.5)  # some look-ups later
        await streams.apply(Api(nc))
        assert states(await caller.until(request_id, "submitted", "error")) == ["submitted"]

    assert await caller.letters() == []


async def test_a_run_whose_record_was_dropped_is_followed_however_often_it_was_taken_over(
    nc: Connection, caller: Caller, cluster: RunningCluster, settings: SettingsFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(service, settings()):
        request_id = await caller.trigger("ingest", source="s3://x")
        await caller.until(request_id, "submitted")
    await Api(nc).request("STREAM.PURGE.AI_PIPELINE_STATUS", {"filter": f"evt.pipeline.run.{request_id}"})
    monkeypatch.setattr(bridge, "ATTEMPTS", 1)
    async with serving(service, settings()):
        cluster.workflows.advance(run_name("ingest", request_id), "Succeeded")
        told = await caller.until(request_id)

    assert states(told) == ["submitted", "succeeded"]


async def test_of_two_kubeflow_runs_that_dead_workers_left_one_is_followed_and_the_other_stopped(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    cluster.faults.add(match={"path": "/runs"}, status=503, times=None)
    async with serving(service, settings()):
        request_id = await caller.trigger("ask", question="Why?")
        await until(lambda: any(call.endswith("/runs") for call in cluster.calls), "it is being submitted")
    body = {
        "display_name": run_name("ask", request_id),
        "description": f"Request {request_id}",
        "pipeline_version_reference": {"pipeline_id": cluster.kubeflow.pipeline_id("rag-query")},
    }
    both = {cluster.kubeflow.create(body)["run_id"] for _ in range(2)}
    cluster.faults.clear()
    async with serving(service, settings()):
        [submitted] = await caller.until(request_id, "submitted")

    [other] = both - {submitted.run_id}
    assert cluster.kubeflow.runs[submitted.run_id]["state"] == "PENDING"
    await cluster.kubeflow.until(other, "CANCELED")


@pytest.mark.parametrize("status", [403, 404])
async def test_a_kubeflow_run_is_there_although_the_look_after_its_creation_is_refused(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor, status: int
) -> None:
    cluster.faults.add(match={"method": "GET", "path": "/runs$"}, status=status, skip=1, message=FAR_AWAY)
    async with serving(service, settings()):
        told = await caller.until(await caller.trigger("ask", question="Why?"), "submitted", "error")

    assert states(told) == ["submitted"]
    assert cluster.kubeflow.created == 1


async def test_a_refusal_after_an_answer_that_was_lost_is_no_end(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    posts = {"method": "POST", "path": "/workflows$"}
    cluster.faults.add(match=posts, drop_response=True)
    cluster.faults.add(match=posts, status=403, message="no create for you")
    async with serving(service, settings()):
        request_id = await caller.trigger("ingest", source="s3://x")
        told = await caller.until(request_id, "submitted", "error")

    assert states(told) == ["submitted"]


async def test_a_404_of_a_proxy_is_not_taken_for_a_run_that_is_gone(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    posts = {"method": "POST", "path": "/workflows$"}
    cluster.faults.add(match=posts, drop_response=True)
    cluster.faults.add(match=posts, status=503)
    cluster.faults.add(match={"method": "GET", "path": "/workflows/"}, status=404, message=FAR_AWAY)
    async with serving(service, settings()):
        request_id = await caller.trigger("ingest", source="s3://x")
        await until(lambda: cluster.store.objects(WORKFLOWS), "the run was made")
        await caller.cancel(request_id)
        told = await caller.until(request_id)

    assert states(told)[0] == "submitted"
    assert states(told)[-1] == "canceled"
    assert shutdown(cluster, request_id)


async def test_where_lists_are_forbidden_runs_are_looked_at_one_by_one(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    cluster.forbidden.update({"list", "watch"})
    async with serving(service, settings()):
        request_id = await caller.trigger("ingest", source="s3://x")
        await caller.until(request_id, "submitted")
        cluster.workflows.advance(run_name("ingest", request_id), "Succeeded")
        assert states(await caller.until(request_id))[-1] == "succeeded"


async def test_a_refusal_of_a_stale_worker_does_not_end_the_run_that_a_later_one_has_begun(
    nc: Connection, caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    async with serving(service, settings()):
        request_id = await caller.trigger("ingest", source="s3://x")
        await caller.until(request_id, "submitted")
        identity = (await other_worker(nc, request_id, 1))._source
        stale = RunLog(
            nc, request_id, source=identity, attempt=lambda: 0, received=0
        )  # opened before anything was stored
        with pytest.raises(Exception, match="another worker"):
            await stale.tell(RunStatus.ERROR, error=Internal("no such pipeline").info())

    assert states(await caller.statuses(request_id)) == ["submitted"]


async def test_workflows_too_large_for_one_list_are_listed_in_smaller_parts(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "MAX_ANSWER", 100_000)
    async with serving(service, settings()):
        ids = [await caller.trigger("ingest", source=f"s3://{number}") for number in range(8)]
        for request_id in ids:
            await caller.until(request_id, "submitted")
    for request_id in ids:
        nodes = {"status": {"nodes": {"a": "x" * 40_000}}}
        cluster.store.merge_patch(WORKFLOWS, "pipelines", run_name("ingest", request_id), nodes)
    async with serving(service, settings()):
        for request_id in ids:
            cluster.workflows.advance(run_name("ingest", request_id), "Succeeded")
        for request_id in ids:
            assert states(await caller.until(request_id))[-1] == "succeeded"


async def test_a_worker_that_waits_for_the_engine_submits_nothing_once_another_has_told_the_end(
    nc: Connection, caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    cluster.faults.add(match={"method": "POST", "path": "/workflows$"}, status=503)
    async with serving(service, settings()) as runtime:
        request_id = await caller.trigger("ingest", source="s3://x")
        await until(lambda: any(call.startswith("POST") for call in cluster.calls), "the engine has refused")
        other = await other_worker(nc, request_id, 2)
        await other.tell(RunStatus.CANCELED, error=Canceled("canceled").info())
        await until(lambda: "handler_pipeline_runs 0" in runtime.metrics.render(), "the trigger is left alone")

    assert cluster.store.objects(WORKFLOWS) == []


async def test_rollouts_while_the_engine_is_away_do_not_count_as_deaths(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "ATTEMPTS", 2)
    cluster.faults.add(match={"path": "/workflows"}, status=503, times=None)
    request_id = await caller.trigger("ingest", source="s3://x")
    for _ in range(4):
        before = cluster.calls.total()
        async with serving(service, settings()):
            await until(lambda before=before: cluster.calls.total() > before, "the engine is asked")
            await asyncio.sleep(0.05)  # and answers
    cluster.faults.clear()
    async with serving(service, settings()):
        told = await caller.until(request_id, "submitted", "error")

    assert states(told) == ["submitted"]


async def test_a_run_that_is_there_and_must_not_be_looked_at_is_waited_for(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    cluster.faults.add(match={"method": "POST", "path": "/workflows$"}, status=409)
    cluster.faults.add(match={"method": "GET", "path": "/workflows/"}, status=403)
    async with serving(service, settings()):
        told = await caller.until(await caller.trigger("ingest", source="s3://x"), "submitted", "error")

    assert states(told) == ["submitted"]


async def test_a_worker_that_was_left_behind_while_the_engine_refused_adds_nothing_to_the_end(
    nc: Connection, caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    cluster.faults.add(match={"method": "POST", "path": "/workflows$"}, drop_response=True)
    async with serving(service, settings()) as runtime:
        request_id = await caller.trigger("ingest", source="s3://x")
        await until(lambda: cluster.store.objects(WORKFLOWS), "the run was made, and its maker does not know it")
        other = await other_worker(nc, request_id, 2)
        await other.tell(RunStatus.SUBMITTED, run_id=run_name("ingest", request_id))
        await other.tell(RunStatus.SUCCEEDED)
        await until(lambda: "handler_pipeline_runs 0" in runtime.metrics.render(), "the trigger is left alone")

    assert states(await caller.statuses(request_id)) == ["submitted", "succeeded"]
