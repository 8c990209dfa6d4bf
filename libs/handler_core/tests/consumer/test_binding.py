"""What a worker does when the server's consumer is not the declared one."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from handler_core.delivery import Delivery
from handler_core.streams import Consumer
from handler_core.testing import until

from .stage import Gate, Log, Stage, pulling, running

Entries = list[dict[str, Any]]
Staged = Callable[..., Awaitable[Stage]]


def said(logged: Entries, *names: str) -> list[str]:
    return [entry["problem"] for entry in logged if entry["event"] in names]


async def test_a_tunable_difference_is_said_once_and_worked_with(stage: Stage, logged: Entries) -> None:
    await stage.change(max_ack_pending=7)
    log = Log()
    consumer = pulling(stage.nc, stage.consumer, log)
    async with running(consumer):
        assert consumer.problem == ""
        await stage.publish(b"1")
        await stage.all_settled()
        consumer._puller.restart("for the test")
        await until(lambda: any(e["event"] == "pull_restarted" for e in logged), "it looks again")
        await stage.publish(b"2")
        await stage.all_settled()
    (problem,) = said(logged, "consumer_differs", "consumer_unusable")
    assert "max_ack_pending is 7, declared 1000" in problem


async def test_heartbeats_follow_the_server_s_ack_wait_not_the_declared_one(stage: Stage) -> None:
    await stage.change(ack_wait=500_000_000)
    gate = Gate()
    consumer = pulling(stage.nc, stage.consumer, gate, max_in_flight=1, prefetch=2)
    async with running(consumer):
        await stage.publish_numbers(3)
        await until(lambda: consumer.buffered == 2, "one runs, two wait")
        delivered = (await stage.info())["delivered"]["consumer_seq"]
        await asyncio.sleep(1.2)  # more than twice the server's ack_wait, and far from a third of the declared one
        assert (await stage.info())["delivered"]["consumer_seq"] == delivered
        gate.open.set()
        await stage.all_settled()
    assert gate.held == [b"0", b"1", b"2"]


@pytest.mark.parametrize(
    ("difference", "named"),
    [
        ({"ack_policy": "none"}, "ack_policy"),
        ({"max_deliver": 5}, "max_deliver"),
        ({"deliver_subject": "push.here"}, "deliver_subject"),
        ({"filter_subjects": ["elsewhere"]}, "filter_subjects"),
    ],
)
async def test_an_unsafe_difference_is_waited_out(
    stage: Stage, logged: Entries, difference: dict[str, Any], named: str
) -> None:
    await stage.delete_consumer()
    if "filter_subjects" in difference:
        config = {**stage.stream.config(), "subjects": [stage.subject, "elsewhere"]}
        config["subjects"] = [stage.subject, f"{stage.stream.name}.elsewhere"]
        difference = {"filter_subjects": [f"{stage.stream.name}.elsewhere"]}
        await stage.api.request(f"STREAM.UPDATE.{stage.stream.name}", config)
    if "deliver_subject" in difference:
        difference = {**difference, "max_waiting": 0}
    if difference.get("ack_policy") == "none":  # a work queue has no such consumers, a log may
        await stage.delete_stream()
        config = {**stage.stream.config(), "retention": "limits"}
        await stage.api.request(f"STREAM.CREATE.{stage.stream.name}", config)
        difference = {**difference, "ack_wait": 0, "max_ack_pending": 0}
    await stage.change(**difference)
    log = Log()
    consumer = pulling(stage.nc, stage.consumer, log)
    async with running(consumer, bound=False):
        await stage.publish(b"1")
        await until(lambda: named in consumer.problem, "it says why it is not bound")
        assert not consumer.bound
        assert log.started == []
        await stage.delete_consumer()
        await stage.apply(stage.consumer) if difference.get("ack_policy") != "none" else await stage.change()
        await until(lambda: log.ended == [b"1"], "mended, it works")
        assert consumer.bound
        assert consumer.problem == ""
    problems = said(logged, "consumer_unusable")
    assert len([problem for problem in problems if named in problem]) == 1
    assert [entry["event"] for entry in logged].count("consumer_ready") == 1


async def test_stopped_while_it_waits_for_its_consumer(stage: Stage) -> None:
    await stage.delete_consumer()
    consumer = pulling(stage.nc, stage.consumer, Log())
    async with running(consumer, bound=False):
        await until(lambda: "missing" in consumer.problem, "it waits")
    assert consumer.problem == "stopping"


async def test_stopped_before_it_was_run(stage: Stage) -> None:
    consumer = pulling(stage.nc, stage.consumer, Log())
    consumer.stop()
    await consumer.run()
    assert not consumer.bound


async def test_ack_wait_changed_by_an_operator_counts_after_the_next_look(stage: Stage) -> None:
    consumer = pulling(stage.nc, stage.consumer, Log())
    async with running(consumer):
        changed = Consumer(stage.consumer.stream, stage.consumer.name, ack_wait=0.6)
        await stage.apply(changed)
        consumer._puller.restart("for the test")
        await until(lambda: consumer._puller.ack_wait == 0.6, "it reads the new one")


async def test_two_consumers_of_one_connection_do_not_mix(staged: Staged) -> None:
    first, second = await staged(), await staged()
    ones, twos = Log(), Log()
    async with running(
        pulling(first.nc, first.consumer, ones),
        pulling(first.nc, second.consumer, twos),
    ):
        await first.publish(b"1")
        await second.publish(b"2")
        await first.all_settled()
        await second.all_settled()
    assert (ones.ended, twos.ended) == ([b"1"], [b"2"])


async def test_a_delivery_tells_where_it_comes_from(stage: Stage) -> None:
    seen: list[Delivery] = []

    async def keep(delivery: Delivery) -> None:
        seen.append(delivery)

    async with running(pulling(stage.nc, stage.consumer, keep)):
        await stage.publish(b"x", headers={"traceparent": "00-a", "X": " 1 "})
        await stage.all_settled()
    (delivery,) = seen
    assert (delivery.subject, delivery.data) == (stage.subject, b"x")
    assert (delivery.stream, delivery.consumer) == (stage.stream.name, stage.consumer.name)
    assert (delivery.attempt, delivery.sequence) == (1, 1)
    assert delivery.headers == {"traceparent": "00-a", "X": "1"}
    assert delivery.header(b"X") == "1"
    assert delivery.header(b"Y") is None
    stored = (await stage.stream_state())["last_ts"]
    assert stored.startswith("20")
    assert delivery.settled == "ack"
