"""An ordered reader misses nothing and repeats nothing, whatever happens to the consumer, the server or the line."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog

from handler_core.connection import Connection
from handler_core.jetstream import Api
from handler_core.reader import Reader
from handler_core.streams import Republish, Stream, apply
from handler_core.testing import NatsServer, connection, nats_server, until

from .consumer.proxy import proxied


@dataclass
class Place:
    """A stream of a test's own, and what was read of it."""

    nc: Connection
    stream: Stream
    read: list[bytes] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)

    @property
    def subject(self) -> str:
        return f"{self.stream.name}.one"

    def sink(self, sequence: int, stored_at: float, data: bytes, headers: bytes | None) -> None:
        assert stored_at > 1_700_000_000
        self.sequences.append(sequence)
        self.read.append(data)

    async def publish(self, first: int, last: int, subject: str = "") -> None:
        for number in range(first, last + 1):
            await Api(self.nc).publish(subject or self.subject, b"%d" % number, {})

    def has(self, last: int, first: int = 1) -> bool:
        return self.read == [b"%d" % number for number in range(first, last + 1)]

    async def consumers(self) -> list[dict[str, Any]]:
        answer = await Api(self.nc).request(f"CONSUMER.LIST.{self.stream.name}")
        found: list[dict[str, Any]] = answer["consumers"]
        return found

    def reader(self, start: int = 1, nc: Connection | None = None, heartbeat: float = 5.0) -> Reader:
        live = f"live.{self.subject}" if self.stream.republish else None
        return Reader(
            nc or self.nc, self.stream.name, self.subject, start, self.sink, live=live, idle_heartbeat=heartbeat
        )


async def make(nc: Connection, *, live: bool = False) -> Place:
    name = f"S{uuid.uuid4().hex[:8]}"
    republish = Republish(f"{name}.*", f"live.{name}.{{{{wildcard(1)}}}}") if live else None
    stream = Stream(name, (f"{name}.*",), retention="limits", max_bytes=64 << 20, max_age=600, republish=republish)
    await apply(Api(nc), [stream], [])
    return Place(nc, stream)


@pytest.fixture(params=[False, True], ids=["pushed", "republished"])
async def place(nc: Connection, request: pytest.FixtureRequest) -> Place:
    return await make(nc, live=request.param)


@pytest.fixture
async def pushed(nc: Connection) -> Place:
    return await make(nc)


@pytest.fixture
async def republished(nc: Connection) -> Place:
    return await make(nc, live=True)


@pytest.fixture
def logged() -> Iterator[list[MutableMapping[str, Any]]]:
    with structlog.testing.capture_logs() as entries:
        yield entries


async def test_what_is_stored_comes_first_and_then_what_is_published(place: Place) -> None:
    await place.publish(1, 5)
    await place.publish(99, 99, f"{place.stream.name}.another")
    async with place.reader() as reader:
        await reader.caught_up.wait()
        assert place.has(5)
        await place.publish(6, 8)
        await until(lambda: place.has(8), "what is published is read")
        assert (reader.problem, reader.restarts, reader.next_sequence) == ("", 0, 10)
    assert place.sequences == [1, 2, 3, 4, 5, 7, 8, 9]


async def test_it_begins_at_a_sequence_even_one_that_is_yet_to_come(place: Place) -> None:
    await place.publish(1, 5)
    async with place.reader(4) as reader:
        await reader.caught_up.wait()
        assert place.has(5, first=4)
    place.read.clear()
    async with place.reader(6) as reader:
        await reader.caught_up.wait()
        await place.publish(6, 6)
        await until(lambda: place.has(6, first=6), "the one that came is read")


async def test_an_empty_stream_is_caught_up_with_at_once(place: Place) -> None:
    async with place.reader() as reader:
        await reader.caught_up.wait()
    assert place.read == []


async def test_nothing_is_left_of_it_on_the_server(pushed: Place) -> None:
    async with pushed.reader() as reader:
        await reader.caught_up.wait()
        [consumer] = await pushed.consumers()
        assert consumer["config"]["inactive_threshold"] > 0, "a reader that dies is forgotten as well"

    async def gone() -> bool:
        return await pushed.consumers() == []

    await until(gone, "the consumer is gone")


async def test_a_consumer_that_somebody_deletes_is_made_again(pushed: Place) -> None:
    async with pushed.reader(heartbeat=0.1) as reader:
        await reader.caught_up.wait()
        await pushed.publish(1, 3)
        await until(lambda: pushed.has(3), "they are read")
        [consumer] = await pushed.consumers()
        await Api(pushed.nc).request(f"CONSUMER.DELETE.{pushed.stream.name}.{consumer['name']}")
        await pushed.publish(4, 6)
        await until(lambda: pushed.has(6), "reading has begun anew")
        assert reader.restarts >= 1


async def test_a_lost_connection_leaves_no_gap(nats: NatsServer, place: Place) -> None:
    async with proxied(nats.port) as proxy, connection(proxy.url) as nc, place.reader(nc=nc) as reader:
        await place.publish(1, 3)
        await until(lambda: place.has(3), "they are read")
        proxy.cut()
        await place.publish(4, 6)
        await until(lambda: place.has(6), "they are read after the reconnect")
        await until(lambda: reader.restarts == 1, "reading has begun anew once")


