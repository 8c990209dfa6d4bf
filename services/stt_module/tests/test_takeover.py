"""A session passes from one worker to the next: no word is lost, none is heard twice, and of two workers that both
think a session theirs only one is heard."""

import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from handler_core import streams
from handler_core.connection import Connection, connect
from handler_core.contract.stt import SessionConfig
from handler_core.jetstream import Api
from handler_core.runtime import Runtime
from handler_core.streams import NANOSECONDS
from handler_core.testing import serving, stored, until
from handler_core.testing_speech import phrase, word
from stt_module import session as module
from stt_module.checkpoint import HEADER, Checkpoint, Phase, parsed
from stt_module.events import Events
from stt_module.opening import MAX_TAKEOVERS
from stt_module.segmenter import Position
from stt_module.service import service
from stt_module.settings import Settings

from .conftest import Endpoint, SettingsFor, SpeakerFor


async def set_ack_wait(nc: Connection, seconds: float) -> None:
    config = {**streams.STT_MODULE.config(), "ack_wait": int(seconds * NANOSECONDS)}
    body = {"stream_name": "AI_STT_SESSIONS", "config": config, "action": "update"}
    await Api(nc).request("CONSUMER.DURABLE.CREATE.AI_STT_SESSIONS.stt_module", body)


@pytest.fixture
async def quick(nc: Connection) -> None:
    """A ticket whose worker says nothing for half a second goes to another."""
    await set_ack_wait(nc, 0.5)


@pytest.fixture
async def never(nc: Connection) -> None:
    """A ticket goes to another worker only if it is handed back."""
    await set_ack_wait(nc, 3600.0)


@contextlib.asynccontextmanager
async def cut_off(settings: Settings) -> AsyncIterator[Runtime]:
    """A worker that loses its connection for good when the block ends: nothing more of it reaches anybody, as if it had
    been killed."""
    failed: AssertionError | None = None
    with contextlib.suppress(BaseExceptionGroup):
        async with serving(service, settings) as runtime:
            try:
                yield runtime
            except AssertionError as error:
                failed = error  # not one of those that such a death brings about
            finally:
                runtime.nc.abort()
                await runtime.nc.close()
    if failed is not None:
        raise failed


async def checkpoint(nc: Connection, session: str) -> Checkpoint:
    """Where a session stands by its last event."""
    newest = await Api(nc).last("AI_EVENTS", f"evt.voice.transcription.{session}")
    known = parsed(newest.headers[HEADER]) if newest else None
    assert known is not None
    return known


async def test_a_worker_that_dies_in_mid_utterance_is_succeeded(
    settings: SettingsFor, speaker: SpeakerFor, quick: None
) -> None:
    alice = await speaker()
    async with cut_off(settings()):
        await alice.start(speaker_id="alice")
        await alice.say(1, 2)
        await alice.hears([1, 2])
        await alice.play(word(3) + word(4))
    async with serving(service, settings()):
        await alice.sees("resumed")
        await alice.say(5)
        await alice.say(6)
        await alice.hears([1, 2], [3, 4, 5], [6])
        await alice.end()
        await alice.sees("ended")
    finals = [event for event in alice.events if event.is_final]
    assert [event.sequence for event in finals] == [1, 2, 3]
    assert {event.speaker_id for event in finals} == {"alice"}
    assert finals[1].attempt > finals[0].attempt
    assert (finals[1].start_ms or 0) > (finals[0].end_ms or 0), "the clock goes on"


async def test_a_worker_that_dies_while_transcribing_leaves_the_utterance_to_the_next(
    settings: SettingsFor, speaker: SpeakerFor, ears: Endpoint, quick: None
) -> None:
    alice = await speaker()
    ears.open.clear()
    async with cut_off(settings()):
        await alice.say(1)
        await alice.say(2)
        await alice.say(3, after_ms=0)
        await until(lambda: ears.waiting == 1, "the first is being transcribed")
    ears.open.set()
    async with serving(service, settings()):
        await alice.say(4)
        await alice.hears([1], [2], [3, 4])
    assert [event.sequence for event in alice.events if event.is_final] == [1, 2, 3]


