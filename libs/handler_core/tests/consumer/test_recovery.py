"""Each way in which pulling can break, on a real server: it goes on by itself, and nothing is lost."""

import asyncio
from typing import Any

import pytest

from handler_core.connection import Connection
from handler_core.delivery import Delivery
from handler_core.testing import NatsServer, connection, nats_server, until

from .proxy import Proxy
from .stage import Gate, Log, Stage, make_stage, numbers, pulling, running

Entries = list[dict[str, Any]]


def events(logged: Entries, name: str) -> Entries:
    return [entry for entry in logged if entry["event"] == name]


async def brief(_: Delivery) -> None:
    await asyncio.sleep(0.002)


async def test_server_killed_and_restarted_loses_nothing() -> None:
    with nats_server() as server:
        async with connection(server.url) as nc:
            stage = await make_stage(nc, ack_wait=1.0)
            await stage.publish_numbers(300)
            log = Log(brief)
            consumer = pulling(nc, stage.consumer, log, prefetch=20)
            async with running(consumer):
                await until(lambda: len(log.ended) > 50, "work goes on")
                server.kill()
                await until(lambda: not nc.is_connected, "the connection is lost")
                server.start()
                await stage.all_settled()
                assert log.distinct == numbers(300)
                assert consumer.bound


async def test_a_handler_that_outlasts_outages_longer_than_ack_wait_runs_once_and_in_one_place() -> None:
    with nats_server() as server:
        async with connection(server.url) as nc:
            stage = await make_stage(nc, ack_wait=0.5)
            gate = Gate()
            consumer = pulling(nc, stage.consumer, gate, max_in_flight=2)
            received = consumer._workers._counts.received
            async with running(consumer):
                await stage.publish(b"long")
                await until(lambda: gate.held, "it runs")
                for outage in (1, 2):
                    server.kill()
                    await asyncio.sleep(0.7)  # longer than `ack_wait`: what a restart of the server takes
                    server.start()
                    await until(lambda n=outage: received.value > n, "it is delivered again")
                    assert (gate.held, consumer.in_flight, consumer.buffered) == ([b"long"], 1, 0)
                gate.open.set()
                await stage.all_settled()


async def test_server_restarted_twice_without_a_message_between(logged: Entries) -> None:
    with nats_server() as server:
        async with connection(server.url) as nc:
            stage = await make_stage(nc)
            log = Log()
            consumer = pulling(nc, stage.consumer, log)
            async with running(consumer):
                for _ in range(2):
                    restarts = len(events(logged, "pull_restarted"))
                    server.kill()
                    server.start()
                    await until(lambda n=restarts: len(events(logged, "pull_restarted")) > n, "it noticed")
                    await until(lambda: consumer.bound and not consumer._puller._fault, "it pulls again")
                await stage.publish(b"after")
                await stage.all_settled()
                assert log.ended == [b"after"]


async def test_connection_cut_in_the_middle_of_a_batch(nc: Connection, proxy: Proxy) -> None:
    stage = await make_stage(nc, ack_wait=1.0)
    await stage.publish_numbers(300)
    log = Log(brief)
    async with connection(proxy.url) as worker:
        consumer = pulling(worker, stage.consumer, log, prefetch=20)
        async with running(consumer):
            for mark in (40, 120, 200):
                await until(lambda mark=mark: len(log.ended) > mark, "work goes on")
                proxy.cut()
                await until(lambda: not worker.is_connected, "the connection is lost")
            await stage.all_settled()
            assert log.distinct == numbers(300)
    assert proxy.accepted == 4


async def test_pulls_from_before_a_reconnect_do_not_overfill_the_worker(nc: Connection, proxy: Proxy) -> None:
    stage = await make_stage(nc)
    held = asyncio.Event()
    most = 0

    async def hold(_: Delivery) -> None:
        await held.wait()

    async with connection(proxy.url) as worker:
        consumer = pulling(worker, stage.consumer, hold, max_in_flight=3, prefetch=2, expires=30.0)
        async with running(consumer):
            for _ in range(3):
                proxy.cut()
                await until(lambda: not worker.is_connected, "the connection is lost")
                await until(lambda: worker.is_connected and consumer.bound, "it is back")
            await stage.publish_numbers(30)
            await until(lambda: consumer.in_flight + consumer.buffered >= 5, "it is full")
            for _ in range(5):
                await worker.responds(5)
                most = max(most, consumer.in_flight + consumer.buffered)
            assert most == 5
            assert (await stage.info())["num_ack_pending"] == 5
            held.set()
            await stage.all_settled()


async def test_silent_stall_is_noticed_by_the_heartbeat_and_ends_in_a_reconnect(
    nc: Connection, proxy: Proxy, logged: Entries
) -> None:
    stage = await make_stage(nc, ack_wait=1.0)
    log = Log()
    async with connection(proxy.url) as worker:
        consumer = pulling(worker, stage.consumer, log, idle_heartbeat=0.2)
        async with running(consumer):
            await stage.publish(b"before")
            await until(lambda: log.ended == [b"before"], "it works")
            proxy.stall()
            await stage.publish_numbers(5)
            await stage.all_settled()
            assert log.distinct == {b"before"} | numbers(5)
    silences = [e for e in events(logged, "pull_restarted") if "no heartbeat" in e["reason"]]
    assert len(silences) == 1
    assert "reconnecting" in silences[0]["reason"]
    assert proxy.accepted == 2


