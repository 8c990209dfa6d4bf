"""What surrounds the live sessions' worker: NATS, and an endpoint that understands the words of `testing_speech`."""

import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from aiohttp.test_utils import TestServer

from handler_core import streams
from handler_core.connection import Connection
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, connection, nats_server
from handler_core.testing_speech import Ears, Speaker
from stt_module.settings import Settings


@pytest.fixture(scope="session")
def nats() -> Iterator[NatsServer]:
    with nats_server() as server:
        yield server


@pytest.fixture
async def nc(nats: NatsServer) -> AsyncIterator[Connection]:
    """A connection to a server on which everything is declared, and no session waits."""
    async with connection(nats.url) as nc:
        await streams.apply(Api(nc))
        for name in ("AI_STT", "AI_STT_SESSIONS", "AI_VOICE", "AI_EVENTS"):
            await Api(nc).request(f"STREAM.PURGE.{name}")
        yield nc


class Endpoint(Ears):
    """The transcription endpoint, and where it is."""

    url: str = ""


@pytest.fixture
async def ears() -> AsyncIterator[Endpoint]:
    ears = Endpoint()
    async with TestServer(ears.app()) as server:
        ears.url = str(server.make_url("")).rstrip("/")
        yield ears


SettingsFor = Callable[..., Settings]


@pytest.fixture
def settings(nats: NatsServer, ears: Endpoint) -> SettingsFor:
    """Settings of a worker of its own, changed as the arguments say."""

    def make(**changes: Any) -> Settings:
        own = {"nats_url": nats.url, "stt_url": ears.url, "health_host": "127.0.0.1", "health_port": 0}
        return Settings(**{**own, "partials": False, **changes})

    return make


SpeakerFor = Callable[..., Any]


@pytest.fixture
def speaker(nc: Connection) -> SpeakerFor:
    """Makes a speaker in a session of its own, who listens."""

    async def make(**options: Any) -> Speaker:
        return await Speaker(nc, f"s{uuid.uuid4().hex[:10]}", **options).listen()

    return make
