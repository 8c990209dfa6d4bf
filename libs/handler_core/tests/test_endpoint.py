"""Request/reply endpoints against a real server: their bound, what they answer to whatever comes, and how they end."""

import asyncio
import base64
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import msgpack
import pytest
import structlog
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.micro.service import ServiceInfo, ServiceStats

from handler_core.calls import RETRY_AFTER_MIN, Answer, Call, Counts, told
from handler_core.codec import decode, encode, unpack_either, validate
from handler_core.connection import Connection
from handler_core.contract.answer import Response
from handler_core.contract.base import Message, Request
from handler_core.contract.chat import ChatRequest, ChatResponse
from handler_core.contract.errors import ErrorType
from handler_core.endpoint import Endpoint, EndpointConfig, Endpoints
from handler_core.errors import (
    Busy,
    Canceled,
    DeadlineExceeded,
    DownstreamUnavailable,
    HandlerError,
    Internal,
    InvalidRequest,
    NotFound,
    Transient,
)
from handler_core.telemetry import Metrics
from handler_core.testing import NatsServer, connection, nats_server, until

SUBJECT = "ask.number"


class Ask(Request):
    number: int


class Told(Response):
    text: str = ""
    sound: bytes | None = None


@dataclass
class Gate:
    """An answer that waits until it is let through, call by call."""

    waiting: list[asyncio.Future[None]] = field(default_factory=list)
    """Of the calls that wait, in the order in which they began."""
    peak: int = 0

    async def __call__(self, call: Call) -> Told:
        passage: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append(passage)
        self.peak = max(self.peak, len(self.waiting))
        try:
            await passage
        finally:
            self.waiting.remove(passage)
        return Told(text="passed")

    def open(self, calls: int = 1) -> None:
        for passage in self.waiting[:calls]:
            passage.set_result(None)

    async def full(self, calls: int) -> None:
        await until(lambda: len(self.waiting) == calls, f"{calls} calls wait")


async def echo(call: Call) -> Told:
    body, _ = unpack_either(call.data)
    return Told(text=str(validate(body, Ask).number), sound=b"\xfb\xff\x00")


def fails(error: BaseException) -> Answer:
    async def answer(call: Call) -> Told:
        raise error

    return answer


@dataclass
class Served:
    """Endpoints that run, and the first of them."""

    endpoints: Endpoints
    task: asyncio.Task[None]
    metrics: Metrics

    @property
    def endpoint(self) -> Endpoint:
        return self.endpoints._endpoints[0]


@contextlib.asynccontextmanager
async def served(nc: Connection, answer: Answer, **config: Any) -> AsyncIterator[Served]:
    """One endpoint on `SUBJECT`, run until the block ends and then drained."""
    metrics = Metrics()
    endpoints = Endpoints(nc, "numbers", description="Tells numbers.", metrics=metrics)
    config = {"name": "ask", "subject": SUBJECT, "request": Ask, "response": Told, **config}
    endpoints.add(EndpointConfig(**config), answer)
    assert endpoints.problem == "not subscribed"
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(endpoints.run())
        await until(lambda: not endpoints.problem, "the endpoint is subscribed")
        try:
            yield Served(endpoints, task, metrics)
        finally:
            endpoints.stop()


@pytest.fixture
async def caller(nats: NatsServer) -> AsyncIterator[Connection]:
    """A connection that is not the service's."""
    async with connection(nats.url) as nc:
        yield nc


@pytest.fixture
def logged() -> Iterator[list[MutableMapping[str, Any]]]:
    """The log entries of the test, as dicts."""
    with structlog.testing.capture_logs() as entries:
        yield entries


async def ask(nc: Connection, number: int = 7, subject: str = SUBJECT) -> Told:
    return decode((await nc.request(subject, encode(Ask(number=number)), timeout=20)).data, Told)


async def ask_raw(nc: Connection, data: bytes) -> Msg:
    return await nc.request(SUBJECT, data, timeout=20)


