"""Speaking sentences in order: what is prefetched, what waits, and what a failure leaves."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler_core.audio import PcmFormat
from handler_core.clients.tts import AudioChunk
from handler_core.deadline import Deadline
from handler_core.errors import DownstreamUnavailable
from handler_core.synthesis import Skip, Spoken, Synthesis

MONO = PcmFormat(24_000)
STEREO = PcmFormat(24_000, channels=2)


class FakeEngine:
    """An engine that says each sentence as it is told: chunks, waits for events, errors.

    A step that is bytes is audio, a format changes that of the chunks after it, an event is waited for and an
    exception raised.
    """

    def __init__(self, **sentences: Sequence[bytes | PcmFormat | asyncio.Event | Exception]) -> None:
        self.sentences = sentences
        self.begun: list[str] = []
        self.closed: list[str] = []
        self.given = 0
        self.most_at_once = 0

    async def speak(self, text: str, deadline: Deadline) -> AsyncIterator[AudioChunk]:
        self.begun.append(text)
        self.most_at_once = max(self.most_at_once, len(self.begun) - len(self.closed))
        format = MONO
        try:
            for step in self.sentences[text]:
                if isinstance(step, bytes):
                    self.given += len(step)
                    yield AudioChunk(step, format)
                elif isinstance(step, PcmFormat):
                    format = step
                elif isinstance(step, asyncio.Event):
                    await step.wait()
                else:
                    raise step
        finally:
            self.closed.append(text)


class FakeListener:
    """Collects what is emitted; can be made to wait, or to fail, at a piece."""

    def __init__(self) -> None:
        self.heard: list[Spoken] = []
        self.hears = asyncio.Condition()
        self.at: dict[int, Callable[[], Awaitable[object]]] = {}

    async def emit(self, spoken: Spoken) -> None:
        self.heard.append(spoken)
        async with self.hears:
            self.hears.notify_all()
        if action := self.at.get(len(self.heard) - 1):
            await action()

    async def has_heard(self, pieces: int) -> None:
        async with self.hears:
            await self.hears.wait_for(lambda: len(self.heard) >= pieces)

    def audio(self) -> dict[str, bytes]:
        audio: dict[str, bytes] = {}
        for piece in self.heard:
            audio[piece.text] = audio.get(piece.text, b"") + piece.pcm
        return audio


async def texts(*sentences: str | Exception) -> AsyncIterator[str]:
    for sentence in sentences:
        if isinstance(sentence, Exception):
            raise sentence
        yield sentence


def synthesis(
    engine: FakeEngine,
    *,
    ahead: int = 1,
    piece_bytes: int = 65_536,
    buffer_bytes: int = 1 << 20,
    skip: Skip | None = None,
) -> Synthesis:
    return Synthesis(
        engine.speak,
        deadline=Deadline.never(),
        ahead=ahead,
        piece_bytes=piece_bytes,
        buffer_bytes=buffer_bytes,
        skip=skip,
    )


@pytest.fixture
def listener() -> FakeListener:
    return FakeListener()


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    yield
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def settle() -> None:
    """Let everything run that can run without one of the test's events."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_sentences_are_heard_whole_and_in_order(listener: FakeListener) -> None:
    engine = FakeEngine(a=[b"a1", b"a2"], b=[b"b1b1"], c=[b"c1", b"c2", b"c3"])
    await synthesis(engine).run(texts("a", "b", "c"), listener.emit)
    assert listener.audio() == {"a": b"a1a2", "b": b"b1b1", "c": b"c1c2c3"}
    assert [piece.sentence for piece in listener.heard if piece.last] == [0, 1, 2]
    assert {piece.format for piece in listener.heard} == {MONO}
    assert sorted(engine.closed) == ["a", "b", "c"]


async def test_no_sentences_are_no_audio(listener: FakeListener) -> None:
    await synthesis(FakeEngine()).run(texts(), listener.emit)
    assert listener.heard == []


async def test_the_first_audio_passes_at_once(listener: FakeListener) -> None:
    more = asyncio.Event()
    engine = FakeEngine(a=[b"a1", more, b"a2"])
    async with asyncio.TaskGroup() as group:
        group.create_task(synthesis(engine).run(texts("a"), listener.emit))
        await listener.has_heard(1)
        assert listener.heard == [Spoken(0, "a", b"a1", MONO, last=False)]
        more.set()
    assert listener.audio() == {"a": b"a1a2"}


