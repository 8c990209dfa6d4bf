"""Turns that are taken back: queued, running, redelivered, answered, and while the server cannot be heard."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from typing import Any

import msgpack
import pytest
import structlog

from handler_core import streams
from handler_core.cancel import REMEMBERED_AT_MOST, Cancellations
from handler_core.codec import decode, encode
from handler_core.config import ServiceSettings
from handler_core.connection import Connection
from handler_core.context import Context
from handler_core.contract.answer import StreamEvent
from handler_core.contract.chat import CHAT, ChatRequest, ChatResponse
from handler_core.contract.control import CANCEL_SUBJECT, CancelRequest
from handler_core.deadline import Deadline
from handler_core.errors import Canceled, DeadlineExceeded, DownstreamUnavailable, Transient
from handler_core.jetstream import Api, JetStreamError
from handler_core.limits import Limits
from handler_core.service import Service
from handler_core.tasks import background
from handler_core.testing import Answered, NatsServer, ask, connection, nats_server, serving, stored, until

REQUEST = "ai.chat.request"


@pytest.fixture
async def nc(nats: NatsServer) -> AsyncIterator[Connection]:
    async with connection(nats.url) as nc:
        await streams.apply(Api(nc))
        for name in ("AI_CHAT", "AI_EVENTS", "AI_CONTROL", "DLQ"):
            await Api(nc).request(f"STREAM.PURGE.{name}")
        yield nc


def serve(nats: NatsServer, handler: Callable[..., Any], *, drain_timeout: float = 25, **limits: Any) -> Any:
    """The handler as a service that runs while the block does."""
    service = Service("cancels", ServiceSettings)
    bound = Limits(**{"max_in_flight": 32, "retry_base": 0.02, **limits})
    service.answers(streams.CHAT_HANDLER, CHAT, lambda _: bound)(handler)
    local: dict[str, Any] = {"nats_url": nats.url, "health_port": 0, "health_host": "127.0.0.1"}
    return serving(service, ServiceSettings(**local, drain_timeout=drain_timeout))


class Gate:
    """A handler that says one word and then waits, and how often it began and was cut off."""

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
        yield ChatResponse(response="begun")


def question(**fields: Any) -> ChatRequest:
    return ChatRequest(**{"query": "x", "request_id": uuid.uuid4().hex, "enable_streaming": True, **fields})


async def put(nc: Connection, request: ChatRequest) -> None:
    """Publish a request, and wait until the stream has it."""
    await Api(nc).publish(REQUEST, encode(request), {})


async def cancel(nc: Connection, request_id: str | None, payload: bytes = b"") -> None:
    """Cancel, and wait until the stream has it."""
    await Api(nc).publish(CANCEL_SUBJECT.format(request_id=request_id), payload, {})


async def chunk(nc: Connection, request: ChatRequest) -> None:
    async def there() -> bool:
        return bool(await stored(nc, "AI_EVENTS", f"evt.chat.response.stream.{request.request_id}"))

    await until(there, "the answer has begun")


async def settled(nc: Connection) -> None:
    async def empty() -> bool:
        return int((await Api(nc).request("STREAM.INFO.AI_CHAT"))["state"]["messages"]) == 0

    await until(empty, "every request is settled")


async def assert_canceled(nc: Connection, request: ChatRequest, message: str = "canceled") -> list[StreamEvent]:
    """The turn ended once, as canceled, and left no dead letter; returns its events."""
    await settled(nc)
    [final] = await stored(nc, "AI_EVENTS", f"evt.chat.response.{request.request_id}")
    error = decode(final.data, ChatResponse).error
    assert error is not None
    assert (error.type, error.message, error.retryable) == ("canceled", message, False)
    found = await stored(nc, "AI_EVENTS", f"evt.chat.response.stream.{request.request_id}")
    events = [decode(event.data, StreamEvent) for event in found]
    assert [event.type for event in events if event.done] == ["error"]
    assert events[-1].error == error
    assert await stored(nc, "DLQ", "dlq.>") == []
    return events


# -- queued


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "canceled"),
        (encode(CancelRequest(reason="changed my mind")), "canceled: changed my mind"),
        (msgpack.packb({"request_id": "not.a.token", "reason": "x"}), "canceled"),
        (msgpack.packb({"reason": "x" * 300}), "canceled"),
        (msgpack.packb({"reason": None}), "canceled"),
        (b"\xc1\xff", "canceled"),
        (b"stop it", "canceled"),
    ],
)
async def test_a_turn_canceled_while_queued_never_reaches_its_handler(
    nats: NatsServer, nc: Connection, payload: bytes, message: str
) -> None:
    gate, request = Gate(), question()
    await put(nc, request)
    await cancel(nc, request.request_id, payload)
    async with serve(nats, gate.chat) as runtime:
        events = await assert_canceled(nc, request, message)
        assert runtime.cancellations._watched == {}
    assert gate.began == 0
    assert [event.type for event in events] == ["error"]


async def test_a_cancellation_that_comes_before_its_request_counts_as_well(nats: NatsServer, nc: Connection) -> None:
    gate, request = Gate(), question()
    await cancel(nc, request.request_id)
    async with serve(nats, gate.chat):
        await put(nc, request)
        await assert_canceled(nc, request)
    assert gate.began == 0


async def test_a_cancellation_of_another_id_touches_nothing(nats: NatsServer, nc: Connection) -> None:
    gate, request = Gate(), question(request_id="a-1")
    async with serve(nats, gate.chat) as runtime:
        asking = asyncio.ensure_future(ask(nc, CHAT, REQUEST, request))
        await chunk(nc, request)
        for other in ("nobody", "a-", "a-11", "A-1"):
            await cancel(nc, other)
        gate.go_on.set()
        answered = await asking
        assert runtime.cancellations._watched == {}
    assert answered.response.response == "begun"


# -- running


async def test_a_running_turn_is_cut_off_and_its_stream_ends_in_one_error(nats: NatsServer, nc: Connection) -> None:
    gate, request = Gate(), question()
    async with serve(nats, gate.chat) as runtime:
        asking = asyncio.ensure_future(ask(nc, CHAT, REQUEST, request))
        await chunk(nc, request)
        await cancel(nc, request.request_id, encode(CancelRequest(reason="enough")))
        answered: Answered[ChatResponse] = await asking
        events = await assert_canceled(nc, request, "canceled: enough")
        assert runtime.cancellations._watched == {}
    assert (gate.began, gate.cut_off) == (1, 1)
    assert [event.type for event in events] == ["chunk", "error"]
    assert answered.response.request_id == request.request_id
    assert answered.response.trace_id
    assert {"queue_ms", "total_ms"} <= answered.response.timings.keys()


async def test_the_first_of_two_cancellations_is_the_one_that_is_told(nats: NatsServer, nc: Connection) -> None:
    gate, request = Gate(), question()
    async with serve(nats, gate.chat):
        await put(nc, request)
        await chunk(nc, request)
        for reason in ("first", "second"):
            await nc.publish(CANCEL_SUBJECT.format(request_id=request.request_id), encode(CancelRequest(reason=reason)))
        events = await assert_canceled(nc, request, "canceled: first")
    assert [event.type for event in events] == ["chunk", "error"]


async def test_two_turns_of_one_id_are_both_cut_off_and_answered_once(nats: NatsServer, nc: Connection) -> None:
    gate, request = Gate(), question(enable_streaming=False)
    async with serve(nats, gate.chat) as runtime:
        await put(nc, request)
        await put(nc, request)
        await until(lambda: gate.began == 2, "both run")
        assert len(runtime.cancellations._watched[str(request.request_id)]) == 2
        await cancel(nc, request.request_id)
        await settled(nc)
        assert runtime.cancellations._watched == {}
    [final] = await stored(nc, "AI_EVENTS", f"evt.chat.response.{request.request_id}")
    assert decode(final.data, ChatResponse).error is not None
    assert gate.cut_off == 2
    assert await stored(nc, "DLQ", "dlq.>") == []


async def test_a_hundred_running_turns_are_canceled_each_by_its_own_id(nats: NatsServer, nc: Connection) -> None:
    gate, requests = Gate(), [question(enable_streaming=False) for _ in range(100)]
    async with serve(nats, gate.chat, max_in_flight=100) as runtime, asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(ask(nc, CHAT, REQUEST, request)) for request in requests]
        await until(lambda: gate.began == 100, "all run")
        for request in requests[::2]:
            await nc.publish(CANCEL_SUBJECT.format(request_id=request.request_id))
        await until(lambda: gate.cut_off == 50, "half of them are cut off")
        gate.go_on.set()
        answers = [(await asked).response for asked in asking]
        await settled(nc)
        assert runtime.cancellations._watched == {}
    assert [response.success for response in answers] == [False, True] * 50
    assert {response.error.type for response in answers if response.error} == {"canceled"}


async def test_a_coroutine_is_cut_off_as_a_generator_is(nats: NatsServer, nc: Connection) -> None:
    entered = asyncio.Event()

    async def hangs(request: ChatRequest, ctx: Context[None]) -> ChatResponse:
        entered.set()
        await asyncio.sleep(3600)
        return ChatResponse()

    request = question()
    async with serve(nats, hangs):
        await put(nc, request)
        await entered.wait()
        await cancel(nc, request.request_id)
        await assert_canceled(nc, request)


async def test_a_handler_that_will_not_stop_and_finishes_has_its_answer_sent(nats: NatsServer, nc: Connection) -> None:
    began = asyncio.Event()

    async def stubborn(request: ChatRequest, ctx: Context[None]) -> AsyncIterator[str | ChatResponse]:
        began.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            yield "all the same"
        yield ChatResponse(response="all the same")

    request = question()
    async with serve(nats, stubborn) as runtime:
        asking = asyncio.ensure_future(ask(nc, CHAT, REQUEST, request))
        await began.wait()
        await cancel(nc, request.request_id)
        answered = await asking
        await settled(nc)
        assert runtime.cancellations._watched == {}
        other = await ask(nc, CHAT, REQUEST, question(request_id=None, deadline_ms=500))
    assert answered.text == answered.response.response == "all the same"
    assert other.response.success, "the worker takes the next"


async def test_a_handler_that_goes_on_and_on_is_stopped_by_its_timeout_and_not_run_again(
    nats: NatsServer, nc: Connection
) -> None:
    runs = []

    async def deaf(request: ChatRequest, ctx: Context[None]) -> ChatResponse:
        runs.append(ctx.attempt)
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(3600)
        return ChatResponse()

    request = question()
    async with serve(nats, deaf, handler_timeout=0.3):
        await put(nc, request)
        await until(lambda: runs, "it runs")
        await cancel(nc, request.request_id)
        events = await assert_canceled(nc, request)
    assert runs == [1]
    assert [event.type for event in events] == ["restart", "error"]


# -- redelivered


async def test_a_turn_that_was_handed_back_and_canceled_meanwhile_is_not_run_again(
    nats: NatsServer, nc: Connection
) -> None:
    gate, request = Gate(), question()
    async with serve(nats, gate.chat, drain_timeout=0.01):
        await put(nc, request)
        await chunk(nc, request)
    await cancel(nc, request.request_id)
    async with serve(nats, gate.chat) as runtime:
        events = await assert_canceled(nc, request)
        assert runtime.cancellations._watched == {}
    assert gate.began == 1
    assert [event.type for event in events] == ["chunk", "restart", "error"]
    assert [event.seq for event in events] == [1, 2, 3]


async def test_a_turn_that_waits_for_its_next_attempt_is_not_run_again(nats: NatsServer, nc: Connection) -> None:
    runs = []

    async def down(request: ChatRequest, ctx: Context[None]) -> ChatResponse:
        runs.append(ctx.attempt)
        await cancel(nc, request.request_id)  # in the very moment in which it fails
        raise DownstreamUnavailable("the LLM is down")

    request = question()
    async with serve(nats, down):
        await put(nc, request)
        await assert_canceled(nc, request)
    assert runs == [1]


async def test_a_cancellation_does_not_touch_what_was_answered_before(nats: NatsServer, nc: Connection) -> None:
    gate, request = Gate(), question()
    gate.go_on.set()
    async with serve(nats, gate.chat):
        await ask(nc, CHAT, REQUEST, request)
        await cancel(nc, request.request_id)
        before = (await Api(nc).request("STREAM.INFO.AI_EVENTS"))["state"]["last_seq"]
        await put(nc, request)  # and once more, by the same id
        await settled(nc)
        after = (await Api(nc).request("STREAM.INFO.AI_EVENTS"))["state"]["last_seq"]
    assert (after, gate.began) == (before, 1)


# -- while something is amiss


@pytest.fixture
def logged() -> Iterator[list[MutableMapping[str, Any]]]:
    with structlog.testing.capture_logs() as entries:
        yield entries


async def test_without_the_control_stream_turns_run_and_those_that_run_can_be_canceled(
    nats: NatsServer, nc: Connection, logged: list[MutableMapping[str, Any]]
) -> None:
    await Api(nc).request("STREAM.DELETE.AI_CONTROL")
    gate, request = Gate(), question()
    async with serve(nats, gate.chat):
        await put(nc, request)
        await chunk(nc, request)
        await nc.publish(CANCEL_SUBJECT.format(request_id=request.request_id))
        await assert_canceled(nc, request)
        gate.go_on.set()
        assert (await ask(nc, CHAT, REQUEST, question())).response.success
    assert [entry["event"] for entry in logged].count("cancel_unavailable") == 1, "which is said once"


async def test_a_server_that_dies_with_the_cancellation_stored_is_asked_after_its_restart() -> None:
    with nats_server() as server:
        async with connection(server.url) as nc:
            await streams.apply(Api(nc))
            gate, request = Gate(), question()
            async with serve(server, gate.chat) as runtime:
                await put(nc, request)
                await chunk(nc, request)
                [watch] = runtime.cancellations._watched[str(request.request_id)]
                # Deaf to what is published, as during a disconnect; the stream has it all the same.
                [heard] = [sub for sub in runtime.nc._subs.values() if sub.subject == "ai.turn.cancel.*"]
                heard._cb = _ignore
                await cancel(nc, request.request_id)
                assert watch.reason is None
                server.kill()
                server.start()
                await until(lambda: watch.reason is not None, "it was looked up")
                await assert_canceled(nc, request)
                assert runtime.cancellations._watched == {}
    assert (gate.began, gate.cut_off) == (1, 1)


async def _ignore(_: Any) -> None:
    """A callback that hears nothing."""


# -- races, by the block that both the queue and request/reply run in


@pytest.fixture
async def cancellations(nc: Connection) -> AsyncIterator[Cancellations]:
    listening = Cancellations(nc)
    task = asyncio.ensure_future(listening.run())
    await until(lambda: any(sub.subject == "ai.turn.cancel.*" for sub in nc._subs.values()), "it listens")
    await nc.flush()
    yield listening
    assert listening._watched == {}
    task.cancel()
    await asyncio.wait([task])
    assert not any(sub.subject == "ai.turn.cancel.*" for sub in nc._subs.values())
    assert nc.on_reconnect == []


async def test_a_cancellation_that_meets_its_own_look_up_is_not_lost(
    nats: NatsServer, nc: Connection, cancellations: Cancellations
) -> None:
    """Both arrive in one read of the socket, where `wait_for` before Python 3.12 would prefer the reply."""

    async def turn(request_id: str) -> None:
        with pytest.raises(Canceled):
            async with cancellations.limited(request_id, Deadline.never()):
                await asyncio.sleep(3600)

    async with connection(nats.url) as other, asyncio.timeout(20):
        for round in range(4):
            async with asyncio.TaskGroup() as tasks:
                for n in range(50):
                    tasks.create_task(turn(f"turn-{round}-{n}"))
                for n in range(50):
                    await other.publish(f"ai.turn.cancel.turn-{round}-{n}")
                    await asyncio.sleep(0)


async def test_a_look_up_that_fails_after_a_reconnect_is_repeated(
    nc: Connection, cancellations: Cancellations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that has no leader yet cannot be played by one server: its first two answers are put in here."""
    monkeypatch.setattr("handler_core.cancel.LOOK_AGAIN", 0.01)
    look_up = cancellations._looked_up
    failures: list[Exception] = [Transient("no leader"), JetStreamError("GET", 503, 10008, "later")]

    async def at_first_in_vain(request_id: str) -> str | None:
        if entered.is_set() and failures:
            raise failures.pop(0)
        return await look_up(request_id)

    async def turn() -> None:
        async with cancellations.limited("turn", Deadline.after(60)):
            entered.set()
            await asyncio.sleep(3600)

    entered = asyncio.Event()
    monkeypatch.setattr(cancellations, "_looked_up", at_first_in_vain)
    running = asyncio.ensure_future(turn())
    await entered.wait()
    [heard] = [sub for sub in nc._subs.values() if sub.subject == "ai.turn.cancel.*"]
    heard._cb = _ignore
    await cancel(nc, "turn")
    await nc.force_reconnect()
    with pytest.raises(Canceled):
        await running
    assert failures == []