async def no_responders(nc: Connection) -> bool:
    """Whether nobody is in the queue group; what is asked of somebody all the same has no inbox."""
    try:
        await nc.request(SUBJECT, b"", timeout=20)
    except NoRespondersError:
        return True
    return False


@dataclass
class Inbox:
    """Replies to requests that are sent all at once."""

    nc: Connection
    replies: list[Msg] = field(default_factory=list)

    async def open(self) -> "Inbox":
        async def heard(message: Msg) -> None:
            self.replies.append(message)

        self.subject = self.nc.new_inbox()
        await self.nc.subscribe(self.subject, cb=heard)
        await self.nc.flush()
        return self

    def burst(self, count: int) -> None:
        """Requests that the server has routed, all of them, before the endpoint can do anything about the first.

        Blocks the loop, which is the endpoint's too: there an endpoint that is full could leave between two of them.
        """
        url = self.nc.connected_url
        assert url is not None
        requests = []
        for number in range(count):
            body = encode(Ask(number=number))
            requests.append(b"PUB %s %s %d\r\n%s\r\n" % (SUBJECT.encode(), self.subject.encode(), len(body), body))
        with socket.create_connection((url.hostname, url.port), timeout=20) as client:
            client.sendall(b'CONNECT {"verbose": false}\r\n' + b"".join(requests) + b"PING\r\n")
            heard = b""
            while b"PONG\r\n" not in heard:
                heard += client.recv(65536)

    async def filled(self, count: int) -> list[Told]:
        """As many replies; those from the server that nobody was there are left out."""
        await until(lambda: len(self.replies) == count, f"{count} replies")
        return [decode(m.data, Told) for m in self.replies if (m.headers or {}).get("Status") != "503"]


# -- requests and their formats


async def test_a_messagepack_request_is_answered_in_messagepack(nc: Connection, caller: Connection) -> None:
    async with served(nc, echo):
        reply = await ask_raw(caller, encode(Ask(number=7)))
    assert reply.headers is None
    assert msgpack.unpackb(reply.data) == {"request_id": "", "timings": {}, "stages": [], "trace_id": "",
        "degraded": [], "success": True, "text": "7", "sound": b"\xfb\xff\x00"}  # fmt: skip


@pytest.mark.parametrize("body", ['{"number": 7}', ' \r\n\t{"number":7}', '{"number": 3, "number": 7}'])
async def test_a_json_request_is_answered_in_json(nc: Connection, caller: Connection, body: str) -> None:
    async with served(nc, echo):
        reply = json.loads((await ask_raw(caller, body.encode())).data)
    assert (reply["text"], base64.b64decode(reply["sound"], validate=True)) == ("7", b"\xfb\xff\x00")
    assert "error" not in reply


MALFORMED = {
    b"": "number: Field required",
    b"  ": "number: Field required",
    b"{": "body: is not JSON (EOF while parsing an object at line 1 column 1)",
    b'{"number": 7} x': "body: is not JSON (trailing characters at line 1 column 15)",
    b'{"number": NaN}': "body: is not JSON (expected value at line 1 column 12)",
    b"hello": "body: is not a JSON object or a MessagePack map (expected value at line 1 column 1)",
    b"[7]": "body: has to be an object, is an array",
    b"null": "body: has to be an object, is null",
    b'{"number": "x"}': "number: Input should be a valid integer, unable to parse string as an integer",
    b'{"number": ' + b"[" * 100_000: "body: is not JSON (recursion limit exceeded at line 1 column 212)",
    b"\x81": "body: is not MessagePack (1 exceeds max_map_len(0))",
    b"\x93\x01\x02\x03": "body: has to be a map, is an array",
    b"\xff\xfe\x00": "body: is not MessagePack (unpack(b) received extra data.)",
    msgpack.packb({"number": None}): "number: Field required",
}


