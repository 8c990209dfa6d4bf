"""What the next worker makes of what it finds: a stop half done, a record that is gone, a run that comes late."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from handler_core import streams
from handler_core.connection import Connection
from handler_core.contract.pipeline import PipelineStatus, RunStatus
from handler_core.errors import Canceled
from handler_core.jetstream import Api
from handler_core.limits import Limits
from handler_core.runtime import Runtime
from handler_core.testing import serving, until
from local_cluster.store import WORKFLOWS
from local_cluster.testing import RunningCluster
from pipeline_bridge import attempts, bridge, follow
from pipeline_bridge.engine import run_name
from pipeline_bridge.log import BEGUN
from pipeline_bridge.service import service

from .conftest import Caller, SettingsFor, states, stopped

SUBMIT = {"method": "POST", "path": "/(workflows|runs)$"}


async def until_told(caller: Caller, request_id: str, text: str) -> None:
    async def told() -> bool:
        return any(text in status.message for status in await caller.statuses(request_id))

    await until(told, f"it is told: {text}")


async def taken(runtime: Runtime) -> None:
    await until(lambda: "handler_pipeline_runs 1" in runtime.metrics.render(), "the trigger was taken")


@asynccontextmanager
async def unready(settings: Any) -> AsyncIterator[Runtime]:
    """The service, whether or not it becomes ready."""
    stop = asyncio.Event()
    started: asyncio.Future[Runtime] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(service.run(settings, stop, started=started))
        yield await started
        stop.set()


# --- triggers


async def test_a_trigger_repeated_after_its_stream_was_made_anew_takes_up_its_run(
    nc: Connection, caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    async def made_anew() -> None:
        await Api(nc).request("STREAM.DELETE.AI_PIPELINE")
        await streams.apply(Api(nc))

    await made_anew()
    async with serving(service, settings()):
        request_id = await caller.trigger("ingest", source="s3://x")
        await caller.until(request_id, "submitted")
    await made_anew()
    async with serving(service, settings()):
        await caller.trigger("ingest", request_id=request_id, source="s3://x")  # with the same number as before
        cluster.workflows.advance(run_name("ingest", request_id), "Succeeded")
        told = await caller.until(request_id)
        await caller.settled()

    assert states(told) == ["submitted", "succeeded"]
    assert len(cluster.store.objects(WORKFLOWS)) == 1


@pytest.mark.parametrize("missing", ["catalogue", "stream"])
async def test_rollouts_while_a_trigger_waits_do_not_count_as_deaths(
    nc: Connection,
    caller: Caller,
    settings: SettingsFor,
    catalogue: Path,
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
) -> None:
    monkeypatch.setattr(bridge, "ATTEMPTS", 2)
    good = catalogue.read_text()
    if missing == "catalogue":
        catalogue.write_text("pipelines: 3")
    else:
        await Api(nc).request("STREAM.DELETE.AI_PIPELINE_STATUS")
    request_id = await caller.trigger("ingest", source="s3://x")
    for _ in range(4):
        async with unready(settings()) as runtime:
            await taken(runtime)
    catalogue.write_text(good)
    await streams.apply(Api(nc))
    async with serving(service, settings()):
        told = await caller.until(request_id, "submitted", "error")

    assert states(told) == ["submitted"]


async def test_a_trigger_that_was_begun_too_often_without_a_trace_is_given_up(
    nc: Connection, caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    request_id = await caller.trigger("ingest", source="s3://x")
    begun = {BEGUN: str(bridge.ATTEMPTS), "Run-Source": "AI_PIPELINE:1:0"}
    await Api(nc).publish(f"evt.pipeline.run.{request_id}", b"", begun)
    async with serving(service, settings()):
        [told] = await caller.until(request_id)
        await caller.settled()

    assert "10 workers in a row" in told.message
    assert cluster.store.objects(WORKFLOWS) == []
    assert len(await caller.letters()) == 1


# --- a run that is being stopped


async def test_a_run_stopped_for_its_timeout_ends_so_whoever_sees_it(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(service, settings()):
        request_id = await caller.trigger("short")
        name = run_name("short", request_id)
        cluster.workflows.hold(name, stops=True)
        await until(lambda: cluster.store.objects(WORKFLOWS), "it was made")
        await until(lambda: stopped(cluster, "argo", name), "it is stopped")
    cluster.workflows.advance(name, "Failed", "Stopped with strategy 'Stop'")
    behind = SimpleNamespace(time=lambda: time.time() - 1000)
    monkeypatch.setattr(follow, "time", behind)  # the next worker's clock: it would not stop it
    async with serving(service, settings()):
        told = await caller.until(request_id)

    assert states(told) == ["submitted", "submitted", "failed"]
    assert told[-1].error == told[1].stopping
    assert told[-1].error is not None
    assert told[-1].error.type == "deadline_exceeded"


async def test_a_run_canceled_long_ago_ends_so_whoever_sees_it(
    nc: Connection, caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    async with serving(service, settings()):
        request_id = await caller.trigger("train")
        name = run_name("train", request_id)
        cluster.rayjobs.hold(name, stops=True)
        await caller.until(request_id, "submitted")
        await caller.cancel(request_id, "not needed")
        await until_told(caller, request_id, "stopping")
    await Api(nc).request("STREAM.PURGE.AI_CONTROL")  # it is kept for a day
    async with serving(service, settings()):
        cluster.rayjobs.hold(name, stops=False)
        told = await caller.until(request_id)

    assert states(told)[-1] == "canceled"
    assert told[-1].message == "canceled: not needed"
    assert [status.message for status in told].count("stopping: canceled: not needed") == 1


async def test_a_takeover_grants_no_more_time(caller: Caller, cluster: RunningCluster, settings: SettingsFor) -> None:
    cluster.faults.add(match={"method": "PATCH"}, status=503, times=None)
    async with serving(service, settings()):
        request_id = await caller.trigger("short")
        await until_told(caller, request_id, "stopping")
    cluster.faults.clear()
    async with serving(service, settings()):
        told = await caller.until(request_id)

    assert len({status.submitted_at for status in told}) == 1
    assert states(told)[-1] == "failed"


async def test_a_run_that_is_gone_while_it_is_stopped_is_said_to_be(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor
) -> None:
    async with serving(service, settings()):
        request_id = await caller.trigger("ingest", source="s3://x")
        name = run_name("ingest", request_id)
        cluster.workflows.hold(name, stops=True)
        await caller.until(request_id, "submitted")
        await caller.cancel(request_id)
        await until(lambda: stopped(cluster, "pipelines", name), "it is stopped")
        cluster.store.delete(WORKFLOWS, "pipelines", name)
        told = await caller.until(request_id)

    assert told[-1].status is RunStatus.CANCELED
    assert told[-1].message == f"canceled; {name} is no longer there, and how it ended is not known"
    assert told[-1].error == Canceled("canceled").info()


# --- a record that is gone


@pytest.mark.parametrize("edit", [("  ingest:", "  other:"), ("namespace: pipelines", "namespace: elsewhere")])
async def test_a_run_is_followed_and_stopped_by_its_statuses_alone(
    nc: Connection,
    caller: Caller,
    cluster: RunningCluster,
    settings: SettingsFor,
    catalogue: Path,
    edit: tuple[str, str],
) -> None:
    async with serving(service, settings()):
        request_id = await caller.trigger("ingest", source="s3://x")
        await caller.until(request_id, "submitted")
    await Api(nc).request("STREAM.PURGE.AI_PIPELINE_STATUS", {"filter": f"evt.pipeline.run.{request_id}"})
    catalogue.write_text(catalogue.read_text().replace(*edit))
    name = run_name("ingest", request_id)
    async with serving(service, settings()):
        cluster.workflows.advance(name, "Running")
        await caller.until(request_id, "running")
        await caller.cancel(request_id)
        told = await caller.until(request_id)
        await caller.settled()

    assert states(told) == ["submitted", "running", "running", "canceled"]
    assert stopped(cluster, "pipelines", name)


# --- a submission that was cut off, and takes effect later


async def cut_off(caller: Caller, cluster: RunningCluster, pipeline: str, **parameters: str) -> str:
    """A run whose submission the server has not finished, although its caller has left."""
    cluster.faults.add(match=SUBMIT, late=True)
    request_id = await caller.trigger(pipeline, **parameters)
    await until(lambda: cluster.faults.late, "it is being submitted")
    cluster.faults.restart()
    return request_id


@pytest.mark.parametrize("when", ["followed", "ended"])
async def test_of_two_kubeflow_runs_the_one_that_came_late_is_stopped(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    monkeypatch.setattr(bridge, "LATE", 0.05 if when == "followed" else 3600)
    async with serving(service, settings()):
        request_id = await cut_off(caller, cluster, "ask", question="Why?")
        [submitted] = await caller.until(request_id, "submitted")
        cluster.faults.land()
        await until(lambda: cluster.kubeflow.created == 2, "both are there")
        [late] = cluster.kubeflow.runs.keys() - {submitted.run_id}
        if when == "followed":
            await cluster.kubeflow.until(late, "CANCELED")
        cluster.kubeflow.advance(submitted.run_id, "SUCCEEDED")
        told = await caller.until(request_id)
        await cluster.kubeflow.until(late, "CANCELED")
        await caller.settled()

    assert states(told)[-1] == "succeeded"


async def test_a_run_that_comes_after_its_cancel_is_stopped(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "LATE", 0.01)
    async with serving(service, settings()):
        request_id = await cut_off(caller, cluster, "ingest", source="s3://x")
        cluster.faults.add(match=SUBMIT, status=503, times=None)
        cluster.faults.add(match={"method": "GET", "path": "/workflows/"}, skip=2, late=True)
        await caller.cancel(request_id)
        told = await caller.until(request_id)
        await until(lambda: cluster.faults.late == 2, "it is looked for a last time")
        cluster.faults.land()  # in their order: now there is a run
        await until(lambda: stopped(cluster, "pipelines", run_name("ingest", request_id)), "it is stopped")
        await caller.settled()

    assert (states(told)[-1], told[-1].run_id) == ("canceled", "")


async def test_a_run_that_comes_after_its_cancel_is_stopped_by_the_next_worker(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "LATE", 3600)
    async with serving(service, settings()):
        request_id = await cut_off(caller, cluster, "ingest", source="s3://x")
        cluster.faults.add(match=SUBMIT, status=503, times=None)
        await caller.cancel(request_id)
        await caller.until(request_id)
    cluster.faults.land()
    await until(lambda: cluster.store.objects(WORKFLOWS), "it has come")
    async with serving(service, settings()):
        await until(lambda: stopped(cluster, "pipelines", run_name("ingest", request_id)), "it is stopped")


# --- an engine that takes nothing


async def test_an_engine_that_does_not_take_a_run_is_told_of(
    nc: Connection, caller: Caller, cluster: RunningCluster, settings: SettingsFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "RETRY", Limits(retry_base=0.01, retry_max=0.02))
    cluster.faults.add(match=SUBMIT, status=503, message="no room", times=20)
    async with serving(service, settings()):
        request_id = await caller.trigger("ingest", source="s3://x")
        waiting, submitted = await caller.until(request_id, "submitted")
        cluster.workflows.advance(run_name("ingest", request_id), "Succeeded")
        told = await caller.until(request_id)

    assert (waiting.status, waiting.run_id, waiting.submitted_at) == (RunStatus.PENDING, "", None)
    assert waiting.message == "argo has not taken it yet: kubernetes: HTTP 503: no room"
    assert submitted.submitted_at == submitted.timestamp
    assert states(told) == ["pending", "submitted", "succeeded"]
    assert set(told[-1].timings) == {"queue_ms", "submit_ms", "pending_ms", "total_ms"}


async def test_a_run_that_waits_for_its_engine_is_taken_over_and_can_be_canceled(
    caller: Caller, cluster: RunningCluster, settings: SettingsFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "RETRY", Limits(retry_base=0.01, retry_max=0.02))
    monkeypatch.setattr(bridge, "LATE", 0.01)
    cluster.faults.add(match=SUBMIT, status=503, times=None)
    async with serving(service, settings()):
        request_id = await caller.trigger("ingest", source="s3://x")
        await caller.until(request_id, "pending")
    async with serving(service, settings()):
        again = cluster.calls.total()
        await until(lambda: cluster.calls.total() > again + 10, "it is tried again")
        await caller.cancel(request_id)
        told = await caller.until(request_id)
        await caller.settled()

    assert states(told) == ["pending", "canceled"]
    assert isinstance(told[0], PipelineStatus)
    assert cluster.store.objects(WORKFLOWS) == []