async def test_a_worker_told_to_stop_hands_over_at_once(
    settings: SettingsFor, speaker: SpeakerFor, never: None
) -> None:
    alice = await speaker()
    async with serving(service, settings()):
        await alice.say(1)
        await alice.hears([1])
        await alice.play(word(2) + word(3))
        await alice.pause(40)
    async with serving(service, settings()):
        await alice.sees("resumed")
        await alice.say(4)
        await alice.hears([1], [2, 3, 4])
    assert alice.statuses[:3] == ["started", "listening", "resumed"]


async def test_a_worker_that_wakes_up_again_is_not_heard(
    settings: SettingsFor, speaker: SpeakerFor, ears: Endpoint, nc: Connection
) -> None:
    """Two workers hold one session: the one that took it later is heard, and the other gives up."""
    alice = await speaker()
    ears.open.clear()
    async with serving(service, settings()) as first:
        await alice.say(1)
        await until(lambda: ears.waiting == 1, "the first worker is transcribing")
        second = await connect(settings(), "second")
        events = Events(second, alice.session, attempt=2, trace_id="", trace_headers=dict)
        known = await events.read()
        assert known is not None
        await events.publish(known, type="status", status="resumed")
        ears.open.set()
        counted = 'handler_messages_settled_total{stream="AI_STT_SESSIONS",consumer="stt_module",outcome="abandoned"} 1'
        await until(lambda: counted in first.metrics.render(), "it gives up")
        assert alice.finals == []
        await events.publish(known, type="status", status="listening")
        await second.close()
    assert alice.statuses == ["started", "resumed", "listening"]
    assert len(await stored(nc, "AI_STT_SESSIONS", f"ai.voice.session.{alice.session}")) == 1, "nothing is settled"


async def test_a_worker_that_wakes_up_in_a_partial_transcript_gives_up_as_well(
    settings: SettingsFor, speaker: SpeakerFor, nc: Connection
) -> None:
    alice = await speaker()
    async with serving(service, settings(partials=True, partial_interval_ms=300)) as runtime:
        shown = await alice.say_until_shown()
        events = Events(nc, alice.session, attempt=2, trace_id="", trace_headers=dict)
        known = await events.read()
        assert known is not None
        await events.publish(known, type="status", status="resumed")
        for number in range(shown + 1, shown + 6):
            await alice.play(word(number))
        await alice.play(word(shown + 6))
        await until(lambda: 'outcome="abandoned"} 1' in runtime.metrics.render(), "it gives up")
        assert 'outcome="nak"} 0' in runtime.metrics.render()
    assert alice.statuses == ["started", "resumed"]
    assert alice.finals == []


async def test_a_turn_is_not_asked_for_by_a_worker_that_has_lost_the_session(
    settings: SettingsFor, speaker: SpeakerFor, ears: Endpoint, nc: Connection
) -> None:
    alice = await speaker()
    ears.open.clear()
    async with serving(service, settings()) as runtime:
        await alice.start(turn={})
        await alice.say(1)
        await until(lambda: ears.waiting == 1, "it is transcribing")
        events = Events(nc, alice.session, attempt=2, trace_id="", trace_headers=dict)
        known = await events.read()
        assert known is not None
        await events.publish(known, type="status", status="resumed")
        ears.open.set()
        await until(lambda: 'outcome="abandoned"} 1' in runtime.metrics.render(), "it gives up")
    assert await stored(nc, "AI_VOICE", "ai.voice.>") == []


async def test_state_interrupt_and_turn_are_known_to_the_next_worker(
    settings: SettingsFor, speaker: SpeakerFor, quick: None
) -> None:
    alice = await speaker()
    async with cut_off(settings()):
        await alice.start(turn={}, keep_short=True)
        await alice.say(1)
        await alice.hears([1])
        await alice.send(type="state_change", state="responding")
        await alice.pause(500)
        await alice.play(word(2) + word(3) + word(4))
        await until(lambda: any(event.type == "interrupt" for event in alice.events), "it interrupts")
    async with serving(service, settings()):
        await alice.say(5)
        await alice.hears([1], [2, 3, 4, 5])
        await alice.send(type="state_change", state="listening")
        await alice.send(type="state_change", state="responding")
        await alice.say(6, 7, 8)
        await alice.hears([1], [2, 3, 4, 5], [6, 7, 8])
        await alice.end()
        await alice.sees("ended")
    finals = [event for event in alice.events if event.is_final]
    interrupts = [event for event in alice.events if event.type == "interrupt"]
    assert [event.request_id for event in interrupts] == [finals[0].request_id, finals[1].request_id]
    assert finals[1].state == "responding"


