"""Two writers of one answer: whatever they do and when, subscribers see one coherent answer."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handler_core import streams
from handler_core.answer import AlreadyAnswered, Answer
from handler_core.codec import decode
from handler_core.connection import Connection, MessageTooLarge
from handler_core.contract.answer import StreamEvent
from handler_core.contract.chat import CHAT, ChatResponse
from handler_core.errors import Abandoned, Internal, InvalidRequest, Transient
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, connection, stored, text_of


@pytest.fixture
async def nc(nats: NatsServer) -> AsyncIterator[Connection]:
    async with connection(nats.url) as nc:
        await streams.apply(Api(nc))
        yield nc


def answer(nc: Connection, request_id: str, attempt: int = 1, *, streaming: bool = True) -> Answer[ChatResponse]:
    return Answer(nc, CHAT, request_id, attempt=attempt, streaming=streaming)


def response(request_id: str, text: str) -> ChatResponse:
    return ChatResponse(request_id=request_id, response=text)


async def say(writer: Answer[ChatResponse], text: str) -> None:
    """Stream one piece and wait until it is stored."""
    writer.write(text)
    writer.close()
    await writer.pump()


async def seen(nc: Connection, request_id: str) -> tuple[list[StreamEvent], list[ChatResponse]]:
    """What a late subscriber finds: the events in order, and every final response."""
    events = await stored(nc, "AI_EVENTS", f"evt.chat.response.stream.{request_id}")
    finals = await stored(nc, "AI_EVENTS", f"evt.chat.response.{request_id}")
    return [decode(event.data, StreamEvent) for event in events], [decode(final.data, ChatResponse) for final in finals]


def assert_coherent(events: list[StreamEvent], finals: list[ChatResponse]) -> None:
    assert len(finals) == 1, "there is exactly one final response"
    assert [event.seq for event in events] == list(range(1, len(events) + 1)), "no seq is missing or comes twice"
    assert [event.type for event in events if event.done] == ["done"], "there is exactly one done"
    assert events[-1].type == "done", "nothing follows the done"
    assert text_of(events) == finals[0].response, "the text after the last restart is the response"


async def test_the_streamed_text_is_the_response(nc: Connection) -> None:
    request_id = uuid.uuid4().hex
    writer = answer(nc, request_id)
    await writer.open()
    await say(writer, "one ")
    await say(writer, "two")
    await writer.finish(response(request_id, "one two"))
    assert_coherent(*await seen(nc, request_id))


async def test_text_that_arrives_while_a_chunk_is_being_stored_goes_out_together(nc: Connection) -> None:
    request_id = uuid.uuid4().hex
    writer = answer(nc, request_id)
    for n in range(500):
        writer.write(f"{n} ")
    writer.close()
    await writer.pump()
    await writer.finish(response(request_id, "".join(f"{n} " for n in range(500))))
    events, finals = await seen(nc, request_id)
    assert_coherent(events, finals)
    assert len(events) < 10, "500 pieces were coalesced"


async def test_long_text_is_cut_into_chunks_that_fit(nc: Connection) -> None:
    request_id = uuid.uuid4().hex
    writer = answer(nc, request_id)
    text = "ü😀" * 30_000
    await say(writer, text)
    await writer.finish(response(request_id, text))
    assert_coherent(*await seen(nc, request_id))


async def test_an_earlier_writer_is_shut_out_by_the_restart(nc: Connection) -> None:
    request_id = uuid.uuid4().hex
    first, second = answer(nc, request_id), answer(nc, request_id, attempt=2)
    await say(first, "the first text")
    await second.open()
    with pytest.raises(Abandoned):
        await say(first, " goes on")
    with pytest.raises(Abandoned):
        await first.finish(response(request_id, "the first text goes on"))
    await say(second, "the second text")
    await second.finish(response(request_id, "the second text"))
    events, finals = await seen(nc, request_id)
    assert_coherent(events, finals)
    assert [event.attempt for event in events] == [1, 2, 2, 2]


async def test_an_earlier_writer_that_had_only_the_end_left_to_write_is_shut_out_too(nc: Connection) -> None:
    request_id = uuid.uuid4().hex
    first, second = answer(nc, request_id), answer(nc, request_id, attempt=2)
    await say(first, "first")
    await second.open()
    with pytest.raises(Abandoned):
        await first.finish(response(request_id, "first"))
    await say(second, "second")
    await second.finish(response(request_id, "second"))
    assert_coherent(*await seen(nc, request_id))


async def test_a_redelivered_turn_that_was_answered_is_not_answered_again(nc: Connection) -> None:
    request_id = uuid.uuid4().hex
    first = answer(nc, request_id)
    await say(first, "text")
    await first.finish(response(request_id, "text"))
    with pytest.raises(AlreadyAnswered):
        await answer(nc, request_id, attempt=2).open()
    assert_coherent(*await seen(nc, request_id))


async def test_a_stream_whose_writer_died_before_the_done_gets_it_from_the_next(
    nc: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_id = uuid.uuid4().hex
    first = answer(nc, request_id)
    await say(first, "text")

    async def die(*_: object, **__: object) -> None:
        raise ConnectionError

    with monkeypatch.context() as patch:
        patch.setattr(first, "_event", die)
        with pytest.raises(ConnectionError):
            await first.finish(response(request_id, "text"))
    with pytest.raises(AlreadyAnswered):
        await answer(nc, request_id, attempt=2).open()
    assert_coherent(*await seen(nc, request_id))


async def test_a_first_writer_that_finishes_during_the_takeover_has_its_text_shown_after_the_restart(
    nc: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_id = uuid.uuid4().hex
    first, second = answer(nc, request_id), answer(nc, request_id, attempt=2)
    await say(first, "text")
    restart = second._event

    # The first's final must be stored before the second's restart reaches the server.
    async def in_order(*arguments: object, **options: object) -> None:
        final_stored = asyncio.Event()
        store = first._store

        async def storing(*a: object, **o: object) -> int:
            result = await store(*a, **o)  # type: ignore[arg-type]
            final_stored.set()
            return result

        monkeypatch.setattr(first, "_store", storing)
        finishing = asyncio.create_task(first.finish(response(request_id, "text")))
        await final_stored.wait()
        monkeypatch.setattr(second, "_event", restart)
        try:
            await restart(*arguments, **options)  # type: ignore[arg-type]
        finally:
            await asyncio.gather(finishing, return_exceptions=True)

    monkeypatch.setattr(second, "_event", in_order)
    with pytest.raises((AlreadyAnswered, Abandoned)):
        await second.open()
    with pytest.raises(AlreadyAnswered):
        await answer(nc, request_id, attempt=3).open()
    assert_coherent(*await seen(nc, request_id))


async def test_without_streaming_the_first_of_two_responses_counts(nc: Connection) -> None:
    request_id = uuid.uuid4().hex
    first, second = answer(nc, request_id, streaming=False), answer(nc, request_id, attempt=2, streaming=False)
    await second.open()
    await first.finish(response(request_id, "first"))
    with pytest.raises(Abandoned):
        await second.finish(response(request_id, "second"))
    events, finals = await seen(nc, request_id)
    assert (events, [final.response for final in finals]) == ([], ["first"])


async def test_a_lost_acknowledgement_does_not_store_a_chunk_twice(
    nc: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_id = uuid.uuid4().hex
    writer = answer(nc, request_id)
    publish, lost = writer._api.publish, []

    async def losing(subject: str, payload: bytes, headers: dict[str, str]) -> int:
        sequence = await publish(subject, payload, headers)
        if subject not in lost:
            lost.append(subject)
            raise Transient("the acknowledgement was lost")
        return sequence

    monkeypatch.setattr(writer._api, "publish", losing)
    await say(writer, "text")
    await writer.finish(response(request_id, "text"))
    assert len(lost) == 2
    assert_coherent(*await seen(nc, request_id))


async def test_a_response_over_max_payload_is_refused_and_an_error_fits_instead(nc: Connection) -> None:
    request_id = uuid.uuid4().hex
    writer = answer(nc, request_id, streaming=False)
    with pytest.raises(MessageTooLarge) as refused:
        await writer.finish(response(request_id, "x" * nc.max_payload))
    await writer.fail(ChatResponse(success=False, error=refused.value.info()))
    _, [final] = await seen(nc, request_id)
    assert final.error is not None
    assert (final.success, final.error.type) == (False, "internal")


async def test_a_second_message_with_the_same_id_does_not_take_the_turn_over(nc: Connection) -> None:
    request_id = uuid.uuid4().hex
    first = Answer(nc, CHAT, request_id, attempt=1, streaming=True, source="AI_CHAT:1")
    await say(first, "text")
    for attempt in (2, 3):
        with pytest.raises(Abandoned):
            await Answer(nc, CHAT, request_id, attempt=attempt, streaming=True, source="AI_CHAT:2").open()
    taken_over = Answer(nc, CHAT, request_id, attempt=2, streaming=True, source="AI_CHAT:1")
    await taken_over.open()
    await say(taken_over, "text")
    await taken_over.finish(response(request_id, "text"))
    with pytest.raises(AlreadyAnswered):
        await Answer(nc, CHAT, request_id, attempt=4, streaming=True, source="AI_CHAT:2").open()
    assert_coherent(*await seen(nc, request_id))


async def test_a_chunk_cut_off_while_it_is_stored_does_not_keep_the_error_from_being_told(
    nc: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the deadline passes while a chunk's acknowledgement is on its way."""
    request_id = uuid.uuid4().hex
    writer = answer(nc, request_id)
    publish, published = writer._api.publish, asyncio.Event()

    async def unacknowledged(subject: str, payload: bytes, headers: dict[str, str]) -> int:
        await publish(subject, payload, headers)
        published.set()
        return await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(writer._api, "publish", unacknowledged)
        async with asyncio.TaskGroup() as tasks:
            pumping = tasks.create_task(writer.pump())
            writer.write("half")
            await published.wait()
            pumping.cancel()
    await writer.fail(ChatResponse(success=False, error=Internal("too late").info()))
    events, [final] = await seen(nc, request_id)
    assert [(event.seq, event.type) for event in events] == [(1, "chunk"), (2, "error")]
    assert events[-1].error == final.error


