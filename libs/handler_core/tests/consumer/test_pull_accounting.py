"""The pull's bookkeeping against a model of the server, under any order of events."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from handler_core.connection import Connection, Sink
from handler_core.consumer import PullConsumer
from handler_core.delivery import Delivery
from handler_core.errors import Transient
from handler_core.limits import Limits

from .fake_jetstream import FAKE

REPLY = b"$JS.ACK.FAKE.worker.1.%d.%d.1700000000000000000.0"


@dataclass
class _Request:
    left: int


class Loopback(Connection):
    """A connection whose other end is the model: pull requests by inbox, and what the consumer holds."""

    def __init__(self) -> None:
        super().__init__()
        self._max_payload = 1 << 20
        self.sink: Sink | None = None
        self.requests: list[_Request] = []
        self.sequence = 0
        self.held = 0
        self.uninvited = 0

    @property
    def is_connected(self) -> bool:
        return True

    @property
    def asked(self) -> int:
        return sum(request.left for request in self.requests)

    def new_inbox(self) -> str:
        return "_INBOX.model"

    async def ask(self, *_: Any, **__: Any) -> bytes:
        return json.dumps({"config": FAKE.config()}).encode()

    async def attach(self, inbox: str, sink: Sink) -> int:
        self.sink = sink
        return 1

    def mute(self, sid: int) -> None:
        self.requests.clear()

    async def detach(self, sid: int) -> None:
        self.requests.clear()

    def _write(self, command: bytes) -> None:
        line, _, body = command.partition(b"\r\n")
        if b".MSG.NEXT." in line:
            self.requests.append(_Request(json.loads(body)["batch"]))
        elif not body.startswith(b"+WPI"):
            self.held -= 1

    # -- what the server does

    def deliver(self) -> None:
        assert self.sink is not None
        self.sequence += 1
        self.held += 1
        self.sink(b"in", REPLY % (self.sequence, self.sequence), b"", None)

    def serve(self, count: int) -> None:
        for _ in range(count):
            request = next((r for r in self.requests if r.left), None)
            if request is None:
                return
            request.left -= 1
            self.deliver()

    def end(self, index: int, line: str) -> None:
        """End one of the requests, telling what it had left."""
        live = [request for request in self.requests if request.left]
        if live:
            request = live[index % len(live)]
            left, request.left = request.left, 0
            self.status(f"{line}\r\nNats-Pending-Messages: {left}")

    def status(self, lines: str) -> None:
        assert self.sink is not None
        self.sink(b"_INBOX.model", b"", b"", f"NATS/1.0 {lines}\r\n\r\n".encode())


counts = st.integers(1, 12)
steps = st.one_of(
    st.tuples(st.just("serve"), counts),
    st.tuples(st.just("finish"), counts),
    st.tuples(st.just("fail"), counts),
    st.tuples(st.just("expire"), st.integers(0, 5)),
    st.tuples(st.just("complete"), st.integers(0, 5)),
    st.tuples(st.just("heartbeat"), st.just(0)),
    st.tuples(st.just("trouble"), st.just(0)),
    st.tuples(st.just("reconnect"), st.just(0)),
    st.tuples(st.just("overdeliver"), st.integers(1, 3)),
)


@settings(max_examples=150, deadline=None)
@example(1, 2, [("serve", 1), ("finish", 1), ("serve", 2)])
@given(st.integers(1, 5), st.integers(0, 9), st.lists(steps, max_size=40))
def test_never_more_than_fits_and_never_idle_with_room(
    max_in_flight: int, prefetch: int, script: list[tuple[str, int]]
) -> None:
    asyncio.run(_run(max_in_flight, prefetch, script))


async def _run(max_in_flight: int, prefetch: int, script: list[tuple[str, int]]) -> None:
    server = Loopback()
    waiting: list[asyncio.Future[None]] = []

    async def process(_: Delivery) -> None:
        waiting.append(asyncio.get_running_loop().create_future())
        await waiting[-1]

    limits = Limits(max_in_flight=max_in_flight, prefetch=prefetch)
    consumer = PullConsumer(server, FAKE, process, limits)
    room = max_in_flight + prefetch

    async def quiet() -> None:
        for _ in range(30):
            await asyncio.sleep(0)

    def end(count: int, how: Callable[["asyncio.Future[None]"], None]) -> None:
        for _ in range(min(count, len(waiting))):
            how(waiting.pop(0))

    async with asyncio.TaskGroup() as tasks:
        run = tasks.create_task(consumer.run())
        await quiet()
        for step, number in script:
            consumer._puller._fruitless = 0  # the pauses are not what is examined here
            if step == "serve":
                server.serve(number)
            elif step == "finish":
                end(number, lambda future: future.set_result(None))
            elif step == "fail":
                end(number, lambda future: future.set_exception(Transient("later")))
            elif step == "expire":
                server.end(number, "408 Request Timeout")
            elif step == "complete":
                server.end(number, "409 Batch Completed")
            elif step == "heartbeat":
                server.status("100 Idle Heartbeat")
            elif step == "trouble":
                server.requests.clear()
                server.status("409 Leadership Change")
            elif step == "reconnect":
                server.requests.clear()
                consumer._reconnected()
            else:
                server.uninvited += number
                for _ in range(number):
                    server.deliver()
            await quiet()
            assert server.held == consumer.in_flight + consumer.buffered
            assert consumer.in_flight <= max_in_flight
            assert server.held + server.asked <= room + server.uninvited
            assert consumer.in_flight == max_in_flight or not consumer.buffered
            assert not consumer.bound or server.asked > 0 or server.held >= room
        consumer.stop()
        while not run.done():
            end(len(waiting), lambda future: future.set_result(None))
            await asyncio.sleep(0)
    assert server.held == 0
