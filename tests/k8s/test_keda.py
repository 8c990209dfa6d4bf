"""The rendered ScaledObjects on a real NATS server's monitoring port, asked and read as KEDA does.

Source: KEDA's `pkg/scalers/nats_jetstream_scaler.go`, 2.20: `/jsz?acc=…&config=true&consumers=true`, the account by
its name, the stream, the consumer, `num_pending` + `num_ack_pending`; active where that is more than the activation
threshold, and an error where the consumer is missing.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest
import yaml

from handler_core import streams
from handler_core.connection import Connection
from handler_core.consumer import PullConsumer
from handler_core.delivery import Delivery
from handler_core.jetstream import Api
from handler_core.limits import Limits
from handler_core.testing import NatsServer, connection, free_port, nats_server, until
from tools.k8s.keda import MONITORING
from tools.k8s.render import ROOT
from tools.k8s.scaling import SCALINGS, Scaling
from tools.scale_sim.formulas import metric_replicas

PUBLISHED = {
    "chat_handler": "ai.chat.user.alice.message",
    "voice_assistant": "ai.voice.request",
    "tts_module": "ai.voice.tts.request.s{number}",
    "stt_module": "ai.voice.stream.s{number}",  # its server makes the session's ticket, which is the lag
    "pipeline_bridge": "ai.pipeline.trigger",
}


class MissingConsumer(Exception):
    """The monitoring port knows no such consumer."""


class Trigger:
    """The one trigger of a rendered ScaledObject; `endpoint` stands for that of the cluster."""

    def __init__(self, service: str, endpoint: str, **changed: str) -> None:
        path = ROOT / "k8s" / "components" / "keda" / service / "scaled-object.yaml"
        self.spec: dict[str, Any] = yaml.safe_load(path.read_text())["spec"]
        [trigger] = self.spec["triggers"]
        assert trigger["metadata"]["natsServerMonitoringEndpoint"] == MONITORING
        self.metadata: dict[str, str] = {**trigger["metadata"], "natsServerMonitoringEndpoint": endpoint, **changed}

    @property
    def url(self) -> str:
        scheme = "https" if self.metadata["useHttps"] == "true" else "http"
        query = urlencode({"acc": self.metadata["account"], "config": "true", "consumers": "true"})
        return f"{scheme}://{self.metadata['natsServerMonitoringEndpoint']}/jsz?{query}"

    async def lag(self) -> int:
        async with aiohttp.ClientSession() as session, session.get(self.url) as response:
            page = await response.json()
        for account in page.get("account_details", []):
            for stream in account.get("stream_detail", []) if account["name"] == self.metadata["account"] else []:
                for consumer in stream.get("consumer_detail", []) if stream["name"] == self.metadata["stream"] else []:
                    if consumer["name"] == self.metadata["consumer"]:
                        return int(consumer["num_pending"]) + int(consumer["num_ack_pending"])
        raise MissingConsumer(self.metadata["consumer"])

    async def active(self) -> bool:
        return await self.lag() > int(self.metadata["activationLagThreshold"])

    async def reaches(self, lag: int) -> None:
        async def reached() -> bool:
            return await self.lag() == lag

        await until(reached, f"the lag of {self.metadata['consumer']} is {lag}")

    async def replicas(self, current: int) -> int:
        """What the HPA aims at, which KEDA gives the lag as a metric of the type AverageValue."""
        lag, threshold = await self.lag(), int(self.metadata["lagThreshold"])
        least, most = int(self.spec["minReplicaCount"]), int(self.spec["maxReplicaCount"])
        wanted = current if abs(lag / (threshold * current) - 1) <= 0.1 else -(-lag // threshold)
        return max(1, least, min(most, wanted))


@pytest.fixture(scope="module")
def monitoring() -> str:
    """Host and port of the monitoring port of `nats`."""
    return f"127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def nats(monitoring: str) -> Iterator[NatsServer]:
    with nats_server("-m", monitoring.rpartition(":")[2]) as server:
        yield server


@pytest.fixture
async def nc(nats: NatsServer) -> AsyncIterator[Connection]:
    """A connection to a server that has what is declared, and nothing in it."""
    async with connection(nats.url) as nc:
        await streams.apply(Api(nc))
        for scaling in SCALINGS:
            await Api(nc).request(f"STREAM.PURGE.{scaling.consumer.stream}")
        yield nc


async def publish(nc: Connection, scaling: Scaling, numbers: range) -> None:
    for number in numbers:
        await Api(nc).publish(PUBLISHED[scaling.service].format(number=number), b"{}", {})


@asynccontextmanager
async def working(
    nc: Connection, scaling: Scaling, done: asyncio.Semaphore, at_once: int
) -> AsyncIterator[PullConsumer]:
    """A worker of the service's consumer, which ends a message for each release of `done`."""

    async def process(_: Delivery) -> None:
        await done.acquire()

    worker = PullConsumer(nc, scaling.consumer, process, Limits(max_in_flight=at_once))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.stop()
            for _ in range(at_once):
                done.release()


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling.service)
async def test_lag_rises_as_messages_come_stays_as_they_are_taken_and_falls_as_they_are_done(
    nc: Connection, monitoring: str, scaling: Scaling
) -> None:
    trigger = Trigger(scaling.service, monitoring)
    assert (await trigger.lag(), await trigger.active()) == (0, False)

    await publish(nc, scaling, range(1))
    await trigger.reaches(1)
    assert (await trigger.active(), await trigger.replicas(1)) == (True, 1)

    many = 2 * scaling.lag_threshold + 1
    await publish(nc, scaling, range(1, many))
    await trigger.reaches(many)
    assert await trigger.replicas(1) == metric_replicas(many, scaling.lag_threshold, 1) == 3

    done = asyncio.Semaphore(0)
    async with working(nc, scaling, done, at_once=2) as worker:
        await until(lambda: worker.in_flight == 2, "two are taken")
        assert await trigger.lag() == many
        for _ in range(many - 1):
            done.release()
        await trigger.reaches(1)  # nothing waits, and one is in progress
        assert (await trigger.active(), await trigger.replicas(3)) == (True, 1)
        done.release()
        await trigger.reaches(0)
        assert not await trigger.active()