async def test_every_malformed_body_is_answered_and_names_what_is_wrong(nc: Connection, caller: Connection) -> None:
    async with served(nc, echo) as serving:
        for body, problem in MALFORMED.items():
            reply = await ask_raw(caller, body)
            told = validate(unpack_either(reply.data)[0], Told)
            assert told.error is not None
            assert (told.error.type, told.error.message) == (ErrorType.VALIDATION_ERROR, problem), body[:20]
            assert unpack_either(reply.data)[1] is (not body or body[0] < 0x80)
            assert reply.headers == {"Nats-Service-Error": problem, "Nats-Service-Error-Code": "400"}
        assert serving.endpoint.counts.errors == len(MALFORMED)
        assert (await ask(caller)).text == "7"


async def test_a_handler_sees_the_call_as_it_sees_a_delivered_message(nc: Connection, caller: Connection) -> None:
    calls: list[Call] = []

    async def keep(call: Call) -> Told:
        calls.append(call)
        return Told()

    async with served(nc, keep, subject="ask.*"):
        for _ in range(2):
            await caller.request("ask.bob", b"{}", timeout=20, headers={"traceparent": "00-1-2-01", "X": "é"})
    first, second = calls
    assert (first.subject, first.data, first.attempt) == ("ask.bob", b"{}", 1)
    assert first.header(b"traceparent") == "00-1-2-01"
    assert first.headers == {"traceparent": "00-1-2-01", "X": "é"}
    assert first.identity != second.identity
    assert first.timestamp <= second.timestamp


