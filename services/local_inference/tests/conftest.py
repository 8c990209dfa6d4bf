"""A model loaded once for the run, and clients of servers around it."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from local_inference.app import create_app
from local_inference.echo import Echo
from local_inference.engine import Engine, MiniLM
from local_inference.faults import Faults
from local_inference.settings import EngineName, Settings

# Read when numpy is first imported: beside other tests, more threads only wait for one another.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

Client = TestClient[Any, Any]
Serve = Callable[..., Awaitable[Client]]


@pytest.fixture(scope="session")
def audio() -> Path:
    """The folder with the sample audio."""
    return Path(__file__).parents[3] / "tests" / "audio"


@pytest.fixture(scope="session")
def minilm() -> Iterator[MiniLM]:
    engine = MiniLM()
    asyncio.run(engine.start())
    yield engine
    engine.close()


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start a server around an engine (echo by default) and hand back its client."""
    async with AsyncExitStack() as stack:

        async def start(
            engine: Engine | None = None,
            faults: Faults | None = None,
            name: EngineName = EngineName.MINILM,
            **settings: Any,
        ) -> Client:
            # The name decides on speech alone: real unless it is echo.
            made = Settings(engine=name, faults=faults or Faults(), **settings)
            app = create_app(made, engine or Echo(dimensions=8, tokens=5))
            return await stack.enter_async_context(TestClient(TestServer(app)))

        yield start