async def test_a_failed_turn_ends_its_stream_with_one_error(nc: Connection) -> None:
    request_id = uuid.uuid4().hex
    writer = answer(nc, request_id)
    await say(writer, "half")
    await writer.fail(ChatResponse(success=False, error=Internal("broken", stage="llm").info()))
    events, [final] = await seen(nc, request_id)
    assert [event.type for event in events] == ["chunk", "error"]
    assert events[-1].error == final.error
    with pytest.raises(AlreadyAnswered):
        await answer(nc, request_id, attempt=2).open()


@pytest.mark.parametrize(
    "subject",
    [
        "ai.chat.request",
        "_INBOX",
        "_INBOX.>",
        "_INBOX.a b",
        "ai.chat.response.stream.x",
        "ai.chat.response.*",
        "$JS.API.X",
    ],
)
async def test_a_caller_cannot_have_the_response_published_anywhere(nc: Connection, subject: str) -> None:
    with pytest.raises(InvalidRequest, match="response_subject"):
        Answer(nc, CHAT, "x", attempt=1, streaming=False, copy_to=subject)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schedule=st.lists(st.sampled_from([1, 2, 3]), max_size=30))
async def test_any_interleaving_of_three_writers_leaves_one_coherent_answer(
    nc: Connection, schedule: list[int]
) -> None:
    request_id = uuid.uuid4().hex
    may_go = {n: asyncio.Semaphore(0) for n in (1, 2, 3)}
    went = {n: asyncio.Event() for n in may_go}

    async def life(attempt: int) -> None:
        writer = answer(nc, request_id, attempt=attempt)
        call = writer._api._call

        async def when_scheduled(*arguments: Any) -> Any:
            await may_go[attempt].acquire()
            try:
                return await call(*arguments)
            finally:
                went[attempt].set()

        writer._api._call = when_scheduled  # type: ignore[method-assign]
        with contextlib.suppress(Abandoned, AlreadyAnswered):
            await writer.open()
            await say(writer, f"text {attempt}, ")
            await say(writer, "and more")
            await writer.finish(response(request_id, f"text {attempt}, and more"))

    async with asyncio.TaskGroup() as tasks:
        writers = {n: tasks.create_task(life(n)) for n in may_go}
        for n in schedule:  # each entry lets one writer make one call to the server
            went[n].clear()
            may_go[n].release()
            await asyncio.wait(
                [writers[n], step := tasks.create_task(went[n].wait())], return_when=asyncio.FIRST_COMPLETED
            )
            step.cancel()
        for semaphore in may_go.values():
            for _ in range(40):
                semaphore.release()
    # In the end the server delivers to a worker that nobody disturbs.
    last = answer(nc, request_id, attempt=4)
    with contextlib.suppress(AlreadyAnswered):
        await last.open()
        await say(last, "last")
        await last.finish(response(request_id, "last"))
    assert_coherent(*await seen(nc, request_id))
