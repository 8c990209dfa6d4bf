"""The rendered NATS cluster, three real servers of it, asked for a consumer's lag as KEDA asks.

Source: KEDA's `pkg/scalers/nats_jetstream_scaler.go`, 2.20: where `/jsz` tells of a cluster, `/varz` tells its servers
(`connect_urls`, or `cluster.urls` where nothing is advertised), of which the one counts that leads the consumer; it is
asked as `{server}.{endpoint}`. Names are the cluster's; here they stand for ports of this machine, both ways.
"""

import contextlib
import random
import re
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from handler_core import streams
from handler_core.connection import Connection
from handler_core.errors import HandlerError
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, connection, until
from tools.k8s.keda import ACCOUNT, MONITORING
from tools.k8s.permissions import users
from tools.k8s.render import ROOT

NATS = ROOT / "k8s" / "nats"
OVERLAY = ROOT / "k8s" / "overlays" / "nats"
PODS = ("nats-0", "nats-1", "nats-2")
CHAT = streams.CHAT_HANDLER


def quiet_port() -> int:
    """A free port below those that the kernel gives to connections: servers call each other before all of them listen,
    and one such call must not take the port of another."""
    while True:
        with socket.socket() as found, contextlib.suppress(OSError):
            port = random.randrange(20_000, 30_000)
            found.bind(("127.0.0.1", port))
            return port


@dataclass(frozen=True)
class Pod:
    """One server of the cluster."""

    name: str
    monitor: int = field(default_factory=quiet_port)
    route: int = field(default_factory=quiet_port)

    @property
    def host(self) -> str:
        """Its name for the others, as the routes have it."""
        return f"{self.name}.nats-headless:6222"


def configuration(folder: Path, pod: Pod, pods: list[Pod]) -> Path:
    """The files of overlays/nats, with ports and paths of this machine."""
    changes = {
        "nats.conf": {
            "http: 0.0.0.0:8222": f"http: 127.0.0.1:{pod.monitor}",
            "listen: 0.0.0.0:9222": f"listen: 127.0.0.1:{quiet_port()}",
            "pid_file: /run/nats/nats.pid": "",
            "store_dir: /data": "",  # given as an option
        },
        "cluster.conf": {
            "listen: 0.0.0.0:6222": f"listen: 127.0.0.1:{pod.route}",
            **{each.host: f"127.0.0.1:{each.route}" for each in pods},
        },
        "authorization.conf": {},
    }
    for name, pairs in changes.items():
        source = OVERLAY / name if (OVERLAY / name).exists() else NATS / name
        text = source.read_text()
        for old, new in pairs.items():
            assert old in text
            text = text.replace(old, new)
        (folder / name).write_text(text)
    return folder / "nats.conf"


@pytest.fixture(scope="module")
def pods() -> list[Pod]:
    return [Pod(name) for name in PODS]


@pytest.fixture(scope="module")
def servers(pods: list[Pod], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[NatsServer]]:
    started: list[NatsServer] = []
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("OPERATOR_PASSWORD", *(user.variable for user in users())):
            patch.setenv(variable, "secret")
        try:
            for pod in pods:
                folder = tmp_path_factory.mktemp(pod.name)
                patch.setenv("POD_NAME", pod.name)
                config = configuration(folder, pod, pods)
                server = NatsServer(folder, quiet_port(), arguments=("--config", str(config)))
                started.append(server.start())
            yield started
        finally:
            for server in started:
                server.kill()