async def test_a_live_session_is_one_however_many_chunks_it_has(nc: Connection, monitoring: str) -> None:
    trigger = Trigger("stt_module", monitoring)
    for _ in range(5):
        await Api(nc).publish("ai.voice.stream.s1", b"{}", {})
    await Api(nc).publish("ai.voice.stream.s2", b"{}", {})
    await trigger.reaches(2)


async def test_a_message_that_waits_for_its_next_attempt_still_counts(nc: Connection, monitoring: str) -> None:
    trigger = Trigger("chat_handler", monitoring)
    await publish(nc, SCALINGS[0], range(1))
    given_back = asyncio.Event()

    async def fail(delivery: Delivery) -> None:
        given_back.set()
        raise RuntimeError("once more")

    worker = PullConsumer(nc, SCALINGS[0].consumer, fail, Limits(retry_base=60.0))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(worker.run())
        await given_back.wait()
        await until(lambda: worker.in_flight == 0, "it is given back")
        worker.stop()
    assert (await trigger.lag(), await trigger.active()) == (1, True)


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling.service)
async def test_a_missing_consumer_is_an_error_until_it_is_provisioned(
    nc: Connection, monitoring: str, scaling: Scaling
) -> None:
    trigger = Trigger(scaling.service, monitoring)
    await publish(nc, scaling, range(3))
    await Api(nc).request(f"CONSUMER.DELETE.{scaling.consumer.stream}.{scaling.consumer.name}")
    with pytest.raises(MissingConsumer):
        await trigger.lag()
    await streams.apply(Api(nc))
    await trigger.reaches(3)


async def test_the_streams_of_another_account_are_found_by_its_name(tmp_path: Path) -> None:
    config = tmp_path / "nats.conf"
    config.write_text('accounts { AI { jetstream: enabled, users: [ { user: "a", password: "a" } ] } }')
    port = free_port()
    with nats_server("--config", str(config), "-m", str(port)) as server:
        async with connection(server.url, nats_user="a", nats_password="a") as nc:
            await streams.apply(Api(nc))
            await publish(nc, SCALINGS[0], range(2))
            await Trigger("chat_handler", f"127.0.0.1:{port}", account="AI").reaches(2)
            with pytest.raises(MissingConsumer):
                await Trigger("chat_handler", f"127.0.0.1:{port}").lag()
