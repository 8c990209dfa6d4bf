"""A connection that is open hears, and a flush means what it says."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from handler_core.connection import Connection
from handler_core.testing import connection, until

from .fake_jetstream import FAKE, FakeJetStream, fake_jetstream
from .stage import Log, pulling, running


@pytest.fixture
async def fake() -> AsyncIterator[FakeJetStream]:
    async with fake_jetstream() as fake:
        yield fake


@pytest.fixture
async def worker(fake: FakeJetStream) -> AsyncIterator[Connection]:
    async with connection(fake.url) as nc:
        yield nc


async def test_what_was_sent_before_a_flush_is_taken_when_it_returns(fake: FakeJetStream, worker: Connection) -> None:
    for number in range(20):
        worker.answer(b"$JS.ACK.%d" % number, b"+ACK")
        await worker.flush()
        assert len(fake.settled) == number + 1


async def test_a_flush_given_up_leaves_the_next_one_working(fake: FakeJetStream, worker: Connection) -> None:
    async with asyncio.TaskGroup() as tasks:
        flushing = tasks.create_task(worker.flush())
        await asyncio.sleep(0)
        flushing.cancel()
    assert await worker.responds(5)
    assert await worker.responds(5)
    assert fake.connections == 1


async def test_a_sink_that_fails_is_called_again(nc: Connection, logged: list[dict[str, Any]]) -> None:
    heard: list[bytes] = []

    def sink(subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        heard.append(data)
        raise ValueError(data)

    inbox = nc.new_inbox()
    sid = await nc.attach(inbox, sink)
    await nc.publish(inbox, b"1")
    await nc.publish(inbox, b"2")
    await nc.detach(sid)
    assert heard == [b"1", b"2"]
    assert [entry["event"] for entry in logged] == ["pulled_message_failed"] * 2


async def test_a_read_loop_that_breaks_is_a_lost_connection(fake: FakeJetStream, worker: Connection) -> None:
    log = Log()
    async with running(pulling(worker, FAKE, log)):
        await fake.pull()
        fake.clients[-1].writer.write(b"INFO {not json\r\n")
        await until(lambda: fake.connections == 2, "it reconnects")
        (await fake.pull()).deliver(b"x")
        await until(lambda: log.ended == [b"x"], "it hears")


async def test_an_outage_leaves_room_for_acknowledgements(fake: FakeJetStream, worker: Connection) -> None:
    """In-progress is not queued for a server that is away: there may be hours of it."""
    async with asyncio.TaskGroup() as tasks:
        gate = asyncio.Event()

        async def hold(_: Any) -> None:
            await gate.wait()

        consumer = pulling(worker, FAKE, hold)
        run = tasks.create_task(consumer.run())
        (await fake.pull()).deliver(b"x")
        await until(lambda: consumer.in_flight == 1, "it runs")
        status, worker._status = worker._status, Connection.RECONNECTING
        before = worker.pending_data_size
        consumer._workers.report_progress()
        assert worker.pending_data_size == before
        worker._status = status
        gate.set()
        await until(lambda: fake.settled, "it is acknowledged")
        consumer.stop()
        await run
