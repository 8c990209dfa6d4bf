"""Whatever a handler does, its message is settled accordingly and the consumer goes on."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from handler_core.delivery import Delivery
from handler_core.errors import Abandoned, DownstreamUnavailable, Internal, Transient
from handler_core.limits import RETRY_AFTER_MAX, Limits
from handler_core.telemetry import Metrics
from handler_core.testing import until

from .stage import Gate, Log, Stage, numbers, pulling, running

Staged = Callable[..., Awaitable[Stage]]


def fails_once(failure: Callable[[], Awaitable[None]]) -> Log:
    """A log whose first attempt at each message ends as `failure` does."""

    async def then(delivery: Delivery) -> None:
        if delivery.attempt == 1:
            await failure()

    return Log(then)


async def test_a_handler_slower_than_ack_wait_is_not_redelivered_nor_what_waits_behind_it(staged: Staged) -> None:
    stage = await staged(ack_wait=0.6)
    gate = Gate()
    consumer = pulling(stage.nc, stage.consumer, gate, max_in_flight=1, prefetch=3)
    async with running(consumer):
        await stage.publish_numbers(4)
        await until(lambda: consumer.in_flight == 1 and consumer.buffered == 3, "one runs, three wait")
        await asyncio.sleep(1.5)
        assert (await stage.info())["num_redelivered"] == 0
        gate.open.set()
        await stage.all_settled()
    assert gate.held == [b"0", b"1", b"2", b"3"]


async def test_a_hung_handler_is_cancelled_and_retried(stage: Stage) -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    log = fails_once(hang)
    async with running(pulling(stage.nc, stage.consumer, log, handler_timeout=0.1)):
        await stage.publish(b"1")
        await stage.all_settled()
    assert (log.attempts, log.ended) == ([1, 2], [b"1"])


async def test_a_handler_that_swallows_its_cancellation_and_ends_is_done(stage: Stage) -> None:
    """Many times over: each timeout leaves its worker as fit as before."""

    async def stubborn(_: Delivery) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return

    log = Log(stubborn)
    async with running(pulling(stage.nc, stage.consumer, log, max_in_flight=1, handler_timeout=0.04)):
        await stage.publish_numbers(5)
        await stage.all_settled()
    assert log.attempts == [1] * 5


async def test_a_handler_deaf_to_its_cancellation_loses_the_message_to_another_attempt(
    staged: Staged, logged: list[dict[str, Any]]
) -> None:
    stage = await staged(ack_wait=0.5)
    release = asyncio.Event()

    async def deaf(delivery: Delivery) -> None:
        while delivery.data == b"1" and delivery.attempt == 1 and not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    log = Log(deaf)
    consumer = pulling(stage.nc, stage.consumer, log, max_in_flight=2, handler_timeout=0.1)
    async with running(consumer):
        try:
            await stage.publish(b"1")
            await until(lambda: log.ended == [b"1"], "another attempt did it")
            assert log.attempts == [1, 2]
            assert [e["event"] for e in logged].count("handler_ignores_cancellation") <= 1
            await stage.publish_numbers(3, start=2)
            await stage.all_settled()
            assert consumer.in_flight == 1
        finally:
            release.set()
    assert log.distinct == {b"1"} | numbers(3, start=2)


async def test_a_cancellation_swallowed_by_the_first_await_strikes_the_second(stage: Stage) -> None:
    async def twice() -> None:
        for _ in range(2):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if _ == 1:
                    raise

    log = fails_once(twice)
    async with running(pulling(stage.nc, stage.consumer, log, max_in_flight=1, handler_timeout=0.05)):
        await stage.publish(b"1")
        await stage.all_settled()
    assert (log.attempts, log.ended) == ([1, 2], [b"1"])


async def raise_bug() -> None:
    raise KeyError("oops")


async def raise_retryable() -> None:
    raise Transient("later")


async def raise_group() -> None:
    raise ExceptionGroup("both", [KeyError("a"), Transient("b")])


async def raise_timeout() -> None:
    async with asyncio.timeout(0):
        await asyncio.Event().wait()


async def raise_cancelled() -> None:
    raise asyncio.CancelledError


async def cancel_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def cancel_itself_unawaited() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    raise Transient("cancelled, but not yet")


async def await_a_cancelled_task() -> None:
    task = asyncio.ensure_future(asyncio.Event().wait())
    task.cancel()
    await task


async def exit_process() -> None:
    sys.exit(3)


@pytest.mark.parametrize(
    "failure",
    [
        raise_bug,
        raise_retryable,
        raise_group,
        raise_timeout,
        raise_cancelled,
        cancel_itself,
        cancel_itself_unawaited,
        await_a_cancelled_task,
        exit_process,
    ],
)
@pytest.mark.parametrize("prefetch", [0, 8])
async def test_a_failing_handler_is_retried_and_the_consumer_goes_on(
    stage: Stage, failure: Callable[[], Awaitable[None]], prefetch: int
) -> None:
    log = fails_once(failure)
    consumer = pulling(stage.nc, stage.consumer, log, max_in_flight=1, prefetch=prefetch)
    async with running(consumer):
        await stage.publish_numbers(6)
        await stage.all_settled()
        assert consumer.bound
    assert log.distinct == numbers(6)
    assert sorted(log.attempts) == [1] * 6 + [2] * 6


async def test_abandoned_is_settled_by_nobody(staged: Staged) -> None:
    stage = await staged(ack_wait=0.4)

    async def abandon() -> None:
        raise Abandoned("another worker has it")

    log = fails_once(abandon)
    metrics = Metrics()
    async with running(pulling(stage.nc, stage.consumer, log, metrics)):
        await stage.publish(b"1")
        await until(lambda: log.started == [b"1"], "given up")
        assert (await stage.info())["num_ack_pending"] == 1
        await stage.all_settled()
    assert log.attempts == [1, 2]
    assert 'outcome="abandoned"} 1' in metrics.render()


async def test_the_server_honours_the_delay_of_a_retry(stage: Stage) -> None:
    times: list[float] = []

    async def fail_once(delivery: Delivery) -> None:
        times.append(time.monotonic())
        if delivery.attempt == 1:
            raise DownstreamUnavailable("busy", retry_after=0.4)

    async with running(pulling(stage.nc, stage.consumer, fail_once, retry_base=0.001)):
        await stage.publish(b"1")
        await stage.all_settled()
    assert times[1] - times[0] >= 0.39


async def test_metrics_add_up(stage: Stage) -> None:
    async def mixed(delivery: Delivery) -> None:
        if delivery.data == b"3" and delivery.attempt < 3:
            raise Transient("later")
        if delivery.data == b"4" and delivery.attempt == 1:
            raise KeyError("bug")

    metrics = Metrics()
    async with running(pulling(stage.nc, stage.consumer, mixed, metrics)):
        await stage.publish_numbers(6)
        await stage.all_settled()
    text = metrics.render()
    labels = f'stream="{stage.stream.name}",consumer="{stage.consumer.name}"'
    for line in (
        f"handler_messages_received_total{{{labels}}} 9",
        f'handler_messages_settled_total{{{labels},outcome="ack"}} 6',
        f'handler_messages_settled_total{{{labels},outcome="nak"}} 3',
        f'handler_messages_settled_total{{{labels},outcome="dead_letter"}} 0',
        f'handler_messages_settled_total{{{labels},outcome="handed_back"}} 0',
        f"handler_duration_seconds_count{{{labels}}} 9",
        f"handler_in_flight{{{labels}}} 0",
        f"handler_buffered{{{labels}}} 0",
    ):
        assert line in text


def test_retry_delay_doubles_within_its_bounds() -> None:
    limits = Limits(retry_base=1.0, retry_max=60.0)
    for attempt, ceiling in ((1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (50, 60), (100_000, 60)):
        drawn = [limits.retry_delay(attempt) for _ in range(200)]
        assert ceiling / 2 <= min(drawn) <= max(drawn) <= ceiling
        assert max(drawn) > ceiling * 0.9
        assert min(drawn) < ceiling * 0.6


def test_retry_delay_is_no_less_than_the_upstream_asked_for_but_bounded() -> None:
    limits = Limits(retry_base=1.0, retry_max=60.0)
    assert limits.retry_delay(1, 90.0) == 90.0
    assert limits.retry_delay(7, 2.0) >= 30.0
    assert limits.retry_delay(1, float("inf")) == RETRY_AFTER_MAX
    assert limits.retry_delay(1, float("nan")) <= RETRY_AFTER_MAX


async def test_an_upstream_that_asks_for_ever_does_not_end_the_consumer(stage: Stage) -> None:
    async def forever(delivery: Delivery) -> None:
        if delivery.data == b"1":
            raise DownstreamUnavailable("down", retry_after=float("inf"))

    log = Log(forever)
    consumer = pulling(stage.nc, stage.consumer, log)
    async with running(consumer):
        await stage.publish(b"1", b"2")
        await until(lambda: log.ended == [b"2"], "the other is handled")
        assert consumer.bound

        async def one_left() -> bool:
            return bool((await stage.info())["num_ack_pending"] == 1)

        await until(one_left, "only the delayed one is left")


async def test_a_refusal_that_is_cancelled_from_within_hands_back(stage: Stage) -> None:
    refused = []

    async def poison(_: Delivery) -> None:
        raise Internal("no")

    async def refuse(delivery: Delivery, error: Exception) -> None:
        refused.append((delivery.attempt, str(error)))
        raise asyncio.CancelledError

    consumer = pulling(stage.nc, stage.consumer, poison, max_in_flight=1)
    consumer._workers._refuse = refuse
    async with running(consumer):
        await stage.publish(b"1")
        await until(lambda: len(refused) == 3, "it is tried again")
    assert refused == [(1, "no"), (2, "no"), (3, "no")]
