"""A worker dies, or sleeps too long, in the middle of a streamed turn: the next one takes over, and nobody who reads
the answer, live or later, can tell which parts came from whom.

Two real `python -m chat_handler` processes work on one real NATS server; the turns run without retrieval.
"""

import contextlib
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from aiohttp.test_utils import TestServer

from handler_core import streams
from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.contract.answer import StreamEvent
from handler_core.contract.chat import CHAT, ChatRequest, ChatResponse
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, connection, nats_server, stored, text_of, until
from handler_core.testing_workers import Worker, service_process
from local_inference.accounting import FAULTS, STATS
from local_inference.app import create_app
from local_inference.echo import Echo
from local_inference.faults import Fault, Faults
from local_inference.settings import Settings

ACK_WAIT = streams.CHAT_HANDLER.ack_wait
TAKEOVER = ACK_WAIT + 2
TOKENS = 40
SLOWLY = Faults(chat=Fault(token_delay_ms=250))
"""Ten seconds for an answer: enough to interrupt it wherever a busy machine gets round to it."""
QUICKLY = Faults(chat=Fault(token_delay_ms=50))

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def nats() -> Iterator[NatsServer]:
    with nats_server() as server:
        yield server


@pytest.fixture
async def nc(nats: NatsServer) -> AsyncIterator[Connection]:
    async with connection(nats.url) as nc:
        await streams.apply(Api(nc))
        yield nc


@pytest.fixture
async def models() -> AsyncIterator[TestServer]:
    """An LLM that begins its answers slowly."""
    app = create_app(Settings(log_level="error", faults=SLOWLY), Echo(dimensions=8, tokens=TOKENS))
    server = TestServer(app)
    async with server:
        yield server


@pytest.fixture
async def workers(nats: NatsServer, nc: Connection, models: TestServer) -> AsyncIterator[list[Worker]]:
    with contextlib.ExitStack() as stack:
        environment = {"NATS_URL": nats.url, "LLM_URL": str(models.make_url(""))}
        workers = [stack.enter_context(service_process("chat_handler", environment)) for _ in range(2)]
        for worker in workers:
            await until(worker.ready, "the worker is ready")
        yield workers


class Caller:
    """A subscriber who was there before the request, and keeps all that arrives."""

    def __init__(self, nc: Connection) -> None:
        self.request = ChatRequest(
            query="Tell me.", request_id=uuid.uuid4().hex, enable_rag=False, enable_streaming=True
        )
        self.events: list[StreamEvent] = []
        self.responses: list[ChatResponse] = []
        self._nc = nc

    async def ask(self) -> None:
        request_id = str(self.request.request_id)
        await self._nc.subscribe(CHAT.stream_subject(request_id), cb=self._on_event)
        await self._nc.subscribe(CHAT.response_subject(request_id), cb=self._on_response)
        await self._nc.publish("ai.chat.request", encode(self.request))

    async def _on_event(self, message: Any) -> None:
        self.events.append(decode(message.data, StreamEvent))

    async def _on_response(self, message: Any) -> None:
        self.responses.append(decode(message.data, ChatResponse))

    def restarted(self) -> bool:
        return any(event.type == "restart" for event in self.events)

    def chunks(self, attempt: int) -> int:
        return sum(event.type == "chunk" and event.attempt == attempt for event in self.events)

    def ended(self) -> bool:
        return any(event.done for event in self.events) and bool(self.responses)

    async def reads_later(self) -> "Caller":
        """A subscriber who comes when all is over, and reads what is stored."""
        late = Caller(self._nc)
        request_id = self.request.request_id
        events = await stored(self._nc, "AI_EVENTS", f"evt.chat.response.stream.{request_id}")
        finals = await stored(self._nc, "AI_EVENTS", f"evt.chat.response.{request_id}")
        late.events = [decode(event.data, StreamEvent) for event in events]
        late.responses = [decode(final.data, ChatResponse) for final in finals]
        return late


def assert_coherent(caller: Caller) -> None:
    [response] = caller.responses
    assert response.success
    assert response.response == "token " * (TOKENS - 1) + "end."
    assert text_of(caller.events) == response.response
    assert [event.seq for event in caller.events] == list(range(1, len(caller.events) + 1))
    assert [event.type for event in caller.events if event.done] == ["done"]
    assert caller.events[-1].type == "done"
    assert caller.chunks(1) > 0, "the first worker had begun"


async def begin(caller: Caller, workers: list[Worker], models: TestServer) -> tuple[Worker, Worker]:
    """Ask, wait until the answer is under way, and tell the worker that writes it from the other."""
    await caller.ask()
    await until(lambda: caller.chunks(1) >= 3, "the answer has begun")
    models.app[FAULTS].set(QUICKLY)  # from the next answer on
    [busy] = [worker for worker in workers if await worker.busy()]
    [other] = [worker for worker in workers if worker is not busy]
    return busy, other


async def until_settled(nc: Connection) -> None:
    async def empty() -> bool:
        return int((await Api(nc).request("STREAM.INFO.AI_CHAT"))["state"]["messages"]) == 0

    await until(empty, "the work queue is empty")


async def assert_all_is_well(caller: Caller, nc: Connection) -> None:
    await until_settled(nc)
    late = await caller.reads_later()
    await until(lambda: len(caller.events) == len(late.events), "the live subscriber has seen what is stored")
    assert_coherent(caller)
    assert_coherent(late)
    assert await stored(nc, "DLQ", "dlq.>") == []


async def test_a_worker_that_is_killed_is_succeeded_by_another(
    nc: Connection, workers: list[Worker], models: TestServer
) -> None:
    caller = Caller(nc)
    busy, _ = await begin(caller, workers, models)
    busy.process.kill()
    await until(caller.restarted, "another worker has taken over", timeout=TAKEOVER)
    await until(caller.ended, "the answer is whole")
    await assert_all_is_well(caller, nc)


@pytest.mark.parametrize("wakes", ["while the other answers", "after the other has answered"])
async def test_a_worker_that_wakes_up_again_finds_the_answer_taken_over(
    nc: Connection, workers: list[Worker], models: TestServer, wakes: str
) -> None:
    caller = Caller(nc)
    asleep, other = await begin(caller, workers, models)
    asleep.process.send_signal(signal.SIGSTOP)
    await until(caller.restarted, "another worker has taken over", timeout=TAKEOVER)
    if wakes == "while the other answers":
        await until(lambda: caller.chunks(2) >= 3, "the other worker has begun")
    else:
        await until(caller.ended, "the answer is whole")
    asleep.process.send_signal(signal.SIGCONT)
    await until(caller.ended, "the answer is whole")
    await until(asleep.idle, "the one that slept has given up")
    await until(other.idle, "the other is done")
    await assert_all_is_well(caller, nc)
    assert await other.metric("handler_messages_settled_total", 'outcome="ack"') == 1
    assert await asleep.metric("handler_messages_settled_total", 'outcome="nak"') == 0
    await until(asleep.ready, "the one that slept works on")
    assert models.app[STATS].chat.requests == 2
