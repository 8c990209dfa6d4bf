"""One user's many turns: bounded in each worker, answered later or told `busy`, and in nobody else's way."""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from handler_core import fairness, streams
from handler_core.codec import decode, encode
from handler_core.config import ServiceSettings
from handler_core.connection import Connection
from handler_core.context import Context
from handler_core.contract.chat import CHAT, ChatRequest, ChatResponse
from handler_core.errors import Busy, Refused
from handler_core.fairness import WAITING, Fairness
from handler_core.jetstream import Api
from handler_core.limits import Limits
from handler_core.service import Service
from handler_core.testing import NatsServer, ask, connection, serving, stored, until

REQUEST = "ai.chat.request"
ASK = "ai.chat.ask"
LIMIT = 2


@pytest.fixture
async def nc(nats: NatsServer) -> AsyncIterator[Connection]:
    async with connection(nats.url) as nc:
        await streams.apply(Api(nc))
        for name in ("AI_CHAT", "AI_EVENTS", "AI_CONTROL", "DLQ"):
            await Api(nc).request(f"STREAM.PURGE.{name}")
        yield nc


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits comes back after moments."""
    monkeypatch.setattr("handler_core.fairness.RETRY_AFTER", 0.2)
    monkeypatch.setattr("handler_core.turn.RETRY_AFTER", 0.2)


class Users:
    """A handler that answers as its users are let through, and who ran at once."""

    def __init__(self, *held: str | None) -> None:
        self.gates = {user: asyncio.Event() for user in held}
        self.running: Counter[str | None] = Counter()
        self.peak: Counter[str | None] = Counter()

    async def chat(self, request: ChatRequest, ctx: Context[None]) -> ChatResponse:
        user = request.user_id
        self.running[user] += 1
        self.peak[user] = max(self.peak[user], self.running[user])
        try:
            if gate := self.gates.get(user):
                await gate.wait()
            await asyncio.sleep(0)
        finally:
            self.running[user] -= 1
        return ChatResponse(response=str(user))


def serve(nats: NatsServer, handler: Callable[..., Any], **limits: Any) -> Any:
    """The handler, for the queue and for request/reply, as a service that runs while the block does."""
    service = Service("fair", ServiceSettings)
    bound = Limits(**{"max_in_flight": 8, "max_per_user": LIMIT, "retry_base": 0.02, **limits})
    service.answers(streams.CHAT_HANDLER, CHAT, lambda _: bound)(handler)
    service.replies("ask", ASK, "ai.chat.user.{user}.ask", response=ChatResponse, limits=lambda _: bound)(handler)
    return serving(service, ServiceSettings(nats_url=nats.url, health_port=0, health_host="127.0.0.1"))


async def flood(nc: Connection, user: str | None, count: int, subject: str = REQUEST, **fields: Any) -> list[str]:
    """Queue so many requests of a user; returns their ids."""
    ids = [uuid.uuid4().hex for _ in range(count)]
    for request_id in ids:
        await Api(nc).publish(
            subject, encode(ChatRequest(query="x", request_id=request_id, user_id=user, **fields)), {}
        )
    return ids


async def settled(nc: Connection) -> None:
    async def empty() -> bool:
        return int((await Api(nc).request("STREAM.INFO.AI_CHAT"))["state"]["messages"]) == 0

    await until(empty, "every request is settled")


async def outcomes(nc: Connection, ids: list[str]) -> Counter[str]:
    """How many of the turns were answered, and with which error the others ended."""
    found: Counter[str] = Counter()
    for request_id in ids:
        [final] = await stored(nc, "AI_EVENTS", f"evt.chat.response.{request_id}")
        response = decode(final.data, ChatResponse)
        found[response.error.type if response.error else "answered"] += 1
        if response.error is not None and response.error.type == "busy":
            assert response.error.retry_after_ms
    return found


# -- the queue


@pytest.mark.usefixtures("soon")
async def test_a_user_has_no_more_turns_at_once_than_the_limit_and_all_that_may_wait_are_answered(
    nats: NatsServer, nc: Connection
) -> None:
    users = Users()
    async with serve(nats, users.chat, max_deliveries=1000) as runtime:
        ids = await flood(nc, "alice", LIMIT + WAITING * LIMIT)
        await settled(nc)
        assert await outcomes(nc, ids) == {"answered": len(ids)}
        assert runtime.fairness._users == {}
    assert users.peak["alice"] <= LIMIT
    assert await stored(nc, "DLQ", "dlq.>") == []


@pytest.mark.usefixtures("soon")
async def test_others_are_answered_while_one_users_hundreds_of_turns_wait_or_are_told_busy(
    nats: NatsServer, nc: Connection
) -> None:
    async def rest_takes_no_room() -> bool:
        state = await Api(nc).request("CONSUMER.INFO.AI_CHAT.chat_handler")
        return int(state["num_pending"]) == 0 and int(state["num_ack_pending"]) <= LIMIT + WAITING * LIMIT

    users = Users("alice")
    ids = await flood(nc, "alice", 300)
    async with serve(nats, users.chat, max_deliveries=1000):
        bob = await ask(nc, CHAT, REQUEST, ChatRequest(query="x", user_id="bob"))
        nobody = await ask(nc, CHAT, REQUEST, ChatRequest(query="x"))
        assert (bob.response.response, nobody.response.response) == ("bob", "None")
        assert users.running == {"alice": LIMIT, "bob": 0, None: 0}, "all that while they are held"
        await until(rest_takes_no_room, "all but what may wait is told")
        users.gates["alice"].set()
        await settled(nc)
    found = await outcomes(nc, ids)
    assert found["answered"] > LIMIT, "those that waited too"
    assert found["answered"] + found["busy"] == len(ids)
    assert await stored(nc, "DLQ", "dlq.>") == [], "its sender was told, and nothing is buried"


@pytest.mark.usefixtures("soon")
async def test_the_user_of_the_subject_counts_before_the_one_in_the_body(nats: NatsServer, nc: Connection) -> None:
    users = Users("alice")
    async with serve(nats, users.chat):
        for name in ("bob", "carol", "dave"):
            await flood(nc, name, 2, subject="ai.chat.user.alice.message")
        await until(lambda: users.running["alice"] == LIMIT, "the first run")
        other = await ask(nc, CHAT, "ai.chat.user.bob.message", ChatRequest(query="x", user_id="alice"))
        assert other.response.response == "bob"
        assert users.peak["alice"] == LIMIT
        users.gates["alice"].set()
        await settled(nc)


@pytest.mark.parametrize(("user", "limit"), [(None, LIMIT), ("alice", 0)])
async def test_turns_without_a_user_or_without_a_limit_are_not_limited(
    nats: NatsServer, nc: Connection, user: str | None, limit: int
) -> None:
    users = Users(user)
    async with serve(nats, users.chat, max_per_user=limit) as runtime:
        await flood(nc, user, 8)
        await until(lambda: users.running[user] == 8, "all run")
        assert runtime.fairness._users == {}
        users.gates[user].set()
        await settled(nc)


async def test_a_turn_whose_deadline_leaves_no_time_to_wait_is_told_busy_at_once(
    nats: NatsServer, nc: Connection
) -> None:
    users = Users("alice")
    async with serve(nats, users.chat):
        await flood(nc, "alice", LIMIT)
        await until(lambda: users.running["alice"] == LIMIT, "the limit is reached")
        late = await ask(nc, CHAT, REQUEST, ChatRequest(query="x", user_id="alice", deadline_ms=900))
        users.gates["alice"].set()
        await settled(nc)
    assert late.response.error is not None
    assert (late.response.error.type, late.response.error.retry_after_ms) == ("busy", 1000)
    assert await stored(nc, "DLQ", "dlq.>") == []


@pytest.mark.usefixtures("soon")
async def test_a_turn_that_has_waited_for_all_its_deliveries_is_told_busy_and_not_buried(
    nats: NatsServer, nc: Connection
) -> None:
    users = Users("alice")
    async with serve(nats, users.chat, max_deliveries=5):
        first = await flood(nc, "alice", LIMIT)
        await until(lambda: users.running["alice"] == LIMIT, "the limit is reached")
        request = ChatRequest(query="x", user_id="alice", enable_streaming=True)
        answered = await ask(nc, CHAT, REQUEST, request)
        users.gates["alice"].set()
        await settled(nc)
    assert answered.response.error is not None
    assert answered.response.error.type == "busy"
    assert [event.type for event in answered.events] == ["restart", "error"]
    assert await outcomes(nc, first) == {"answered": LIMIT}
    assert await stored(nc, "DLQ", "dlq.>") == []


@pytest.mark.usefixtures("soon")
async def test_a_waiting_turn_that_is_canceled_does_not_run(nats: NatsServer, nc: Connection) -> None:
    users = Users("alice")
    async with serve(nats, users.chat, max_deliveries=1000):
        await flood(nc, "alice", LIMIT)
        await until(lambda: users.running["alice"] == LIMIT, "the limit is reached")
        [waiting] = await flood(nc, "alice", 1)
        await Api(nc).publish(f"ai.turn.cancel.{waiting}", b"", {})
        users.gates["alice"].set()
        await settled(nc)
    assert await outcomes(nc, [waiting]) == {"canceled": 1}


# -- request/reply


async def test_a_request_beyond_the_limit_is_told_busy_at_once_and_the_queues_turns_count_too(
    nats: NatsServer, nc: Connection
) -> None:
    async def request(subject: str, **fields: str) -> ChatResponse:
        return decode((await nc.request(subject, encode(ChatRequest(query="x", **fields)), 10)).data, ChatResponse)

    users = Users("alice")
    async with serve(nats, users.chat) as runtime:
        await flood(nc, "alice", LIMIT)
        await until(lambda: users.running["alice"] == LIMIT, "the limit is reached")
        told = decode(
            (await nc.request("ai.chat.user.alice.ask", encode(ChatRequest(query="x")), 10)).data, ChatResponse
        )
        other = decode((await nc.request(ASK, encode(ChatRequest(query="x", user_id="bob")), 10)).data, ChatResponse)
        users.gates["alice"].set()
        await settled(nc)
        again = decode(
            (await nc.request("ai.chat.user.alice.ask", encode(ChatRequest(query="x")), 10)).data, ChatResponse
        )
        assert runtime.fairness._users == {}
    assert told.error is not None
    assert (told.error.type, told.error.retry_after_ms) == ("busy", 1000)
    assert (other.response, again.response) == ("bob", "alice")


# -- the count itself


def test_a_turn_that_fails_leaves_its_place() -> None:
    fair = Fairness()
    for _ in range(3):
        with pytest.raises(KeyError), fair.turn("alice", 1, "m", 1.0):
            raise KeyError
    assert fair._users == {}


def test_one_that_is_put_off_keeps_its_place_among_those_that_wait() -> None:
    fair = Fairness()
    with fair.turn("alice", 1, "runs", 1.0):
        for _ in range(2 * WAITING):
            with pytest.raises(Busy) as caught, fair.turn("alice", 1, "waits", 60.0):
                raise AssertionError("not reached")
            assert not isinstance(caught.value, Refused)
        assert len(fair._users["alice"].waiting) == 1


def test_users_whose_turns_came_back_elsewhere_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("handler_core.fairness.time", SimpleNamespace(monotonic=lambda: now))
    fair = Fairness()
    for n in range(fairness.WAITING_IN_ALL):
        with fair.turn(f"user-{n}", 1, "runs", 1.0), pytest.raises(Busy), fair.turn(f"user-{n}", 1, "waits", 2.0):
            raise AssertionError("not reached")
    assert len(fair._users) == fairness.WAITING_IN_ALL
    with (
        fair.turn("one more", 1, "runs", 1.0),
        pytest.raises(Refused),
        fair.turn("one more", 1, "cannot wait beside all the others", 2.0),
    ):
        raise AssertionError("not reached")
    now += fairness.SWEEP_EVERY + 1
    with fair.turn("alice", 1, "m", 1.0):
        assert set(fair._users) == {"alice"}
    assert fair._users == {}


class Counting(RuleBasedStateMachine):
    """Turns of a few users that begin and end in any order, at any time."""

    LIMIT = 2

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("handler_core.fairness.time", SimpleNamespace(monotonic=lambda: self.now))
        self.fair = Fairness()
        self.running: list[tuple[str, ExitStack]] = []
        self.count = 0

    def teardown(self) -> None:
        while self.running:
            self.running.pop()[1].close()
        assert all(not state.running for state in self.fair._users.values())
        self.now += 10_000
        with self.fair.turn("last", 1, "m", 1.0):
            assert set(self.fair._users) == {"last"}, "nothing is left of the others"
        self.patch.undo()

    @rule(user=st.sampled_from("abc"), again=st.booleans(), wait=st.none() | st.floats(0.1, 50))
    def begin(self, user: str, again: bool, wait: float | None) -> None:
        self.count += not again
        stack = ExitStack()
        turn = self.fair.turn(user, self.LIMIT, f"m{self.count}", wait)
        if sum(name == user for name, _ in self.running) < self.LIMIT:
            stack.enter_context(turn)
            self.running.append((user, stack))
        else:
            with pytest.raises(Busy) as caught:
                stack.enter_context(turn)
            assert caught.value.retry_after
            assert wait is not None or isinstance(caught.value, Refused)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))[1].close()

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def it_counts_what_runs_and_bounds_what_waits(self) -> None:
        for user in "abc":
            state = self.fair._users.get(user)
            assert (state.running if state else 0) == sum(name == user for name, _ in self.running)
            assert state is None or len(state.waiting) <= WAITING * self.LIMIT


def test_a_turn_begins_whenever_its_user_has_room() -> None:
    few = settings(max_examples=40, stateful_step_count=25, deadline=None)
    run_state_machine_as_test(Counting, settings=few)
