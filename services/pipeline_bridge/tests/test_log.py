"""The log of a run, written by several workers at once: it reads as if one had written it."""

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.contract.pipeline import PipelineStatus, RunStatus, TriggerRequest
from handler_core.errors import Abandoned
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, stored, until
from pipeline_bridge.engine import Run
from pipeline_bridge.log import Ended, Repeated, RunLog

Open = Callable[..., RunLog]


@pytest.fixture
def request_id() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def opened(nc: Connection, request_id: str) -> Open:
    """A log of the same run, as the worker of one delivery has it."""

    def make(attempt: int = 1, source: str = "AI_PIPELINE:1:1") -> RunLog:
        return RunLog(nc, request_id, source=source, attempt=attempt, received=time.time() - 1)

    return make


def run_of(request_id: str, **changes: Any) -> Run:
    fields = {"pipeline": "p", "engine": "argo", "namespace": "n", "name": "p-x", "reference": {}, "parameters": {}}
    return Run(**{**fields, "request_id": request_id, "timeout": 60.0, **changes})


async def statuses(nc: Connection, request_id: str) -> list[PipelineStatus]:
    found = await stored(nc, "AI_PIPELINE_STATUS", f"evt.pipeline.status.{request_id}")
    return [decode(each.data, PipelineStatus) for each in found]


async def test_statuses_are_numbered_and_keep_what_is_known(nc: Connection, opened: Open, request_id: str) -> None:
    log = opened()
    await log.open()
    await log.decide(run_of(request_id))
    await log.tell(RunStatus.SUBMITTED, run_id="p-x", timings={"queue_ms": 12.0})
    await log.tell(RunStatus.RUNNING, raw_status="Running")
    await log.tell(RunStatus.SUCCEEDED, raw_status="Succeeded")

    told = await statuses(nc, request_id)

    assert [(each.seq, each.status.value) for each in told] == [(1, "submitted"), (2, "running"), (3, "succeeded")]
    assert {each.run_id for each in told} == {"p-x"}
    assert {(each.pipeline, each.engine, each.namespace) for each in told} == {("p", "argo", "n")}
    assert told[2].submitted_at == told[0].timestamp
    assert told[2].started_at == told[1].timestamp
    assert set(told[2].timings) == {"queue_ms", "submit_ms", "pending_ms", "run_ms", "total_ms"}
    assert told[2].timings["total_ms"] >= 1000


async def test_subscribers_read_what_is_stored(nc: Connection, opened: Open, request_id: str) -> None:
    heard: list[PipelineStatus] = []
    records: list[str] = []

    async def on_status(message: Any) -> None:
        heard.append(decode(message.data, PipelineStatus))

    async def on_other(message: Any) -> None:
        records.append(message.subject)

    await nc.subscribe(f"ai.pipeline.status.{request_id}", cb=on_status)
    await nc.subscribe("ai.pipeline.run.>", cb=on_other)
    log = opened()
    await log.decide(run_of(request_id))
    await log.tell(RunStatus.SUBMITTED)

    await until(lambda: heard, "the status is republished")

    assert heard == await statuses(nc, request_id)
    assert records == []  # parameters are for nobody else


async def test_of_two_workers_the_later_delivery_goes_on(nc: Connection, opened: Open, request_id: str) -> None:
    stalled, taking_over = opened(attempt=1), opened(attempt=2)
    await stalled.decide(run_of(request_id))
    await stalled.tell(RunStatus.SUBMITTED)
    await taking_over.open()
    await taking_over.tell(RunStatus.RUNNING, raw_status="Running")

    with pytest.raises(Abandoned):
        await stalled.tell(RunStatus.RUNNING, raw_status="Running")

    assert [each.status.value for each in await statuses(nc, request_id)] == ["submitted", "running"]


async def test_what_the_stalled_worker_still_told_is_gone_on_from(
    nc: Connection, opened: Open, request_id: str
) -> None:
    stalled, taking_over = opened(attempt=1), opened(attempt=2)
    await stalled.decide(run_of(request_id))
    await stalled.tell(RunStatus.SUBMITTED)
    await taking_over.open()
    await stalled.tell(RunStatus.PENDING, raw_status="Pending")
    await taking_over.tell(RunStatus.RUNNING, raw_status="Running")

    told = await statuses(nc, request_id)

    assert [(each.seq, each.status.value) for each in told] == [(1, "submitted"), (2, "pending"), (3, "running")]


