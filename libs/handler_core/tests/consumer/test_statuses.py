"""Each status that a server may answer a pull with, and how many requests follow: none too few, none too many."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from handler_core.connection import Connection
from handler_core.consumer import PullConsumer
from handler_core.errors import Abandoned
from handler_core.testing import connection, until

from .fake_jetstream import FAKE, LONG_ACK_TOKENS, FakeJetStream, Pull, fake_jetstream
from .stage import Gate, Log, running
from .stage import pulling as pulling_briefly

Entries = list[dict[str, Any]]


@pytest.fixture
async def fake() -> AsyncIterator[FakeJetStream]:
    async with fake_jetstream() as fake:
        yield fake


@pytest.fixture
async def worker(fake: FakeJetStream) -> AsyncIterator[Connection]:
    async with connection(fake.url) as nc:
        yield nc


def pulling(*args: Any, **limits: Any) -> PullConsumer:
    """Pulls that last: the fake sends no heartbeat of itself, and without one they would be given up at any pause."""
    return pulling_briefly(*args, **({"expires": 60.0, "idle_heartbeat": 20.0} | limits))


def reasons(logged: Entries) -> list[str]:
    return [entry["reason"] for entry in logged if entry["event"] == "pull_restarted"]


async def works(fake: FakeJetStream, pull: Pull, log: Log) -> None:
    """A message on this pull is handled and acknowledged."""
    settled = len(fake.settled)
    pull.deliver(b"probe")
    await until(lambda: len(fake.settled) > settled, "it is settled")
    assert log.ended[-1] == b"probe"


async def test_asks_for_its_free_slots_with_a_heartbeat(fake: FakeJetStream, worker: Connection) -> None:
    consumer = pulling(worker, FAKE, Log(), max_in_flight=3, prefetch=7, expires=3.0, idle_heartbeat=1.0)
    async with running(consumer):
        pull = await fake.pull()
        assert (pull.batch, pull.expires, pull.idle_heartbeat) == (10, 3.0, 1.0)
        assert pull.listened_to


async def test_never_asks_for_a_heartbeat_that_the_server_would_refuse(fake: FakeJetStream, worker: Connection) -> None:
    async with running(pulling(worker, FAKE, Log(), expires=1.0, idle_heartbeat=5.0)):
        assert (await fake.pull()).idle_heartbeat == 0.5


async def test_requests_overlap_once_less_than_half_is_on_its_way(fake: FakeJetStream, worker: Connection) -> None:
    log = Log()
    async with running(pulling(worker, FAKE, log, max_in_flight=2, prefetch=8)):
        first = await fake.pull()
        first.deliver(*[b"x"] * 4)
        await until(lambda: len(log.ended) == 4, "handled")
        assert fake.pulls.empty()
        first.deliver(b"x")
        second = await fake.pull()
        assert (second.batch, second.inbox) == (5, first.inbox)
        first.deliver(*[b"x"] * 5)  # the older request is still good
        await until(lambda: len(fake.settled) == 10, "handled")


async def test_a_busy_worker_asks_for_no_more_than_it_has_free(fake: FakeJetStream, worker: Connection) -> None:
    gate = Gate()
    consumer = pulling(worker, FAKE, gate, max_in_flight=2, prefetch=2)
    async with running(consumer):
        pull = await fake.pull()
        pull.deliver(*[b"x"] * 4)
        await until(lambda: consumer.in_flight + consumer.buffered == 4, "full")
        await worker.responds(5)
        assert fake.pulls.empty()
        gate.open.set()
        total = 0
        while total < 4:
            total += (await fake.pull()).batch
        assert total == 4


async def test_an_expired_pull_is_renewed_by_what_it_had_left(fake: FakeJetStream, worker: Connection) -> None:
    log = Log()
    async with running(pulling(worker, FAKE, log, max_in_flight=2, prefetch=8)):
        pull = await fake.pull()
        pull.deliver(b"x", b"x")
        await until(lambda: len(fake.settled) == 2, "handled")
        pull.status("408 Request Timeout", Nats_Pending_Messages=8, Nats_Pending_Bytes=0)
        assert (await fake.pull()).batch == 10
        assert fake.lookups == 1


@pytest.mark.parametrize("line", ["409 Batch Completed", "409 Message Size Exceeds MaxBytes", "408 Requests Pending"])
async def test_a_pull_that_ended_early_is_made_up_for(fake: FakeJetStream, worker: Connection, line: str) -> None:
    log = Log()
    async with running(pulling(worker, FAKE, log, max_in_flight=2, prefetch=4)):
        pull = await fake.pull()
        pull.status(line, Nats_Pending_Messages=6)
        again = await fake.pull()
        assert (again.batch, again.inbox, fake.lookups) == (6, pull.inbox, 1)
        await works(fake, again, log)


async def test_more_left_than_was_asked_for_does_not_ask_for_more_than_is_free(
    fake: FakeJetStream, worker: Connection
) -> None:
    async with running(pulling(worker, FAKE, Log(), max_in_flight=2, prefetch=4)):
        (await fake.pull()).status("408 Request Timeout", Nats_Pending_Messages=1000)
        assert (await fake.pull()).batch == 6


ENDINGS = [
    "400 Bad Request - heartbeat value too large",
    "404 No Messages",
    "408 Request Timeout",
    "409 Batch Completed",
    "409 Consumer is push based",
    "409 Server Shutdown",
    "409 Exceeded MaxWaiting",
    "409 Exceeded MaxRequestBatch of 2",
    "409 Exceeded MaxRequestExpires of 1s",
    "409 Leadership Change",
    "409 Something New",
    "423 Nats-Pin-Id mismatch",
    "503",
    "599 Unheard Of",
    "7xx Nonsense",
]


@pytest.mark.parametrize("line", ENDINGS[:-1])
async def test_a_pull_refused_once_is_looked_into_and_made_anew(
    fake: FakeJetStream, worker: Connection, logged: Entries, line: str
) -> None:
    log = Log()
    consumer = pulling(worker, FAKE, log)
    async with running(consumer):
        first = await fake.pull()
        first.status(line)
        again = await fake.pull()
        assert (again.batch, fake.lookups) == (4, 2)
        assert again.inbox != first.inbox
        await until(lambda: not first.listened_to, "the given-up pull is dropped")
        await works(fake, again, log)
        assert consumer.bound
    assert len(reasons(logged)) == 1


@pytest.mark.parametrize("line", ENDINGS[:-1])
async def test_a_pull_refused_for_ever_does_not_spin(fake: FakeJetStream, worker: Connection, line: str) -> None:
    log = Log()
    consumer = pulling(worker, FAKE, log)
    async with running(consumer):
        (await fake.pull()).status(line)
        (await fake.pull()).status(line)
        # From the second on it says so, and waits before the next; so nothing comes while a few round trips pass.
        await until(lambda: not consumer.bound, "it says that it is not bound")
        assert line.partition(" ")[0].lower() in consumer.problem or "leadership" in consumer.problem
        for _ in range(10):
            await worker.responds(5)
        assert (len(fake.asked), fake.lookups) == (2, 2)
        pull = await fake.pull()
        await works(fake, pull, log)
        await until(lambda: consumer.bound, "bound again")
        assert consumer.problem == ""


async def test_refused_more_often_than_a_float_has_powers(fake: FakeJetStream, worker: Connection) -> None:
    log = Log()
    consumer = pulling(worker, FAKE, log)
    async with running(consumer):
        pull = await fake.pull()
        consumer._puller._fruitless = 5000
        pull.status("409 Exceeded MaxWaiting")
        await until(lambda: not consumer.bound, "it waits")
        consumer._reconnected()  # ends the pause
        await works(fake, await fake.pull(), log)


async def test_consumer_deleted_is_said_once_and_waited_out(
    fake: FakeJetStream, worker: Connection, logged: Entries
) -> None:
    log = Log()
    consumer = pulling(worker, FAKE, log)
    async with running(consumer):
        pull = await fake.pull()
        config, fake.config = fake.config, None
        pull.status("409 Consumer Deleted")
        await until(lambda: fake.lookups >= 3, "it keeps looking")
        assert not consumer.bound
        assert fake.pulls.empty()
        fake.config = config
        await works(fake, await fake.pull(), log)
    assert [entry["event"] for entry in logged].count("consumer_unusable") == 1


async def test_heartbeats_keep_a_pull_without_messages_alive(
    fake: FakeJetStream, worker: Connection, logged: Entries
) -> None:
    log = Log()
    async with running(pulling(worker, FAKE, log, idle_heartbeat=0.1)):
        pull = await fake.pull()
        for _ in range(8):
            await asyncio.sleep(0.05)
            pull.status("100 Idle Heartbeat")
        assert fake.pulls.empty()
        assert reasons(logged) == []
        await works(fake, pull, log)


async def test_heartbeats_that_stop_are_answered_by_a_new_pull_then_by_a_new_connection(
    fake: FakeJetStream, worker: Connection, logged: Entries
) -> None:
    """The server answers pings all the time: it is only this consumer that it forgot."""
    log = Log()
    async with running(pulling(worker, FAKE, log, idle_heartbeat=0.1)):
        first, second = await fake.pull(), await fake.pull()
        assert second.inbox != first.inbox
        assert fake.connections == 1
        third = await fake.pull()
        await until(lambda: fake.connections == 2, "it reconnects")
        while not third.listened_to or third._client is not fake.clients[-1]:
            third = await fake.pull()
        await works(fake, third, log)
    silences = [reason for reason in reasons(logged) if reason.startswith("no heartbeat")]
    assert len(silences) == 2
    assert [reason.endswith("reconnecting") for reason in silences] == [False, True]


async def test_statuses_of_a_pull_given_up_change_nothing(fake: FakeJetStream, worker: Connection) -> None:
    log = Log()
    async with running(pulling(worker, FAKE, log)):
        first = await fake.pull()
        first.status("409 Leadership Change")
        first.status("408 Request Timeout", Nats_Pending_Messages=4)
        first.status("409 Consumer Deleted")
        again = await fake.pull()
        first.status("409 Server Shutdown")
        await worker.responds(5)
        assert (again.batch, len(fake.asked)) == (4, 2)
        await works(fake, again, log)


async def test_more_messages_than_asked_for_are_handled_and_not_asked_for_again(
    fake: FakeJetStream, worker: Connection
) -> None:
    gate = Gate()
    consumer = pulling(worker, FAKE, gate, max_in_flight=2, prefetch=1)
    async with running(consumer):
        pull = await fake.pull()
        pull.deliver(*[b"x"] * 8)
        await until(lambda: consumer.in_flight + consumer.buffered == 8, "all are taken")
        gate.open.set()
        await until(lambda: len(fake.settled) == 8, "all are settled")
        await worker.responds(5)
        assert 1 <= sum(asked.batch for asked in fake.asked[1:]) <= 3


@pytest.mark.parametrize(
    "raw",
    [
        b"NATS/1.0 7xx Nonsense\r\n\r\n",
        b"NATS/1.0 \r\n\r\n",
        b"NATS/1.0\r\n\r\n",
        b"NATS/1.0 40\r\n\r\n",
        b"garbage",
        b"\r\n\r\n",
        b"NATS/1.0 100",
        "NATS/1.0 ¹²³ digits\r\n\r\n".encode(),
    ],
)
async def test_garbage_in_place_of_a_status_is_passed_over(
    fake: FakeJetStream, worker: Connection, raw: bytes, logged: Entries
) -> None:
    log = Log()
    async with running(pulling(worker, FAKE, log)):
        pull = await fake.pull()
        pull.raw(raw)
        await works(fake, pull, log)
    assert reasons(logged) == []
    assert fake.connections == 1


@pytest.mark.parametrize("left", ["", "many", "-3", "3.5", "²"])
async def test_a_remainder_that_is_no_number_sets_the_pull_up_anew(
    fake: FakeJetStream, worker: Connection, left: str
) -> None:
    log = Log()
    async with running(pulling(worker, FAKE, log)):
        (await fake.pull()).status("408 Request Timeout", Nats_Pending_Messages=left)
        again = await fake.pull()
        assert (again.batch, fake.lookups) == (4, 2)
        await works(fake, again, log)
    assert fake.connections == 1


@pytest.mark.parametrize("reply", [b"", b"$JS.ACK.short", b"elsewhere.%d.%d.%d"])
async def test_a_message_that_cannot_be_settled_is_passed_over(
    fake: FakeJetStream, worker: Connection, reply: bytes
) -> None:
    log = Log()
    async with running(pulling(worker, FAKE, log)):
        pull = await fake.pull()
        pull._client.message(b"fake.in", pull.inbox, b"stray", reply)
        await works(fake, pull, log)
    assert log.ended == [b"probe"]


@pytest.mark.parametrize("headers", [b"NATS/1.0\r\nno colon\r\n\r\n", b"NATS/1.0\r\n\xff: \xfe\r\n\r\n", b"NATS/1.0"])
async def test_a_message_with_broken_headers_is_handled(
    fake: FakeJetStream, worker: Connection, headers: bytes
) -> None:
    async def read(delivery: Any) -> None:
        assert isinstance(delivery.headers, dict)
        assert delivery.header(b"traceparent") is None

    log = Log(read)
    async with running(pulling(worker, FAKE, log)):
        (await fake.pull()).deliver(b"x", headers=headers)
        await until(lambda: fake.settled, "settled")
    assert [payload for _, payload in fake.settled] == [b"+ACK"]


async def test_the_longer_form_of_reply_subject_is_understood(fake: FakeJetStream, worker: Connection) -> None:
    seen = []

    async def look(delivery: Any) -> None:
        seen.append((delivery.stream, delivery.consumer, delivery.attempt, delivery.sequence, delivery.timestamp))

    async with running(pulling(worker, FAKE, look)):
        (await fake.pull()).deliver(b"x", attempt=3, ack=LONG_ACK_TOKENS)
        await until(lambda: fake.settled, "settled")
    assert seen == [("FAKE", "worker", 3, 1, 1.7e9)]
    assert fake.settled[0][0].startswith(b"$JS.ACK.hub.ACCHASH.FAKE.worker.3.1.")


async def test_dropped_connections_one_after_another(fake: FakeJetStream, worker: Connection) -> None:
    log = Log()
    consumer = pulling(worker, FAKE, log)
    async with running(consumer):
        for cut in range(2):
            await works(fake, await fake.pull(), log)
            fake.drop()
            await until(lambda cut=cut: fake.connections == cut + 2, "it reconnects")
        await works(fake, await fake.pull(), log)
    assert fake.lookups <= 5


# -- a message delivered again to the worker that holds it


async def test_redelivered_while_it_runs_it_runs_on_and_the_later_delivery_is_settled(
    fake: FakeJetStream, worker: Connection
) -> None:
    gate = Gate()
    consumer = pulling(worker, FAKE, gate, max_in_flight=2)
    async with running(consumer):
        pull = await fake.pull()
        pull.deliver(b"x")
        await until(lambda: gate.held, "it runs")
        for attempt in (2, 3):
            pull.redeliver(b"x", attempt)
            await until(lambda n=attempt: consumer._workers._counts.received.value == n, "received")
        assert (consumer.in_flight, consumer.buffered) == (1, 0)
        gate.open.set()
        await until(lambda: fake.settled, "settled")
    assert gate.held == [b"x"]
    assert fake.settled == [(b"$JS.ACK.FAKE.worker.3.1.1.1700000000000000000.0", b"+ACK")]


async def test_redelivered_while_it_waits_it_runs_once_as_the_later_attempt(
    fake: FakeJetStream, worker: Connection
) -> None:
    gate = Gate()
    log = Log(gate)
    consumer = pulling(worker, FAKE, log, max_in_flight=1)
    async with running(consumer):
        pull = await fake.pull()
        pull.deliver(b"first", b"x")
        await until(lambda: consumer.buffered, "it waits")
        pull.redeliver(b"x", 2)
        await until(lambda: consumer._workers._counts.received.value == 3, "received")
        gate.open.set()
        await until(lambda: len(fake.settled) == 2, "settled")
    assert (log.ended, log.attempts) == ([b"first", b"x"], [1, 2])


async def test_another_message_delivered_again_is_not_taken_for_the_one_that_runs(
    fake: FakeJetStream, worker: Connection
) -> None:
    gate = Gate()
    async with running(pulling(worker, FAKE, gate, max_in_flight=2)):
        pull = await fake.pull()
        pull.deliver(b"x")
        pull.deliver(b"y", attempt=2)
        await until(lambda: gate.held == [b"x", b"y"], "both run")
        gate.open.set()


async def test_abandoned_after_it_was_delivered_here_again_it_goes_back_at_once(
    fake: FakeJetStream, worker: Connection
) -> None:
    gate = Gate()

    async def abandon(delivery: Any) -> None:
        await gate(delivery)
        raise Abandoned("another worker has it")

    consumer = pulling(worker, FAKE, abandon)
    async with running(consumer):
        pull = await fake.pull()
        pull.deliver(b"x")
        pull.redeliver(b"x", 3)
        await until(lambda: consumer._workers._counts.received.value == 2, "received")
        gate.open.set()
        await until(lambda: fake.settled, "settled")
    assert fake.settled == [(b"$JS.ACK.FAKE.worker.3.1.1.1700000000000000000.0", b"-NAK")]


async def test_redelivered_while_the_worker_drains_it_is_not_given_to_another(
    fake: FakeJetStream, worker: Connection
) -> None:
    gate = Gate()
    consumer = pulling(worker, FAKE, gate)
    async with running(consumer):
        pull = await fake.pull()
        pull.deliver(b"x")
        await until(lambda: gate.held, "it runs")
        consumer._workers.stop()
        pull.redeliver(b"x", 2)
        await until(lambda: consumer._workers._counts.received.value == 2, "received")
        assert not fake.settled
        gate.open.set()
        await until(lambda: fake.settled, "settled")
    assert [how for _, how in fake.settled] == [b"+ACK"]
