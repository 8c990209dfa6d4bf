"""What the consumer's tests share."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from typing import Any

import pytest
import structlog

from handler_core.connection import Connection
from handler_core.testing import NatsServer

from .proxy import Proxy, proxied
from .stage import Stage, make_stage


@pytest.fixture
async def stage(nc: Connection) -> Stage:
    """A work queue and its consumer, `ack_wait` 10 s."""
    return await make_stage(nc)


@pytest.fixture
def staged(nc: Connection) -> Callable[..., Awaitable[Stage]]:
    """Makes a stage whose consumer has the fields given."""

    async def make(**consumer: object) -> Stage:
        return await make_stage(nc, **consumer)

    return make


@pytest.fixture
async def proxy(nats: NatsServer) -> AsyncIterator[Proxy]:
    """A proxy before `nats`."""
    async with proxied(nats.port) as proxy:
        yield proxy


@pytest.fixture
def logged() -> Iterator[list[MutableMapping[str, Any]]]:
    """The log entries of the test, as dicts."""
    with structlog.testing.capture_logs() as entries:
        yield entries