class Keda:
    """KEDA's look at the cluster through one of its servers, which the endpoint's name stands for."""

    def __init__(self, http: aiohttp.ClientSession, pods: list[Pod], entrance: Pod) -> None:
        self.http, self.pods = http, pods
        self.ports = {MONITORING: entrance.monitor} | {f"{pod.name}.{MONITORING}": pod.monitor for pod in pods}

    async def page(self, host: str, path: str) -> dict[str, Any]:
        async with self.http.get(f"http://127.0.0.1:{self.ports[host]}{path}") as response:
            text = await response.text()
        for pod in self.pods:
            text = text.replace(f"127.0.0.1:{pod.route}", pod.host)
        return dict(yaml.safe_load(text))

    async def look(self, host: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """The cluster, and the consumer, as a server tells."""
        page = await self.page(host, f"/jsz?acc={ACCOUNT}&consumers=true&config=true")
        for account in page.get("account_details") or ():
            for stream in account.get("stream_detail") or () if account["name"] == ACCOUNT else ():
                for consumer in stream.get("consumer_detail") or () if stream["name"] == CHAT.stream else ():
                    if consumer["name"] == CHAT.name:
                        return page["meta_cluster"], consumer
        return page.get("meta_cluster", {}), None

    async def lag(self) -> tuple[str, int] | None:
        """The consumer's leader, and the lag that it tells; None while there is none, which KEDA takes for an error."""
        cluster, _ = await self.look(MONITORING)
        if cluster.get("cluster_size") != len(self.pods):
            return None
        server = await self.page(MONITORING, "/varz")
        assert not server.get("connect_urls"), "clients and KEDA would be told of addresses, not of names"
        for url in server["cluster"]["urls"]:
            name = url.partition(".")[0]
            _, consumer = await self.look(f"{name}.{MONITORING}")
            if consumer and consumer["cluster"].get("leader") == name:
                return name, consumer["num_pending"] + consumer["num_ack_pending"]
        return None


@pytest.fixture
async def looks(pods: list[Pod], servers: list[NatsServer]) -> AsyncIterator[list[Keda]]:
    """One for each server that the endpoint's name may lead to."""
    async with aiohttp.ClientSession() as http:
        found = [Keda(http, pods, pod) for pod in pods]

        async def led() -> bool:
            return all([(await each.look(MONITORING))[0].get("leader") for each in found])

        await until(led, "the servers are a cluster with a leader", timeout=30)
        yield found


@pytest.fixture
async def nc(looks: list[Keda], servers: list[NatsServer]) -> AsyncIterator[Connection]:
    """An operator's connection to the cluster, whose consumer and stream are there three times and empty."""
    [chat] = (stream for stream in streams.STREAMS if stream.name == CHAT.stream)
    async with connection(servers[0].url, nats_user="operator", nats_password="secret") as nc:
        api = Api(nc, timeout=1)

        async def made() -> bool:
            with contextlib.suppress(HandlerError):  # a leader that is new leaves some questions unanswered
                await streams.apply(api, [chat], [CHAT], replicas=3)
                return True
            return False

        await until(made, "the stream and its consumer are made", timeout=30)
        await Api(nc).request(f"STREAM.PURGE.{CHAT.stream}")
        yield nc


async def agreed(looks: list[Keda], lag: int, other_than: str = "") -> str:
    """Wait until each server leads to one leader, another one than this, with this lag; gives its name."""
    found: list[tuple[str, int] | None] = []

    async def same() -> bool:
        found[:] = [await each.lag() for each in looks]
        return found[0] is not None and found[0][1] == lag and found[0][0] != other_than and len({*found}) == 1

    await until(same, f"each server leads to a lag of {lag}", timeout=30)
    assert found[0] is not None
    return found[0][0]


def test_the_servers_are_called_as_the_routes_call_them() -> None:
    made = list(yaml.safe_load_all((NATS / "nats.yaml").read_text()))
    [stateful_set] = (each for each in made if each["kind"] == "StatefulSet")
    replicas = yaml.safe_load((OVERLAY / "stateful-set.yaml").read_text())["spec"]["replicas"]
    names = [f"{stateful_set['metadata']['name']}-{number}" for number in range(replicas)]
    routes = re.findall(r"nats://(\S+)\.(\S+):6222", (OVERLAY / "cluster.conf").read_text())
    assert routes == [(name, stateful_set["spec"]["serviceName"]) for name in names]
    assert MONITORING.startswith(f"{stateful_set['spec']['serviceName']}.")


@pytest.mark.timeout(120)
async def test_the_lag_is_found_at_its_leader_through_any_server_and_also_when_another_leads(
    looks: list[Keda], nc: Connection
) -> None:
    for number in range(3):
        await Api(nc).publish("ai.chat.request", f'{{"query": "{number}"}}'.encode(), {})
    first = await agreed(looks, 3)
    await Api(nc).request(f"CONSUMER.LEADER.STEPDOWN.{CHAT.stream}.{CHAT.name}")
    await agreed(looks, 3, other_than=first)
