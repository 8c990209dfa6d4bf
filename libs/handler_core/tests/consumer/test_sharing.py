"""Several workers on one consumer, and backlogs larger than what may be out at once."""

import asyncio
from collections.abc import Awaitable, Callable

from handler_core.delivery import Delivery
from handler_core.testing import NatsServer, connection, until

from .stage import Gate, Log, Stage, numbers, pulling, running

Staged = Callable[..., Awaitable[Stage]]


async def test_a_backlog_larger_than_max_ack_pending_is_worked_off(staged: Staged) -> None:
    stage = await staged(max_ack_pending=5)
    await stage.publish_numbers(120)
    log = Log()
    async with running(pulling(stage.nc, stage.consumer, log, max_in_flight=8, prefetch=8)):
        await stage.all_settled()
    assert log.distinct == numbers(120)
    assert log.repeated == {}


async def test_a_slow_worker_hoards_nothing(stage: Stage, nats: NatsServer) -> None:
    gate, log = Gate(), Log()
    async with connection(nats.url) as other:
        slow = pulling(other, stage.consumer, gate, max_in_flight=2, prefetch=0)
        quick = pulling(stage.nc, stage.consumer, log, max_in_flight=2, prefetch=0)
        async with running(slow, quick):
            await stage.publish_numbers(60)
            await until(lambda: len(log.ended) == 58, "the quick one does all the rest")
            assert (slow.in_flight, slow.buffered) == (2, 0)
            assert (await stage.info())["num_ack_pending"] == 2
            gate.open.set()
            await stage.all_settled()
    assert len(gate.held) == 2
    assert log.distinct | set(gate.held) == numbers(60)


async def test_slow_handlers_do_not_keep_the_other_slots_empty(stage: Stage) -> None:
    """A request is not renewed at each message; what it leaves uncovered must not wait for a slow handler to end."""
    gate = asyncio.Event()

    async def process(delivery: Delivery) -> None:
        if int(delivery.data) >= 10:
            await gate.wait()

    consumer = pulling(stage.nc, stage.consumer, process, max_in_flight=16)
    async with running(consumer):
        await stage.publish_numbers(4)
        await stage.all_settled()
        await stage.publish_numbers(40, start=10)
        await until(lambda: consumer.in_flight == 16, "all slots are taken")
        gate.set()
        await stage.all_settled()


async def test_equal_workers_share_the_load(stage: Stage, nats: NatsServer) -> None:
    async def steady(_: Delivery) -> None:
        await asyncio.sleep(0.002)

    logs = [Log(steady) for _ in range(2)]
    async with connection(nats.url) as other:
        workers = [
            pulling(nc, stage.consumer, log, max_in_flight=2) for nc, log in zip((stage.nc, other), logs, strict=True)
        ]
        async with running(*workers):
            await stage.publish_numbers(200)
            await stage.all_settled()
    shares = sorted(len(log.ended) for log in logs)
    assert sum(shares) == 200
    assert shares[0] >= 50


async def test_messages_start_in_order_with_one_in_flight(stage: Stage) -> None:
    log = Log()
    async with running(pulling(stage.nc, stage.consumer, log, max_in_flight=1, prefetch=10)):
        await stage.publish_numbers(50)
        await stage.all_settled()
    assert log.started == [b"%d" % number for number in range(50)]


async def test_no_more_handlers_than_allowed_run_at_once(stage: Stage) -> None:
    now = most = 0

    async def count(_: Delivery) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1

    async with running(pulling(stage.nc, stage.consumer, count, max_in_flight=3, prefetch=50)):
        await stage.publish_numbers(100)
        await stage.all_settled()
    assert most == 3
