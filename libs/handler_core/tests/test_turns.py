"""From a request on the work queue to the answer its caller sees, through the service, on a real server."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgpack
import pytest

from handler_core import streams
from handler_core.codec import decode, encode
from handler_core.config import ServiceSettings
from handler_core.connection import Connection
from handler_core.context import Context
from handler_core.contract.answer import StreamEvent
from handler_core.contract.chat import CHAT, ChatRequest, ChatResponse
from handler_core.errors import DownstreamUnavailable, Internal, NotFound
from handler_core.jetstream import Api
from handler_core.limits import Limits
from handler_core.service import Service
from handler_core.testing import Answered, NatsServer, ask, connection, nats_server, serving, stored, text_of, until

REQUEST = "ai.chat.request"


@pytest.fixture
async def nc(nats: NatsServer) -> AsyncIterator[Connection]:
    async with connection(nats.url) as nc:
        await streams.apply(Api(nc))
        for name in ("AI_CHAT", "AI_EVENTS", "DLQ"):
            await Api(nc).request(f"STREAM.PURGE.{name}")
        yield nc


def serve(nats: NatsServer, handler: Callable[..., Any], **limits: Any) -> Any:
    """The handler as a service that runs while the block does."""
    service = Service("turns", ServiceSettings)
    settled = Limits(**{"max_in_flight": 8, "retry_base": 0.02, **limits})
    service.answers(streams.CHAT_HANDLER, CHAT, lambda _: settled)(handler)
    return serving(service, ServiceSettings(nats_url=nats.url, health_port=0, health_host="127.0.0.1"))


async def dead_letters(nc: Connection) -> list[dict[str, str]]:
    """The headers of every dead letter."""
    return [letter.headers for letter in await stored(nc, "DLQ", "dlq.>")]


async def queued(nc: Connection) -> int:
    """Requests that are not settled yet."""
    return int((await Api(nc).request("STREAM.INFO.AI_CHAT"))["state"]["messages"])


async def settled(nc: Connection) -> None:
    async def empty() -> bool:
        return await queued(nc) == 0

    await until(empty, "every request is settled")


async def echo(request: ChatRequest, ctx: Context[None]) -> AsyncIterator[str | ChatResponse]:
    yield request.query
    yield ChatResponse(response=request.query)


async def test_a_generator_streams_what_it_yields_and_ends_with_its_response(nats: NatsServer, nc: Connection) -> None:
    async with serve(nats, echo):
        answered = await ask(nc, CHAT, REQUEST, ChatRequest(query="hello", enable_streaming=True))
    assert answered.text == answered.response.response == "hello"
    assert [event.type for event in answered.events] == ["chunk", "done"]
    assert {"queue_ms", "total_ms"} <= answered.response.timings.keys()


async def test_a_coroutine_answers_without_a_stream(nats: NatsServer, nc: Connection) -> None:
    async def shout(request: ChatRequest, ctx: Context[None]) -> ChatResponse:
        return ChatResponse(response=request.query.upper())

    async with serve(nats, shout):
        answered = await ask(nc, CHAT, REQUEST, ChatRequest(query="hello"))
    assert (answered.response.response, answered.events) == ("HELLO", [])


async def test_the_first_chunk_leaves_before_the_second_token_exists(nats: NatsServer, nc: Connection) -> None:
    seen = asyncio.Event()

    async def slow(request: ChatRequest, ctx: Context[None]) -> AsyncIterator[str | ChatResponse]:
        yield "first"
        await seen.wait()
        yield " second"
        yield ChatResponse(response="first second")

    async def on_event(message: Any) -> None:
        if decode(message.data, StreamEvent).content == "first":
            seen.set()

    request = ChatRequest(query="x", request_id=uuid.uuid4().hex, enable_streaming=True)
    await nc.subscribe(f"ai.chat.response.stream.{request.request_id}", cb=on_event)
    async with serve(nats, slow):
        answered = await ask(nc, CHAT, REQUEST, request)
    assert answered.text == "first second"


async def test_the_user_in_the_subject_counts_before_the_one_in_the_body(nats: NatsServer, nc: Connection) -> None:
    async def who(request: ChatRequest, ctx: Context[None]) -> ChatResponse:
        return ChatResponse(response=str(request.user_id))

    async with serve(nats, who):
        answered = await ask(nc, CHAT, "ai.chat.user.alice.message", ChatRequest(query="x", user_id="mallory"))
    assert answered.response.response == "alice"


async def test_the_response_is_copied_to_the_inbox_that_the_caller_names(nats: NatsServer, nc: Connection) -> None:
    inbox = nc.new_inbox()
    copies = await nc.subscribe(inbox)
    async with serve(nats, echo):
        await Api(nc).publish(REQUEST, encode(ChatRequest(query="no id", response_subject=inbox)), {})
        copy = decode((await copies.next_msg(10)).data, ChatResponse)
    assert copy.response == "no id"
    assert copy.request_id


async def test_the_trace_of_the_request_goes_on_in_its_answer(nats: NatsServer, nc: Connection) -> None:
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    request = ChatRequest(query="x", request_id=uuid.uuid4().hex)
    responses = await nc.subscribe(CHAT.response_subject(str(request.request_id)))
    async with serve(nats, echo):
        await ask(nc, CHAT, REQUEST, request, headers={"traceparent": parent, "tracestate": "a=b"})
    headers = (await responses.next_msg(5)).headers or {}
    assert (headers["traceparent"], headers["tracestate"]) == (parent, "a=b")


async def test_a_failure_that_may_pass_is_tried_again_after_a_restart(nats: NatsServer, nc: Connection) -> None:
    async def second_time_lucky(request: ChatRequest, ctx: Context[None]) -> AsyncIterator[str | ChatResponse]:
        yield f"attempt {ctx.attempt}"
        if ctx.attempt == 1:
            raise DownstreamUnavailable("the LLM went away")
        yield ChatResponse(response=f"attempt {ctx.attempt}")

    async with serve(nats, second_time_lucky):
        answered = await ask(nc, CHAT, REQUEST, ChatRequest(query="x", enable_streaming=True))
    assert answered.text == answered.response.response == "attempt 2"
    assert [event.seq for event in answered.events] == list(range(1, len(answered.events) + 1))
    assert "restart" in [event.type for event in answered.events]


async def test_a_bug_in_the_handler_is_tried_again_and_in_the_end_told(nats: NatsServer, nc: Connection) -> None:
    async def bug(request: ChatRequest, ctx: Context[None]) -> ChatResponse:
        raise KeyError("secret")

    async with serve(nats, bug, max_deliveries=3):
        answered = await ask(nc, CHAT, REQUEST, ChatRequest(query="x"))
        await settled(nc)
    assert answered.response.error is not None
    assert answered.response.error.type == "internal"
    assert "secret" not in answered.response.error.message
    [letter] = await dead_letters(nc)
    assert letter["Dead-Letter-Deliveries"] == "4"


async def test_a_failure_that_does_not_pass_is_told_at_the_last_attempt_and_kept_as_a_dead_letter(
    nats: NatsServer, nc: Connection
) -> None:
    attempts = []

    async def down(request: ChatRequest, ctx: Context[None]) -> ChatResponse:
        attempts.append(ctx.attempt)
        raise DownstreamUnavailable("the LLM is down", stage="llm")

    async with serve(nats, down, max_deliveries=3):
        answered = await ask(nc, CHAT, REQUEST, ChatRequest(query="x"))
        await settled(nc)
    assert attempts == [1, 2, 3]
    assert answered.response.error is not None
    assert (answered.response.error.type, answered.response.error.retryable) == ("downstream_unavailable", True)
    [letter] = await dead_letters(nc)
    assert letter["Dead-Letter-Reason"] == "the LLM is down"


async def test_a_final_failure_is_answered_and_kept_as_a_dead_letter(nats: NatsServer, nc: Connection) -> None:
    async def missing(request: ChatRequest, ctx: Context[None]) -> AsyncIterator[str | ChatResponse]:
        yield "looking"
        raise NotFound("collection: there is no 'x'", stage="search")

    async with serve(nats, missing):
        answered = await ask(nc, CHAT, REQUEST, ChatRequest(query="x", enable_streaming=True))
        await settled(nc)
    assert [event.type for event in answered.events][-1] == "error"
    assert answered.response.error is not None
    assert (answered.response.error.type, answered.response.error.stage) == ("not_found", "search")
    [letter] = await dead_letters(nc)
    assert letter["Dead-Letter-Type"] == "not_found"


async def test_a_request_whose_deadline_passed_in_the_queue_is_told_without_being_run(
    nats: NatsServer, nc: Connection
) -> None:
    ran = []

    async def handler(request: ChatRequest, ctx: Context[None]) -> ChatResponse:
        ran.append(request)
        await asyncio.sleep(3600)
        return ChatResponse()

    request = ChatRequest(query="x", request_id=uuid.uuid4().hex, deadline_ms=1)
    responses = await nc.subscribe(CHAT.response_subject(str(request.request_id)))
    await Api(nc).publish(REQUEST, encode(request), {})
    await until(lambda: _one(nc), "the request is queued")
    async with serve(nats, handler):
        response = decode((await responses.next_msg(10)).data, ChatResponse)
        await settled(nc)
    assert response.error is not None
    assert response.error.type == "deadline_exceeded"
    assert ran == []
    assert await dead_letters(nc) == []


async def _one(nc: Connection) -> bool:
    return await queued(nc) == 1


async def test_the_deadline_cancels_the_handler(nats: NatsServer, nc: Connection) -> None:
    canceled = asyncio.Event()

    async def endless(request: ChatRequest, ctx: Context[None]) -> AsyncIterator[str | ChatResponse]:
        try:
            yield "started"
            await asyncio.sleep(3600)
        finally:
            canceled.set()

    async with serve(nats, endless):
        answered = await ask(nc, CHAT, REQUEST, ChatRequest(query="x", enable_streaming=True, deadline_ms=300))
        await settled(nc)
    assert canceled.is_set()
    assert answered.response.error is not None
    assert answered.response.error.type == "deadline_exceeded"
    assert [event.type for event in answered.events] == ["chunk", "error"]


async def test_a_retry_that_would_come_too_late_is_told_at_once(nats: NatsServer, nc: Connection) -> None:
    attempts = []

    async def down(request: ChatRequest, ctx: Context[None]) -> ChatResponse:
        attempts.append(ctx.attempt)
        raise DownstreamUnavailable("the LLM is down", retry_after=60)

    async with serve(nats, down):
        answered = await ask(nc, CHAT, REQUEST, ChatRequest(query="x", deadline_ms=10_000))
        await settled(nc)
    assert attempts == [1]
    assert answered.response.error is not None
    assert (answered.response.error.type, answered.response.error.retryable) == ("downstream_unavailable", True)


async def test_a_response_that_does_not_fit_is_told_as_an_error(nats: NatsServer, nc: Connection) -> None:
    async def huge(request: ChatRequest, ctx: Context[None]) -> ChatResponse:
        return ChatResponse(response="x" * 2_000_000)

    async with serve(nats, huge):
        answered = await ask(nc, CHAT, REQUEST, ChatRequest(query="x"))
    assert answered.response.error is not None
    assert "exceeds" in answered.response.error.message


async def test_a_refused_request_ends_its_stream_where_its_family_streams_unless_told_not_to(
    nats: NatsServer, nc: Connection
) -> None:
    class Spoken(ChatRequest):
        enable_streaming: bool = True

    async def never(request: Spoken, ctx: Context[None]) -> ChatResponse:
        raise AssertionError("it is not valid")

    async with serve(nats, never):
        for name, said in (("default", {}), ("nil", {"enable_streaming": None}), ("off", {"enable_streaming": False})):
            await Api(nc).publish(REQUEST, msgpack.packb({"request_id": name, "query": "x", "top_k": 0, **said}), {})
        await settled(nc)
    ends = {
        name: await stored(nc, "AI_EVENTS", f"evt.chat.response.stream.{name}") for name in ("default", "nil", "off")
    }
    assert {name: [decode(event.data, StreamEvent).type for event in found] for name, found in ends.items()} == {
        "default": ["error"], "nil": ["error"], "off": [],
    }  # fmt: skip


async def test_a_final_failure_is_buried_although_the_dead_letter_stream_was_away_when_it_was_told(
    nats: NatsServer, nc: Connection
) -> None:
    async def refuses(request: ChatRequest, ctx: Context[None]) -> ChatResponse:
        raise NotFound("there is none")

    await Api(nc).request("STREAM.DELETE.DLQ")
    async with serve(nats, refuses):
        answered = await ask(nc, CHAT, REQUEST, ChatRequest(query="x", enable_streaming=True))
        await streams.apply(Api(nc))
        await settled(nc)
    assert answered.response.error is not None
    [letter] = await dead_letters(nc)
    assert (letter["Dead-Letter-Type"], letter["Dead-Letter-Reason"]) == ("not_found", "there is none")


async def test_a_message_with_headers_that_cannot_be_sent_on_is_answered_or_buried_all_the_same(
    nats: NatsServer, nc: Connection
) -> None:
    """Names with spaces, and values with bare line feeds, reach a worker as the server does not check them."""
    headers = b"NATS/1.0\r\nbad name: x\r\ntracestate: a=b\nX-Evil: 1\r\n\r\n"
    good = ChatRequest(query="x", request_id=uuid.uuid4().hex)
    responses = await nc.subscribe(CHAT.response_subject(str(good.request_id)))
    async with serve(nats, echo):
        nc.send(REQUEST, encode(good), headers=headers)
        response = decode((await responses.next_msg(10)).data, ChatResponse)
        nc.send(REQUEST, b"not msgpack", headers=headers)
        await nc.flush()
        await settled(nc)
    assert response.response == "x"
    [letter] = await dead_letters(nc)
    assert "bad name" not in letter


async def test_a_copy_below_the_family_s_prefix_does_not_touch_another_turn(nats: NatsServer, nc: Connection) -> None:
    mine, other = uuid.uuid4().hex, uuid.uuid4().hex
    async with serve(nats, echo):
        await ask(nc, CHAT, REQUEST, ChatRequest(query="theirs", request_id=other))
        for copy_to in (CHAT.response_subject(other), CHAT.response_subject(mine)):
            request = ChatRequest(query="mine", request_id=mine, response_subject=copy_to)
            await Api(nc).publish(REQUEST, encode(request), {})
            await nc.flush()
            await settled(nc)
    for request_id, text in ((mine, "mine"), (other, "theirs")):
        [final] = await stored(nc, "AI_EVENTS", f"evt.chat.response.{request_id}")
        assert decode(final.data, ChatResponse).response == text


async def test_a_caller_whose_connection_is_lost_reads_on_where_it_was() -> None:
    half, go_on = asyncio.Event(), asyncio.Event()

    async def slow(request: ChatRequest, ctx: Context[None]) -> AsyncIterator[str | ChatResponse]:
        yield "first"
        half.set()
        await go_on.wait()
        yield " second"
        yield ChatResponse(response="first second")

    with nats_server() as server:
        async with connection(server.url) as nc, connection(server.url) as caller:
            await streams.apply(Api(nc))
            async with serve(server, slow), asyncio.TaskGroup() as tasks:
                asking = tasks.create_task(ask(caller, CHAT, REQUEST, ChatRequest(query="x", enable_streaming=True)))
                await half.wait()
                server.kill()
                await until(lambda: not caller.is_connected, "the caller noticed")
                go_on.set()
                server.start()
    answered = asking.result()
    assert answered.text == answered.response.response == "first second"
    assert [event.seq for event in answered.events] == list(range(1, len(answered.events) + 1))


async def test_a_handler_that_yields_no_response_is_told(nats: NatsServer, nc: Connection) -> None:
    async def forgetful(request: ChatRequest, ctx: Context[None]) -> AsyncIterator[str | ChatResponse]:
        yield "text"

    async with serve(nats, forgetful):
        answered = await ask(nc, CHAT, REQUEST, ChatRequest(query="x"))
    assert answered.response.error is not None
    assert answered.response.error.type == "internal"


async def test_the_same_request_id_again_gets_no_second_answer(nats: NatsServer, nc: Connection) -> None:
    runs = []

    async def count(request: ChatRequest, ctx: Context[None]) -> AsyncIterator[str | ChatResponse]:
        runs.append(1)
        yield "text"
        yield ChatResponse(response="text")

    request = ChatRequest(query="x", request_id=uuid.uuid4().hex, enable_streaming=True)
    async with serve(nats, count):
        await ask(nc, CHAT, REQUEST, request)
        state = (await Api(nc).request("STREAM.INFO.AI_EVENTS"))["state"]
        await Api(nc).publish(REQUEST, encode(request), {})
        await until(lambda: len(runs) == 2, "the second request is run")
        await settled(nc)
        assert (await Api(nc).request("STREAM.INFO.AI_EVENTS"))["state"]["last_seq"] == state["last_seq"]


async def test_an_interrupted_turn_is_answered_by_the_next_worker(nats: NatsServer, nc: Connection) -> None:
    entered = asyncio.Event()

    async def hangs_first(request: ChatRequest, ctx: Context[None]) -> AsyncIterator[str | ChatResponse]:
        yield f"attempt {ctx.attempt}"
        if ctx.attempt == 1:
            entered.set()
            await asyncio.sleep(3600)
        yield ChatResponse(response=f"attempt {ctx.attempt}")

    async with serve(nats, hangs_first, handler_timeout=0.2):
        answered = await ask(nc, CHAT, REQUEST, ChatRequest(query="x", enable_streaming=True))
    assert entered.is_set()
    assert answered.text == answered.response.response == "attempt 2"


MALFORMED: dict[str, Callable[[str], bytes]] = {
    "empty body": lambda _: b"",
    "not msgpack": lambda _: b"\xc1\xc1\xc1",
    "json": lambda request_id: b'{"request_id": "%b", "query": "x"}' % request_id.encode(),
    "truncated": lambda request_id: msgpack.packb({"request_id": request_id, "query": "x" * 50})[:-7],
    "trailing bytes": lambda request_id: msgpack.packb({"request_id": request_id, "query": "x"}) + b"\x00",
    "array": lambda request_id: msgpack.packb([request_id]),
    "nil": lambda _: msgpack.packb(None),
    "huge declared array": lambda _: b"\xdd\xff\xff\xff\xff",
    "deep nesting": lambda _: b"\x91" * 5000 + b"\xc0",
    "text that is not utf-8": lambda _: b"\x81\xa5query\xa2\xff\xfe",
    "integer keys": lambda _: msgpack.packb({1: 2}),
    "no question": lambda request_id: msgpack.packb({"request_id": request_id}),
    "blank question": lambda request_id: msgpack.packb({"request_id": request_id, "query": "  ", "message": ""}),
    "question of another type": lambda request_id: msgpack.packb({"request_id": request_id, "query": [1, 2]}),
    "top_k out of range": lambda request_id: msgpack.packb({"request_id": request_id, "query": "x", "top_k": 0}),
    "id with a wildcard": lambda _: msgpack.packb({"request_id": "a.>", "query": "x"}),
    "id of 5,000 characters": lambda _: msgpack.packb({"request_id": "a" * 5000, "query": "x"}),
    "negative deadline": lambda request_id: msgpack.packb({"request_id": request_id, "query": "x", "deadline_ms": -1}),
    "filter that is a list": lambda request_id: msgpack.packb({"request_id": request_id, "query": "x", "filter": [1]}),
    "foreign response subject": lambda request_id: msgpack.packb(
        {"request_id": request_id, "query": "x", "response_subject": "$SYS.REQ.SERVER.PING"}
    ),
}


async def test_a_thousand_malformed_messages_leave_as_many_dead_letters_and_a_worker_that_answers(
    nats: NatsServer, nc: Connection
) -> None:
    assert len(MALFORMED) == 20
    told: dict[str, ChatResponse] = {}
    expected: set[str] = set()

    async def on_response(message: Any) -> None:
        response = decode(message.data, ChatResponse)
        told[response.request_id] = response

    await nc.subscribe("ai.chat.response.*", cb=on_response)
    async with serve(nats, echo):
        for number in range(50):
            for kind, (name, make) in enumerate(MALFORMED.items()):
                request_id = f"bad-{kind}-{number}"
                body = make(request_id)
                if (
                    b"\xaarequest_id" in body
                    and request_id.encode() in body
                    and name not in ("truncated", "trailing bytes")
                ):
                    expected.add(request_id)
                await Api(nc).publish(REQUEST, body, {})
        await settled(nc)
        answered = await ask(nc, CHAT, REQUEST, ChatRequest(query="still there?"))
    letters = (await Api(nc).request("STREAM.INFO.DLQ"))["state"]
    assert letters["messages"] == 1000
    assert answered.response.response == "still there?"
    assert len(expected) == 350
    assert expected <= told.keys(), "everyone who could be told was told"
    assert all(told[request_id].error is not None for request_id in expected)
    assert {str(told[f"bad-{kind}-0"].error.message) for kind in (11, 14, 17)} != {""}  # type: ignore[union-attr]


async def test_a_dead_letter_names_its_reason(nats: NatsServer, nc: Connection) -> None:
    for make in MALFORMED.values():
        await Api(nc).publish(REQUEST, make("x1"), {})
    async with serve(nats, echo):
        await settled(nc)
    letters = await dead_letters(nc)
    assert len(letters) == len(MALFORMED)
    for headers in letters:
        assert headers["Dead-Letter-Type"] == "validation_error"
        assert ":" in headers["Dead-Letter-Reason"], "the reason names the field"
        assert headers["Dead-Letter-Subject"] == REQUEST


async def test_an_answer_of_the_service_is_read_by_late_subscribers_too(nats: NatsServer, nc: Connection) -> None:
    request = ChatRequest(query="late", request_id=uuid.uuid4().hex, enable_streaming=True)
    async with serve(nats, echo):
        live: Answered[ChatResponse] = await ask(nc, CHAT, REQUEST, request)
    late = await Api(nc).last("AI_EVENTS", f"evt.chat.response.{request.request_id}")
    assert late is not None
    assert decode(late.data, ChatResponse) == live.response
    assert text_of(live.events) == live.response.response


async def test_a_failed_decoding_bug_does_not_stop_the_worker(nats: NatsServer, nc: Connection) -> None:
    async def fails_once(request: ChatRequest, ctx: Context[None]) -> ChatResponse:
        if request.query == "bad":
            raise Internal("final")
        return ChatResponse(response="good")

    async with serve(nats, fails_once):
        bad = await ask(nc, CHAT, REQUEST, ChatRequest(query="bad"))
        good = await ask(nc, CHAT, REQUEST, ChatRequest(query="good"))
    assert (bad.response.success, good.response.success) == (False, True)