async def test_messages_lost_on_the_way_are_read_again(nats: NatsServer, place: Place) -> None:
    """Seen by a gap in the consumer's count, or, with nothing behind them, by its heartbeat."""
    async with place.reader(heartbeat=0.1) as reader:
        await place.publish(1, 2)
        await until(lambda: place.has(2), "they are read")
        await lose(place, 3, 4)
        await until(lambda: place.has(4), "the heartbeat has told of them")
        await lose(place, 5, 5)
        await place.publish(6, 6)
        await until(lambda: place.has(6), "the gap has told of it")
        await until(lambda: reader.restarts == 2, "reading has begun anew twice")


async def lose(place: Place, first: int, last: int) -> None:
    """Publish messages that arrive, and that the reader does not see."""
    sinks = place.nc._ps.sinks
    names = "_receive_live" if place.stream.republish else "Reader"
    arrived: list[bytes] = []

    def live() -> bool:
        return not place.stream.republish or len([sink for sink in sinks.values() if "Reader" in repr(sink)]) == 1

    await until(live, "one subscription alone brings messages")
    sid, sink = next((sid, sink) for sid, sink in sinks.items() if names in repr(sink))
    sinks[sid] = lambda subject, reply, data, headers: arrived.append(data) if data else None
    await place.publish(first, last)
    await until(lambda: len(arrived) == last - first + 1, "they have arrived")
    sinks[sid] = sink


async def test_a_server_that_falls_silent_is_asked_anew(pushed: Place) -> None:
    async with pushed.reader(heartbeat=0.1) as reader:
        await reader.caught_up.wait()
        sinks = pushed.nc._ps.sinks
        sid = next(sid for sid, sink in sinks.items() if "Reader" in repr(sink))
        sinks[sid] = lambda *_: None
        await until(lambda: reader.restarts > 0, "it has noticed")
        await pushed.publish(1, 1)
        await until(lambda: pushed.has(1), "it reads again")


async def test_a_server_that_restarts_is_read_from_where_it_was() -> None:
    with nats_server() as server:
        async with connection(server.url) as nc:
            place = await make(nc)
            async with place.reader() as reader:
                await place.publish(1, 3)
                await until(lambda: place.has(3), "they are read")
                server.kill()
                await until(lambda: not nc.is_connected, "the connection is lost")
                server.start()
                await until(lambda: nc.is_connected, "it is connected again")
                await place.publish(4, 5)
                await until(lambda: place.has(5), "they are read")
                assert reader.problem == ""


async def test_it_waits_for_a_stream_that_is_missing_and_says_so_once(
    nc: Connection, logged: list[MutableMapping[str, Any]]
) -> None:
    name = f"S{uuid.uuid4().hex[:8]}"
    stream = Stream(name, (f"{name}.*",), retention="limits", max_bytes=1 << 20, max_age=600)
    place = Place(nc, stream)
    async with place.reader() as reader:
        await until(lambda: "not found" in reader.problem, "it says what is missing")
        await apply(Api(nc), [stream], [])
        await place.publish(1, 1)
        await until(lambda: place.has(1), "it reads")
        await until(lambda: reader.problem == "", "all is well")
    assert len([entry for entry in logged if "not found" in entry.get("problem", "")]) == 1


async def test_a_paused_reader_leaves_the_rest_in_the_stream(place: Place) -> None:
    reader = place.reader()

    def until_two(sequence: int, stored_at: float, data: bytes, headers: bytes | None) -> None:
        place.sink(sequence, stored_at, data, headers)
        if sequence == 2:
            reader.pause()

    reader._sink = until_two
    await place.publish(1, 5)
    async with reader:
        await until(lambda: place.has(2), "two are read")
        await until(lambda: reader._sid is None, "the consumer is given up")
        await place.publish(6, 6)
        assert (reader.paused, reader.problem, reader.next_sequence) == (True, "", 3)
        reader.resume()
        await until(lambda: place.has(6), "the rest is read")


async def test_a_message_that_the_sink_chokes_on_does_not_stop_the_others(
    place: Place, logged: list[MutableMapping[str, Any]]
) -> None:
    def chokes(sequence: int, stored_at: float, data: bytes, headers: bytes | None) -> None:
        place.sink(sequence, stored_at, data, headers)
        if sequence == 2:
            raise ValueError("no")

    async with Reader(place.nc, place.stream.name, place.subject, 1, chokes) as reader:
        await place.publish(1, 3)
        await until(lambda: place.has(3), "all are read, once")
        assert reader.restarts == 0
    assert [entry["event"] for entry in logged] == ["pulled_message_failed"]


async def test_much_more_than_the_window_of_flow_control_arrives_whole_and_in_order(place: Place) -> None:
    body = b"x" * 200_000
    for _ in range(60):
        place.nc.send(place.subject, body)
    await place.publish(1, 1)
    async with place.reader() as reader:
        await reader.caught_up.wait()
    assert place.sequences == list(range(1, 62))
    assert place.read[:-1] == [body] * 60


