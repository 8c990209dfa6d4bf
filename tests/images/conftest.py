"""What tests of images share: the engine that runs them, and NATS."""

import asyncio
from collections.abc import Callable, Iterator

import pytest

from handler_core import streams
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, connection, nats_server
from handler_core.testing_images import Engine, NoEngine


@pytest.fixture(scope="session")
def engine() -> Engine:
    try:
        return Engine.find()
    except NoEngine as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def image_of(engine: Engine) -> Callable[[str], str]:
    """The name of a service's image; without it, the test is skipped."""

    def find(service: str) -> str:
        try:
            return engine.built(service)
        except NoEngine as error:
            pytest.skip(str(error))

    return find


@pytest.fixture(scope="session")
def nats() -> Iterator[NatsServer]:
    with nats_server() as server:
        asyncio.run(_provision(server.url))
        yield server


async def _provision(url: str) -> None:
    async with connection(url) as nc:
        await streams.apply(Api(nc))