async def test_only_what_is_ready_is_put_together(listener: FakeListener) -> None:
    engine = FakeEngine(a=[b"a1", b"a2", b"a3", b"a4"])
    await synthesis(engine).run(texts("a"), listener.emit)
    assert listener.heard == [Spoken(0, "a", b"a1a2a3a4", MONO, last=True)]


async def test_a_large_chunk_comes_in_pieces_of_whole_frames(listener: FakeListener) -> None:
    engine = FakeEngine(a=[STEREO, bytes(40)])
    await synthesis(engine, piece_bytes=15).run(texts("a"), listener.emit)
    assert [len(piece.pcm) for piece in listener.heard] == [12, 12, 12, 4]
    assert [piece.last for piece in listener.heard] == [False, False, False, True]


async def test_the_next_sentence_is_made_while_one_is_emitted(listener: FakeListener) -> None:
    engine = FakeEngine(a=[b"a1"], b=[b"b1"], c=[b"c1"])
    go_on = asyncio.Event()
    listener.at[0] = go_on.wait
    async with asyncio.TaskGroup() as group:
        group.create_task(synthesis(engine).run(texts("a", "b", "c"), listener.emit))
        await listener.has_heard(1)
        await settle()
        assert engine.begun == ["a", "b"], "one ahead, and no more"
        assert engine.closed == ["a", "b"]
        go_on.set()
    assert list(listener.audio()) == ["a", "b", "c"]


async def test_the_next_sentence_waits_for_the_first_audio_of_this_one(listener: FakeListener) -> None:
    first, rest = asyncio.Event(), asyncio.Event()
    engine = FakeEngine(a=[first, b"a1", rest], b=[b"b1"])
    async with asyncio.TaskGroup() as group:
        group.create_task(synthesis(engine).run(texts("a", "b"), listener.emit))
        await settle()
        assert engine.begun == ["a"]
        first.set()
        await listener.has_heard(1)
        await settle()
        assert engine.begun == ["a", "b"]
        assert [piece.text for piece in listener.heard] == ["a"], "in order"
        rest.set()
    assert listener.audio() == {"a": b"a1", "b": b"b1"}


@pytest.mark.parametrize("ahead", [0, 1, 3])
async def test_no_more_than_asked_for_is_in_work(ahead: int, listener: FakeListener) -> None:
    ends = asyncio.Event()
    names = ["a", "b", "c", "d", "e", "f"]
    said: list[bytes | asyncio.Event] = [b"xx", ends]
    engine = FakeEngine(**dict.fromkeys(names, said))
    async with asyncio.TaskGroup() as group:
        group.create_task(synthesis(engine, ahead=ahead).run(texts(*names), listener.emit))
        await listener.has_heard(1)
        await settle()
        assert engine.begun == names[: 1 + ahead]
        ends.set()
    assert engine.most_at_once <= 1 + ahead
    assert list(listener.audio()) == names


async def test_a_slow_listener_stops_the_engine(listener: FakeListener) -> None:
    engine = FakeEngine(a=[b"a1"], b=[b"b1"] * 1000)
    go_on = asyncio.Event()
    listener.at[0] = go_on.wait
    async with asyncio.TaskGroup() as group:
        group.create_task(synthesis(engine, buffer_bytes=20).run(texts("a", "b"), listener.emit))
        await listener.has_heard(1)
        await settle()
        assert engine.given == 2 + 20
        go_on.set()
    assert listener.audio()["b"] == b"b1" * 1000


async def test_sentences_are_read_only_while_there_is_room(listener: FakeListener) -> None:
    asked = 0

    async def endless() -> AsyncIterator[str]:
        nonlocal asked
        while asked < 20:
            asked += 1
            yield "a"

    engine = FakeEngine(a=[b"a1"])
    go_on = asyncio.Event()
    listener.at[0] = go_on.wait
    async with asyncio.TaskGroup() as group:
        group.create_task(synthesis(engine).run(endless(), listener.emit))
        await listener.has_heard(1)
        await settle()
        assert asked == 2
        go_on.set()
    assert len(listener.heard) == 20