# -- errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest("wrong"), "400"),
        (NotFound("gone"), "404"),
        (Busy("full"), "429"),
        (Canceled("taken back"), "499"),
        (Internal("a fault"), "500"),
        (DownstreamUnavailable("the LLM is down", stage="llm", retry_after=2.5), "503"),
        (Transient("passing"), "503"),
        (DeadlineExceeded("too late"), "504"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
async def test_a_raised_error_is_the_reply(nc: Connection, caller: Connection, error: HandlerError, code: str) -> None:
    async with served(nc, fails(error)) as serving:
        reply = await ask_raw(caller, b"{}")
        assert serving.endpoint.counts.last_error == f"{code}:{error.message}"
    told = validate(json.loads(reply.data), Told)
    assert (told.success, told.error and told.error.retry_after_ms is not None) == (
        False,
        error.retry_after is not None or isinstance(error, Busy),
    )
    assert told.error is not None
    assert told.error.model_copy(update={"retry_after_ms": None}) == error.info().model_copy(
        update={"retry_after_ms": None}
    )
    if error.retry_after:
        assert told.error.retry_after_ms == 2500
    assert reply.headers == {"Nats-Service-Error": error.message, "Nats-Service-Error-Code": code}


async def test_busy_always_says_when_to_come_again(nc: Connection, caller: Connection) -> None:
    async def answer(call: Call) -> Told:
        return Told(success=False, error=Busy("this user has enough").info())

    async with served(nc, answer):
        told = await ask(caller)
    assert told.error is not None
    assert told.error.retry_after_ms


async def test_a_response_that_tells_an_error_counts_as_one(nc: Connection, caller: Connection) -> None:
    async def answer(call: Call) -> Told:
        return Told(request_id="q1", success=False, error=NotFound("no\r\nsuch thing").info())

    async with served(nc, answer) as serving:
        reply = await ask_raw(caller, b"{}")
        assert serving.endpoint.counts.errors == 1
    assert json.loads(reply.data)["request_id"] == "q1"
    assert reply.headers == {"Nats-Service-Error": "no  such thing", "Nats-Service-Error-Code": "404"}


@pytest.mark.parametrize("crash", [RuntimeError("password=hunter2"), SystemExit(3), TimeoutError("its own")],
                         ids=lambda crash: type(crash).__name__)  # fmt: skip
async def test_a_crash_is_answered_as_internal_without_its_text(
    nc: Connection, caller: Connection, crash: BaseException, logged: list[MutableMapping[str, Any]]
) -> None:
    async with served(nc, fails(crash)) as serving:
        told = await ask(caller)
        assert serving.endpoint.counts.last_error == f"500:{type(crash).__name__} in the handler"
        assert (await ask(caller)).error == told.error
    assert told.error is not None
    assert (told.error.type, told.error.message) == (ErrorType.INTERNAL, f"{type(crash).__name__} in the handler")
    assert [entry["event"] for entry in logged] == ["request_failed"] * 2


async def test_a_handler_that_cancels_itself_is_answered_too(nc: Connection, caller: Connection) -> None:
    async with served(nc, fails(asyncio.CancelledError())):
        told = await ask(caller)
    assert told.error is not None
    assert (told.error.type, told.error.retryable) == (ErrorType.TRANSIENT, True)


async def test_a_handler_that_hangs_is_cancelled_and_answered(nc: Connection, caller: Connection) -> None:
    gate = Gate()
    async with served(nc, gate, handler_timeout=0.02):
        told = await ask(caller)
        assert not gate.waiting
    assert told.error is not None
    assert (told.error.type, told.error.message) == (
        ErrorType.DEADLINE_EXCEEDED,
        "the handler did not finish within 0.02 s",
    )


async def test_a_reply_that_is_too_large_becomes_an_error(nc: Connection, caller: Connection) -> None:
    async def answer(call: Call) -> Told:
        return Told(text="x" * (nc.payload_room if call.data == b"{}" else 1))

    async with served(nc, answer) as serving:
        reply = await ask_raw(caller, b"{}")
        assert (await ask(caller)).text == "x"
        assert serving.endpoint.counts.errors == 1
    told = validate(json.loads(reply.data), Told)
    assert told.error is not None
    assert told.error.type is ErrorType.INTERNAL
    assert told.error.message == f"the response exceeds the {nc.payload_room} bytes that NATS takes"
    assert nc.stats["reconnects"] == 0


async def test_what_cannot_be_encoded_becomes_an_error(nc: Connection, caller: Connection) -> None:
    async def answer(call: Call) -> Told:
        return Told.model_construct(text=object())  # type: ignore[arg-type]

    async with served(nc, answer):
        for body in (b"{}", encode(Ask(number=1))):
            told = validate(unpack_either((await ask_raw(caller, body)).data)[0], Told)
            assert told.error is not None
            assert told.error.type is ErrorType.INTERNAL


async def test_an_error_without_bound_is_cut(nc: Connection, caller: Connection) -> None:
    async with served(nc, fails(NotFound("x" * 3_000_000))):
        reply = await ask_raw(caller, b"{}")
    assert len(reply.data) < 10_000
    assert reply.headers is not None
    assert len(reply.headers["Nats-Service-Error"]) == 256


@pytest.mark.parametrize("reply", ["", "$JS.API.STREAM.DELETE.AI_CHAT", "evt.chat.response.q1", "ai.chat.request"])
async def test_a_request_without_an_inbox_is_counted_and_nothing_is_done(
    nc: Connection, caller: Connection, reply: str, logged: list[MutableMapping[str, Any]]
) -> None:
    done: list[Call] = []

    async def answer(call: Call) -> Told:
        done.append(call)
        return Told()

    heard = await caller.subscribe(reply or "nothing")
    async with served(nc, answer) as serving:
        for _ in range(3):
            caller.send(SUBJECT, b"{}", reply=reply)
        assert (await ask(caller)).success
        assert serving.endpoint.counts.by_outcome == {"unanswerable": 3, "ok": 1}
        assert serving.endpoint.counts.errors == 3
    assert len(done) == 1
    assert heard.pending_msgs == 0
    assert [entry["event"] for entry in logged] == ["request_unanswerable"]


# -- the bound


async def test_no_more_than_max_in_flight_run_and_who_comes_again_is_answered(
    nc: Connection, caller: Connection
) -> None:
    running = peak = 0

    async def answer(call: Call) -> Told:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.001)
        running -= 1
        return Told(text="done")

    async def persist() -> None:
        while True:
            with contextlib.suppress(NoRespondersError):
                told = await ask(caller)
                if told.error is None:
                    return
                assert told.error.type is ErrorType.BUSY
            await asyncio.sleep(0.001)

    async with served(nc, answer, max_in_flight=3) as serving:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(60):
                tasks.create_task(persist())
        assert serving.endpoint.counts.by_outcome["ok"] == 60
    assert peak == 3