async def test_what_was_shown_of_an_utterance_is_closed_by_the_next_worker(
    settings: SettingsFor, speaker: SpeakerFor, ears: Endpoint, quick: None
) -> None:
    alice = await speaker()
    async with cut_off(settings(partials=True, partial_interval_ms=300)):
        await alice.say_until_shown()
    ears.silent = True
    async with serving(service, settings()):
        await alice.pause(900)
        await until(lambda: alice.finals == [""], "it is taken back")
    assert [event.sequence for event in alice.events if event.is_final] == [1]


async def test_chunks_in_disorder_are_in_order_for_the_next_worker_as_well(
    settings: SettingsFor, speaker: SpeakerFor, quick: None
) -> None:
    alice = await speaker(numbered=True)
    chunks = alice.chunks(phrase(1, 2, 3) + phrase(4))
    for place in range(10, len(chunks) - 10, 7):
        chunks[place], chunks[place + 3] = chunks[place + 3], chunks[place]
    async with cut_off(settings()):
        for chunk in chunks[:31]:
            await alice.send(**chunk)
        await alice.sees("started")
    async with serving(service, settings()):
        for chunk in chunks[31:]:
            await alice.send(**chunk)
        await alice.hears([1, 2, 3], [4])


async def test_after_a_second_start_the_next_worker_knows_what_the_audio_is(
    settings: SettingsFor, speaker: SpeakerFor, ears: Endpoint, quick: None
) -> None:
    alice = await speaker()
    ears.open.clear()
    async with cut_off(settings()):
        await alice.say(1)
        alice.rate = 48_000
        await alice.start(sample_rate=48_000, speaker_id="bob")
        await alice.say(2)
        await until(lambda: ears.waiting == 1, "the first is being transcribed")
    ears.open.set()
    async with serving(service, settings()):
        await alice.say(3)
        await alice.hears([1], [2], [3])
    assert [event.speaker_id for event in alice.events if event.is_final] == [None, "bob", "bob"]


async def test_an_end_that_was_not_settled_is_settled_without_a_word(
    settings: SettingsFor, speaker: SpeakerFor, nc: Connection
) -> None:
    alice = await speaker()
    async with serving(service, settings()):
        await alice.say(1)
        await alice.end()
        await alice.sees("ended")
    await nc.publish(f"ai.voice.session.{alice.session}", b"")  # as if the acknowledgement had been lost

    async def settled() -> bool:
        return await stored(nc, "AI_STT_SESSIONS", f"ai.voice.session.{alice.session}") == []

    async with serving(service, settings()):
        await until(settled, "the ticket is gone")
    assert alice.statuses == ["started", "ended"]


async def test_audio_that_worker_after_worker_dies_of_is_left_out(
    settings: SettingsFor, speaker: SpeakerFor, nc: Connection
) -> None:
    alice = await speaker()
    await alice.say(1)
    events = Events(nc, alice.session, attempt=7, trace_id="", trace_headers=dict)
    await events.read()
    first = (await stored(nc, "AI_STT", f"ai.voice.stream.{alice.session}"))[0].sequence
    await events.publish(Checkpoint(first, takeovers=MAX_TAKEOVERS), type="status", status="resumed")
    async with serving(service, settings()):
        await until(lambda: alice.errors, "it is told")
        await alice.say(2)
        await alice.hears([2])


async def test_each_takeover_without_progress_is_counted_and_progress_ends_the_count(
    settings: SettingsFor, speaker: SpeakerFor, nc: Connection, quick: None
) -> None:
    alice = await speaker()
    async with cut_off(settings()):
        await alice.play(word(1))
        await alice.sees("started")
    for count in (1, 2):
        async with cut_off(settings()):
            await alice.sees("resumed", times=count)
            assert (await checkpoint(nc, alice.session)).takeovers == count
    async with serving(service, settings()):
        await alice.pause(900)
        await alice.hears([1])
        assert (await checkpoint(nc, alice.session)).takeovers == 0


