"""What the library's tests share: one real NATS server a process, and connections to it."""

from collections.abc import AsyncIterator, Iterator

import pytest

from handler_core.connection import Connection
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, connection, nats_server


@pytest.fixture(scope="session")
def nats() -> Iterator[NatsServer]:
    """A real NATS server with JetStream; every pytest-xdist worker has its own."""
    with nats_server() as server:
        yield server


@pytest.fixture
async def nc(nats: NatsServer) -> AsyncIterator[Connection]:
    """A connection to `nats`."""
    async with connection(nats.url) as connected:
        yield connected


@pytest.fixture
async def api(nc: Connection) -> Api:
    """The JetStream API of `nats`, from which every stream has been removed."""
    api = Api(nc)
    for name in (await api.request("STREAM.NAMES"))["streams"] or ():
        await api.request(f"STREAM.DELETE.{name}")
    return api