async def test_a_failure_comes_after_all_that_was_said_before_it(listener: FakeListener) -> None:
    slow = asyncio.Event()
    failure = DownstreamUnavailable("the engine broke")
    engine = FakeEngine(a=[b"a1", slow, b"a2"], b=[b"b1", failure], c=[b"c1"])
    async with asyncio.TaskGroup() as group:

        async def speak() -> None:
            with pytest.raises(DownstreamUnavailable) as raised:
                await synthesis(engine).run(texts("a", "b", "c"), listener.emit)
            assert raised.value is failure

        group.create_task(speak())
        await settle()
        assert engine.closed == ["b"], "it has failed while the first is still being said"
        slow.set()
    assert listener.audio() == {"a": b"a1a2", "b": b"b1"}
    assert [piece.text for piece in listener.heard if piece.last] == ["a"]


async def test_after_a_failure_no_further_sentence_is_begun(listener: FakeListener) -> None:
    engine = FakeEngine(a=[DownstreamUnavailable("the engine broke")], b=[b"b1"])
    with pytest.raises(DownstreamUnavailable, match="broke"):
        await synthesis(engine, ahead=3).run(texts("a", "b"), listener.emit)
    assert engine.begun == ["a"]
    assert listener.heard == []


async def test_a_failure_ends_the_sentences_in_work(listener: FakeListener) -> None:
    engine = FakeEngine(a=[b"a1", DownstreamUnavailable("broke")], b=[b"b1", asyncio.Event()])
    with pytest.raises(DownstreamUnavailable):
        await synthesis(engine).run(texts("a", "b"), listener.emit)
    assert sorted(engine.closed) == sorted(engine.begun)


async def test_a_refusal_before_any_audio_is_raised_too(listener: FakeListener) -> None:
    def speak(text: str, deadline: Deadline) -> AsyncIterator[AudioChunk]:
        raise DownstreamUnavailable("refused")

    with pytest.raises(DownstreamUnavailable, match="refused"):
        await Synthesis(speak, deadline=Deadline.never()).run(texts("a"), listener.emit)


async def test_a_failure_of_the_text_comes_after_what_was_written_before_it(listener: FakeListener) -> None:
    engine = FakeEngine(a=[b"a1"], b=[b"b1"])
    with pytest.raises(DownstreamUnavailable, match="the model broke"):
        await synthesis(engine).run(texts("a", "b", DownstreamUnavailable("the model broke")), listener.emit)
    assert listener.audio() == {"a": b"a1", "b": b"b1"}


async def test_a_listener_that_fails_ends_everything(listener: FakeListener) -> None:
    async def fail() -> None:
        raise ConnectionError("nobody listens")

    listener.at[0] = fail
    engine = FakeEngine(a=[b"a1", asyncio.Event()], b=[b"b1", asyncio.Event()])
    with pytest.raises(ConnectionError):
        await synthesis(engine).run(texts("a", "b"), listener.emit)
    assert sorted(engine.closed) == sorted(engine.begun)


async def test_another_format_within_a_sentence_is_an_error(listener: FakeListener) -> None:
    engine = FakeEngine(a=[b"a1", STEREO, b"a2a2"])
    with pytest.raises(DownstreamUnavailable, match=r"24000 Hz.*1 channel.*24000 Hz.*2 channel"):
        await synthesis(engine).run(texts("a"), listener.emit)
    assert listener.audio() == {"a": b"a1"}


async def test_another_format_of_the_next_sentence_is_an_error(listener: FakeListener) -> None:
    engine = FakeEngine(a=[b"a1"], b=[STEREO, b"b1b1"])
    with pytest.raises(DownstreamUnavailable, match="changed") as raised:
        await synthesis(engine).run(texts("a", "b"), listener.emit)
    assert listener.audio() == {"a": b"a1"}
    assert not raised.value.retryable


async def test_a_sentence_without_audio_is_passed_over(listener: FakeListener) -> None:
    engine = FakeEngine(a=[], b=[b"b1"])
    await synthesis(engine, ahead=0).run(texts("a", "b"), listener.emit)
    assert listener.heard == [Spoken(1, "b", b"b1", MONO, last=True)]


