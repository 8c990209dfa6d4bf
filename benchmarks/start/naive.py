"""The chat handler as it is usually written: one module, everything imported at the top.

It works (embed, search, prompt, answer, ack) and imports the packages that `chat_handler` uses, pymilvus for its search
as the documentation of Milvus has it, and no others.
"""

import asyncio
import contextlib
import signal
from typing import Any

import aiohttp
import msgpack
import nats
import stamina
import structlog
import uvloop
from aiohttp import web
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeoutError
from pydantic import BaseModel
from pydantic_settings import BaseSettings
from pymilvus import AsyncMilvusClient

log = structlog.get_logger()


class Settings(BaseSettings):
    nats_url: str = "nats://127.0.0.1:4222"
    llm_url: str = "http://127.0.0.1:8000"
    llm_model: str = "default"
    embeddings_url: str = "http://127.0.0.1:8001"
    milvus_uri: str = "http://127.0.0.1:19530"
    collection_name: str = "documents"
    health_host: str = "0.0.0.0"
    health_port: int = 8080


class Question(BaseModel):
    request_id: str
    query: str
    top_k: int = 5


class Handler:
    def __init__(self, settings: Settings, connection: Client, session: aiohttp.ClientSession) -> None:
        self.settings = settings
        self.connection = connection
        self.session = session
        self.milvus: AsyncMilvusClient | None = None

    @stamina.retry(on=aiohttp.ClientError, attempts=3)
    async def post(self, url: str, body: dict[str, Any]) -> Any:
        async with self.session.post(url, json=body) as response:
            response.raise_for_status()
            return await response.json()

    async def search(self, query: str, top_k: int) -> list[str]:
        answer = await self.post(f"{self.settings.embeddings_url}/v1/embeddings", {"input": query, "model": "default"})
        if self.milvus is None:
            self.milvus = AsyncMilvusClient(self.settings.milvus_uri)
        vector = answer["data"][0]["embedding"]
        found = await self.milvus.search(self.settings.collection_name, [vector], limit=top_k, output_fields=["text"])
        return [hit["entity"]["text"] for hit in found[0]]

    async def handle(self, message: Msg) -> None:
        question = Question.model_validate(msgpack.unpackb(message.data))
        sources = await self.search(question.query, question.top_k)
        system = "Answer from these sources:\n" + "\n".join(sources)
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question.query}]
        body = {"model": self.settings.llm_model, "messages": messages}
        answer = await self.post(f"{self.settings.llm_url}/v1/chat/completions", body)
        response = {"request_id": question.request_id, "response": answer["choices"][0]["message"]["content"]}
        await self.connection.publish(f"evt.chat.response.{question.request_id}", msgpack.packb(response))
        await message.ack()


async def serve_health(settings: Settings, ready: asyncio.Event) -> web.AppRunner:
    async def readyz(_: web.Request) -> web.Response:
        return web.Response(status=200 if ready.is_set() else 503)

    app = web.Application()
    app.router.add_get("/readyz", readyz)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, settings.health_host, settings.health_port).start()
    return runner


async def main() -> None:
    settings = Settings()
    ready = asyncio.Event()
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    health = await serve_health(settings, ready)
    connection = await nats.connect(settings.nats_url)
    async with aiohttp.ClientSession() as session:
        handler = Handler(settings, connection, session)
        subscription = await connection.jetstream().pull_subscribe_bind("chat_handler", stream="AI_CHAT")
        ready.set()
        log.info("ready")
        try:
            while True:
                with contextlib.suppress(NatsTimeoutError):
                    for message in await subscription.fetch(1, timeout=5):
                        await handler.handle(message)
        finally:
            await connection.close()
            await health.cleanup()


if __name__ == "__main__":
    with contextlib.suppress(asyncio.CancelledError):
        uvloop.run(main())
