"""What surrounds a voice assistant: NATS, Milvus Lite with a few passages, and endpoints that are fake where a test
needs them ill."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from handler_core import streams
from handler_core.connection import Connection
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, connection, nats_server
from handler_core.testing_milvus import milvus_lite_server
from handler_core.testing_voice import FakeModels, fake_models
from handler_core.vectors import Row, VectorStore
from local_inference.app import create_app
from local_inference.echo import Echo
from local_inference.settings import Settings as ModelSettings
from voice_assistant.service import Settings

ANSWER = ["Water it once a week", " [1]. ", "In winter a cactus ", "needs much less. ", "Mind the pot."]


@pytest.fixture(scope="session")
def nats() -> Iterator[NatsServer]:
    with nats_server() as server:
        yield server


@pytest.fixture
async def nc(nats: NatsServer) -> AsyncIterator[Connection]:
    """A connection to a server on which everything is declared and nothing is queued."""
    async with connection(nats.url) as nc:
        await streams.apply(Api(nc))
        for name in ("AI_VOICE", "AI_EVENTS", "AI_CONTROL", "KV_AI_SESSIONS", "DLQ"):
            await Api(nc).request(f"STREAM.PURGE.{name}")
        yield nc


@pytest.fixture(scope="session")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Milvus Lite with a collection `plants` of one passage."""
    with milvus_lite_server(tmp_path_factory.mktemp("milvus")) as uri:
        asyncio.run(_fill(uri))
        yield uri


async def _fill(uri: str) -> None:
    text = "A cactus needs water, weekly at most."
    [vector] = (await Echo(dimensions=16).embed([text])).vectors
    async with VectorStore(uri) as store:
        await store.ensure_collection("plants", 16)
        await store.upsert("plants", [Row("p1", text, "plants.md", "hash", {}, list(vector))])


@pytest.fixture
async def models() -> AsyncIterator[FakeModels]:
    """Embeddings and reranker of `local_inference`, the others fake."""
    app = create_app(ModelSettings(log_level="error"), Echo(dimensions=16))
    async with fake_models(app) as models:
        models.llm.script = list(ANSWER)
        yield models


SettingsFor = Callable[..., Settings]


@pytest.fixture
def settings(nats: NatsServer, models: FakeModels) -> SettingsFor:
    """Settings of a service of its own, changed as the arguments say. Milvus is not there unless they name it."""

    def make(**changes: Any) -> Settings:
        names = ("llm_url", "embeddings_url", "reranker_url", "stt_url", "tts_url")
        own = {"nats_url": nats.url, "health_host": "127.0.0.1", "health_port": 0, "collection_name": "plants"}
        nowhere = {"milvus_uri": "http://127.0.0.1:9", "milvus_timeout": 0.3}
        return Settings(**{**dict.fromkeys(names, models.url), **own, **nowhere, **changes})

    return make
