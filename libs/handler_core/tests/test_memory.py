"""What a session remembers: in order, within its budget, once a turn whoever writes it, and for its own user only."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from handler_core import prompt, streams
from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.contract.chat import ChatRequest, ChatResponse
from handler_core.contract.session import SessionTurn
from handler_core.contract.voice import VoiceRequest, VoiceResponse
from handler_core.errors import Transient
from handler_core.jetstream import Api
from handler_core.memory import Conversation, Memory, _Stored
from handler_core.testing import NatsServer, connection
from handler_core.timings import Timings

BUCKET = "$KV.AI_SESSIONS"


@pytest.fixture
async def nc(nats: NatsServer) -> AsyncIterator[Connection]:
    async with connection(nats.url) as nc:
        await streams.apply(Api(nc))
        await Api(nc).request("STREAM.PURGE.KV_AI_SESSIONS")
        yield nc


@pytest.fixture
def memory(nc: Connection) -> Memory:
    return Memory(nc, tokens=10_000)


def turn(name: str, response: str = "It is.", attempt: int = 1, query: str = "Is it?") -> SessionTurn:
    return SessionTurn(request_id=name, attempt=attempt, query=query, response=response, timestamp=1.0)


async def said(memory: Memory, user: str | None = "alice", session: str = "s1") -> list[tuple[str, str]]:
    return [(kept.request_id, kept.response) for kept in await memory.recall(user, session)]


async def test_turns_are_recalled_in_the_order_in_which_they_were_answered(memory: Memory) -> None:
    for name in ("a", "b", "c"):
        await memory.remember("alice", "s1", turn(name, f"answer {name}"))
    assert await said(memory) == [("a", "answer a"), ("b", "answer b"), ("c", "answer c")]


async def test_citations_whose_sources_are_not_kept_are_left_out(memory: Memory) -> None:
    await memory.remember("alice", "s1", turn("a", "Weekly [1], not daily [2, 3]. See `items[1]`."))
    assert await said(memory) == [("a", "Weekly, not daily. See `items[1]`.")]


async def test_an_unknown_session_is_empty_and_there_is_nothing_to_forget(memory: Memory) -> None:
    assert await memory.recall("alice", "s1") == []
    assert not await memory.forget("alice", "s1")


async def test_a_session_that_was_forgotten_begins_anew(memory: Memory, nc: Connection) -> None:
    for name in ("a", "b"):
        await memory.remember("alice", "s1", turn(name))
    assert await memory.forget("alice", "s1")
    assert await memory.recall("alice", "s1") == []
    assert not await memory.forget("alice", "s1"), "once is enough"
    last = await Api(nc).last("KV_AI_SESSIONS", f"{BUCKET}.user.alice.s1")
    assert last is not None
    assert last.data == b"", "nothing of what was said is left"
    await memory.remember("alice", "s1", turn("c"))
    assert [name for name, _ in await said(memory)] == ["c"]


async def test_ids_of_the_longest_kind_are_good_keys(memory: Memory) -> None:
    user, session = "u" * 64, "-" * 32 + "_" * 32
    await memory.remember(user, session, turn("r" * 64))
    assert [name for name, _ in await said(memory, user, session)] == ["r" * 64]
    assert await memory.forget(user, session)


@pytest.mark.parametrize(
    ("user", "session"),
    [(None, "s1"), ("bob", "s1"), ("anonymous", "s1"), ("user", "s1"), ("alice", "s2"), ("ALICE", "s1")],
)
async def test_a_session_is_seen_and_forgotten_by_its_own_user_only(
    memory: Memory, user: str | None, session: str
) -> None:
    await memory.remember("alice", "s1", turn("a"))
    assert await memory.recall(user, session) == []
    assert not await memory.forget(user, session)
    await memory.remember(user, session, turn("theirs"))
    assert [name for name, _ in await said(memory)] == ["a"]


async def test_nobody_is_not_a_user_of_the_name_anonymous(memory: Memory) -> None:
    await memory.remember(None, "s1", turn("nobody"))
    await memory.remember("anonymous", "s1", turn("somebody"))
    assert [name for name, _ in await said(memory, None)] == ["nobody"]
    assert await memory.forget("anonymous", "s1")
    assert [name for name, _ in await said(memory, None)] == ["nobody"]


async def test_a_request_id_may_be_used_in_two_sessions(memory: Memory) -> None:
    for session in ("s1", "s2"):
        await memory.remember("alice", session, turn("same", session))
    assert await said(memory, session="s1") == [("same", "s1")]
    assert await said(memory, session="s2") == [("same", "s2")]


async def test_the_bucket_forgets_a_session_after_a_week_and_keeps_one_value_of_each(nc: Connection) -> None:
    config = (await Api(nc).request("STREAM.INFO.KV_AI_SESSIONS"))["config"]
    assert config["max_age"] == 7 * 24 * 3600 * 10**9
    assert (config["max_msgs_per_subject"], config["allow_rollup_hdrs"]) == (1, True)


# -- attempts and other writers


async def test_a_later_attempt_takes_the_place_of_an_earlier_one(memory: Memory) -> None:
    for written in (turn("a"), turn("b", "first", attempt=1), turn("b", "second", attempt=2)):
        await memory.remember("alice", "s1", written)
    assert await said(memory) == [("a", "It is."), ("b", "second")]


async def test_a_second_message_of_the_same_id_does_not_rewrite_what_was_answered(memory: Memory) -> None:
    await memory.remember("alice", "s1", turn("r1", "answered"))
    await memory.remember("alice", "s1", turn("r1", "refused, since the id has its answer"))
    assert [kept.response for kept in await memory.recall("alice", "s1")] == ["answered"]


async def test_a_question_longer_than_the_budget_is_cut_and_kept(memory: Memory) -> None:
    long = turn("r1", "ok").model_copy(update={"query": "x" * 60_000})
    await memory.remember("alice", "s1", long)
    [kept] = await memory.recall("alice", "s1")
    assert kept.response == "ok"
    assert 1_000 < len(kept.query) < 60_000


async def test_an_earlier_attempt_that_wakes_up_again_changes_nothing(memory: Memory, nc: Connection) -> None:
    await memory.remember("alice", "s1", turn("a", "second", attempt=2))
    before = (await Api(nc).request("STREAM.INFO.KV_AI_SESSIONS"))["state"]["last_seq"]
    await memory.remember("alice", "s1", turn("a", "first", attempt=1))
    assert await said(memory) == [("a", "second")]
    assert (await Api(nc).request("STREAM.INFO.KV_AI_SESSIONS"))["state"]["last_seq"] == before


async def test_turns_that_end_at_once_are_all_kept(nats: NatsServer, nc: Connection) -> None:
    async with connection(nats.url) as other:
        workers = [Memory(nc, tokens=10_000), Memory(other, tokens=10_000)]
        async with asyncio.TaskGroup() as tasks:
            for n in range(24):
                tasks.create_task(workers[n % 2].remember("alice", "s1", turn(f"r{n}")))
        kept = [name for name, _ in await said(workers[0])]
    assert sorted(kept) == sorted(f"r{n}" for n in range(24))


async def test_a_session_forgotten_while_turns_end_is_whole_or_gone(memory: Memory) -> None:
    async with asyncio.TaskGroup() as tasks:
        for n in range(8):
            tasks.create_task(memory.remember("alice", "s1", turn(f"r{n}")))
        tasks.create_task(memory.forget("alice", "s1"))
    kept = [name for name, _ in await said(memory)]
    assert len(kept) == len(set(kept)) <= 8


class Attempts(RuleBasedStateMachine):
    """Attempts at turns, remembered in any order: the highest of each is what is kept."""

    runner: asyncio.Runner
    memory: Memory
    session = 0

    def __init__(self) -> None:
        super().__init__()
        Attempts.session += 1
        self.name = f"machine-{Attempts.session}"
        self.highest: dict[str, int] = {}

    def kept(self) -> list[tuple[str, str]]:
        return self.runner.run(said(self.memory, "alice", self.name))

    @rule(name=st.sampled_from("abc"), attempt=st.integers(1, 4))
    def remember(self, name: str, attempt: int) -> None:
        self.runner.run(self.memory.remember("alice", self.name, turn(name, str(attempt), attempt)))
        self.highest[name] = max(attempt, self.highest.get(name, 0))

    @rule(first=st.integers(1, 4), second=st.integers(1, 4))
    def remember_two_at_once(self, first: int, second: int) -> None:
        async def both() -> None:
            async with asyncio.TaskGroup() as tasks:
                for attempt in (first, second):
                    written = turn("twice", str(attempt), attempt)
                    tasks.create_task(self.memory.remember("alice", self.name, written))

        self.runner.run(both())
        self.highest["twice"] = max(first, second, self.highest.get("twice", 0))

    @rule()
    def forget(self) -> None:
        assert self.runner.run(self.memory.forget("alice", self.name)) is bool(self.highest)
        self.highest = {}

    @invariant()
    def the_highest_attempt_of_each_is_kept_once(self) -> None:
        kept = self.kept()
        assert len(kept) == len(self.highest)
        assert dict(kept) == {name: str(attempt) for name, attempt in self.highest.items()}


def test_of_the_attempts_at_a_turn_the_highest_is_kept_whatever_their_order(nats: NatsServer) -> None:
    with asyncio.Runner() as runner:
        stack = connection(nats.url)
        nc = runner.run(stack.__aenter__())
        runner.run(streams.apply(Api(nc)))
        Attempts.runner, Attempts.memory = runner, Memory(nc, tokens=10_000)
        few = settings(max_examples=15, stateful_step_count=12, deadline=None)
        run_state_machine_as_test(Attempts, settings=few)
        runner.run(stack.__aexit__(None, None, None))


# -- what is heard of an answer


async def test_an_answer_is_amended_in_its_place(memory: Memory) -> None:
    for name in ("a", "b", "c"):
        await memory.remember("alice", "s1", turn(name))
    assert await memory.amend("alice", "s1", turn("b", "It… [1]"))
    assert await said(memory) == [("a", "It is."), ("b", "It…"), ("c", "It is.")]


@pytest.mark.parametrize(
    ("user", "session", "name", "attempt"), [("bob", "s1", "a", 1), ("alice", "s2", "a", 1), ("alice", "s1", "b", 1),
                                             ("alice", "s1", "a", 2)]
)  # fmt: skip
async def test_what_is_not_there_or_another_attempts_is_not_amended(
    memory: Memory, user: str, session: str, name: str, attempt: int
) -> None:
    await memory.remember("alice", "s1", turn("a"))
    assert not await memory.amend(user, session, turn(name, "…", attempt))
    assert await said(memory) == [("a", "It is.")]


async def test_a_session_that_was_forgotten_is_not_amended_back(memory: Memory) -> None:
    await memory.remember("alice", "s1", turn("a"))
    await memory.forget("alice", "s1")
    assert not await memory.amend("alice", "s1", turn("a", "…"))
    assert await memory.recall("alice", "s1") == []


async def test_answers_amended_while_others_are_remembered_are_all_kept(memory: Memory) -> None:
    for n in range(6):
        await memory.remember("alice", "s1", turn(f"r{n}"))
    async with asyncio.TaskGroup() as tasks:
        for n in range(6):
            tasks.create_task(memory.amend("alice", "s1", turn(f"r{n}", "…")))
            tasks.create_task(memory.remember("alice", "s1", turn(f"r{n + 6}")))
    kept = await said(memory)
    assert kept[:6] == [(f"r{n}", "…") for n in range(6)]
    assert sorted(name for name, _ in kept[6:]) == sorted(f"r{n + 6}" for n in range(6))


async def test_of_a_spoken_question_what_was_understood_is_remembered(memory: Memory) -> None:
    asked = VoiceRequest(audio=b"1", session_id="s1")
    conversation = await Conversation.of(asked, "r1", memory, Timings())
    response = await conversation.add(VoiceResponse(transcription="Is it?", response="It is, I think."), 1)
    await conversation.amend(response, "It is…", 1)
    [kept] = await memory.recall(None, "s1")
    assert (kept.query, kept.response, response.response) == ("Is it?", "It is…", "It is, I think.")


async def test_a_question_in_which_nothing_was_understood_is_none(memory: Memory) -> None:
    conversation = await Conversation.of(VoiceRequest(audio=b"1", session_id="s1"), "r1", memory, Timings())
    response = await conversation.add(VoiceResponse(response="Sorry?"), 1)
    assert (await memory.recall(None, "s1"), response.degraded) == ([], [])


async def test_without_the_bucket_what_was_heard_is_lost_and_nothing_else(memory: Memory, nc: Connection) -> None:
    conversation = await Conversation.of(VoiceRequest(audio=b"1", session_id="s1"), "r1", memory, Timings())
    response = await conversation.add(VoiceResponse(transcription="Is it?", response="It is."), 1)
    await Api(nc).request("STREAM.DELETE.KV_AI_SESSIONS")
    await conversation.amend(response, "It…", 1)


# -- the budget


turns = st.lists(
    st.builds(
        SessionTurn,
        request_id=st.uuids().map(str),
        query=st.text("a漢 é😀", max_size=300),
        response=st.text("a漢 é😀", max_size=600),
        timestamp=st.just(0.0),
    ),
    max_size=10,
)


def size(kept: list[SessionTurn]) -> int:
    return sum(prompt.tokens(one.query) + prompt.tokens(one.response) for one in kept)


@given(turns, st.integers(0, 1500))
def test_what_is_kept_is_the_end_of_what_was_said_and_within_the_budget(said: list[SessionTurn], budget: int) -> None:
    kept = prompt.recent(said, budget)
    assert size(kept) <= budget
    last = said[len(said) - len(kept) :]
    assert kept[1:] == last[1:], "only the oldest may be cut"
    if kept:
        assert kept[0].request_id == last[0].request_id
        assert last[0].response.startswith(kept[0].response)
        assert kept[0].query == last[0].query or (len(kept) == 1 and last[0].query.startswith(kept[0].query))
    assert kept or not said or budget < 32, "the newest is kept, however long it is"


@given(turns, st.integers(0, 1500))
def test_what_was_trimmed_before_is_not_trimmed_again(said: list[SessionTurn], budget: int) -> None:
    kept = prompt.recent(said, budget)
    assert prompt.recent(kept, budget) == kept
    if size(said) <= budget >= 32 and (not said or prompt.tokens(said[-1].query) <= budget // 2):
        assert kept == said


async def test_a_long_session_keeps_its_last_turns_within_the_budget(nc: Connection) -> None:
    memory = Memory(nc, tokens=200)
    for n in range(20):
        await memory.remember("alice", "s1", turn(f"r{n}", "x" * 150))
        kept = await memory.recall("alice", "s1")
        assert size(kept) <= 200
        assert kept[-1].request_id == f"r{n}"
    assert len(kept) > 2
    last = await Api(nc).last("KV_AI_SESSIONS", f"{BUCKET}.user.alice.s1")
    assert last is not None
    assert decode(last.data, _Stored).turns == kept, "no more than that is stored"


async def test_a_smaller_budget_holds_for_what_was_kept_under_a_larger_one(memory: Memory, nc: Connection) -> None:
    for n in range(5):
        await memory.remember("alice", "s1", turn(f"r{n}", "x" * 100))
    kept = await Memory(nc, tokens=64).recall("alice", "s1")
    assert [(one.request_id, len(one.response)) for one in kept][-1] == ("r4", 100)
    assert size(kept) <= 64


# -- without it


def request(**fields: str) -> ChatRequest:
    return ChatRequest(**{"query": "And then?", "request_id": "r9", "user_id": "alice", "session_id": "s1", **fields})


async def held(memory: Memory, asked: ChatRequest) -> ChatResponse:
    """A turn of this request, as a handler would do it."""
    conversation = await Conversation.of(asked, str(asked.request_id), memory, Timings())
    return await conversation.add(ChatResponse(response="Then.", degraded=["reranker"]), 1)


async def test_without_the_bucket_the_answer_says_so(memory: Memory, nc: Connection) -> None:
    await Api(nc).request("STREAM.DELETE.KV_AI_SESSIONS")
    response = await held(memory, request())
    assert (response.response, response.degraded) == ("Then.", ["reranker", "memory"])
    for call in (memory.recall("alice", "s1"), memory.forget("alice", "s1")):
        with pytest.raises(Transient):
            await call


@pytest.mark.parametrize("value", [b"", b"\xc1", b"[]", encode(ChatRequest(query="x"))[:-1], b"\x81\xa5turns\x01"])
async def test_what_cannot_be_read_is_said_replaced_and_may_be_forgotten(
    memory: Memory, nc: Connection, value: bytes
) -> None:
    subject = f"{BUCKET}.user.alice.s1"
    await Api(nc).publish(subject, value, {})
    with pytest.raises(Transient):
        await memory.recall("alice", "s1")
    assert (await held(memory, request())).degraded == ["reranker", "memory"]
    assert await said(memory) == [("r9", "Then.")], "from here on it is remembered again"
    await Api(nc).publish(subject, value, {})
    assert await memory.forget("alice", "s1")


async def test_a_session_that_outgrows_what_the_server_takes_is_answered_and_said(nc: Connection) -> None:
    asked = request()
    conversation = await Conversation.of(asked, "r9", Memory(nc, tokens=1_000_000), Timings())
    response = await conversation.add(ChatResponse(response="x" * nc.max_payload), 1)
    assert response.degraded == ["memory"]


async def test_a_request_without_a_session_asks_the_bucket_for_nothing(memory: Memory, nc: Connection) -> None:
    await Api(nc).request("STREAM.DELETE.KV_AI_SESSIONS")
    timings = Timings()
    conversation = await Conversation.of(ChatRequest(query="x", user_id="alice"), "r1", memory, timings)
    response = await conversation.add(ChatResponse(response="y"), 1)
    assert (conversation.turns, response.degraded) == ([], [])
    assert timings.as_dict().keys() == {"total_ms"}


async def test_an_earlier_attempt_at_a_request_without_an_id_is_no_part_of_its_history(memory: Memory) -> None:
    asked = ChatRequest(query="Is it?", session_id="s1")
    first = await Conversation.of(asked, "7-123456", memory, Timings())
    await first.add(ChatResponse(response="It is."), 1)
    assert (await Conversation.of(asked, "7-123456", memory, Timings())).turns == []


async def test_an_earlier_attempt_at_the_same_request_is_no_part_of_its_history(memory: Memory) -> None:
    await memory.remember("alice", "s1", turn("r8", "Before."))
    await memory.remember("alice", "s1", turn("r9", "Half of it."))
    conversation = await Conversation.of(request(), "r9", memory, Timings())
    assert [kept.request_id for kept in conversation.turns] == ["r8"]
    await conversation.add(ChatResponse(response="All of it."), 2)
    assert await said(memory) == [("r8", "Before."), ("r9", "All of it.")]
