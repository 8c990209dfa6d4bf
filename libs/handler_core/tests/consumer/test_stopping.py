"""Stopping: nothing is lost, nothing finished comes again, and what did not start is another's at once."""

import asyncio
from typing import Any

from handler_core.connection import Connection
from handler_core.delivery import Delivery
from handler_core.errors import InvalidRequest
from handler_core.streams import DLQ, apply
from handler_core.telemetry import Metrics
from handler_core.testing import NatsServer, connection, until

from .stage import Gate, Log, Stage, make_stage, numbers, pulling, running


async def test_what_waits_goes_to_another_at_once_and_what_runs_finishes(stage: Stage) -> None:
    """`ack_wait` is 10 s here: anything that were not handed back would hold this test up."""
    gate, log = Gate(), Log()
    metrics = Metrics()
    leaving = pulling(stage.nc, stage.consumer, gate, metrics, max_in_flight=2, prefetch=6)
    async with asyncio.TaskGroup() as tasks:
        run = tasks.create_task(leaving.run())
        await stage.publish_numbers(10)
        await until(lambda: leaving.in_flight == 2 and leaving.buffered == 6, "it is full")
        leaving.stop()
        async with running(pulling(stage.nc, stage.consumer, log)):
            await until(lambda: len(log.ended) == 8, "the other gets what waited")
            assert not run.done()
            gate.open.set()
            await run
            await stage.all_settled()
    assert log.distinct == numbers(10) - set(gate.held)
    assert log.repeated == {}
    assert 'outcome="handed_back"} 6' in metrics.render()
    assert 'outcome="ack"} 2' in metrics.render()


async def test_a_message_handed_back_does_not_come_to_the_stopping_worker_again(stage: Stage) -> None:
    gate = Gate()
    leaving = pulling(stage.nc, stage.consumer, gate, max_in_flight=1, prefetch=50)
    async with running(leaving):
        await stage.publish_numbers(5)
        await until(lambda: leaving.buffered == 4, "four wait, with many more slots asked for")
        leaving.stop()
        await stage.nc.responds(5)
        gate.open.set()
    log = Log()
    async with running(pulling(stage.nc, stage.consumer, log)):
        await stage.all_settled()
    assert sorted(log.attempts) == [2, 2, 2, 2]


async def test_stop_under_load_finishes_or_hands_back_everything(stage: Stage) -> None:
    async def brief(_: Delivery) -> None:
        await asyncio.sleep(0.001)

    log = Log(brief)
    await stage.publish_numbers(400)
    for _ in range(4):
        consumer = pulling(stage.nc, stage.consumer, log, prefetch=30)
        done = len(log.ended)
        async with running(consumer):
            await until(lambda done=done: len(log.ended) > done + 20, "it works")
        assert (consumer.in_flight, consumer.buffered) == (0, 0)
    async with running(pulling(stage.nc, stage.consumer, log, prefetch=30)):
        await stage.all_settled()
    assert log.distinct == numbers(400)
    assert log.repeated == {}


async def test_cancelled_it_hands_back_what_runs_at_once(stage: Stage) -> None:
    gate, log = Gate(), Log()
    leaving = pulling(stage.nc, stage.consumer, gate, max_in_flight=2, prefetch=3)
    async with asyncio.TaskGroup() as tasks:
        run = tasks.create_task(leaving.run())
        await stage.publish_numbers(5)
        await until(lambda: leaving.in_flight == 2 and leaving.buffered == 3, "it is full")
        run.cancel()
    assert run.cancelled()
    async with running(pulling(stage.nc, stage.consumer, log)):
        await stage.all_settled()
    assert log.distinct == numbers(5)
    assert log.attempts == [2] * 5


async def test_cancelled_under_load_the_connection_stays_usable(stage: Stage) -> None:
    async def brief(_: Delivery) -> None:
        await asyncio.sleep(0.001)

    log = Log(brief)
    await stage.publish_numbers(300)
    for _ in range(5):
        consumer = pulling(stage.nc, stage.consumer, log, prefetch=10)
        done = len(log.ended)
        async with asyncio.TaskGroup() as tasks:
            run = tasks.create_task(consumer.run())
            await until(lambda done=done: len(log.ended) > done, "it works")
            run.cancel()
    async with running(pulling(stage.nc, stage.consumer, log)):
        await stage.all_settled()
    assert log.distinct == numbers(300)


async def test_cancelled_while_it_buries_a_message_it_hands_it_back(stage: Stage) -> None:
    await apply(stage.api, [DLQ], [])
    burying = asyncio.Event()

    async def poison(_: Delivery) -> None:
        raise InvalidRequest("no")

    async def refuse(*_: Any) -> None:
        burying.set()
        await asyncio.Event().wait()

    leaving = pulling(stage.nc, stage.consumer, poison)
    leaving._workers._refuse = refuse
    log = Log()
    async with asyncio.TaskGroup() as tasks:
        run = tasks.create_task(leaving.run())
        await stage.publish(b"1")
        await burying.wait()
        run.cancel()
    async with running(pulling(stage.nc, stage.consumer, log)):
        await stage.all_settled()
    assert log.attempts == [2]


async def test_cancelled_although_a_handler_swallows_it_once(stage: Stage) -> None:
    begun = asyncio.Event()

    async def stubborn(_: Delivery) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return

    leaving = pulling(stage.nc, stage.consumer, stubborn)
    async with asyncio.TaskGroup() as tasks:
        run = tasks.create_task(leaving.run())
        await stage.publish(b"1")
        await begun.wait()
        run.cancel()
    assert run.cancelled()
    await stage.all_settled()


async def test_stopped_while_disconnected_it_ends(nats: NatsServer, nc: Connection) -> None:
    stage = await make_stage(nc, ack_wait=0.5)
    gate = Gate()
    async with connection(nats.url) as worker:
        leaving = pulling(worker, stage.consumer, gate, max_in_flight=1, prefetch=2)
        async with asyncio.TaskGroup() as tasks:
            run = tasks.create_task(leaving.run())
            await stage.publish_numbers(3)
            await until(lambda: leaving.buffered == 2, "it is full")
            await worker.close()
            leaving.stop()
            gate.open.set()
            await run
    log = Log()
    async with running(pulling(nc, stage.consumer, log)):
        await stage.all_settled()
    assert log.distinct == numbers(3)


async def test_run_leaves_nothing_on_the_connection(stage: Stage) -> None:
    before = (dict(stage.nc._subs), dict(stage.nc._ps.sinks), list(stage.nc.on_reconnect))
    async with running(pulling(stage.nc, stage.consumer, Log())):
        await stage.publish(b"1")
        await stage.all_settled()
    assert (stage.nc._subs, stage.nc._ps.sinks, stage.nc.on_reconnect) == before
