"""The one load for all candidates, and the one clock.

A stream holds the messages once; every round gives a candidate a fresh durable consumer that starts so many messages
before the stream's end, so that all read the very same bytes. A round is timed from the moment 5 % of the results
have come (by then process and consumer have started, whoever they are) until the server holds the last ack, and
counts only if each message gave exactly one result, nothing was redelivered, and a sample of the results is right.
"""

import asyncio
import contextlib
import math
import random
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgpack
import nats
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StreamConfig
from nats.js.errors import NotFoundError

from benchmarks.loop.counter import ResultCounter
from benchmarks.loop.messages import RESULT_SUBJECT, STREAM, WORK_SUBJECT, Work, compute
from benchmarks.processes import BenchmarkError, end_of, running

WARM_UP = 0.05
"""The share of a round's messages that is not timed."""
STALL = 30.0
"""Seconds without a single result after which a round is given up."""
ACK_WAIT = 30.0
USERS = 100
PUBLISH_WINDOW = 2_000


@dataclass(frozen=True)
class Candidate:
    """Something that handles the messages."""

    name: str
    """Its key in `loop.json`."""
    label: str
    command: tuple[str, ...]
    share: float
    """The share of the stored messages that it handles in a round: slow ones get fewer, and take a few seconds as
    well."""
    env: Mapping[str, str] = field(default_factory=dict)


class Load:
    """A filled stream, and the means to measure a candidate on it."""

    def __init__(self, url: str, js: JetStreamContext, counter: ResultCounter, folder: Path, works: list[Work]) -> None:
        self._url = url
        self._js = js
        self._counter = counter
        self._folder = folder
        self._works = {work.request_id: work for work in works}

    async def round(self, candidate: Candidate) -> float:
        """Let a candidate handle its share; gives messages a second.

        Raises:
            BenchmarkError: it ended, stalled, or did not do the work as told.
        """
        total = len(self._works)
        messages = math.ceil(total * candidate.share)
        await self._fresh_consumer(candidate.name, start=total - messages + 1)
        self._counter.expect(messages, warm_up=math.ceil(messages * WARM_UP))
        log = self._folder / f"{candidate.name}.log"
        env = {"NATS_URL": self._url, "BENCH_CONSUMER": candidate.name, **candidate.env}
        async with running(candidate.command, env, log) as process:
            await self._all_results(candidate, process, log)
            await self._all_acks(candidate)
            ended = time.perf_counter()
        self._check(candidate, messages)
        assert self._counter.warm is not None
        started, before = self._counter.warm
        return (messages - before) / (ended - started)

    async def _fresh_consumer(self, name: str, start: int) -> None:
        with contextlib.suppress(NotFoundError):
            await self._js.delete_consumer(STREAM, name)
        config = ConsumerConfig(
            durable_name=name,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=start,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT,
            max_ack_pending=100_000,
            max_deliver=-1,
            filter_subject=WORK_SUBJECT,
        )
        await self._js.add_consumer(STREAM, config)

    async def _all_results(self, candidate: Candidate, process: Process, log: Path) -> None:
        ended = asyncio.ensure_future(process.wait())
        done = asyncio.ensure_future(self._counter.done.wait())
        try:
            seen = -1
            while not done.done():
                if ended.done():
                    raise BenchmarkError(f"{candidate.label} ended with {process.returncode}:\n{end_of(log)}")
                if self._counter.count == seen:
                    raise BenchmarkError(f"{candidate.label} stalled after {seen} results:\n{end_of(log)}")
                seen = self._counter.count
                await asyncio.wait((ended, done), timeout=STALL, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            done.cancel()

    async def _all_acks(self, candidate: Candidate) -> None:
        """Wait for the last ack. Asked only once all results are there, so that asking costs a round nothing."""
        stalled = time.monotonic() + STALL
        while True:
            info = await self._js.consumer_info(STREAM, candidate.name)
            if not info.num_pending and not info.num_ack_pending:
                break
            if time.monotonic() > stalled:
                raise BenchmarkError(f"{candidate.label} left {info.num_ack_pending} messages without an ack")
            await asyncio.sleep(0.002)
        if info.num_redelivered:
            raise BenchmarkError(f"{candidate.label} had {info.num_redelivered} messages redelivered")

    def _check(self, candidate: Candidate, messages: int) -> None:
        if self._counter.count != messages:
            raise BenchmarkError(f"{candidate.label} gave {self._counter.count} results for {messages} messages")
        checked = 0
        for subject, headers, body in self._counter.sample():
            result = msgpack.unpackb(body)
            work = self._works[result["request_id"]]
            expected = compute(work)
            right = (
                subject == f"{RESULT_SUBJECT}.{work.user_id}"
                and result["length"] == expected.length
                and math.isclose(result["total"], expected.total)
                and f"traceparent:00-{work.request_id}-".encode() in headers.replace(b" ", b"")
            )
            if not right:
                raise BenchmarkError(f"{candidate.label} gave a wrong result: {subject} {headers!r} {result}")
            checked += 1
        if not checked:
            raise BenchmarkError(f"{candidate.label} gave no result that could be checked")


@contextlib.asynccontextmanager
async def load(url: str, folder: Path, messages: int) -> AsyncIterator[Load]:
    """Fill the stream with so many messages; candidates' output goes to files in `folder`."""
    connection = await nats.connect(url)
    counter = await ResultCounter.connect(url)
    try:
        js = connection.jetstream()
        await js.add_stream(StreamConfig(name=STREAM, subjects=[WORK_SUBJECT]))
        works = _works(messages)
        for number, work in enumerate(works, start=1):
            # The request's id is its trace's id too, so that a result shows whether it carries the right trace.
            headers = {"traceparent": f"00-{work.request_id}-{number:016x}-01"}
            body = msgpack.packb(work.model_dump())
            if number % PUBLISH_WINDOW and number < messages:
                await connection.publish(WORK_SUBJECT, body, headers=headers)
            else:
                await js.publish(WORK_SUBJECT, body, headers=headers, timeout=STALL)
        stored = (await js.stream_info(STREAM)).state.messages
        if stored != messages:
            raise BenchmarkError(f"the stream holds {stored} of {messages} messages")
        yield Load(url, js, counter, folder, works)
    finally:
        counter.close()
        await connection.close()


def _works(messages: int) -> list[Work]:
    chance = random.Random(7)
    return [
        Work(
            request_id=f"{chance.getrandbits(128) | 1:032x}",
            user_id=f"user-{number % USERS}",
            text=f"{chance.getrandbits(800):0200x}",
            values=[chance.random() for _ in range(8)],
        )
        for number in range(messages)
    ]