async def test_a_full_replica_leaves_the_others_the_work_and_all_full_means_no_responders(
    nats: NatsServer, nc: Connection, caller: Connection
) -> None:
    gates = [Gate(), Gate()]
    async with (
        connection(nats.url) as other,
        served(nc, gates[0], max_in_flight=2) as first,
        served(other, gates[1], max_in_flight=2) as second,
    ):
        async with asyncio.TaskGroup() as tasks:
            for count in range(1, 5):
                tasks.create_task(ask(caller))
                await until(lambda n=count: sum(len(gate.waiting) for gate in gates) == n, f"{count} calls wait")
                await nc.flush()
                await other.flush()  # whoever is full has left before the next comes
            assert [len(gate.waiting) for gate in gates] == [2, 2]
            assert not first.endpoint.joined
            assert not second.endpoint.joined
            assert await no_responders(caller)
            gates[1].open()
            await until(lambda: second.endpoint.joined, "the second has room again")
            await other.flush()
            tasks.create_task(ask(caller))
            await gates[1].full(2)
            for gate in gates:
                gate.open(2)
        assert [s.endpoint.counts.by_outcome for s in (first, second)] == [{"ok": 2}, {"ok": 3}]


async def test_who_has_a_reply_finds_room_for_the_next_request(nc: Connection, caller: Connection) -> None:
    async with served(nc, echo, max_in_flight=1) as serving:
        for number in range(300):
            assert (await ask(caller, number)).text == str(number)
        assert serving.endpoint.counts.by_outcome == {"ok": 300}


async def test_requests_on_their_way_when_it_fills_up_hear_busy_and_when_to_come_again(
    nc: Connection, caller: Connection
) -> None:
    gate = Gate()
    inbox = await Inbox(caller).open()
    async with served(nc, gate, max_in_flight=1) as serving:
        inbox.burst(10)
        refused = await inbox.filled(9)
        await gate.full(1)
        assert not serving.endpoint.joined
        gate.open()
        await inbox.filled(10)
        assert serving.endpoint.counts.by_outcome == {"busy": 9, "ok": 1}
    waits = {told.error.retry_after_ms for told in refused if told.error is not None}
    assert all(wait is not None and 1000 <= wait <= 2000 for wait in waits)
    assert len(waits) > 1
    assert all(told.error and (told.error.type, told.error.retryable) == (ErrorType.BUSY, True) for told in refused)


async def test_it_comes_back_with_an_eighth_of_its_places_free(nc: Connection, caller: Connection) -> None:
    gate = Gate()
    inbox = await Inbox(caller).open()
    async with served(nc, gate, max_in_flight=16) as serving:
        inbox.burst(16)
        await gate.full(16)
        assert not serving.endpoint.joined
        gate.open()
        await inbox.filled(1)
        assert serving.endpoints.in_flight == 15
        assert not serving.endpoint.joined
        gate.open()
        await inbox.filled(2)
        assert serving.endpoint.joined
        gate.open(14)


async def test_the_wait_it_asks_for_follows_what_calls_took() -> None:
    counts = Counts(Metrics(), "ask", lambda: 0)
    assert all(1 <= counts.retry_after(1, 1) <= 2 for _ in range(20))
    assert all(0.125 <= counts.retry_after(1, 8) <= 0.25 for _ in range(20))
    for _ in range(200):
        call = Call(b"s", b"r", b"", None, "id")
        call.started -= 30 * 10**9
        counts.answered(call, None, ran=True)
    assert all(59 <= counts.retry_after(2, 1) <= 121 for _ in range(20))
    for _ in range(500):
        counts.answered(Call(b"s", b"r", b"", None, "id"), None, ran=True)
    assert counts.retry_after(1, 16) >= RETRY_AFTER_MIN
    assert told(Busy("full").info(), 0.0).retry_after_ms == 1
    assert told(Busy("full", retry_after=7.0).info(), 1.0).retry_after_ms == 7000


