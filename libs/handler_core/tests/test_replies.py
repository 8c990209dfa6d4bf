"""Request/reply through a service: one whole response in the request's own format, or one that tells of the error."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgpack
import pytest
from nats.errors import NoRespondersError

from handler_core import streams
from handler_core.config import ServiceSettings
from handler_core.connection import Connection
from handler_core.context import Context
from handler_core.contract.chat import ChatRequest, ChatResponse
from handler_core.errors import DownstreamUnavailable, NotFound
from handler_core.jetstream import Api
from handler_core.limits import Limits
from handler_core.service import Service
from handler_core.testing import NatsServer, connection, serving, until

ASK = "ai.chat.ask"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
async def nc(nats: NatsServer) -> AsyncIterator[Connection]:
    async with connection(nats.url) as nc:
        await streams.apply(Api(nc))
        await Api(nc).request("STREAM.PURGE.AI_CONTROL")
        yield nc


@contextlib.asynccontextmanager
async def serve(nats: NatsServer, handler: Callable[..., Any], **limits: Any) -> AsyncIterator[Any]:
    """The handler as a service that runs while the block does, and that leaves no turn watched or counted."""
    service = Service("replies", ServiceSettings)
    bound = Limits(**{"max_in_flight": 8, **limits})
    service.replies("ask", ASK, "ai.chat.user.{user}.ask", response=ChatResponse, limits=lambda _: bound)(handler)
    async with serving(service, ServiceSettings(nats_url=nats.url, health_port=0, health_host="127.0.0.1")) as runtime:
        yield runtime
    assert runtime.cancellations._watched == {}
    assert runtime.fairness._users == {}


async def request(nc: Connection, body: dict[str, Any], subject: str = ASK, *, text: bool = True) -> dict[str, Any]:
    """The reply as it came, decoded by the format of the request."""
    payload = json.dumps(body).encode() if text else msgpack.packb(body)
    reply = (await nc.request(subject, payload, 10, headers={"traceparent": TRACE})).data
    decoded: dict[str, Any] = json.loads(reply) if text else msgpack.unpackb(reply)
    return decoded


class Gate:
    """A handler that says one word and then waits."""

    def __init__(self) -> None:
        self.began = 0
        self.cut_off = 0
        self.go_on = asyncio.Event()

    async def chat(self, request: ChatRequest, ctx: Context[None]) -> AsyncIterator[str | ChatResponse]:
        self.began += 1
        try:
            yield "begun"
            await self.go_on.wait()
        except (asyncio.CancelledError, GeneratorExit):
            self.cut_off += 1
            raise
        yield ChatResponse(response=f"{request.user_id}: {request.query}")


@pytest.mark.parametrize("text", [True, False])
async def test_a_generators_text_is_sent_whole_in_the_format_of_the_request(
    nats: NatsServer, nc: Connection, text: bool
) -> None:
    gate = Gate()
    gate.go_on.set()
    async with serve(nats, gate.chat):
        reply = await request(nc, {"query": "é漢", "request_id": "r1", "enable_streaming": True}, text=text)
    assert (reply["response"], reply["request_id"], reply["success"]) == ("None: é漢", "r1", True)
    assert reply["trace_id"] == TRACE[3:35]
    assert {"queue_ms", "total_ms"} <= reply["timings"].keys()
    assert "error" not in reply


async def test_the_user_in_the_subject_counts_before_the_one_in_the_body(nats: NatsServer, nc: Connection) -> None:
    gate = Gate()
    gate.go_on.set()
    async with serve(nats, gate.chat):
        own = await request(nc, {"query": "x", "user_id": "mallory"}, "ai.chat.user.alice.ask")
        trusted = await request(nc, {"query": "x", "user_id": "bob"})
    assert (own["response"], trusted["response"]) == ("alice: x", "bob: x")


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize(
    ("body", "named"),
    [({}, "query"), ({"query": "x", "top_k": 0}, "top_k"), ({"query": "x", "request_id": "a.b"}, "request_id")],
)
async def test_an_invalid_body_is_told_with_its_field(
    nats: NatsServer, nc: Connection, text: bool, body: dict[str, Any], named: str
) -> None:
    gate = Gate()
    async with serve(nats, gate.chat):
        reply = await request(nc, body, text=text)
    assert reply["error"]["type"] == "validation_error"
    assert reply["error"]["message"].startswith(f"{named}: ")
    assert (reply["error"]["stage"], reply["success"], gate.began) == ("decode", False, 0)


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize(
    "error", [NotFound("there is none", stage="search"), DownstreamUnavailable("the LLM is down", stage="llm")]
)
async def test_an_error_is_told_with_the_id_the_timings_and_the_trace(
    nats: NatsServer, nc: Connection, text: bool, error: NotFound | DownstreamUnavailable
) -> None:
    attempts = []

    async def fails(request: ChatRequest, ctx: Context[None]) -> ChatResponse:
        attempts.append(ctx.attempt)
        raise error

    async with serve(nats, fails):
        reply = await request(nc, {"query": "x", "request_id": "r1"}, text=text)
    assert attempts == [1], "the caller is there and may ask again"
    told = {"type": error.type.value, "message": error.message, "stage": error.stage, "retryable": error.retryable}
    assert reply["error"] == told
    assert (reply["request_id"], reply["trace_id"], reply["success"]) == ("r1", TRACE[3:35], False)
    assert {"queue_ms", "total_ms"} <= reply["timings"].keys()


async def test_the_deadline_cuts_the_handler_off(nats: NatsServer, nc: Connection) -> None:
    gate = Gate()
    async with serve(nats, gate.chat):
        reply = await request(nc, {"query": "x", "request_id": "r1", "deadline_ms": 500})
    assert (reply["error"]["type"], reply["request_id"]) == ("deadline_exceeded", "r1")
    assert gate.cut_off == gate.began  # none, where the machine took so long to begin


async def test_a_request_that_runs_is_canceled_by_its_id(nats: NatsServer, nc: Connection) -> None:
    gate = Gate()
    async with serve(nats, gate.chat):
        asking = asyncio.ensure_future(request(nc, {"query": "x", "request_id": "r1"}))
        await until(lambda: gate.began, "it runs")
        await nc.publish("ai.turn.cancel.r1")
        reply = await asking
    assert (reply["error"]["type"], reply["error"]["retryable"], reply["request_id"]) == ("canceled", False, "r1")
    assert gate.cut_off == 1


async def test_a_request_that_was_canceled_before_it_came_does_not_run(nats: NatsServer, nc: Connection) -> None:
    gate = Gate()
    await Api(nc).publish("ai.turn.cancel.r1", b"", {})
    async with serve(nats, gate.chat):
        reply = await request(nc, {"query": "x", "request_id": "r1"})
    assert (reply["error"]["type"], gate.began) == ("canceled", 0)


async def test_what_a_full_replica_cannot_take_goes_to_the_next(nats: NatsServer, nc: Connection) -> None:
    first, second = Gate(), Gate()
    async with serve(nats, first.chat, max_in_flight=1), serve(nats, second.chat, max_in_flight=1):
        asking = []
        for n in (1, 2):
            asking.append(asyncio.ensure_future(request(nc, {"query": str(n)})))
            await until(lambda n=n: first.began + second.began == n, "it runs")
        assert (first.began, second.began) == (1, 1)

        async def refused() -> bool:
            with contextlib.suppress(TimeoutError):
                await nc.request(ASK, b'{"query": "one too many", "deadline_ms": 1}', 1)
            return False

        with pytest.raises(NoRespondersError):
            await until(refused, "nobody takes a third")
        first.go_on.set()
        second.go_on.set()
        assert sorted([(await asked)["response"] for asked in asking]) == ["None: 1", "None: 2"]


async def test_a_request_that_runs_is_answered_before_the_service_ends(nats: NatsServer, nc: Connection) -> None:
    gate = Gate()
    async with serve(nats, gate.chat) as runtime:
        asking = asyncio.ensure_future(request(nc, {"query": "x", "request_id": uuid.uuid4().hex}))
        await until(lambda: gate.began, "it runs")

        async def let_through() -> None:
            await until(lambda: "draining" in runtime.health.ready, "it drains")
            gate.go_on.set()

        letting = asyncio.ensure_future(let_through())
    await letting
    assert (await asking)["response"] == "None: x"


async def test_without_jetstream_s_control_stream_requests_are_answered(nats: NatsServer, nc: Connection) -> None:
    await Api(nc).request("STREAM.DELETE.AI_CONTROL")
    gate = Gate()
    gate.go_on.set()
    async with serve(nats, gate.chat):
        assert (await request(nc, {"query": "x"}))["success"]


async def test_what_is_refused_or_fails_is_told_with_its_id_and_trace(nats: NatsServer, nc: Connection) -> None:
    async def bug(request: ChatRequest, ctx: Context[None]) -> ChatResponse:
        raise KeyError("secret")

    async with serve(nats, bug):
        invalid = await request(nc, {"query": "", "request_id": "r1"})
        failed = await request(nc, {"query": "x", "request_id": "r2"})
    assert (invalid["request_id"], invalid["trace_id"]) == ("r1", TRACE[3:35])
    assert (failed["request_id"], failed["trace_id"]) == ("r2", TRACE[3:35])
    assert (failed["error"]["type"], failed["error"]["message"]) == ("internal", "KeyError in the handler")


async def test_busy_says_that_it_may_be_tried_again(nats: NatsServer, nc: Connection) -> None:
    gate = Gate()
    async with serve(nats, gate.chat, max_per_user=1), asyncio.TaskGroup() as tasks:
        tasks.create_task(request(nc, {"query": "x", "user_id": "alice"}))
        await until(lambda: gate.began, "the first one runs")
        busy = await request(nc, {"query": "x", "user_id": "alice"})
        gate.go_on.set()
    assert (busy["error"]["type"], busy["error"]["retryable"]) == ("busy", True)
    assert busy["error"]["retry_after_ms"] > 0


async def test_nobody_has_the_service_write_to_its_own_inbox(nats: NatsServer, nc: Connection) -> None:
    """A reply there would stand for that of the server, and spoil another user's turn."""
    gate = Gate()
    gate.go_on.set()
    async with serve(nats, gate.chat) as runtime:
        await request(nc, {"query": "x"})  # by now the service has asked for something itself
        [own] = {inbox for inbox in runtime.nc._inboxes.values() if inbox.endswith(".")}
        await nc.publish(ASK, b'{"query": "x"}', reply=f"{own}0123456789abcdef")
        assert (await request(nc, {"query": "y"}))["success"]
        told = json.loads((await nc.request("$SRV.STATS.replies", b"", timeout=10)).data)
    [endpoint] = [each for each in told["endpoints"] if each["name"] == "ask"]
    assert endpoint["num_errors"] == 1
    assert "no inbox" in endpoint["last_error"]
