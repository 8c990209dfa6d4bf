"""The chat handler as a process: starting before NATS is provisioned, and ending in the middle of a turn."""

import asyncio
import json
import signal
import subprocess
import uuid
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from chat_handler.service import Settings
from handler_core import streams
from handler_core.connection import Connection
from handler_core.contract.chat import CHAT, ChatRequest
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, ask, connection, free_port, nats_server, process, until

SettingsFor = Callable[..., Settings]


class Handler:
    """A running `python -m chat_handler`, as its operator sees it."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.process = process
        self._url = f"http://127.0.0.1:{port}"

    async def get(self, path: str) -> tuple[int, Any]:
        """Status and body; 0 while nothing listens."""
        try:
            async with aiohttp.ClientSession() as session, session.get(self._url + path) as answer:
                return answer.status, await answer.json()
        except aiohttp.ClientConnectionError:
            return 0, None

    async def becomes(self, path: str, status: int) -> None:
        async def condition() -> bool:
            return (await self.get(path))[0] == status

        await until(condition, f"{path} answers {status}")

    async def ended(self) -> int:
        return await asyncio.to_thread(self.process.wait, 20)


def environment(nats_url: str, models: Any, port: int) -> dict[str, str]:
    return {
        "NATS_URL": nats_url, "LLM_URL": models.url, "EMBEDDINGS_URL": models.url, "RERANKER_URL": models.url,
        "HEALTH_HOST": "127.0.0.1", "HEALTH_PORT": str(port), "LOG_FORMAT": "json", "LOG_LEVEL": "info",
    }  # fmt: skip


def logged(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The process's log since the last call; every line of it is JSON."""
    return [json.loads(line) for line in capfd.readouterr().err.splitlines()]


async def test_it_waits_for_its_consumer_and_says_once_that_it_is_missing(
    models: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    with nats_server() as nats:
        port = free_port()
        with process("chat_handler", environment(nats.url, models, port)) as running:
            handler = Handler(running, port)
            await handler.becomes("/readyz", 503)

            async def missing() -> bool:
                return "missing" in str((await handler.get("/readyz"))[1])

            await until(missing, "it knows that its stream is missing")
            assert (await handler.get("/livez"))[0] == 200, "what is missing is not mended by a restart"
            async with connection(nats.url) as nc:
                await streams.apply(Api(nc))
                await handler.becomes("/readyz", 200)
                answered = await ask(nc, CHAT, "ai.chat.request", ChatRequest(query="hello", enable_rag=False))
            assert answered.response.response == "Weekly [1]."
            running.send_signal(signal.SIGTERM)
            assert await handler.ended() == 0
    lines = logged(capfd)
    said = [line["event"] for line in lines]
    # The stream, and perhaps the consumer, if it looks in the moment between the two.
    problems = [line["problem"] for line in lines if line["event"] == "consumer_unusable"]
    assert problems[0] == "stream AI_CHAT is missing"
    assert len(problems) == len(set(problems))
    assert said.count("consumer_ready") == 1
    assert said[-1] == "service_stopped"
    assert {line["level"] for line in lines} <= {"info", "warning"}


async def test_told_to_end_it_finishes_the_turn_it_is_in(nats: NatsServer, nc: Connection, models: Any) -> None:
    go_on, port = asyncio.Event(), free_port()
    models.script = ["begun", go_on, " and finished"]
    request = ChatRequest(query="hello", request_id=uuid.uuid4().hex, enable_rag=False, enable_streaming=True)
    chunks = await nc.subscribe(CHAT.stream_subject(str(request.request_id)))
    with process("chat_handler", environment(nats.url, models, port)) as running:
        handler = Handler(running, port)
        await handler.becomes("/readyz", 200)
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(ask(nc, CHAT, "ai.chat.request", request))
            await chunks.next_msg(10)
            running.send_signal(signal.SIGTERM)
            await handler.becomes("/readyz", 503)
            go_on.set()
        assert await handler.ended() == 0
    answered = asked.result()
    assert answered.text == answered.response.response == "begun and finished"
    assert "restart" not in [event.type for event in answered.events]
    assert (await Api(nc).request("STREAM.INFO.AI_CHAT"))["state"]["messages"] == 0


async def test_a_wrong_setting_ends_it_with_one_line_that_names_it(capfd: pytest.CaptureFixture[str]) -> None:
    with process("chat_handler", {"LLM_URL": "ftp://nowhere"}) as running:
        assert await asyncio.to_thread(running.wait, 20) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("setting LLM_URL: ")