# -- the end


async def test_stopped_it_leaves_at_once_and_finishes_what_runs(nc: Connection, caller: Connection) -> None:
    gate = Gate()
    inbox = await Inbox(caller).open()
    async with served(nc, gate) as serving:
        inbox.burst(3)
        await gate.full(3)
        serving.endpoints.stop()
        await nc.flush()
        assert await no_responders(caller)
        assert json.loads((await caller.request("$SRV.PING.numbers", b"", timeout=20)).data)["name"] == "numbers"
        assert serving.endpoints.in_flight == 3
        assert not serving.task.done()
        gate.open(3)
        assert [told.text for told in await inbox.filled(3)] == ["passed"] * 3
        await serving.task
        assert serving.endpoints.problem
        with pytest.raises(NoRespondersError):
            await caller.request("$SRV.PING.numbers", b"", timeout=20)
    assert not nc.on_reconnect
    assert not nc._ps.sinks


async def test_a_request_on_its_way_when_it_stops_is_answered(nc: Connection, caller: Connection) -> None:
    inbox = await Inbox(caller).open()
    async with served(nc, echo) as serving:
        inbox.burst(30)
        await until(lambda: serving.endpoint.counts.requests, "the first is there")
        inbox.burst(30)
        serving.endpoints.stop()
        answers = await inbox.filled(60)
    assert all(told.error is None for told in answers)


async def test_replicas_are_stopped_one_after_another_and_no_caller_notices(
    nats: NatsServer, nc: Connection, caller: Connection
) -> None:
    async def answer(call: Call) -> Told:
        await asyncio.sleep(0.001)
        return Told(text="done")

    async with connection(nats.url) as other, served(nc, answer) as first, served(other, answer) as second:
        asked = 0

        async def keep_asking() -> None:
            nonlocal asked
            while asked < 600:
                asked += 1
                assert (await ask(caller)).text == "done"
                if asked == 200:
                    first.endpoints.stop()

        async with asyncio.TaskGroup() as tasks:
            for _ in range(10):
                tasks.create_task(keep_asking())
        await first.task
        counts = [s.endpoint.counts.by_outcome["ok"] for s in (first, second)]
    assert sum(counts) == asked
    assert min(counts) > 0


async def test_cancelled_it_answers_what_runs_with_an_error_to_try_again(nc: Connection, caller: Connection) -> None:
    gate = Gate()
    inbox = await Inbox(caller).open()
    async with served(nc, gate) as serving:
        inbox.burst(3)
        await gate.full(3)
        # One whose task has not begun, and would never.
        serving.endpoint._receive(SUBJECT.encode(), inbox.subject.encode(), b"\x80", None)
        serving.task.cancel()
        serving.endpoint.refuse()
        serving.endpoint._receive(SUBJECT.encode(), inbox.subject.encode(), b"\x80", None)  # one that comes too late
        told = await inbox.filled(5)
    assert {(t.error.type, t.error.message, t.error.retryable) for t in told if t.error} == {
        (ErrorType.TRANSIENT, "the service is shutting down", True)
    }
    assert len(told) == 5
    assert serving.endpoints.in_flight == 0


async def test_stopped_before_it_began_it_never_begins(nc: Connection, caller: Connection) -> None:
    endpoints = Endpoints(nc, "numbers")
    endpoints.add(EndpointConfig("ask", SUBJECT, Ask, Told), echo)
    endpoints.stop()
    await endpoints.run()
    assert await no_responders(caller)


# -- reconnecting


