"""What an operator and a user do to a turn that runs in real `python -m chat_handler` processes."""

import contextlib
import dataclasses
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Iterator

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from handler_core import streams
from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.contract.answer import StreamEvent
from handler_core.contract.chat import CHAT, ChatRequest, ChatResponse
from handler_core.contract.control import CANCEL_SUBJECT, CancelRequest
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, connection, free_port, nats_server, process, stored, until
from local_inference.accounting import STATS
from local_inference.app import create_app
from local_inference.echo import Echo
from local_inference.faults import Fault, Faults
from local_inference.settings import Settings

SOON = dataclasses.replace(streams.CHAT_HANDLER, ack_wait=2.0)
"""A takeover that takes less time than a user's patience; workers heed what the server's consumer says."""
SLOWLY = Faults(chat=Fault(token_delay_ms=60_000))
"""One token, and then hardly any."""

Start = Callable[[], "subprocess.Popen[bytes]"]

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def nats() -> Iterator[NatsServer]:
    with nats_server() as server:
        yield server


@pytest.fixture
async def nc(nats: NatsServer) -> AsyncIterator[Connection]:
    async with connection(nats.url) as nc:
        await streams.apply(Api(nc), consumers=[SOON])
        yield nc


@pytest.fixture
async def models() -> AsyncIterator[TestServer]:
    app = create_app(Settings(log_level="error", faults=SLOWLY), Echo(dimensions=8, tokens=5))
    server = TestServer(app)
    async with server:
        yield server


@pytest.fixture
def ports() -> list[int]:
    """Filled with the health port of each worker that `start` starts."""
    return []


@pytest.fixture
def start(nats: NatsServer, models: TestServer, ports: list[int]) -> Iterator[Start]:
    """Starts a worker, ended with the test."""
    with contextlib.ExitStack() as stack:

        def start() -> "subprocess.Popen[bytes]":
            ports.append(free_port())
            environment = {
                "NATS_URL": nats.url, "LLM_URL": str(models.make_url("")), "LOG_FORMAT": "json",
                "HEALTH_HOST": "127.0.0.1", "HEALTH_PORT": str(ports[-1]),
            }  # fmt: skip
            return stack.enter_context(process("chat_handler", environment))

        yield start


async def ready(port: int) -> bool:
    url = f"http://127.0.0.1:{port}/readyz"
    try:
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return answer.status == 200
    except aiohttp.ClientConnectionError:
        return False


async def test_a_turn_canceled_after_its_worker_was_killed_is_not_run_by_the_next(
    nc: Connection, models: TestServer, start: Start, ports: list[int]
) -> None:
    request = ChatRequest(query="x", request_id=uuid.uuid4().hex, enable_rag=False, enable_streaming=True)
    subject = f"evt.chat.response.stream.{request.request_id}"

    async def begun() -> bool:
        return bool(await stored(nc, "AI_EVENTS", subject))

    first = start()
    await Api(nc).publish("ai.chat.request", encode(request), {})
    await until(begun, "the answer is under way")
    first.kill()
    first.wait(10)
    await until(lambda: models.app[STATS].chat.aborted == 1, "the upstream saw the call end")
    reason = encode(CancelRequest(reason="enough"))
    await Api(nc).publish(CANCEL_SUBJECT.format(request_id=request.request_id), reason, {})
    responses = await nc.subscribe(CHAT.response_subject(str(request.request_id)))
    start()
    await until(lambda: ready(ports[-1]), "the next worker is ready")
    response = decode((await responses.next_msg(30)).data, ChatResponse)

    assert response.error is not None
    assert (response.error.type, response.error.message) == ("canceled", "canceled: enough")
    assert models.app[STATS].chat.requests == 1, "the upstream is not called again"

    async def settled() -> bool:
        return int((await Api(nc).request("STREAM.INFO.AI_CHAT"))["state"]["messages"]) == 0

    await until(settled, "the message is settled")
    events = [decode(event.data, StreamEvent) for event in await stored(nc, "AI_EVENTS", subject)]
    assert [event.type for event in events] == ["chunk", "restart", "error"]
    assert await stored(nc, "DLQ", "dlq.>") == []
