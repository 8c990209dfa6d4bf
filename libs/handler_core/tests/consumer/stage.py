"""A stream, a consumer and pulling workers of one test's own, and what became of the messages."""

import asyncio
import contextlib
import json
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from handler_core.connection import Connection
from handler_core.consumer import PullConsumer
from handler_core.delivery import Delivery
from handler_core.jetstream import Api
from handler_core.limits import Limits
from handler_core.streams import Consumer, Stream, apply
from handler_core.telemetry import Metrics
from handler_core.testing import until
from handler_core.workers import Process

QUICK = Limits(max_in_flight=4, retry_base=0.02, retry_max=0.1, expires=2.0, idle_heartbeat=0.5)


@dataclass
class Stage:
    """A work queue and its consumer on a real server; names are unique, so that tests share a server."""

    nc: Connection
    api: Api
    consumer: Consumer
    stream: Stream

    @property
    def subject(self) -> str:
        return f"{self.stream.name}.in"

    async def publish(self, *bodies: bytes, headers: dict[str, str] | None = None) -> None:
        for body in bodies:
            await self.api.publish(self.subject, body, headers or {})

    async def publish_numbers(self, count: int, start: int = 0) -> None:
        """Store the messages b"0", b"1", … quickly."""
        before = (await self.stream_state())["last_seq"]
        for number in range(start, start + count):
            await self.nc.publish(self.subject, b"%d" % number)
        await until(lambda: self._stored(before + count), "all are stored")

    async def _stored(self, last: int) -> bool:
        return bool((await self.stream_state())["last_seq"] == last)

    async def stream_state(self) -> dict[str, Any]:
        state: dict[str, Any] = (await self.api.request(f"STREAM.INFO.{self.stream.name}"))["state"]
        return state

    async def info(self) -> dict[str, Any]:
        return await self.api.request(f"CONSUMER.INFO.{self.stream.name}.{self.consumer.name}")

    async def all_settled(self) -> None:
        """Wait until the work queue is empty: each message was acknowledged or terminated."""
        await until(self._empty, "every message is settled")

    async def _empty(self) -> bool:
        info = await self.info()
        return bool(
            info["num_pending"] == 0 and info["num_ack_pending"] == 0 and (await self.stream_state())["messages"] == 0
        )

    async def delete_consumer(self) -> None:
        await self.api.request(f"CONSUMER.DELETE.{self.stream.name}.{self.consumer.name}")

    async def delete_stream(self) -> None:
        await self.api.request(f"STREAM.DELETE.{self.stream.name}")

    async def apply(self, consumer: Consumer | None = None) -> None:
        await apply(self.api, [self.stream], [consumer or self.consumer])

    async def change(self, **config: Any) -> None:
        """Give the server's consumer a configuration that differs from the declared one."""
        body = {"stream_name": self.stream.name, "config": {**self.consumer.config(), **config}}
        await self.api.request(f"CONSUMER.DURABLE.CREATE.{self.stream.name}.{self.consumer.name}", body)


async def make_stage(nc: Connection, **consumer: Any) -> Stage:
    """Create a work queue and a consumer of which `consumer` overrides the declaration's fields."""
    name = f"S{uuid.uuid4().hex[:12]}"
    declared = replace(Consumer(name, f"{name}c"), **consumer)
    stage = Stage(nc, Api(nc), declared, Stream(name, (f"{name}.in",), "workqueue", 1 << 28, 3600))
    await stage.apply()
    return stage


@dataclass
class Log:
    """A processor that notes what it was given and then does as `then` says."""

    then: Callable[[Delivery], Awaitable[None]] | None = None
    started: list[bytes] = field(default_factory=list)
    ended: list[bytes] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)

    async def __call__(self, delivery: Delivery) -> None:
        self.started.append(delivery.data)
        self.attempts.append(delivery.attempt)
        if self.then is not None:
            await self.then(delivery)
        self.ended.append(delivery.data)

    @property
    def distinct(self) -> set[bytes]:
        return set(self.ended)

    @property
    def repeated(self) -> dict[bytes, int]:
        """What was started more than once."""
        return {data: times for data, times in Counter(self.started).items() if times > 1}


class Gate:
    """A processor that holds every message until it is opened."""

    def __init__(self) -> None:
        self.held: list[bytes] = []
        self.open = asyncio.Event()

    async def __call__(self, delivery: Delivery) -> None:
        self.held.append(delivery.data)
        await self.open.wait()


@contextlib.asynccontextmanager
async def running(*consumers: PullConsumer, bound: bool = True) -> AsyncIterator[None]:
    """The consumers pull until the block ends, then drain."""
    async with asyncio.TaskGroup() as tasks:
        for consumer in consumers:
            tasks.create_task(consumer.run())
        if bound:
            await until(lambda: all(consumer.bound for consumer in consumers), "the consumers are bound")
        yield
        for consumer in consumers:
            consumer.stop()


def pulling(nc: Connection, config: Consumer, process: Process, metrics: Metrics | None = None, **limits: Any) -> (
    PullConsumer
):  # fmt: skip
    """A consumer with `QUICK` limits but for those given."""
    return PullConsumer(nc, config, process, replace(QUICK, **limits), metrics=metrics)


def numbers(count: int, start: int = 0) -> set[bytes]:
    return {b"%d" % number for number in range(start, start + count)}


def requested(payload: bytes) -> int:
    """The batch that a pull request asks for."""
    return int(json.loads(payload)["batch"])