async def test_an_end_that_was_not_known_before_comes_as_an_empty_piece(listener: FakeListener) -> None:
    ends = asyncio.Event()

    async def end() -> None:
        ends.set()

    listener.at[0] = end
    await synthesis(FakeEngine(a=[b"a1", ends])).run(texts("a"), listener.emit)
    assert [(piece.pcm, piece.last) for piece in listener.heard] == [(b"a1", False), (b"", True)]


@pytest.mark.parametrize("moment", ["before the first audio", "while emitting", "while more is made"])
async def test_cancelling_closes_the_engine_and_leaves_no_task(moment: str, listener: FakeListener) -> None:
    forever = asyncio.Event()
    engine = FakeEngine(a=[forever] if moment == "before the first audio" else [b"a1", forever], b=[b"b1", forever])
    if moment == "while emitting":
        listener.at[0] = forever.wait
    async with asyncio.TaskGroup() as group:
        task = group.create_task(synthesis(engine).run(texts("a", "b"), listener.emit))
        await settle()
        task.cancel()
    assert task.cancelled()
    assert engine.begun
    assert sorted(engine.closed) == sorted(engine.begun)


async def test_cancelling_while_the_text_is_awaited_leaves_no_task(listener: FakeListener) -> None:
    async def text() -> AsyncIterator[str]:
        yield "a"
        await asyncio.Event().wait()

    engine = FakeEngine(a=[b"a1"])
    async with asyncio.TaskGroup() as group:
        task = group.create_task(synthesis(engine).run(text(), listener.emit))
        await listener.has_heard(1)
        task.cancel()
    assert task.cancelled()


async def test_what_an_earlier_worker_has_sent_is_not_sent_again(listener: FakeListener) -> None:
    engine = FakeEngine(a=[b"a1"], b=[b"b1b2", b"b3b4"], c=[b"c1"])
    await synthesis(engine, skip=Skip(sentences=1, bytes=6)).run(texts("a", "b", "c"), listener.emit)
    assert engine.begun == ["b", "c"], "what is skipped is not made"
    assert [(piece.sentence, piece.pcm, piece.last) for piece in listener.heard] == [(1, b"b4", True), (2, b"c1", True)]


async def test_skipped_bytes_are_of_one_sentence_only(listener: FakeListener) -> None:
    engine = FakeEngine(a=[b"a1"], b=[b"b1"])
    await synthesis(engine, skip=Skip(bytes=100)).run(texts("a", "b"), listener.emit)
    assert listener.heard == [Spoken(0, "a", b"", MONO, last=True), Spoken(1, "b", b"b1", MONO, last=True)]


async def test_skipping_keeps_frames_whole(listener: FakeListener) -> None:
    engine = FakeEngine(a=[STEREO, b"11112222", b"3333"])
    await synthesis(engine, piece_bytes=4, skip=Skip(bytes=3)).run(texts("a"), listener.emit)
    assert listener.audio() == {"a": b"22223333"}


async def test_skipping_everything_emits_nothing(listener: FakeListener) -> None:
    engine = FakeEngine(a=[b"a1"])
    await synthesis(engine, skip=Skip(sentences=3)).run(texts("a", "a"), listener.emit)
    assert listener.heard == []
    assert engine.begun == []


chunks = st.lists(st.integers(1, 40).map(lambda frames: bytes(2 * frames)), max_size=6)


@given(st.lists(chunks, max_size=5), st.integers(2, 64), st.integers(1, 64), st.integers(0, 3))
async def test_every_frame_is_heard_once(said: list[list[bytes]], piece: int, room: int, ahead: int) -> None:
    listener = FakeListener()
    engine = FakeEngine(**{f"s{number}": list(sentence) for number, sentence in enumerate(said)})
    speaking = synthesis(engine, ahead=ahead, piece_bytes=piece, buffer_bytes=room)
    await speaking.run(texts(*engine.sentences), listener.emit)
    assert listener.audio() == {f"s{n}": b"".join(sentence) for n, sentence in enumerate(said) if sentence}
    assert all(len(heard.pcm) <= piece and len(heard.pcm) % 2 == 0 for heard in listener.heard)
