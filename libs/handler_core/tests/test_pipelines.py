"""The caller's side of a pipeline's run, against a real NATS server."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from handler_core import streams
from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.contract.errors import ErrorInfo, ErrorType
from handler_core.contract.pipeline import (
    LIST_SUBJECT,
    STORED_STATUS_SUBJECT,
    USER_LIST_SUBJECT,
    PipelinesRequest,
    PipelinesResponse,
    PipelineStatus,
    RunStatus,
    TriggerRequest,
)
from handler_core.errors import Busy, HandlerError, InvalidRequest, Transient
from handler_core.jetstream import Api, JetStreamError
from handler_core.pipelines import RECORD_SUBJECT, accepted, catalogue, latest, statuses, trigger
from handler_core.testing import connection, nats_server, stored, until


@pytest.fixture
async def api(api: Api) -> Api:
    """A server that has the streams of pipelines."""
    made = [streams.AI_PIPELINE, streams.AI_PIPELINE_STATUS]
    await streams.apply(api, made, [streams.PIPELINE_BRIDGE])
    for stream in made:
        # A stream that was deleted a moment ago comes back with what it held, on a busy machine.
        await api.request(f"STREAM.PURGE.{stream.name}")
    return api


def status(seq: int, state: str, request_id: str = "r1") -> PipelineStatus:
    return PipelineStatus(request_id=request_id, seq=seq, status=RunStatus(state), timestamp=float(seq))


async def tell(api: Api, *states: str, begin: int = 1, request_id: str = "r1") -> None:
    """Store statuses as a bridge does."""
    for seq, state in enumerate(states, begin):
        subject = STORED_STATUS_SUBJECT.format(request_id=request_id)
        await api.publish(subject, encode(status(seq, state, request_id)), {})


async def seen(nc: Connection, request_id: str = "r1", **options: Any) -> list[tuple[int, str]]:
    """What `statuses` yields until it ends."""
    async with asyncio.timeout(20), aclosing(statuses(nc, request_id, **options)) as items:
        return [(item.seq, item.status.value) async for item in items]


# -- to trigger


async def test_a_trigger_is_queued_once_by_its_request_id(nc: Connection, api: Api) -> None:
    request = TriggerRequest(request_id="r1", pipeline="ingest", parameters={"source": "s3://x"})
    first = await trigger(api, request)
    assert await trigger(api, request) == first
    (message,) = await stored(nc, "AI_PIPELINE", "ai.pipeline.trigger")
    assert decode(message.data, TriggerRequest) == request


async def test_a_users_trigger_goes_to_the_users_subject_with_the_given_headers(nc: Connection, api: Api) -> None:
    await trigger(api, TriggerRequest(request_id="r1", pipeline="ingest"), "alice", {"tracestate": "a=b"})
    (message,) = await stored(nc, "AI_PIPELINE", "ai.pipeline.user.alice.trigger")
    assert message.headers == {"Nats-Msg-Id": "r1", "tracestate": "a=b"}


@pytest.mark.parametrize("user", ["", "a.b", "*", "alice smith"])
async def test_a_user_that_can_be_in_no_subject_is_refused(nc: Connection, api: Api, user: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^user: "):
        await trigger(api, TriggerRequest(request_id="refused", pipeline="ingest"), user)
    assert [message for message in await stored(nc, "AI_PIPELINE", ">") if b"refused" in message.data] == []


async def test_a_full_queue_is_busy(api: Api) -> None:
    await api.request("STREAM.UPDATE.AI_PIPELINE", {**streams.AI_PIPELINE.config(), "max_msgs": 1})
    await trigger(api, TriggerRequest(request_id="r1", pipeline="ingest"))
    with pytest.raises(Busy, match="the queue AI_PIPELINE is full"):
        await trigger(api, TriggerRequest(request_id="r2", pipeline="ingest"))


# -- to follow


async def test_a_run_that_has_ended_is_told_from_its_first_status_on(nc: Connection, api: Api) -> None:
    await tell(api, "submitted", "running", "succeeded")
    assert await seen(nc) == [(1, "submitted"), (2, "running"), (3, "succeeded")]


@pytest.mark.parametrize("final", ["succeeded", "failed", "canceled", "error"])
async def test_it_ends_with_a_final_status(nc: Connection, api: Api, final: str) -> None:
    await tell(api, final)
    assert await seen(nc) == [(1, final)]


async def test_attaching_in_the_middle_misses_nothing_and_tells_nothing_twice(nc: Connection, api: Api) -> None:
    async def go_on() -> None:
        await tell(api, *["pending", "running"] * 10, "succeeded", begin=21)

    await tell(api, *["pending", "running"] * 10)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(go_on())
        found = await seen(nc)
    assert [seq for seq, _ in found] == list(range(1, 42))


async def test_where_the_first_are_no_longer_kept_it_begins_with_the_oldest_that_is(nc: Connection, api: Api) -> None:
    await tell(api, *["pending"] * 59, "succeeded")
    assert [seq for seq, _ in await seen(nc)] == list(range(11, 61))


async def test_a_run_that_nobody_knows_yet_is_waited_for(nc: Connection, api: Api) -> None:
    listening = len(nc._subs)
    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(seen(nc, look_every=60))
        await until(lambda: len(nc._subs) > listening, "it listens")
        await tell(api, "submitted", "succeeded", begin=1)
    assert following.result() == [(1, "submitted"), (2, "succeeded")]


async def test_another_run_is_none_of_its_business(nc: Connection, api: Api) -> None:
    await tell(api, "failed", request_id="r2")
    await tell(api, "submitted", "succeeded")
    assert await seen(nc) == [(1, "submitted"), (2, "succeeded")]


async def test_what_was_not_republished_is_read_when_the_next_one_shows_the_gap(nc: Connection, api: Api) -> None:
    await tell(api, "submitted")
    async with asyncio.timeout(20), aclosing(statuses(nc, "r1", look_every=60)) as items:
        assert (await anext(items)).seq == 1
        await republish(api, on=False)
        await tell(api, "pending", "running", begin=2)
        await republish(api, on=True)
        await tell(api, "succeeded", begin=4)
        assert [item.seq async for item in items] == [2, 3, 4]


async def test_a_final_status_that_was_not_republished_is_found_in_the_silence(nc: Connection, api: Api) -> None:
    await tell(api, "submitted")
    async with asyncio.timeout(20), aclosing(statuses(nc, "r1", look_every=0.05)) as items:
        assert (await anext(items)).seq == 1
        await republish(api, on=False)
        await tell(api, "succeeded", begin=2)
        assert [item.seq async for item in items] == [2]


async def republish(api: Api, *, on: bool) -> None:
    config = streams.AI_PIPELINE_STATUS.config()
    if not on:
        del config["republish"]
    await api.request("STREAM.UPDATE.AI_PIPELINE_STATUS", config)


async def test_what_happened_while_the_server_was_away_is_told_after_it_is_back() -> None:
    with nats_server() as server:
        async with connection(server.url) as nc:
            api = Api(nc)
            await streams.apply(api, [streams.AI_PIPELINE_STATUS], [])
            await tell(api, "submitted")
            async with asyncio.timeout(30), aclosing(statuses(nc, "r1", look_every=60)) as items:
                assert (await anext(items)).seq == 1
                server.kill()
                await until(lambda: not nc.is_connected, "the connection is lost")
                server.start()
                async with connection(server.url) as bridge:
                    await until(lambda: has_stream(bridge), "the stream is back")
                    await tell(Api(bridge), "running", "succeeded", begin=2)
                assert [item.seq async for item in items] == [2, 3]


async def has_stream(nc: Connection) -> bool:
    try:
        return bool(await Api(nc).request("STREAM.INFO.AI_PIPELINE_STATUS"))
    except (Transient, JetStreamError):
        return False


async def test_a_look_up_that_fails_later_is_repeated(
    nc: Connection, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handler_core.pipelines.LOOK_AGAIN", 0.05)
    looked = asyncio.Event()

    async def on_look(_: Any) -> None:
        looked.set()

    await tell(api, "submitted")
    async with asyncio.timeout(20), aclosing(statuses(nc, "r1", look_every=0.05)) as items:
        assert (await anext(items)).seq == 1
        await api.request("STREAM.DELETE.AI_PIPELINE_STATUS")
        watching = await nc.subscribe("$JS.API.STREAM.MSG.GET.AI_PIPELINE_STATUS", cb=on_look)
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(rest_of(items))
            await looked.wait()
            await streams.apply(api, [streams.AI_PIPELINE_STATUS], [])
            await tell(api, "pending", "succeeded", begin=2)
        assert following.result() == [2, 3]
        await watching.unsubscribe()


async def rest_of(items: AsyncGenerator[PipelineStatus, None]) -> list[int]:
    return [item.seq async for item in items]


async def test_without_the_stream_there_is_nothing_to_wait_for(nc: Connection, api: Api) -> None:
    await api.request("STREAM.DELETE.AI_PIPELINE_STATUS")
    with pytest.raises(JetStreamError, match="stream not found"):
        await seen(nc)


@pytest.mark.parametrize("request_id", ["", "*", "a.b", "x" * 65])
async def test_what_can_be_no_request_id_is_refused(nc: Connection, request_id: str) -> None:
    with pytest.raises(InvalidRequest, match="request_id"):
        await seen(nc, request_id)


async def test_one_who_stops_listening_leaves_nothing_behind(nc: Connection, api: Api) -> None:
    await tell(api, "submitted")
    await latest(api, "r1")  # makes the inbox that requests share
    before, callbacks = len(nc._subs), len(nc.on_reconnect)
    async with aclosing(statuses(nc, "r1")) as items:
        assert (await anext(items)).seq == 1
        assert len(nc._subs) == before + 1
    assert (len(nc._subs), len(nc.on_reconnect)) == (before, callbacks)


# -- to look up


async def test_the_latest_status_is_the_newest_stored(api: Api) -> None:
    assert await latest(api, "r1") is None
    await tell(api, "submitted", "running")
    found = await latest(api, "r1")
    assert found is not None
    assert found.status is RunStatus.RUNNING


async def test_a_run_is_accepted_once_a_bridge_has_recorded_it(api: Api) -> None:
    assert not await accepted(api, "r1")
    await api.publish(RECORD_SUBJECT.format(request_id="r1"), b"", {})  # which decides
    assert not await accepted(api, "r1")
    await api.publish(RECORD_SUBJECT.format(request_id="r1"), b"x", {})
    assert await accepted(api, "r1")


# -- the catalogue


async def serve(nc: Connection, response: PipelinesResponse | None) -> list[PipelinesRequest]:
    """A bridge that answers with `response`, or never; what it is asked."""
    asked: list[PipelinesRequest] = []

    async def answer(message: Any) -> None:
        asked.append(decode(message.data, PipelinesRequest))
        if response is not None:
            await nc.publish(message.reply, encode(response))

    for subject in (LIST_SUBJECT, USER_LIST_SUBJECT.format(user="alice")):
        await nc.subscribe(subject, cb=answer)
    assert await nc.responds(5)
    return asked


async def test_the_catalogue_is_asked_for_in_the_users_name(nc: Connection) -> None:
    asked = await serve(nc, PipelinesResponse(problem="line 3"))
    assert (await catalogue(nc, "alice")).problem == "line 3"
    assert [request.user_id for request in asked] == ["alice"]


async def test_a_bridges_error_is_raised(nc: Connection) -> None:
    error = ErrorInfo(type=ErrorType.BUSY, message="later", retryable=True)
    await serve(nc, PipelinesResponse(error=error))
    with pytest.raises(HandlerError, match="later") as caught:
        await catalogue(nc)
    assert caught.value.type is ErrorType.BUSY


async def test_without_a_bridge_it_is_said_that_none_is_running(nc: Connection) -> None:
    with pytest.raises(Transient, match=r"nobody answers on ai\.pipeline\.list: no pipeline_bridge is running"):
        await catalogue(nc)


async def test_a_bridge_that_does_not_answer_is_not_waited_for_for_ever(nc: Connection) -> None:
    await serve(nc, None)
    with pytest.raises(Transient, match=r"no answer on ai\.pipeline\.list within 0\.05 s"):
        await catalogue(nc, timeout=0.05)