async def test_what_else_a_session_tells_before_its_worker_dies_is_no_progress(
    settings: SettingsFor, speaker: SpeakerFor, nc: Connection, quick: None
) -> None:
    alice = await speaker()
    async with cut_off(settings()):
        await alice.play(word(1))
        await alice.sees("started")
    async with cut_off(settings()):
        await alice.sees("resumed")
        await alice.send(type="nonsense")
        await until(lambda: alice.errors, "it is told of its mistake")
        assert (await checkpoint(nc, alice.session)).takeovers == 1


async def test_a_worker_that_is_told_to_stop_has_not_died(
    settings: SettingsFor, speaker: SpeakerFor, nc: Connection, quick: None
) -> None:
    alice = await speaker()
    async with cut_off(settings()):
        await alice.play(word(1))
        await alice.sees("started")
    async with serving(service, settings()):
        await alice.sees("resumed")
        assert (await checkpoint(nc, alice.session)).takeovers == 1
    assert (await checkpoint(nc, alice.session)).takeovers == 0


async def test_a_full_worker_tells_who_waits_and_takes_them_when_it_can(
    settings: SettingsFor, speaker: SpeakerFor
) -> None:
    async with serving(service, settings(max_sessions=2)):
        speakers = [await speaker() for _ in range(3)]
        for number, each in enumerate(speakers[:2], 1):
            await each.say(number)
            await each.hears([number])
        last = speakers[2]
        await last.say(3)
        await last.sees("waiting")
        [waiting] = [event for event in last.events if event.status == "waiting"]
        assert waiting.error is not None
        assert waiting.error.retry_after_ms
        await speakers[0].end()
        await last.hears([3])
        assert last.statuses == ["waiting", "started"], "it is told once"
        assert speakers[1].statuses == ["started"]


async def test_a_session_that_has_to_wait_for_its_next_worker_goes_on_where_it_was(
    settings: SettingsFor, speaker: SpeakerFor, nc: Connection
) -> None:
    """The notice that it waits is the last event then, and must not hide where the session stands."""
    alice, bob = await speaker(), await speaker()
    async with serving(service, settings(max_sessions=1)):
        await alice.say(1)
        await alice.end()
        await alice.sees("ended")
        await bob.say(9)
        await bob.hears([9])
        await alice.say(2)
        await alice.sees("waiting")
        await bob.end()
        await alice.hears([1], [2])
    assert alice.statuses[:4] == ["started", "ended", "waiting", "started"]


def test_a_checkpoint_survives_its_header() -> None:
    config = SessionConfig(sample_rate=8000, language="de", prompt="Grüße\n", turn={"top_k": 3, "filter": {"a": [1]}})
    checkpoint = Checkpoint(
        first=7,
        position=Position(12, 640, 1020.5, 900.0, True),
        phase=Phase(9, config, "responding", 800.0, deaf=True),
        interrupted=9,
        utterance=4,
        shown=(4, 5),
        request_id="s-7-3",
        takeovers=2,
        ended=True,
    )
    header = checkpoint.header()
    assert header.isascii()
    assert header.isprintable()
    assert parsed(header) == checkpoint
    assert len(Checkpoint(1).header()) < 150


@pytest.mark.parametrize("header", [None, "", "{}", "[]", "null", "nonsense", json.dumps({"first": 1, "position": 3})])
def test_what_is_no_checkpoint_is_as_if_there_were_none(header: str | None) -> None:
    assert parsed(header) is None


async def test_a_worker_that_stops_leaves_where_it_was(
    settings: SettingsFor, speaker: SpeakerFor, nc: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LISTENING_EVERY", 1000.0)
    alice = await speaker()
    async with serving(service, settings()) as runtime:
        await alice.pause(20_000)
        await until(lambda: "lag_seconds_count 1000" in runtime.metrics.render(), "all is heard")
    assert (await checkpoint(nc, alice.session)).position.ms > 18_000
