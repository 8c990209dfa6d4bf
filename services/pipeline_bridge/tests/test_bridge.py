"""From a trigger to the end of its run, through the real service and an emulated cluster."""

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.contract.pipeline import PipelinesRequest, PipelinesResponse, PipelineStatus
from handler_core.jetstream import Api
from handler_core.testing import serving, until
from local_cluster.store import RAY_JOBS, WORKFLOWS
from local_cluster.testing import RunningCluster
from pipeline_bridge.engine import run_name
from pipeline_bridge.service import service

from .conftest import Caller, SettingsFor, states, stopped


async def test_a_workflow_is_followed_from_its_submission_to_its_end(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    async with serving(service, settings()):
        request_id = await caller.trigger("ingest", source="s3://documents")
        name = run_name("ingest", request_id)
        await caller.until(request_id, "submitted")
        cluster.workflows.advance(name, "Pending")
        await caller.until(request_id, "pending")
        cluster.workflows.advance(name, "Running")
        await caller.until(request_id, "running")
        cluster.workflows.advance(name, "Succeeded")
        told = await caller.until(request_id)
        await caller.settled()

    assert states(told) == ["submitted", "pending", "running", "succeeded"]
    assert [status.raw_status for status in told] == ["", "Pending", "Running", "Succeeded"]
    assert {(status.run_id, status.engine, status.namespace) for status in told} == {(name, "argo", "pipelines")}
    assert told[-1].error is None
    assert set(told[-1].timings) == {"queue_ms", "submit_ms", "pending_ms", "run_ms", "total_ms"}
    assert told[-1].trace_id
    workflow = cluster.store.get(WORKFLOWS, "pipelines", name)
    given = {each["name"]: each["value"] for each in workflow["spec"]["arguments"]["parameters"]}
    assert given == {"source": "s3://documents", "chunk_size": "512"}
    assert await caller.letters() == []


async def test_a_ray_job_is_followed_by_both_of_its_states(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    async with serving(service, settings()):
        request_id = await caller.trigger("train", epochs=5)
        name = run_name("train", request_id)
        await caller.until(request_id, "submitted")
        cluster.rayjobs.advance(name, "Initializing")
        await caller.until(request_id, "pending")
        cluster.rayjobs.advance(name, "Running")
        await caller.until(request_id, "running")
        cluster.rayjobs.advance(name, "Complete")
        told = await caller.until(request_id)

    assert states(told) == ["submitted", "pending", "running", "succeeded"]
    assert told[-1].raw_status == "Complete/SUCCEEDED"
    job = cluster.store.get(RAY_JOBS, "ray", name)
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert {"epochs": 5} in [json.loads(each["value"]) for each in head["env"] if each["name"] == "PIPELINE_PARAMETERS"]


async def test_a_kubeflow_run_is_followed_by_looking_at_it(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    async with serving(service, settings()):
        request_id = await caller.trigger("ask", question="What is a lease?")
        [submitted] = await caller.until(request_id, "submitted")
        cluster.kubeflow.advance(submitted.run_id, "RUNNING")
        await caller.until(request_id, "running")
        cluster.kubeflow.advance(submitted.run_id, "FAILED", "out of memory")
        told = await caller.until(request_id)

    assert states(told)[0] == "submitted"
    assert states(told)[-2:] == ["running", "failed"]
    assert told[-1].error is not None
    assert told[-1].error.message == told[-1].message == "out of memory"
    assert cluster.kubeflow.created == 1


async def test_an_unknown_pipeline_is_answered_with_those_there_are(caller: Caller, settings: SettingsFor) -> None:
    async with serving(service, settings()):
        [error] = await caller.until(await caller.trigger("nothing-like-it"))
        [private] = await caller.until(await caller.trigger("private", user="bob"))
        [allowed] = await caller.until(await caller.trigger("nothing-like-it", user="alice"))
        await caller.settled()

    assert error.status == private.status == "error"
    assert error.error is not None
    assert error.error.type == "not_found"
    assert "nothing-like-it" in error.message
    assert error.available_pipelines == ["ask", "ingest", "short", "train"]
    assert "private" not in (private.available_pipelines or [])
    assert allowed.available_pipelines == ["ask", "ingest", "private", "short", "train"]
    assert len(await caller.letters()) == 3


async def test_a_wrong_parameter_is_named_and_its_value_is_not(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    async with serving(service, settings()):
        [missing] = await caller.until(await caller.trigger("ingest"))
        [wrong] = await caller.until(await caller.trigger("ingest", source="s3://x", chunk_size="hunter2"))
        [unknown] = await caller.until(await caller.trigger("ingest", source="s3://x", chunksize=512))
        [template] = await caller.until(await caller.trigger("ingest", source="{{workflow.uid}}"))

    for status, name in ((missing, "source"), (wrong, "chunk_size"), (unknown, "chunksize"), (template, "source")):
        assert status.status == "error"
        assert status.error is not None
        assert status.error.type == "validation_error"
        assert f"parameters.{name}" in status.message
    assert "hunter2" not in str(wrong)
    assert cluster.store.objects(WORKFLOWS) == []


async def test_what_is_no_trigger_is_buried_and_the_worker_lives_on(
    nc: Connection, caller: Caller, settings: SettingsFor
) -> None:
    async with serving(service, settings()):
        await Api(nc).publish("ai.pipeline.trigger", b"\xc1 no MessagePack", {})
        request_id = uuid.uuid4().hex
        body = {"request_id": request_id, "pipeline": ["ingest"], "parameters": "none"}
        await Api(nc).publish("ai.pipeline.trigger", _packed(body), {})
        [told] = await caller.until(request_id)
        [unknown] = await caller.until(await caller.trigger("after"))
        await caller.settled()

    assert told.error is not None
    assert told.error.type == "validation_error"
    assert "pipeline" in told.message
    assert unknown.status == "error"
    assert len(await caller.letters()) == 3


def _packed(body: dict[str, Any]) -> bytes:
    import msgpack

    return bytes(msgpack.packb(body))


async def test_a_trigger_sent_twice_runs_once(caller: Caller, cluster: RunningCluster, settings: SettingsFor) -> None:
    async with serving(service, settings()):
        request_id = await caller.trigger("ingest", source="s3://x")
        await caller.until(request_id, "submitted")
        again = encode(_trigger(request_id))
        await Api(caller.nc).publish("ai.pipeline.trigger", again, {})  # without the id that would refuse it
        await until(lambda: _left(caller, 1), "the repeated trigger is settled")
        cluster.workflows.advance(run_name("ingest", request_id), "Succeeded")
        await caller.until(request_id)
        await Api(caller.nc).publish("ai.pipeline.trigger", again, {})
        await caller.settled()

    assert states(await caller.statuses(request_id)) == ["submitted", "succeeded"]
    assert len(cluster.store.objects(WORKFLOWS)) == 1


def _trigger(request_id: str) -> Any:
    from handler_core.contract.pipeline import TriggerRequest

    return TriggerRequest(request_id=request_id, pipeline="ingest", parameters={"source": "s3://x"})


async def _left(caller: Caller, count: int) -> bool:
    return int((await Api(caller.nc).request("STREAM.INFO.AI_PIPELINE"))["state"]["messages"]) == count


async def test_a_run_is_stopped_when_it_is_canceled(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    async with serving(service, settings()):
        request_id = await caller.trigger("ingest", source="s3://x")
        name = run_name("ingest", request_id)
        cluster.workflows.hold(name, stops=True)
        await caller.until(request_id, "submitted")
        cluster.workflows.advance(name, "Running")
        await caller.until(request_id, "running")
        await caller.cancel(request_id, "not needed")
        await until(lambda: stopped(cluster, "pipelines", name), "it is stopped")
        assert states(await caller.statuses(request_id))[-1] == "running"  # until it has ended
        cluster.workflows.advance(name, "Failed", "Stopped with strategy 'Stop'")
        told = await caller.until(request_id)
        await caller.settled()

    assert states(told) == ["submitted", "running", "running", "canceled"]
    assert "not needed" in told[2].message
    assert told[-1].error is not None
    assert told[-1].error.type == "canceled"
    assert await caller.letters() == []


async def test_a_run_that_ends_before_it_is_stopped_tells_how(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    async with serving(service, settings()):
        request_id = await caller.trigger("ingest", source="s3://x")
        name = run_name("ingest", request_id)
        cluster.workflows.hold(name, stops=True)
        await caller.until(request_id, "submitted")
        await caller.cancel(request_id)
        await until(lambda: stopped(cluster, "pipelines", name), "it is stopped")
        cluster.workflows.advance(name, "Succeeded")
        told = await caller.until(request_id)

    assert states(told)[-1] == "succeeded"


async def test_a_trigger_canceled_in_the_queue_never_runs(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    request_id = await caller.trigger("ingest", source="s3://x")
    await caller.cancel(request_id, "changed my mind")
    async with serving(service, settings()):
        [told] = await caller.until(request_id)
        await caller.settled()

    assert told.status == "canceled"
    assert "changed my mind" in told.message
    assert cluster.store.objects(WORKFLOWS) == []
    assert await caller.letters() == []


async def test_a_run_that_takes_too_long_is_stopped(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    async with serving(service, settings()):
        request_id = await caller.trigger("short")
        name = run_name("short", request_id)
        await caller.until(request_id, "submitted")
        cluster.workflows.advance(name, "Running")
        told = await caller.until(request_id)

    assert states(told)[-1] == "failed"
    assert told[-1].error is not None
    assert told[-1].error.type == "deadline_exceeded"
    assert cluster.store.get(WORKFLOWS, "argo", name)["spec"]["shutdown"] == "Stop"


async def test_a_run_that_is_gone_is_told_to_be_unknown(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    async with serving(service, settings()):
        request_id = await caller.trigger("ingest", source="s3://x")
        name = run_name("ingest", request_id)
        await caller.until(request_id, "submitted")
        cluster.workflows.advance(name, "Running")
        await caller.until(request_id, "running")
        cluster.store.delete(WORKFLOWS, "pipelines", name)
        told = await caller.until(request_id)
        await caller.settled()

    assert states(told) == ["submitted", "running", "error"]
    assert told[-1].error is not None
    assert told[-1].error.type == "not_found"


async def test_the_archive_tells_how_a_run_ended_that_is_gone(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    async with serving(service, settings()):
        request_id = await caller.trigger("ingest", source="s3://x")
        name = run_name("ingest", request_id)
        await caller.until(request_id, "submitted")
    cluster.workflows.advance(name, "Succeeded")
    cluster.store.delete(WORKFLOWS, "pipelines", name)
    async with serving(service, settings(argo_host=cluster.url)):
        told = await caller.until(request_id)
        await caller.settled()

    assert states(told) == ["submitted", "succeeded"]


async def test_the_next_worker_goes_on_where_one_was_stopped(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor, catalogue: Path
) -> None:
    async with serving(service, settings()):
        request_id = await caller.trigger("ingest", source="s3://x")
        name = run_name("ingest", request_id)
        await caller.until(request_id, "submitted")
        cluster.workflows.advance(name, "Running")
        await caller.until(request_id, "running")
    catalogue.write_text("pipelines: {}\n")  # what is followed does not depend on it
    async with serving(service, settings()):
        cluster.workflows.advance(name, "Succeeded")
        told = await caller.until(request_id)
        await caller.settled()

    assert states(told) == ["submitted", "running", "succeeded"]
    assert len(cluster.store.objects(WORKFLOWS)) == 1


async def test_a_run_created_without_an_answer_is_found_again(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    for path in ("/workflows$", "/runs$"):
        cluster.faults.add(match={"method": "POST", "path": path}, drop_response=True)
    async with serving(service, settings()):
        workflow = await caller.trigger("ingest", source="s3://x")
        run = await caller.trigger("ask", question="Once?")
        await caller.until(workflow, "submitted")
        await caller.until(run, "submitted")

    assert len(cluster.store.objects(WORKFLOWS)) == 1
    assert cluster.kubeflow.created == 1


async def test_an_engine_that_is_away_is_waited_for(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    cluster.faults.add(match={"path": "/workflows"}, status=503, times=2)
    async with serving(service, settings()):
        request_id = await caller.trigger("ingest", source="s3://x")
        told = await caller.until(request_id, "submitted")

    assert states(told) == ["submitted"]


async def test_a_refusal_of_the_engine_is_final_and_says_why(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    cluster.faults.add(match={"method": "POST", "path": "/workflows$"}, status=403, message="no create for you")
    async with serving(service, settings()):
        [told] = await caller.until(await caller.trigger("ingest", source="s3://x"))
        await caller.settled()

    assert told.status == "error"
    assert "no create for you" in told.message
    assert len(await caller.letters()) == 1


async def test_every_end_is_copied_to_the_inbox_that_the_caller_names(
    nc: Connection, caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    copies: list[PipelineStatus] = []

    async def on_copy(message: Any) -> None:
        copies.append(decode(message.data, PipelineStatus))

    await nc.subscribe("_INBOX.mine.*", cb=on_copy)
    queued = await caller.trigger("ingest", source="s3://x", response_subject="_INBOX.mine.1")
    await caller.cancel(queued)
    async with serving(service, settings()):
        [canceled] = await caller.until(queued)
        [refused] = await caller.until(await caller.trigger("ingest", response_subject="_INBOX.mine.2"))
        request_id = await caller.trigger("ingest", source="s3://x", response_subject="_INBOX.mine.3")
        await caller.until(request_id, "submitted")
        cluster.workflows.advance(run_name("ingest", request_id), "Succeeded")
        told = await caller.until(request_id)
        await until(lambda: len(copies) == 3, "the copies arrive")

    assert copies == [canceled, refused, told[-1]]


async def test_nobody_can_tell_the_end_of_anothers_run(caller: Caller, settings: SettingsFor) -> None:
    async with serving(service, settings()):
        theirs = await caller.trigger("ingest", source="s3://x")
        await caller.until(theirs, "submitted")
        forged = await caller.trigger("none", response_subject=f"ai.pipeline.status.{theirs}")
        [refused] = await caller.until(forged)

    assert states(await caller.statuses(theirs)) == ["submitted"]
    assert "response_subject" in refused.message


async def test_the_catalogue_is_told_to_whom_it_is_for(nc: Connection, caller: Caller, settings: SettingsFor) -> None:
    async with serving(service, settings()):
        anybody = await _listed(nc, None)
        alice = await _listed(nc, "alice")

    assert [each.name for each in anybody.pipelines] == ["ask", "ingest", "short", "train"]
    assert "private" in [each.name for each in alice.pipelines]
    [ingest] = [each for each in anybody.pipelines if each.name == "ingest"]
    assert (ingest.engine, ingest.namespace, ingest.description) == ("argo", "pipelines", "Reads documents.")
    assert {each.name: each.required for each in ingest.parameters} == {"source": True, "chunk_size": False}


async def _listed(nc: Connection, user: str | None) -> PipelinesResponse:
    reply = await nc.request("ai.pipeline.list", encode(PipelinesRequest(user_id=user)), timeout=5)
    return decode(reply.data, PipelinesResponse)


async def test_triggers_wait_for_a_catalogue_that_is_broken_at_the_start(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor, catalogue: Path
) -> None:
    good = catalogue.read_text()
    catalogue.write_text("pipelines: {ingest: {engine: argp}}\n")
    request_id = await caller.trigger("ingest", source="s3://x")
    stop = asyncio.Event()
    started: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(service.run(settings(), stop, started=started))
        health = (await started).health
        await until(lambda: "engine" in health.ready["catalogue"](), "it says what is wrong")
        catalogue.write_text(good)
        told = await caller.until(request_id, "submitted")
        stop.set()

    assert states(told) == ["submitted"]


async def test_many_runs_are_followed_by_one_watch(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    async with serving(service, settings()):
        ids = [await caller.trigger("ingest", source=f"s3://{number}") for number in range(40)]
        for request_id in ids:
            await caller.until(request_id, "submitted")
        for request_id in ids:
            cluster.workflows.advance(run_name("ingest", request_id), "Succeeded")
        for request_id in ids:
            assert states(await caller.until(request_id))[-1] == "succeeded"

    lists_and_watches = {
        call: n for call, n in cluster.calls.items() if call.endswith("/workflows") and "POST" not in call
    }
    assert sum(lists_and_watches.values()) <= 4, dict(cluster.calls)


async def test_a_pod_without_a_token_does_without_kubernetes(caller: Caller, settings: SettingsFor) -> None:
    alone = settings(kubeconfig=None, kubernetes_service_host="127.0.0.1", service_account_dir=Path("/nowhere"))
    async with serving(service, alone):
        run = await caller.until(await caller.trigger("ask", question="?"), "submitted")
        [refused] = await caller.until(await caller.trigger("ingest", source="s3://x"))

    assert states(run) == ["submitted"]
    assert "argo" in refused.message
