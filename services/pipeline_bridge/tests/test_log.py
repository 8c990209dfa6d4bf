"""The log of a run, written by several workers at once: it reads as if one had written it."""

import asyncio
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.contract.pipeline import PipelineStatus, RunStatus, TriggerRequest
from handler_core.errors import Abandoned, DeadlineExceeded
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, stored, until
from pipeline_bridge.definitions import MAX_TIMEOUT
from pipeline_bridge.engine import Run, run_name
from pipeline_bridge.log import Ended, Repeated, RunLog
from pipeline_bridge.statuses import submitted_run

Open = Callable[..., RunLog]


@pytest.fixture
def request_id() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def opened(nc: Connection, request_id: str) -> Open:
    """A log of the same run, as the worker of one delivery has it."""

    def make(attempt: int = 1, source: str = "AI_PIPELINE:1:1") -> RunLog:
        return RunLog(nc, request_id, source=source, attempt=lambda: attempt, received=time.time() - 1)

    return make


def run_of(request_id: str, **changes: Any) -> Run:
    fields = {"pipeline": "p", "engine": "argo", "namespace": "n", "name": "p-x", "reference": {}, "parameters": {}}
    return Run(**{**fields, "request_id": request_id, "timeout": 60.0, **changes})


async def identity(nc: Connection, sequence: int) -> str:
    """The identity of a trigger that is in the queue; of its time, the microseconds count."""
    stored_at = (await Api(nc).request("STREAM.MSG.GET.AI_PIPELINE", {"seq": sequence}))["message"]["time"]
    since = datetime.fromisoformat(stored_at) - datetime(1970, 1, 1, tzinfo=UTC)
    return f"AI_PIPELINE:{sequence}:{since // timedelta(microseconds=1)}789"


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
    await opened(source=await identity(nc, first)).decide(run_of(request_id))

    with pytest.raises(Repeated):
        await opened(source=f"AI_PIPELINE:{first + 1}:8").open()
    with pytest.raises(Repeated):
        await opened(source=f"AI_PIPELINE:{first + 1}:8").decide(run_of(request_id))


async def test_of_a_stream_made_anew_a_message_is_not_taken_for_the_one_that_had_its_number(
    nc: Connection, opened: Open, request_id: str
) -> None:
    trigger = encode(TriggerRequest(request_id=request_id, pipeline="p"))
    sequence = await Api(nc).publish("ai.pipeline.trigger", trigger, {})
    await opened(source=f"AI_PIPELINE:{sequence}:7").decide(run_of(request_id))
    again = opened(source=await identity(nc, sequence))
    await again.open()
    await again.tell(RunStatus.SUBMITTED)

    assert [each.status.value for each in await statuses(nc, request_id)] == ["submitted"]


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


async def test_what_is_told_again_was_submitted_when_it_was(nc: Connection, opened: Open, request_id: str) -> None:
    log = opened()
    await log.decide(run_of(request_id))
    await log.tell(RunStatus.SUBMITTED, run_id="p-x")
    why = DeadlineExceeded("took too long").info()
    await log.tell(RunStatus.SUBMITTED, message="stopping", stopping=why)
    await log.tell(RunStatus.FAILED)

    first, _, last = await statuses(nc, request_id)
    assert last.submitted_at == first.submitted_at == first.timestamp
    assert last.timings["pending_ms"] == pytest.approx(1000 * (last.timestamp - first.timestamp), abs=0.01)
    assert (first.stopping, last.stopping) == (None, why)


async def test_what_a_follower_needs_stands_in_each_status(nc: Connection, opened: Open, request_id: str) -> None:
    decided = run_of(request_id, name=run_name("p", request_id), timeout=90.0, reference={"template": "t"})
    log = opened()
    await log.decide(decided)
    await log.tell(RunStatus.SUBMITTED, run_id=decided.name)
    await Api(nc).request("STREAM.PURGE.AI_PIPELINE_STATUS", {"filter": f"evt.pipeline.run.{request_id}"})
    later = opened(attempt=2)
    await later.open()
    await later.tell(RunStatus.RUNNING, raw_status="Running")

    assert later.run == decided.model_copy(update={"reference": {}})
    assert later.run_id == decided.name


def test_a_status_of_an_earlier_version_will_do_to_follow_its_run() -> None:
    told = PipelineStatus(
        request_id="r1", seq=1, status=RunStatus.SUBMITTED, pipeline="p", engine="argo", run_id="x", timestamp=0
    )
    run = submitted_run(told)
    assert run is not None
    assert (run.name, run.timeout) == (run_name("p", "r1"), MAX_TIMEOUT)
    assert submitted_run(told.model_copy(update={"run_id": ""})) is None


async def test_deliveries_that_begin_and_leave_no_trace_are_counted(
    nc: Connection, opened: Open, request_id: str
) -> None:
    for attempt in range(2, 5):  # each dies while it decides
        log = opened(attempt=attempt)
        await log.open()
        await log.begin()
        await log.begin()
        assert log.begun == attempt - 2
    deciding = opened(attempt=5)
    await deciding.open()
    await deciding.begin()
    await deciding.decide(run_of(request_id))
    submitting = opened(attempt=6)
    await submitting.open()
    assert (submitting.begun, submitting.run) == (4, run_of(request_id))
    await submitting.begin()
    await submitting.survive()
    await submitting.survive()
    after = opened(attempt=7)
    await after.open()
    assert (after.begun, after.run) == (0, run_of(request_id))


async def test_one_that_begins_finds_the_end_that_another_has_told(opened: Open, request_id: str) -> None:
    beginning = opened(attempt=2)
    await beginning.open()
    await opened(attempt=1).tell(RunStatus.CANCELED)

    with pytest.raises(Ended):
        await beginning.begin()


async def test_a_stalled_worker_gives_way_to_a_later_delivery_that_has_begun(opened: Open, request_id: str) -> None:
    stalled, later = opened(attempt=1), opened(attempt=2)
    await stalled.decide(run_of(request_id))
    await later.open()
    await later.begin()

    with pytest.raises(Abandoned):
        await stalled.catch_up()


async def test_an_end_is_told_by_whoever_stored_it(opened: Open, request_id: str) -> None:
    first, second = opened(attempt=1), opened(attempt=2)
    await first.decide(run_of(request_id))
    await second.open()
    await first.tell(RunStatus.FAILED)
    with pytest.raises(Ended):
        await second.tell(RunStatus.FAILED)
    with pytest.raises(Ended):  # as by one whose publish was given up
        await first.catch_up()

    assert first.told_the_end
    assert not second.told_the_end


async def test_forgotten_statuses_do_not_stop_the_next(nc: Connection, opened: Open, request_id: str) -> None:
    log = opened()
    await log.decide(run_of(request_id))
    await log.tell(RunStatus.SUBMITTED)
    await Api(nc).request("STREAM.PURGE.AI_PIPELINE_STATUS", {"filter": f"evt.pipeline.status.{request_id}"})
    await log.tell(RunStatus.RUNNING, raw_status="Running")

    assert [(each.seq, each.status.value) for each in await statuses(nc, request_id)] == [(2, "running")]