async def test_server_s_bytes_swallowed_is_noticed_by_the_heartbeat(
    nc: Connection, proxy: Proxy, logged: Entries
) -> None:
    stage = await make_stage(nc, ack_wait=0.6)
    log = Log()
    async with connection(proxy.url) as worker, running(pulling(worker, stage.consumer, log, idle_heartbeat=0.2)):
        proxy.swallow()
        await stage.publish_numbers(8)
        await stage.all_settled()
        assert log.distinct == numbers(8)
    assert len([e for e in events(logged, "pull_restarted") if "no heartbeat" in e["reason"]]) == 1


async def test_a_stall_that_ends_by_itself_leaves_the_connection_hearing(nc: Connection, proxy: Proxy) -> None:
    stage = await make_stage(nc)
    async with connection(proxy.url) as worker:
        log = Log()
        async with running(pulling(worker, stage.consumer, log, idle_heartbeat=5.0)):
            proxy.stall()
            assert not await worker.responds(0.05)
            proxy.resume()  # the PONG that nobody waits for any more
            await stage.publish_numbers(3)
            await stage.all_settled()
            assert log.distinct == numbers(3)
    assert proxy.accepted == 1


async def test_reconnects_although_unsent_bytes_are_stuck_in_the_lost_connection(nc: Connection, proxy: Proxy) -> None:
    stage = await make_stage(nc, ack_wait=1.0)
    log = Log()
    async with connection(proxy.url) as worker, running(pulling(worker, stage.consumer, log, idle_heartbeat=0.2)):
        proxy.stall()
        for _ in range(64):
            worker.send("nobody.listens", bytes(512 * 1024))  # more than the socket's buffers hold
        await stage.publish(b"after")
        await stage.all_settled()
    assert log.ended == [b"after"]
    assert proxy.accepted >= 2


async def test_consumer_deleted_and_recreated(stage: Stage, logged: Entries) -> None:
    log = Log()
    lookups = []

    async def count(message: Any) -> None:
        lookups.append(message.subject)

    await stage.nc.subscribe(f"$JS.API.CONSUMER.INFO.{stage.stream.name}.>", cb=count)
    consumer = pulling(stage.nc, stage.consumer, log)
    async with running(consumer):
        await stage.publish(b"1")
        await stage.all_settled()
        lookups.clear()
        await stage.delete_consumer()
        await until(lambda: not consumer.bound, "it says that it is not bound")
        assert consumer.problem == f"consumer {consumer.name} is missing"
        await until(lambda: len(lookups) >= 2, "it looks again")
        assert len(lookups) == 2
        await stage.apply()
        await until(lambda: consumer.bound, "bound again")
        assert len(lookups) <= 6
        await stage.publish(b"2")
        await stage.all_settled()
    assert log.ended == [b"1", b"2"]
    assert len(events(logged, "consumer_unusable")) == 1
    assert len(events(logged, "consumer_ready")) == 1


async def test_stream_deleted_and_recreated(stage: Stage, logged: Entries) -> None:
    log = Log()
    consumer = pulling(stage.nc, stage.consumer, log)
    async with running(consumer):
        await stage.publish(b"1")
        await stage.all_settled()
        await stage.delete_stream()
        await until(lambda: not consumer.bound, "it says that it is not bound")
        await stage.apply()
        await until(lambda: consumer.bound, "bound again")
        await stage.publish(b"2")
        await stage.all_settled()
    assert log.ended == [b"1", b"2"]
    assert [e["problem"] for e in events(logged, "consumer_unusable")] == [f"stream {stage.stream.name} is missing"]


async def test_starts_before_its_stream_exists(nc: Connection, stage: Stage) -> None:
    await stage.delete_stream()
    log = Log()
    consumer = pulling(nc, stage.consumer, log)
    async with running(consumer, bound=False):
        await until(lambda: "missing" in consumer.problem, "it waits")
        await stage.apply()
        await stage.publish(b"1")
        await stage.all_settled()
    assert log.ended == [b"1"]


async def test_a_lookup_that_fails_on_a_restarting_server_is_tried_again(nats: NatsServer) -> None:
    with nats_server() as server:
        async with connection(server.url) as nc:
            stage = await make_stage(nc)
            log = Log()
            consumer = pulling(nc, stage.consumer, log)
            server.kill()
            await until(lambda: not nc.is_connected, "the connection is lost")
            async with running(consumer, bound=False):
                server.start()
                await until(lambda: consumer.bound, "bound")
                await stage.publish(b"1")
                await stage.all_settled()
                assert log.ended == [b"1"]


@pytest.mark.parametrize("noise", [b"\xff", b"caf\xe9"])
async def test_a_subject_that_is_no_text_does_not_deafen_the_connection(nc: Connection, noise: bytes) -> None:
    stage = await make_stage(nc)
    wild = f"{stage.stream.name}.>"
    await stage.api.request(f"STREAM.UPDATE.{stage.stream.name}", {**stage.stream.config(), "subjects": [wild]})
    log = Log()
    async with running(pulling(nc, stage.consumer, log)):
        nc._write(b"PUB %b.%b 1\r\nx\r\n" % (stage.stream.name.encode(), noise))
        await until(lambda: log.ended == [b"x"], "it is handled")
        await stage.publish(b"after")
        await stage.all_settled()
    assert log.ended == [b"x", b"after"]


async def test_a_message_that_looks_like_a_status_is_a_message(stage: Stage) -> None:
    log = Log()
    async with running(pulling(stage.nc, stage.consumer, log)):
        for status in (b"409 Consumer Deleted", b"503", b"100 Idle Heartbeat"):
            block = b"NATS/1.0 %b\r\n\r\n" % status
            stage.nc.send(stage.subject, b"", headers=block)
        await until(lambda: log.ended == [b""] * 3, "they are handled")
        await stage.all_settled()
    assert log.repeated == {b"": 3}