async def test_headers_arrive_as_they_were(place: Place) -> None:
    seen: list[bytes | None] = []
    async with Reader(place.nc, place.stream.name, place.subject, 1, lambda *a: seen.append(a[3])) as reader:
        await reader.caught_up.wait()
        await Api(place.nc).publish(place.subject, b"", {"traceparent": "00-1"})
        await until(lambda: bool(seen), "it is read")
    assert seen[0] is not None
    assert b"traceparent: 00-1" in seen[0]


class _Statuses:
    """A connection's place, of which a reader's consumer is made, and then plays the server itself."""

    def __init__(self, place: Place, reader: Reader) -> None:
        self.answers: list[tuple[bytes, bytes]] = []
        self._reader = reader
        self._place = place

    def send(self, status: str, reply: bytes = b"") -> None:
        self._reader._receive(self._reader._serial, b"inbox", reply, b"", f"NATS/1.0 {status}\r\n\r\n".encode())


@pytest.fixture
async def statuses(pushed: Place) -> AsyncIterator[tuple[Reader, _Statuses]]:
    async with pushed.reader() as reader:
        await reader.caught_up.wait()
        yield reader, _Statuses(pushed, reader)


@pytest.mark.parametrize("status", ["409 Consumer Deleted", "409 Leadership Change", "409 Server Shutdown"])
async def test_a_status_that_ends_the_consumer_has_it_made_anew(
    pushed: Place, statuses: tuple[Reader, _Statuses], status: str
) -> None:
    reader, server = statuses
    server.send(status)
    await pushed.publish(1, 2)
    await until(lambda: pushed.has(2), "they are read")
    await until(lambda: reader.restarts == 1, "by another consumer")


async def test_flow_control_and_a_stalled_consumer_are_answered(
    pushed: Place, statuses: tuple[Reader, _Statuses]
) -> None:
    _, server = statuses
    heard: list[str] = []
    inbox = pushed.nc.new_inbox()

    async def hear(message: Any) -> None:
        heard.append(message.subject)

    await pushed.nc.subscribe(f"{inbox}.*", cb=hear)
    server.send("100 FlowControl Request", f"{inbox}.flow".encode())
    server.send(f"100 Idle Heartbeat\r\nNats-Last-Consumer: 0\r\nNats-Consumer-Stalled: {inbox}.stalled")
    await until(lambda: heard == [f"{inbox}.flow", f"{inbox}.stalled"], "both are answered")


async def test_what_is_no_status_and_no_message_changes_nothing(
    pushed: Place, statuses: tuple[Reader, _Statuses]
) -> None:
    reader, server = statuses
    server.send("hello")
    reader._receive(reader._serial, b"inbox", b"", b"{}", None)
    await pushed.publish(1, 1)
    await until(lambda: pushed.has(1), "it is read")
    assert reader.restarts == 0


async def test_a_cancelled_block_ends_it(place: Place) -> None:
    async def read() -> None:
        async with place.reader() as reader:
            await reader.caught_up.wait()
            await asyncio.Event().wait()

    task = asyncio.get_running_loop().create_task(read())
    await until(lambda: len(place.nc._ps.sinks) > 1, "it reads")
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert place.nc.on_reconnect == []


async def test_what_is_republished_needs_no_consumer_once_it_is_caught_up_with(republished: Place) -> None:
    await republished.publish(1, 3)
    sinks = set(republished.nc._ps.sinks)
    async with republished.reader() as reader:
        await reader.caught_up.wait()

        async def gone() -> bool:
            return await republished.consumers() == []

        await until(gone, "the consumer is gone")
        await republished.publish(4, 60)
        await until(lambda: republished.has(60), "they are read as they are republished")
        assert reader.restarts == 0
    assert set(republished.nc._ps.sinks) == sinks


async def test_no_message_is_missed_or_doubled_between_what_is_stored_and_what_is_republished(
    nats: NatsServer, republished: Place
) -> None:
    async with connection(nats.url) as nc:
        other = Place(nc, republished.stream)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(other.publish(1, 400))
            for _ in range(8):
                async with republished.reader(republished.sequences[-1] + 1 if republished.sequences else 1) as reader:
                    await reader.caught_up.wait()
                    await asyncio.sleep(0)
        async with republished.reader(republished.sequences[-1] + 1):
            await until(lambda: republished.has(400), "all are read")
    assert republished.sequences == list(range(1, 401))


async def test_a_header_that_a_client_forged_is_not_the_server_s(republished: Place) -> None:
    async with republished.reader() as reader:
        await reader.caught_up.wait()
        await republished.publish(1, 1)
        for name in ("Nats-Sequence", "Nats-Last-Sequence", "Nats-Time-Stamp"):
            await Api(republished.nc).publish(republished.subject, b"forged", {name: "999999"})
        await republished.publish(5, 5)
        await until(lambda: len(republished.read) == 5, "all are read")
        assert reader.restarts == 0
    assert republished.sequences == [1, 2, 3, 4, 5]
