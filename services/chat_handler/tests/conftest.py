"""What surrounds a chat handler: NATS, Milvus Lite with a few passages, and models that record what they are asked."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from aiohttp.typedefs import Handler

from chat_handler.service import Settings
from handler_core import streams
from handler_core.connection import Connection
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, connection, nats_server
from handler_core.testing_milvus import milvus_lite_server
from handler_core.vectors import Row, VectorStore
from local_inference.app import create_app
from local_inference.echo import Echo
from local_inference.settings import Settings as ModelSettings

PASSAGES = {
    "near": "Nothing to the point.",
    "middle": "A cactus is a plant.",
    "far": "A cactus needs water, weekly at most.",
}
"""By falling similarity to the question, and by rising number of its words."""


@pytest.fixture(scope="session")
def nats() -> Iterator[NatsServer]:
    with nats_server() as server:
        yield server


@pytest.fixture
async def nc(nats: NatsServer) -> AsyncIterator[Connection]:
    """A connection to a server on which everything is declared and nothing is queued."""
    async with connection(nats.url) as nc:
        await streams.apply(Api(nc))
        for name in ("AI_CHAT", "AI_EVENTS", "AI_CONTROL", "KV_AI_SESSIONS", "DLQ"):
            await Api(nc).request(f"STREAM.PURGE.{name}")
        yield nc


@pytest.fixture(scope="session")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Milvus Lite with a collection `plants`, where `cactus water weekly` finds the passages in their order."""
    with milvus_lite_server(tmp_path_factory.mktemp("milvus")) as uri:
        asyncio.run(_fill(uri))
        yield uri


async def _fill(uri: str) -> None:
    towards = (await Echo(dimensions=16).embed(["cactus water weekly"])).vectors[0]
    async with VectorStore(uri) as store:
        await store.ensure_collection("plants", 16)
        rows = []
        for turned, (name, text) in enumerate(PASSAGES.items()):
            vector = [-x for x in towards[: 3 * turned]] + towards[3 * turned :]
            rows.append(Row(name, text, f"{name}.md", "hash", {"rank": turned}, vector))
        await store.upsert("plants", rows)


@dataclass
class Models:
    """Embeddings and reranker of `local_inference`, and an LLM that says `script`.

    In the script, strings are words of the answer, and an event is waited for before the next.
    """

    url: str = ""
    script: list[str | asyncio.Event] = field(default_factory=lambda: ["Weekly", " [", "1", "]", "."])
    refusals: int = 0
    """How many of the next calls of the LLM fail with 503."""
    seen: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    """Path, headers and body of every call."""
    aborted: asyncio.Event = field(default_factory=asyncio.Event)

    def bodies(self, path: str) -> list[Any]:
        return [body for called, _, body in self.seen if called == path]

    async def complete(self, request: web.Request) -> web.StreamResponse:
        if self.refusals:
            self.refusals -= 1
            return web.json_response({"error": {"message": "no replica is up"}}, status=503)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            for step in self.script:
                if isinstance(step, asyncio.Event):
                    await step.wait()
                else:
                    await self._say(response, {"content": step}, None)
            await self._say(response, {}, "stop")
            await response.write(b"data: [DONE]\n\n")
        except asyncio.CancelledError:
            self.aborted.set()
            raise
        return response

    @staticmethod
    async def _say(response: web.StreamResponse, delta: dict[str, str], finish_reason: str | None) -> None:
        usage = {"prompt_tokens": 7, "completion_tokens": 5}
        chunk = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}], "usage": usage}
        await response.write(f"data: {json.dumps(chunk)}\n\n".encode())

    @web.middleware
    async def record(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append((request.path, headers, json.loads(await request.read())))
        return await (self.complete(request) if request.path.endswith("/chat/completions") else handler(request))


@pytest.fixture
async def models() -> AsyncIterator[Models]:
    models = Models()
    app = create_app(ModelSettings(log_level="error"), Echo(dimensions=16))
    app.middlewares.insert(0, models.record)
    async with TestServer(app) as server:
        models.url = str(server.make_url("")).rstrip("/")
        yield models


SettingsFor = Callable[..., Settings]


@pytest.fixture
def settings(nats: NatsServer, models: Models) -> SettingsFor:
    """Settings of a handler of its own, changed as the arguments say. Milvus is not there unless they name it."""

    def make(**changes: Any) -> Settings:
        urls = dict.fromkeys(("llm_url", "embeddings_url", "reranker_url"), models.url)
        own = {"nats_url": nats.url, "health_host": "127.0.0.1", "health_port": 0, "collection_name": "plants"}
        return Settings(**{**urls, **own, "milvus_uri": "http://127.0.0.1:9", "milvus_timeout": 0.3, **changes})

    return make