async def test_after_a_reconnect_it_is_in_the_queue_group_once() -> None:
    with nats_server() as server:
        async with connection(server.url) as nc, connection(server.url) as caller, served(nc, echo) as serving:
            await ask(caller)
            server.kill()
            await until(lambda: not (nc.is_connected or caller.is_connected), "the connections are lost")
            server.start()
            await until(lambda: nc.is_connected and caller.is_connected, "the connections are back")
            await nc.flush()
            assert (await ask(caller)).text == "7"
            assert serving.endpoint.counts.requests == 2
            assert json.loads((await caller.request("$SRV.PING", b"", timeout=20)).data)["name"] == "numbers"


async def test_leaving_and_coming_back_while_disconnected_hold_after_the_reconnect() -> None:
    gates = {"ask.a": Gate(), "ask.b": Gate()}
    config = {"request": Ask, "response": Told, "max_in_flight": 1}
    with nats_server() as server:
        async with connection(server.url) as nc, connection(server.url) as caller, asyncio.TaskGroup() as tasks:
            both = [Endpoints(nc, "numbers") for _ in gates]
            for endpoints, (subject, gate) in zip(both, gates.items(), strict=True):
                endpoints.add(EndpointConfig("ask", subject, **config), gate)  # type: ignore[arg-type]
                tasks.create_task(endpoints.run())
            await until(lambda: not any(e.problem for e in both), "both are subscribed")
            caller.send("ask.a", b"\x80", reply=caller.new_inbox())
            await gates["ask.a"].full(1)
            server.kill()
            await until(lambda: not (nc.is_connected or caller.is_connected), "the connections are lost")
            gates["ask.a"].open()  # has room again
            both[1].stop()  # leaves
            await until(lambda: not both[0].in_flight, "the call has ended")
            server.start()
            await until(lambda: nc.is_connected and caller.is_connected, "the connections are back")
            await nc.flush()
            tasks.create_task(ask(caller, subject="ask.a"))
            await gates["ask.a"].full(1)
            with pytest.raises(NoRespondersError):
                await ask(caller, subject="ask.b")
            await nc.flush()
            with pytest.raises(NoRespondersError):  # full once more
                await ask(caller, subject="ask.a")
            gates["ask.a"].open()
            both[0].stop()


async def test_a_full_endpoint_stays_out_of_its_queue_group_over_a_reconnect() -> None:
    gate = Gate()
    with nats_server() as server:
        async with connection(server.url) as nc, connection(server.url) as caller:
            inbox = await Inbox(caller).open()
            async with served(nc, gate, max_in_flight=1) as serving:
                inbox.burst(1)
                await gate.full(1)
                server.kill()
                await until(lambda: not (nc.is_connected or caller.is_connected), "the connections are lost")
                server.start()
                await until(lambda: nc.is_connected and caller.is_connected, "the connections are back")
                await nc.flush()
                assert await no_responders(caller)
                gate.open()
                assert (await inbox.filled(1))[0].text == "passed"
                await until(lambda: serving.endpoint.joined, "it is back")


# -- what it tells


async def control(nc: Connection, verb: str) -> dict[str, Any]:
    reply: dict[str, Any] = json.loads((await nc.request(f"$SRV.{verb}.numbers", b"", timeout=20)).data)
    return reply


