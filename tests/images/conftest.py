"""What tests of images share: the engine that runs them, NATS, and what else a service needs to do its job.

A missing image skips its tests, or, where `REQUIRE_IMAGES` is set, as `make image-test` sets it, fails them.
"""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
import pytest

from handler_core import streams
from handler_core.connection import Connection
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, connection, free_port, nats_server, process
from handler_core.testing_images import CATALOGUE, LOCAL_INFERENCE, Container, Engine, NoEngine, answers
from handler_core.testing_milvus import milvus_lite_server
from handler_core.testing_voice import FakeModels, fake_models
from handler_core.vectors import Row, VectorStore

PASSAGE = "A cactus needs water, weekly at most."
DEAD_LETTERS = "A dead letter is a message that could not be handled: after ten tries it goes to the stream DLQ."


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.timeout(180))


def without(error: NoEngine) -> NoReturn:
    if os.environ.get("REQUIRE_IMAGES"):
        pytest.fail(str(error))
    pytest.skip(str(error))


@pytest.fixture(scope="session")
def engine() -> Engine:
    try:
        return Engine.find()
    except NoEngine as error:
        without(error)


@pytest.fixture(scope="session")
def image_of(engine: Engine) -> Callable[[str], str]:
    """The name of a service's image, or the base's."""

    def find(service: str) -> str:
        try:
            return engine.built(service)
        except NoEngine as error:
            without(error)

    return find


@pytest.fixture
async def nats() -> AsyncIterator[NatsServer]:
    """A server of the test's own, on which everything is declared."""
    with nats_server() as server:
        async with connection(server.url) as nc:
            await streams.apply(Api(nc))
        yield server


@pytest.fixture
async def nc(nats: NatsServer) -> AsyncIterator[Connection]:
    async with connection(nats.url) as nc:
        yield nc


Start = Callable[..., AbstractContextManager[Container]]


@pytest.fixture
def start(engine: Engine, image_of: Callable[[str], str], nats: NatsServer, tmp_path: Path) -> Start:
    """Starts a service's image: `start(service, *arguments, options=(), **environment)`."""

    def begin(service: str, *arguments: str, options: tuple[str, ...] = (), **environment: str) -> Any:
        image_of(service)
        variables = {} if service == LOCAL_INFERENCE else {"NATS_URL": nats.url}
        if service == "pipeline_bridge":
            options = (*options, *catalogue(tmp_path))
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return engine.service(service, {**variables, **environment}, *arguments, options=options, **pipes)

    return begin


def catalogue(folder: Path) -> tuple[str, ...]:
    """Options by which the bridge has a catalogue, and whatever else is in the folder."""
    folder.chmod(0o755)
    (folder / "pipelines.yaml").write_text(CATALOGUE)
    return ("--volume", f"{folder}:/etc/pipelines:ro,z")


@pytest.fixture
async def fakes() -> AsyncIterator[FakeModels]:
    """A language model, ears and a voice that wait when they are told to."""
    async with fake_models() as models:
        yield models


@pytest.fixture(scope="session")
def models() -> Iterator[str]:
    """Models that understand and speak."""
    port = free_port()
    with process("local_inference", {"HOST": "127.0.0.1", "PORT": str(port), "LOG_LEVEL": "error"}):
        url = f"http://127.0.0.1:{port}"
        asyncio.run(answers(f"{url}/health"))
        yield url


@pytest.fixture(scope="session")
def milvus(tmp_path_factory: pytest.TempPathFactory, models: str) -> Iterator[str]:
    """Milvus Lite with two passages."""
    with milvus_lite_server(tmp_path_factory.mktemp("milvus")) as uri:
        asyncio.run(_fill(uri, models))
        yield uri


async def _fill(uri: str, models: str) -> None:
    texts = [PASSAGE, DEAD_LETTERS]
    async with aiohttp.ClientSession() as session, session.post(f"{models}/embed", json={"inputs": texts}) as answer:
        vectors = await answer.json()
    async with VectorStore(uri) as store:
        await store.ensure_collection("documents", len(vectors[0]))
        rows = [
            Row(name, text, f"{name}.md", "hash", {"rank": rank}, vector)
            for rank, (name, text, vector) in enumerate(zip(["cactus", "letters"], texts, vectors, strict=True), 1)
        ]
        await store.upsert("documents", rows)
