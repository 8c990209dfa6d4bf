"""Real processes that are killed, kill themselves, or are told to end."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgpack

from handler_core.streams import DLQ, apply
from handler_core.testing import NatsServer, until

from .stage import Log, Stage, make_stage, pulling, running

HERE = Path(__file__).parent


@contextlib.asynccontextmanager
async def process(script: str, *arguments: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Python process, gone afterwards."""
    running = await asyncio.create_subprocess_exec(
        sys.executable, str(HERE / script), *arguments, env={**os.environ, **environment}
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()


async def heard(stage: Stage, subject: str) -> list[bytes]:
    """A list that grows by what is published to a subject."""
    bodies: list[bytes] = []

    async def hear(message: Any) -> None:
        bodies.append(message.data)

    await stage.nc.subscribe(f"{stage.stream.name}.{subject}", cb=hear)
    await stage.nc.flush()
    return bodies


def worker(stage: Stage, nats: NatsServer) -> "contextlib.AbstractAsyncContextManager[asyncio.subprocess.Process]":
    return process("worker_process.py", nats.url, stage.stream.name, stage.consumer.name, str(stage.consumer.ack_wait))


async def test_another_worker_takes_over_from_a_process_that_is_killed(nats: NatsServer, nc: Any) -> None:
    stage = await make_stage(nc, ack_wait=0.6)
    started = await heard(stage, "started")
    async with worker(stage, nats) as victim:
        await stage.publish(b"hang")
        await until(lambda: started == [b"hang"], "it works on it")
        await asyncio.sleep(1.0)  # kept alive meanwhile
        assert (await stage.info())["num_redelivered"] == 0
        log = Log()
        async with running(pulling(nc, stage.consumer, log)):
            victim.kill()
            await victim.wait()
            await stage.all_settled()
    assert log.attempts == [2]


async def test_a_message_that_kills_its_process_is_buried_before_its_handler_runs_once_more(
    nats: NatsServer, nc: Any
) -> None:
    stage = await make_stage(nc, ack_wait=0.4)
    await apply(stage.api, [DLQ], [])
    started = await heard(stage, "started")
    await stage.publish(b"die", b"fine")
    for death in range(2):
        async with worker(stage, nats) as victim:
            assert await victim.wait() == 1
        await until(lambda death=death: started.count(b"die") == death + 1, "it was heard of before it died")
    async with worker(stage, nats):
        await stage.all_settled()
    assert started.count(b"die") == 2
    letter = await stage.api.last("DLQ", f"dlq.{stage.stream.name}.{stage.consumer.name}")
    assert letter is not None
    assert letter.data == b"die"
    assert letter.headers["Dead-Letter-Deliveries"] == "3"


def service(stage: Stage, nats: NatsServer, **environment: str) -> (
    "contextlib.AbstractAsyncContextManager[asyncio.subprocess.Process]"
):  # fmt: skip
    settings = {
        "NATS_URL": nats.url,
        "HEALTH_HOST": "127.0.0.1",
        "HEALTH_PORT": "0",
        "STREAM": stage.stream.name,
        "CONSUMER": stage.consumer.name,
        **environment,
    }
    return process("tiny_service.py", **settings)


async def publish_work(stage: Stage, *names: str) -> None:
    for name in names:
        await stage.publish(msgpack.packb({"name": name}))


async def test_sigterm_finishes_what_runs_and_hands_back_what_waits(nats: NatsServer, stage: Stage) -> None:
    started, finished = await heard(stage, "started"), await heard(stage, "finished")
    async with service(stage, nats) as told:
        await publish_work(stage, "a", "b", "c")
        await until(lambda: len(started) == 1, "it works")
        told.send_signal(signal.SIGTERM)
        log = Log()
        async with running(pulling(stage.nc, stage.consumer, log)):
            await until(lambda: len(log.ended) == 2, "another gets what waited")
            assert told.returncode is None
            await stage.nc.publish(f"{stage.stream.name}.release")
            assert await told.wait() == 0
            await stage.all_settled()
    assert [msgpack.unpackb(body)["name"] for body in (*finished, *log.ended)] == ["a", "b", "c"]
    assert len(started) == 1


async def test_past_the_drain_limit_what_runs_is_handed_back(nats: NatsServer, stage: Stage) -> None:
    started, finished = await heard(stage, "started"), await heard(stage, "finished")
    async with service(stage, nats, DRAIN_TIMEOUT="0.2") as told:
        await publish_work(stage, "a")
        await until(lambda: len(started) == 1, "it works")
        told.send_signal(signal.SIGTERM)
        assert await told.wait() == 0
    log = Log()
    async with running(pulling(stage.nc, stage.consumer, log)):
        await stage.all_settled()
    assert log.attempts == [2]
    assert finished == []


async def test_a_second_interrupt_ends_it_at_once(nats: NatsServer, stage: Stage) -> None:
    started = await heard(stage, "started")
    async with service(stage, nats, DRAIN_TIMEOUT="600") as told:
        await publish_work(stage, "a")
        await until(lambda: len(started) == 1, "it works")
        told.send_signal(signal.SIGINT)
        await until(lambda: _unbound(stage), "it drains")
        assert told.returncode is None
        told.send_signal(signal.SIGINT)
        async with asyncio.timeout(10):
            assert await told.wait() != 0


async def _unbound(stage: Stage) -> bool:
    return bool((await stage.info())["num_waiting"] == 0)