async def test_statistics_have_the_schema_of_micro_services(nc: Connection, caller: Connection) -> None:
    async def answer(call: Call) -> Told:
        if call.data == b"{}":
            raise NotFound("no such number")
        return Told()

    async with served(nc, answer, max_in_flight=5) as serving:
        before = (await control(caller, "STATS"))["endpoints"][0]
        assert (before["num_requests"], before["average_processing_time"], before["last_error"]) == (0, 0, "")
        for body in (b"{}", b"\x80", b"\x80"):
            await ask_raw(caller, body)
        stats = await control(caller, "STATS")
        text = serving.metrics.render()
    (endpoint,) = stats.pop("endpoints")
    assert {name: type(value) for name, value in stats.items()} == {
        "type": str, "name": str, "id": str, "version": str, "started": str, "metadata": dict}  # fmt: skip
    assert stats["type"] == "io.nats.micro.v1.stats_response"
    assert stats["started"].endswith("Z")
    assert {name: type(value) for name, value in endpoint.items()} == {
        "name": str, "subject": str, "queue_group": str, "num_requests": int, "num_errors": int, "last_error": str,
        "processing_time": int, "average_processing_time": int, "data": dict}  # fmt: skip
    assert endpoint["processing_time"] > 0
    assert endpoint["average_processing_time"] == endpoint["processing_time"] // 3
    assert (endpoint["num_requests"], endpoint["num_errors"]) == (3, 1)
    assert endpoint["last_error"] == "404:no such number"
    assert (endpoint["name"], endpoint["subject"], endpoint["queue_group"]) == ("ask", SUBJECT, "q")
    assert endpoint["data"] == {
        "in_flight": 0, "max_in_flight": 5, "joined": True, "busy": 0, "errors": {"not_found": 1}}  # fmt: skip
    assert 'handler_requests_total{endpoint="ask",outcome="ok"} 2' in text
    assert 'handler_requests_total{endpoint="ask",outcome="not_found"} 1' in text
    assert 'handler_requests_total{endpoint="ask",outcome="busy"} 0' in text
    assert 'handler_request_duration_seconds_count{endpoint="ask"} 3' in text
    assert 'handler_requests_in_flight{endpoint="ask"} 0' in text


async def test_info_holds_the_schemas_of_the_messages(nc: Connection, caller: Connection) -> None:
    async with served(nc, echo, request=ChatRequest, response=ChatResponse):
        reply = await caller.request("$SRV.INFO", b"", timeout=20)
        assert (await control(caller, "INFO")) == json.loads(reply.data)
    assert len(reply.data) < 32_768
    info = json.loads(reply.data)
    assert (info["type"], info["description"]) == ("io.nats.micro.v1.info_response", "Tells numbers.")
    (endpoint,) = info["endpoints"]
    metadata = endpoint["metadata"]
    assert all(type(value) is str for value in metadata.values())
    assert metadata["content_types"] == "application/msgpack, application/json"
    request, response = json.loads(metadata["request_schema"]), json.loads(metadata["response_schema"])
    assert request["properties"]["top_k"]["maximum"] == 100
    assert {"type": "string", "contentEncoding": "base64"} in response["properties"]["audio"]["anyOf"]


async def test_every_form_of_ping_finds_it(nc: Connection, caller: Connection) -> None:
    async with served(nc, echo):
        first = json.loads((await caller.request("$SRV.PING", b"", timeout=20)).data)
        assert await control(caller, "PING") == first
        assert json.loads((await caller.request(f"$SRV.PING.numbers.{first['id']}", b"", timeout=20)).data) == first
    assert (first["type"], first["name"], first["version"]) == ("io.nats.micro.v1.ping_response", "numbers", "0.1.0")


async def test_what_is_declared_wrongly_is_refused(nc: Connection) -> None:
    class Strict(Response):
        needed: int

    for wrong in ({"name": "a b"}, {"name": ""}, {"max_in_flight": 0}, {"response": Strict}):
        given: dict[str, Any] = {"name": "ask", "subject": SUBJECT, "request": Message, "response": Told, **wrong}
        with pytest.raises(ValueError, match=r"name consists|at least 1|needed"):
            EndpointConfig(**given)
    for name, version in (("chat.handler", "1.0.0"), ("chat_handler", "1")):
        with pytest.raises(ValueError, match=r"a service's (name|version)"):
            await Endpoints(nc, name, version=version).run()


async def test_what_it_tells_is_what_the_clients_of_micro_services_read(nc: Connection, caller: Connection) -> None:
    async with served(nc, echo):
        await ask_raw(caller, b"{}")
        info, stats = await control(caller, "INFO"), await control(caller, "STATS")
    assert ServiceInfo.from_dict(info).to_dict() == info
    assert ServiceStats.from_dict(stats).to_dict() == stats
