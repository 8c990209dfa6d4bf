"""One request, two workers: it is delivered again while the first still runs, sleeps, or is gone."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from handler_core import upstreams
from handler_core.answer import AlreadyAnswered
from handler_core.clients.http import new_session
from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.contract.tts import AudioChunk, SpeakRequest, SpeechStatus
from handler_core.delivery import Delivery
from handler_core.errors import Abandoned, Transient
from handler_core.health import Health
from handler_core.jetstream import Acknowledgement, Api, JetStreamError
from handler_core.limits import Limits
from handler_core.runtime import Runtime
from handler_core.telemetry import Metrics
from handler_core.testing import until
from tts_module.log import Make, Position, SpeechLog
from tts_module.requests import Requests
from tts_module.service import Clients, say


def status(kind: str, request_id: str = "r1") -> Make:
    message = SpeechStatus(request_id=request_id, status=kind, timestamp=0.0)
    return lambda position: (message, replace(position, limit=250))


def chunk(request_id: str = "r1") -> Make:
    def make(before: Position) -> tuple[AudioChunk, Position]:
        chunk = AudioChunk(
            request_id=request_id, chunk_index=before.chunks, audio=b"\1\2", sample_rate=24_000, timestamp=0.0
        )
        return chunk, replace(before, bytes=before.bytes + 2, chunks=before.chunks + 1)

    return make


Writer = Callable[..., SpeechLog]


@pytest.fixture
def writer(nc: Connection, caller: Any) -> Writer:
    def make(attempt: int = 1, request_id: str = "r1", source: str = "m1") -> SpeechLog:
        return SpeechLog(nc, caller.session, request_id, attempt=attempt, source=source, headers={})

    return make


async def kinds(caller: Any) -> list[str]:
    return [stored.subject.split(".")[3] for stored in await caller.log()]


async def test_a_successor_goes_on_where_the_log_ends(writer: Writer) -> None:
    first, second = writer(), writer(attempt=2)
    for make in (status("started"), chunk(), chunk()):
        await first.append(make)
    await second.open()
    assert second.position == first.position == Position(limit=250, bytes=4, chunks=2)


async def test_whoever_was_succeeded_can_store_nothing_more(writer: Writer, caller: Any) -> None:
    first, second = writer(), writer(attempt=2)
    await first.append(status("started"))
    await second.append(status("started"))
    for make in (chunk(), status("completed")):
        with pytest.raises(Abandoned):
            await first.append(make)
    await second.append(chunk())
    assert await kinds(caller) == ["status", "status", "audio"]


async def test_what_the_first_stores_before_it_is_shut_out_counts(writer: Writer) -> None:
    first, second = writer(), writer(attempt=2)
    await first.append(status("started"))
    await second.open()
    await first.append(chunk())
    await second.append(status("started"))
    assert second.position == Position(limit=250, bytes=2, chunks=1)
    with pytest.raises(Abandoned):
        await first.append(chunk())


async def test_a_first_worker_that_slept_before_it_began_is_succeeded_too(writer: Writer) -> None:
    first, second = writer(), writer(attempt=2)
    await first.open()
    await second.append(status("started"))
    with pytest.raises(Abandoned):
        await first.append(status("started"))


async def test_of_two_successors_the_later_one_goes_on(writer: Writer) -> None:
    second, third = writer(attempt=2), writer(attempt=3)
    await second.open()
    await third.open()
    await third.append(status("started"))
    with pytest.raises(Abandoned):
        await second.append(status("started"))
    await third.append(chunk())


@pytest.mark.parametrize("end", ["completed", "error"])
async def test_a_request_has_one_end(writer: Writer, end: str) -> None:
    first, second, late = writer(), writer(attempt=2), writer(attempt=2)
    await first.append(status("started"))
    await late.open()
    await first.append(status(end))
    with pytest.raises(AlreadyAnswered):
        await second.open()
    with pytest.raises(AlreadyAnswered):
        await late.append(status("error"))


async def test_another_message_with_the_same_id_waits_for_the_first(writer: Writer) -> None:
    first = writer()
    await first.append(status("started"))
    for attempt in (1, 2):
        with pytest.raises(Abandoned):
            await writer(attempt=attempt, source="m2").append(status("started"))
    await first.append(chunk())
    await first.append(status("completed"))
    for attempt in (1, 2):
        with pytest.raises(AlreadyAnswered):
            await writer(attempt=attempt, source="m2").append(status("started"))


async def test_requests_of_one_session_do_not_hinder_each_other(writer: Writer, caller: Any) -> None:
    async def write(request_id: str) -> None:
        log = writer(request_id=request_id, source=request_id)
        for make in (status("started", request_id), *[chunk(request_id)] * 20, status("completed", request_id)):
            await log.append(make)

    async with asyncio.TaskGroup() as tasks:
        for number in range(5):
            tasks.create_task(write(f"r{number}"))
    assert len(await caller.log()) == 5 * 22
    await until(lambda: len(caller.chunks) == 100, "every chunk arrives")
    for number in range(5):
        assert [chunk.chunk_index for chunk in caller.of(f"r{number}")] == list(range(20))


class Lossy(Api):
    """Of each acknowledgement it hears only at the second try; or never, once it is `cut`."""

    heard = True
    cut = False

    async def store(self, subject: str, payload: bytes, headers: dict[str, str]) -> Acknowledgement:
        try:
            stored = await super().store(subject, payload, headers)
        except JetStreamError:
            self.heard = True
            raise
        self.heard = not self.heard
        if self.cut:
            raise asyncio.CancelledError
        if not self.heard:
            raise Transient("no answer")
        return stored


async def test_a_lost_acknowledgement_stores_nothing_twice(nc: Connection, writer: Writer, caller: Any) -> None:
    log = writer()
    log._api = Lossy(nc)
    for make in (status("started"), chunk(), chunk(), status("completed")):
        await log.append(make)
    assert await kinds(caller) == ["status", "audio", "audio", "status"]
    assert log.position.chunks == 2


@pytest.mark.parametrize("cut", ["started", "chunk", "completed"])
async def test_what_was_cut_off_while_it_was_stored_is_taken_in(
    nc: Connection, writer: Writer, caller: Any, cut: str
) -> None:
    log, lossy = writer(), Lossy(nc)
    if cut != "started":
        await log.append(status("started"))
    log._api, lossy.cut = lossy, True
    with pytest.raises(asyncio.CancelledError):
        await log.append(chunk() if cut == "chunk" else status(cut))
    log._api = Api(nc)
    if cut == "completed":
        with pytest.raises(AlreadyAnswered):
            await log.append(status("error"))
    else:
        await log.append(status("error"))
        assert log.position.chunks == (cut == "chunk")
    assert await kinds(caller) == {"started": ["status"] * 2, "chunk": ["status", "audio", "status"]}.get(
        cut, ["status"] * 2
    )


async def test_a_writer_that_slept_until_the_log_was_gone_gives_up(nc: Connection, writer: Writer) -> None:
    log = writer()
    await log.append(status("started"))
    await Api(nc).request("STREAM.PURGE.AI_EVENTS")
    with pytest.raises(Abandoned):
        await log.append(chunk())


async def test_a_request_begins_although_what_came_before_it_is_gone(nc: Connection, writer: Writer) -> None:
    await writer(request_id="r0").append(status("started", "r0"))
    log = writer()
    await log.open()
    await Api(nc).request("STREAM.PURGE.AI_EVENTS")
    await log.append(status("started"))


@pytest.mark.parametrize("seed", range(8))
async def test_whoever_sleeps_dies_or_wakes_up_the_log_is_one_speech(writer: Writer, caller: Any, seed: int) -> None:
    chance = random.Random(seed)

    async def attempt(log: SpeechLog) -> None:
        with contextlib.suppress(Abandoned, AlreadyAnswered):
            await log.open()
            await log.append(status("started"))
            while log.position.chunks < 12:
                await asyncio.sleep(chance.choice((0, 0, 0.002, 0.01)))
                await log.append(chunk())
            await log.append(status("completed"))

    async with asyncio.TaskGroup() as tasks:
        for number in range(1, 7):
            task = tasks.create_task(attempt(writer(attempt=number)))
            await asyncio.sleep(chance.uniform(0, 0.03))
            if number < 6 and chance.random() < 0.5:
                task.cancel()
    *_, end = log = await caller.log()
    chunks = [caller.chunk(stored) for stored in log if stored.subject.split(".")[3] == "audio"]
    assert [chunk.chunk_index for chunk in chunks] == list(range(12))
    kinds = [decode(stored.data, SpeechStatus).status for stored in log if stored.subject.split(".")[3] == "status"]
    assert (kinds.count("completed"), kinds[-1], end.subject.split(".")[3]) == (1, "completed", "status")


Deliver = Callable[..., Any]


@pytest.fixture
def deliver(nc: Connection, caller: Any, settings: Any) -> Deliver:
    """Hands a request to a worker of its own as the server would at that attempt."""
    stored = time.time()

    @asynccontextmanager
    async def worker() -> AsyncIterator[tuple[Requests, Clients]]:
        runtime = Runtime(nc, Metrics(), Health(Metrics()))
        async with new_session() as session:
            requests = Requests(runtime, Limits(), 4096)
            yield requests, Clients(nc, upstreams.tts(session, settings(tts_concurrency=2)), requests)

    async def deliver(attempt: int, **fields: Any) -> None:
        request = SpeakRequest(**{"text": caller.text, "request_id": "r1", **fields})
        reply = f"$JS.ACK.AI_TTS.tts_module.{attempt}.7.{attempt}.{stored * 1e9:.0f}.0".encode()
        subject = f"ai.voice.tts.request.{caller.session}".encode()
        async with worker() as (requests, clients):
            await requests.process(Delivery(nc, subject, reply, encode(request), None), clients, say)

    return deliver


@pytest.mark.parametrize("stream", [True, False])
async def test_a_worker_that_wakes_up_finds_the_speech_taken_over(
    deliver: Deliver, caller: Any, engine: Any, stream: bool
) -> None:
    gate = engine.gates[caller.sentences[1]] = asyncio.Event()
    asleep = asyncio.ensure_future(deliver(1, stream=stream))
    await until(lambda: len(engine.seen) == 3 and (not stream or len(caller.chunks) > 5), "it is in the middle")
    del engine.gates[caller.sentences[1]]
    await deliver(2, stream=stream)
    gate.set()
    with pytest.raises(Abandoned):
        await asleep
    await until(caller.ends, "the end arrives")
    assert [status.status for status in caller.statuses] == ["started", "started", "completed"]
    assert caller.audio() == engine.spoken(caller.text)
    assert [chunk.chunk_index for chunk in caller.chunks] == list(range(caller.ends()[0].chunks))
    assert {chunk.attempt for chunk in caller.chunks} == ({1, 2} if stream else {2})
    assert engine.inputs().count(caller.sentences[0]) == (1 if stream else 2)


async def test_two_workers_at_once_say_everything_once(deliver: Deliver, caller: Any, engine: Any) -> None:
    outcomes = await asyncio.gather(*(deliver(attempt) for attempt in (1, 2, 3)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {type(None), Abandoned}
    await until(caller.ends, "the end arrives")
    assert caller.audio() == engine.spoken(caller.text)
    assert [chunk.chunk_index for chunk in caller.chunks] == list(range(caller.ends()[0].chunks))
    assert len(caller.ends()) == 1


async def test_a_request_that_was_spoken_whole_is_only_settled(deliver: Deliver, caller: Any, engine: Any) -> None:
    await deliver(1)
    calls = len(engine.seen)
    await deliver(2)
    assert len(engine.seen) == calls
    assert (len(caller.ends()), caller.order.count("started")) == (1, 1)


async def test_a_worker_that_ended_before_it_could_tell_the_end_is_helped_out(
    deliver: Deliver, nc: Connection, caller: Any, engine: Any
) -> None:
    await deliver(1)
    *_, end = await caller.log()
    await Api(nc).request("STREAM.MSG.DELETE.AI_EVENTS", {"seq": end.sequence})
    calls = len(engine.seen)
    await deliver(2)
    assert len(engine.seen) == calls, "nothing is made again"
    await until(lambda: len(caller.ends()) == 2, "the end arrives")
    assert caller.ends()[1].chunks == len(caller.chunks)
    assert caller.audio() == engine.spoken(caller.text)