async def test_of_a_deadline_and_a_cancellation_at_the_same_time_one_counts(cancellations: Cancellations) -> None:
    told = []
    for n in range(20):
        moment = asyncio.get_running_loop().time() + 0.01
        asyncio.get_running_loop().call_at(moment, cancellations._cancel, f"turn-{n}", "")
        with pytest.raises((Canceled, DeadlineExceeded)) as caught:
            async with cancellations.limited(f"turn-{n}", Deadline.after(0.01)):
                await asyncio.sleep(3600)
        told.append(caught.value.type)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
    assert set(told) <= {"canceled", "deadline_exceeded"}


async def test_a_block_that_ends_in_the_moment_of_its_cancellation_has_ended_well(
    cancellations: Cancellations,
) -> None:
    async with cancellations.limited("turn", Deadline.never()):
        cancellations._cancel("turn", "")
    await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0, "and what comes after it is not cut off"


@pytest.mark.parametrize("error", [TimeoutError("of its own"), KeyError("x"), DownstreamUnavailable("down")])
async def test_a_failure_of_the_block_leaves_it_as_it_is(cancellations: Cancellations, error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        async with cancellations.limited("turn", Deadline.after(60)):
            raise error
    assert caught.value is error


async def test_a_block_whose_deadline_has_passed_does_not_begin(cancellations: Cancellations) -> None:
    began = []
    with pytest.raises(DeadlineExceeded):
        async with cancellations.limited("turn", Deadline.after(-1)):
            began.append(1)
    assert began == []


async def test_a_task_that_is_cancelled_from_outside_stays_cancelled(cancellations: Cancellations) -> None:
    async def turn() -> None:
        async with cancellations.limited("turn", Deadline.after(60)):
            await asyncio.sleep(3600)

    task = asyncio.ensure_future(turn())
    await until(lambda: "turn" in cancellations._watched, "it runs")
    cancellations._cancel("turn", "")
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_turns_cut_off_in_mid_stream_are_told_at_once(nats: NatsServer, nc: Connection) -> None:
    """The chunk that is on its way to the stream when a turn is cut off must not look like another worker's."""

    async def chatty(request: ChatRequest, ctx: Context[None]) -> AsyncIterator[str | ChatResponse]:
        for number in range(30):
            yield f"{number} "
            await asyncio.sleep(0.002)
        yield ChatResponse(response="all")

    async def turn(deadline_ms: int) -> None:
        request = question(deadline_ms=deadline_ms)
        answered = await ask(nc, CHAT, REQUEST, request, timeout=streams.CHAT_HANDLER.ack_wait / 2)
        kinds = [event.type for event in answered.events]
        assert kinds[-1] in ("done", "error")
        assert "restart" not in kinds, "nobody had to take it over"

    async with serve(nats, chatty):
        for _ in range(8):
            await asyncio.gather(*(turn(30 + 2 * number) for number in range(30)))


async def test_a_cancellation_heard_before_it_can_be_looked_up_counts(nats: NatsServer, nc: Connection) -> None:
    """As in a cluster, where the message may be heard before the stream's leader has it; here there is no stream."""
    cancellations = Cancellations(nc)
    await Api(nc).request("STREAM.DELETE.AI_CONTROL")
    async with background(cancellations.run()):
        await until(lambda: any(s.subject.startswith("ai.turn") for s in nc._subs.values()), "it listens")
        await nc.publish(CANCEL_SUBJECT.format(request_id="x"), b"")
        await nc.flush()
        await until(lambda: "x" in cancellations._lately, "it is heard")
        with pytest.raises(Canceled):
            async with cancellations.limited("x", Deadline.after(5)):
                raise AssertionError("not reached")


async def test_a_flood_of_cancellations_is_not_kept(nc: Connection) -> None:
    cancellations = Cancellations(nc)
    async with background(cancellations.run()):
        await until(lambda: any(s.subject.startswith("ai.turn") for s in nc._subs.values()), "it listens")
        for number in range(2 * REMEMBERED_AT_MOST):
            await nc.publish(CANCEL_SUBJECT.format(request_id=number), b"")
        await nc.publish(CANCEL_SUBJECT.format(request_id="x" * 200), b"")
        await nc.publish(CANCEL_SUBJECT.format(request_id="last"), b"")
        await until(lambda: "last" in cancellations._lately, "all of them are heard")
    assert len(cancellations._lately) == REMEMBERED_AT_MOST
    assert "x" * 200 not in cancellations._lately
