"""Asking when there is no room, the trace that a question goes out with, and following turns of others."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from pathlib import Path

import pytest

from handler_core import streams, tracing
from handler_core.client import RETRY_AFTER, attach, follow, publish
from handler_core.codec import encode
from handler_core.connection import Connection
from handler_core.contract.answer import Response, StreamEvent
from handler_core.contract.chat import CHAT, REQUEST_SUBJECT, USER_SUBJECT, ChatRequest, ChatResponse
from handler_core.contract.errors import ErrorType
from handler_core.errors import Busy, Transient
from handler_core.jetstream import Api, JetStreamError
from handler_core.testing import connection, nats_server, stored

ACCOUNT_LIMIT = """
jetstream { max_file_store: 1000000 }
accounts { A { jetstream { max_file: 1500 }, users [{user: a, password: b}] } }
no_auth_user: a
"""


def question(request_id: str, query: str = "x" * 200) -> ChatRequest:
    return ChatRequest(query=query, request_id=request_id)


async def fill(api: Api, subject: str) -> None:
    """Ask until it is refused, which is soon."""
    for number in range(2, 50):
        await publish(api, subject, question(f"q{number}"))


async def queue(api: Api, **limits: int) -> None:
    """AI_CHAT as declared, but with less room."""
    await api.request("STREAM.CREATE.AI_CHAT", {**streams.AI_CHAT.config(), **limits})


@pytest.mark.parametrize("limits", [{"max_bytes": 600}, {"max_msgs": 1}])
async def test_a_full_queue_is_busy_and_says_when_to_come_again(api: Api, limits: dict[str, int]) -> None:
    await queue(api, **limits)
    await publish(api, REQUEST_SUBJECT, question("q1"))
    with pytest.raises(Busy, match=r"^the queue AI_CHAT is full$") as caught:
        await fill(api, USER_SUBJECT.format(user="alice"))
    assert caught.value.type is ErrorType.BUSY
    assert caught.value.retryable
    assert caught.value.retry_after == RETRY_AFTER == 1.0


async def test_following_a_turn_that_found_no_room_ends_at_once_and_leaves_no_subscription(
    nc: Connection, api: Api
) -> None:
    await queue(api, max_msgs=1)
    await publish(api, REQUEST_SUBJECT, question("q1"))
    before = len(nc._subs)
    with pytest.raises(Busy):
        async with aclosing(follow(nc, CHAT, REQUEST_SUBJECT, question("q2"))) as answer:
            await anext(answer)
    assert len(nc._subs) <= before + 1  # the inbox that requests share


@pytest.mark.parametrize(
    ("config", "owner"),
    [
        ("jetstream { max_file_store: 1000 }", "the server's"),
        (ACCOUNT_LIMIT, "the account's"),
    ],
)
async def test_a_full_disk_allowance_is_busy_and_named(tmp_path: Path, config: str, owner: str) -> None:
    file = tmp_path / "nats.conf"
    file.write_text(config)
    with nats_server("-c", str(file)) as server:
        async with connection(server.url) as nc:
            await queue(Api(nc), max_bytes=-1)
            with pytest.raises(Busy, match=f"AI_CHAT cannot grow: {owner} JetStream storage is full"):
                await fill(Api(nc), REQUEST_SUBJECT)


async def test_another_refusal_stays_what_it_is(api: Api) -> None:
    await queue(api, max_msg_size=100)
    with pytest.raises(JetStreamError, match="message size exceeds maximum allowed"):
        await publish(api, REQUEST_SUBJECT, question("q1"))


async def test_without_the_stream_nobody_takes_the_question(api: Api) -> None:
    with pytest.raises(Transient, match=r"no stream or API answers on ai.chat.request"):
        await publish(api, REQUEST_SUBJECT, question("q1"))


async def test_the_caller_hears_when_its_question_is_stored(nc: Connection, api: Api) -> None:
    await queue(api)
    heard: asyncio.Queue[int] = asyncio.Queue()

    async def ask() -> None:
        async with aclosing(follow(nc, CHAT, REQUEST_SUBJECT, question("q1"), on_stored=heard.put_nowait)) as answer:
            async for item in answer:
                assert isinstance(item, Response)

    asking = asyncio.create_task(ask())
    assert await heard.get() == 1
    asking.cancel()
    await asyncio.wait([asking])


class Recorded:
    """A span that remembers what it was told."""

    def __init__(self, traceparent: str) -> None:
        self.traceparent = traceparent
        self.children: list[tuple[str, str, Mapping[str, tracing.Value]]] = []
        self.ended: list[str] = []

    def child(
        self,
        name: str,
        kind: tracing.Kind = "internal",
        attributes: Mapping[str, tracing.Value] | None = None,
        *,
        start: float | None = None,
    ) -> tracing.Span:
        self.children.append((name, kind, attributes or {}))
        child = Recorded(f"00-{'a' * 32}-{len(self.children):016x}-01")
        child.ended = self.ended
        return child

    def set(self, attributes: Mapping[str, tracing.Value]) -> None: ...

    def event(self, name: str, attributes: Mapping[str, tracing.Value] | None = None) -> None: ...

    def end(self, *, error_type: str = "", message: str = "", at: float | None = None) -> None:
        self.ended.append(error_type)


@pytest.fixture
def active() -> Iterator[Recorded]:
    span = Recorded(f"00-{'a' * 32}-{'b' * 16}-01")
    tracing.active.set(span)
    yield span
    tracing.active.set(None)


async def test_the_question_carries_the_span_of_its_publishing(nc: Connection, api: Api, active: Recorded) -> None:
    await queue(api)
    await publish(api, USER_SUBJECT.format(user="alice"), question("q1"), {"traceparent": "of another"})
    ((name, kind, attributes),) = active.children
    assert (name, kind) == ("send ai.chat.user.*.message", "producer")
    assert attributes["messaging.destination.template"] == "ai.chat.user.*.message"
    assert attributes["messaging.message.id"] == "q1"
    assert active.ended == [""]
    (message,) = await stored(nc, "AI_CHAT", "ai.chat.>")
    assert message.headers["traceparent"] == f"00-{'a' * 32}-{1:016x}-01"


async def test_a_refused_question_ends_its_span_with_the_error(api: Api, active: Recorded) -> None:
    await queue(api, max_msgs=1)
    await publish(api, REQUEST_SUBJECT, question("q1"))
    with pytest.raises(Busy):
        await publish(api, REQUEST_SUBJECT, question("q2"))
    assert active.ended == ["", "busy"]


async def test_where_nobody_traces_no_trace_is_made(nc: Connection, api: Api) -> None:
    await queue(api)
    await publish(api, REQUEST_SUBJECT, question("q1"))
    (message,) = await stored(nc, "AI_CHAT", "ai.chat.>")
    assert message.headers == {"Nats-Msg-Id": "q1"}


async def test_attaching_in_the_middle_of_a_turn_misses_no_event_of_it(nc: Connection, api: Api) -> None:
    await streams.apply(api)

    async def write(first: int, last: int) -> None:
        for seq in range(first, last + 1):
            event = StreamEvent(request_id="t1", seq=seq, type="chunk", content=f"{seq} ", timestamp=0)
            await api.publish("evt.chat.response.stream.t1", encode(event), {})

    async def finish() -> None:
        await write(101, 200)
        await api.publish("evt.chat.response.t1", encode(ChatResponse(response="…")), {})
        event = StreamEvent(request_id="t1", seq=201, type="done", done=True, timestamp=0)
        await api.publish("evt.chat.response.stream.t1", encode(event), {})

    await write(1, 100)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(finish())
        async with asyncio.timeout(20), aclosing(attach(nc, CHAT, "t1")) as items:
            seen = [item.seq if isinstance(item, StreamEvent) else -1 async for item in items]
    assert seen == [*range(1, 202), -1]


async def test_attaching_to_a_turn_that_does_not_stream_ends_with_its_response(nc: Connection, api: Api) -> None:
    await streams.apply(api)
    await api.publish("evt.chat.response.t2", encode(ChatResponse(response="whole")), {})
    async with asyncio.timeout(20), aclosing(attach(nc, CHAT, "t2")) as items:
        assert [item.response async for item in items if isinstance(item, ChatResponse)] == ["whole"]