async def test_the_same_state_told_by_both_stands_once(nc: Connection, opened: Open, request_id: str) -> None:
    stalled, taking_over = opened(attempt=1), opened(attempt=2)
    await stalled.decide(run_of(request_id))
    await stalled.tell(RunStatus.SUBMITTED)
    await taking_over.open()
    await stalled.tell(RunStatus.RUNNING, raw_status="Running")
    await taking_over.tell(RunStatus.RUNNING, raw_status="Running")

    assert [each.status.value for each in await statuses(nc, request_id)] == ["submitted", "running"]


async def test_of_many_ends_told_at_once_one_is_stored(nc: Connection, opened: Open, request_id: str) -> None:
    first = opened()
    await first.decide(run_of(request_id))
    await first.tell(RunStatus.SUBMITTED)
    others = [opened(attempt=attempt) for attempt in range(2, 8)]
    for log in others:
        await log.open()

    ends = (RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELED)
    results = await asyncio.gather(
        *(log.tell(ends[number % 3]) for number, log in enumerate(others)), return_exceptions=True
    )

    assert sum(isinstance(result, Ended | Abandoned) for result in results) == 5
    assert sum(result is None for result in results) == 1
    assert [each.status.final for each in await statuses(nc, request_id)] == [False, True]


async def test_nothing_follows_an_end(nc: Connection, opened: Open, request_id: str) -> None:
    log = opened()
    await log.decide(run_of(request_id))
    await log.tell(RunStatus.FAILED)

    with pytest.raises(Ended) as again:
        await opened(attempt=2).open()

    assert again.value.own
    assert again.value.status.status is RunStatus.FAILED
    assert len(await statuses(nc, request_id)) == 1


async def test_what_was_decided_first_stands(opened: Open, request_id: str) -> None:
    await opened().decide(run_of(request_id, namespace="before"))
    later = opened(attempt=2)
    await later.open()

    assert later.run is not None
    assert later.run.namespace == "before"
    assert (await opened(attempt=3).decide(run_of(request_id, namespace="after"))).namespace == "before"


async def test_a_trigger_that_repeats_a_queued_one_is_told_so(nc: Connection, opened: Open, request_id: str) -> None:
    trigger = encode(TriggerRequest(request_id=request_id, pipeline="p"))
    first = await Api(nc).publish("ai.pipeline.trigger", trigger, {})
    await opened(source=f"AI_PIPELINE:{first}:7").decide(run_of(request_id))

    with pytest.raises(Repeated):
        await opened(source=f"AI_PIPELINE:{first + 1}:8").open()
    with pytest.raises(Repeated):
        await opened(source=f"AI_PIPELINE:{first + 1}:8").decide(run_of(request_id))


async def test_a_trigger_takes_up_the_run_of_one_that_left_the_queue(
    nc: Connection, opened: Open, request_id: str
) -> None:
    await opened(source="AI_PIPELINE:1:7", attempt=9).decide(run_of(request_id, namespace="before"))
    trigger = encode(TriggerRequest(request_id=request_id, pipeline="p"))
    sequence = await Api(nc).publish("ai.pipeline.trigger", trigger, {})
    again = opened(source=f"AI_PIPELINE:{sequence}:8")
    await again.open()

    assert again.run is not None
    assert again.run.namespace == "before"
    await again.tell(RunStatus.SUBMITTED)
    assert [each.status.value for each in await statuses(nc, request_id)] == ["submitted"]


async def test_a_status_is_stored_once_though_the_server_was_away(
    nats: NatsServer, nc: Connection, opened: Open, request_id: str
) -> None:
    log = opened()
    await log.decide(run_of(request_id))
    nats.kill()
    telling = asyncio.ensure_future(log.tell(RunStatus.SUBMITTED))
    await asyncio.sleep(0)
    nats.start()
    await telling

    assert [each.seq for each in await statuses(nc, request_id)] == [1]


async def test_forgotten_statuses_do_not_stop_the_next(nc: Connection, opened: Open, request_id: str) -> None:
    log = opened()
    await log.decide(run_of(request_id))
    await log.tell(RunStatus.SUBMITTED)
    await Api(nc).request("STREAM.PURGE.AI_PIPELINE_STATUS", {"filter": f"evt.pipeline.status.{request_id}"})
    await log.tell(RunStatus.RUNNING, raw_status="Running")

    assert [(each.seq, each.status.value) for each in await statuses(nc, request_id)] == [(2, "running")]
