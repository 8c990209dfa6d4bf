"""What the library's tests share: one real NATS server a process, and connections to it."""

from collections.abc import AsyncIterator, Iterator

import pytest

from handler_core.connection import Connection
from handler_core.jetstream import Api
from handler_core.streams import Stream, apply
from handler_core.testing import NatsServer, connection, nats_server
from handler_core.testing_milvus import milvus_lite_server
from handler_core.vectors import VectorStore


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


# A stream that stays: with its last stream the server removes its own folder, and a stream that is created in that
# moment is refused (10049 or 10077).
_STAYS = Stream("STAYS", ("stays",), retention="limits", max_bytes=1024, max_age=60)


@pytest.fixture
async def api(nc: Connection) -> Api:
    """The JetStream API of `nats`, from which every stream but `STAYS` has been removed."""
    api = Api(nc)
    await apply(api, [_STAYS], [])
    for name in (await api.request("STREAM.NAMES"))["streams"]:
        if name != _STAYS.name:
            await api.request(f"STREAM.DELETE.{name}")
    return api


@pytest.fixture(scope="session")
def milvus_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Milvus Lite server; every pytest-xdist worker that needs one has its own."""
    with milvus_lite_server(tmp_path_factory.mktemp("milvus")) as uri:
        yield uri


@pytest.fixture
async def store(milvus_uri: str) -> AsyncIterator[VectorStore]:
    """A vector store on `milvus_uri`."""
    async with VectorStore(milvus_uri) as opened:
        yield opened
