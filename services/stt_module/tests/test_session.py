"""A live session by one worker: what is said comes out, whole, once and in order, whatever the client sends."""

import asyncio
import random
import signal

import pytest

from handler_core import streams
from handler_core.codec import decode
from handler_core.connection import Connection
from handler_core.contract.errors import ErrorType
from handler_core.contract.voice import VoiceRequest
from handler_core.jetstream import Api
from handler_core.testing import connection, nats_server, serving, stored, until
from handler_core.testing_speech import Speaker, phrase, silence, word
from stt_module import session as module
from stt_module.service import service

from .conftest import Endpoint, SettingsFor, SpeakerFor


async def test_what_is_said_comes_out_in_order(settings: SettingsFor, speaker: SpeakerFor, ears: Endpoint) -> None:
    async with serving(service, settings()):
        alice = await speaker()
        await alice.start(language="en", speaker_id="alice", prompt="names")
        await alice.say(1, 2, 3)
        await alice.say(4)
        await alice.end()
        await alice.sees("ended")
    assert alice.statuses == ["started", "ended"]
    assert alice.events[-1].reason == "end"
    first, second = (event for event in alice.events if event.is_final)
    assert [first.transcript, second.transcript] == ["w1 w2 w3", "w4"]
    assert (first.sequence, second.sequence) == (1, 2)
    assert (first.speaker_id, first.language, first.state) == ("alice", "en", "listening")
    assert first.start_ms is not None
    assert first.end_ms is not None
    assert 800 < first.end_ms - first.start_ms < 1100
    assert (ears.forms[0]["prompt"], ears.forms[0]["language"]) == ("names", "en")


async def test_a_session_may_begin_with_audio(settings: SettingsFor, speaker: SpeakerFor) -> None:
    async with serving(service, settings()):
        alice = await speaker()
        await alice.say(1, 2)
        await alice.hears([1, 2])


async def test_what_is_being_said_at_the_end_is_heard(settings: SettingsFor, speaker: SpeakerFor) -> None:
    async with serving(service, settings()):
        alice = await speaker()
        await alice.say(1, 2, after_ms=0)
        await alice.end()
        await alice.sees("ended")
        assert alice.finals == ["w1 w2"]


async def test_thirty_seconds_of_silence_cost_no_call_and_no_event(
    settings: SettingsFor, speaker: SpeakerFor, ears: Endpoint
) -> None:
    async with serving(service, settings()):
        alice = await speaker()
        await alice.pause(30_000)
        await alice.end()
        await alice.sees("ended")
    assert alice.statuses == ["started", "ended"]
    assert len(alice.events) == 2
    assert ears.calls == []


@pytest.mark.parametrize("rate", [8000, 48_000])
async def test_other_sample_rates(settings: SettingsFor, speaker: SpeakerFor, rate: int) -> None:
    async with serving(service, settings()):
        alice = await speaker(rate=rate)
        await alice.start(sample_rate=rate)
        await alice.say(1, 2)
        await alice.hears([1, 2])


async def test_of_stereo_the_first_channel_is_heard(settings: SettingsFor, speaker: SpeakerFor) -> None:
    async with serving(service, settings()):
        alice = await speaker()
        await alice.start(channels=2)
        left, right = phrase(1), phrase(9)
        both = b"".join(left[i : i + 2] + right[i : i + 2] for i in range(0, len(left), 2))
        for place in range(0, len(both), 1280):
            await alice.send(type="chunk", audio=both[place : place + 1280])
        await alice.hears([1])


async def test_chunks_of_any_size(settings: SettingsFor, speaker: SpeakerFor) -> None:
    async with serving(service, settings()):
        alice = await speaker()
        audio, sizes = phrase(1, 2, 3) + phrase(4), random.Random(7)
        place = 0
        while place < len(audio):
            size = sizes.choice([2, 46, 640, 5000, 60_000])
            await alice.send(type="chunk", audio=audio[place : place + size])
            place += size
        await alice.hears([1, 2, 3], [4])


async def test_a_whole_utterance_that_is_too_short_is_heard_only_on_request(
    settings: SettingsFor, speaker: SpeakerFor, ears: Endpoint
) -> None:
    async with serving(service, settings(min_utterance_ms=600)):
        for keep_short, finals in ((False, []), (True, ["w1"])):
            alice = await speaker()
            await alice.start(keep_short=keep_short)
            await alice.play(word(1) + silence(900))
            await alice.end()
            await alice.sees("ended")
            assert alice.finals == finals


async def test_long_speech_is_cut_and_nothing_lost(settings: SettingsFor, speaker: SpeakerFor) -> None:
    async with serving(service, settings(max_utterance_ms=8000)):
        alice = await speaker()
        await alice.say(*range(1, 41))
        await alice.end()
        await alice.sees("ended")
        heard = " ".join(alice.finals).split()
        assert len(alice.finals) >= 2
        # A word in which the cut falls is heard before it, behind it, or on both sides.
        assert [number for i, number in enumerate(heard) if heard[i - 1 : i] != [number]] == [
            f"w{number}" for number in range(1, 41)
        ]


# -- lost, late, doubled


async def test_chunks_out_of_order_are_put_in_order(settings: SettingsFor, speaker: SpeakerFor) -> None:
    async with serving(service, settings()):
        alice = await speaker(numbered=True)
        chunks = alice.chunks(phrase(1, 2, 3))
        for place in range(10, len(chunks) - 10, 7):
            chunks[place], chunks[place + 3] = chunks[place + 3], chunks[place]
        for chunk in chunks:
            await alice.send(**chunk)
            if chunk["seq"] % 5 == 0:
                await alice.send(**chunk)
        await alice.hears([1, 2, 3])


async def test_three_percent_lost_still_makes_the_words(settings: SettingsFor, speaker: SpeakerFor) -> None:
    async with serving(service, settings()) as runtime:
        alice = await speaker(numbered=True)
        chance = random.Random(3)
        chunks = alice.chunks(b"".join(phrase(i, i + 1, i + 2) for i in range(1, 31, 3)))
        lost = [chunk for chunk in chunks[1:-1] if chance.random() < 0.03]
        for chunk in chunks:
            if chunk not in lost:
                await alice.send(**chunk)
        await alice.hears(*([i, i + 1, i + 2] for i in range(1, 31, 3)))
        await alice.end()
        await alice.sees("ended")
        assert f"handler_stt_chunks_lost_total {len(lost)}" in runtime.metrics.render()


async def test_the_last_chunk_is_not_waited_for_for_ever(settings: SettingsFor, speaker: SpeakerFor) -> None:
    async with serving(service, settings()):
        alice = await speaker(numbered=True)
        chunks = alice.chunks(phrase(1, 2))
        del chunks[-40]
        for chunk in chunks[:-38]:
            await alice.send(**chunk)
        await alice.end()
        await alice.hears([1, 2])


# -- what is wrong


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ({"type": "chunk", "audio": b"odd"}, "audio: 3 bytes are no whole samples"),
        ({"type": "chunk", "audio": bytes(70_000)}, "audio: has 70000 bytes"),
        ({"type": "chunk", "audio": 7}, "audio: "),
        ({"type": "chunk", "audio": "not base64!"}, "audio: is a string, but not base64"),
        ({"type": "chunk", "audio": b"", "seq": -1}, "seq: "),
        ({"type": "chunk", "audio": b"", "seq": True, "extra": 1}, ""),
        ({"type": "chunk", "audio": b"", "sample_rate": 44_100}, "sample_rate: "),
        ({"type": "speech"}, "type: "),
        ({"type": "state_change"}, "state: is missing"),
        ({"type": "state_change", "state": "asleep"}, "state: "),
        ({}, "type: "),
    ],
)
async def test_a_bad_message_is_named_and_the_session_lives_on(
    settings: SettingsFor, speaker: SpeakerFor, message: dict[str, object], named: str
) -> None:
    async with serving(service, settings()):
        alice = await speaker()
        await alice.start()
        await alice.send(**message)
        await alice.say(1)
        await alice.hears([1])
        if named:
            await until(lambda: alice.errors, "it is named")  # which is told beside what is heard
            [error] = [event.error for event in alice.events if event.error]
            assert error.type is ErrorType.VALIDATION_ERROR
            assert error.message.startswith(named)
            assert len(error.message) < 200, "and the audio is not repeated"


async def test_what_is_no_map_is_named(settings: SettingsFor, speaker: SpeakerFor, nc: Connection) -> None:
    async with serving(service, settings()):
        alice = await speaker()
        for body in (b'{"type": "chunk"}', b"\xc1", b"\x93\x01\x02\x03"):
            await nc.publish(f"ai.voice.stream.{alice.session}", body)
        await alice.say(1)
        await alice.hears([1])
        await until(lambda: len(alice.errors) == 3, f"all three are named, not {alice}")
        assert all(error.startswith("body: ") for error in alice.errors)


async def test_the_same_mistake_is_told_once(settings: SettingsFor, speaker: SpeakerFor) -> None:
    async with serving(service, settings()):
        alice = await speaker()
        for _ in range(50):
            await alice.send(type="chunk", audio=b"odd")
        await alice.say(1)
        await alice.hears([1])
        await until(lambda: alice.errors, "it is told")
        assert len(alice.errors) == 1


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"sample_rate": 44_100}, "sample_rate"),
        ({"channels": 6}, "channels"),
        ({"frame_ms": 15}, "frame_ms"),
        ({"turn": {"top_k": 1000}}, "turn.top_k"),
        ({"turn": {"request_id": "mine"}}, "turn.request_id"),
        ({"turn": {"username": b"\xff"}}, "turn"),
        ({"turn": {"system_prompt": "x" * 20_000}}, "turn"),
    ],
)
async def test_after_a_bad_start_nothing_is_made_up_of_the_audio(
    settings: SettingsFor, speaker: SpeakerFor, ears: Endpoint, fields: dict[str, object], named: str
) -> None:
    async with serving(service, settings()):
        alice = await speaker()
        await alice.start(**fields)
        await alice.say(1)
        await alice.start()
        await alice.say(2)
        await alice.hears([2])
        assert ears.calls == [[2]]
        await until(lambda: alice.errors, "the start is refused")
        [error] = alice.errors
        assert error.startswith(named)
        assert error.endswith("audio is left out until a valid start")


async def test_a_second_start_ends_what_was_said_under_the_first(settings: SettingsFor, speaker: SpeakerFor) -> None:
    async with serving(service, settings()):
        alice = await speaker(numbered=True)
        await alice.start(speaker_id="alice")
        await alice.say(1, 2, after_ms=0)
        alice.rate, alice.seq = 8000, 0
        await alice.start(sample_rate=8000, speaker_id="bob")
        await alice.say(3)
        await alice.hears([1, 2], [3])
        finals = [event for event in alice.events if event.is_final]
        assert [event.speaker_id for event in finals] == ["alice", "bob"]
        assert (finals[0].start_ms or 0) < (finals[1].start_ms or 0)


async def test_a_name_that_is_no_token_is_told_so(settings: SettingsFor, nc: Connection) -> None:
    async with serving(service, settings()):
        speaker = await Speaker(nc, "s%21").listen()
        await speaker.say(1)
        await until(lambda: speaker.errors, "it is told")
        assert speaker.errors[0].startswith("session: ")

        async def none_waits() -> bool:
            return await stored(nc, "AI_STT_SESSIONS", "ai.voice.session.*") == []

        await until(none_waits, "its tickets are settled")
        assert len(speaker.errors) == 1
        assert await stored(nc, "DLQ", "dlq.AI_STT_SESSIONS.>") == []


# -- the endpoint


async def test_an_outage_is_told_once_and_no_word_is_lost(
    settings: SettingsFor, speaker: SpeakerFor, ears: Endpoint
) -> None:
    ears.failures = -1
    async with serving(service, settings()):
        alice = await speaker()
        await alice.say(1)
        await alice.say(2, 3)
        await until(lambda: alice.errors, "the outage is told")
        await alice.end()
        await until(lambda: ears.failures < -3, "it is tried again")
        ears.failures = 0
        await alice.sees("ended")
        assert alice.finals == ["w1", "w2 w3"]
    [error] = [event.error for event in alice.events if event.error]
    assert error.type is ErrorType.DOWNSTREAM_UNAVAILABLE
    assert error.retryable


async def test_an_utterance_that_is_refused_is_told_and_the_next_is_heard(
    settings: SettingsFor, speaker: SpeakerFor, ears: Endpoint
) -> None:
    ears.failures, ears.status = 2, 400  # in either form that the client asks in
    async with serving(service, settings()):
        alice = await speaker()
        await alice.say(1)
        await until(lambda: alice.errors, "the refusal is told")
        await alice.say(2)
        await alice.hears([2])
    [refused] = [event for event in alice.events if event.error]
    assert refused.sequence == 1
    assert refused.error is not None
    assert not refused.error.retryable


async def test_while_the_endpoint_is_slow_the_stream_keeps_what_is_too_much(
    settings: SettingsFor, speaker: SpeakerFor, ears: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stt_module.worker.MOST_HELD", 100_000)
    ears.open.clear()
    async with serving(service, settings()) as runtime:
        alice = await speaker()
        for number in range(1, 21):
            await alice.say(number)
        await until(lambda: ears.waiting == 1, "the first is being transcribed")

        async def paused() -> bool:
            answer = await Api(runtime.nc).request("CONSUMER.LIST.AI_STT")
            return int(answer["total"]) == 0

        await until(paused, "nothing more is read")
        ears.open.set()
        await alice.hears(*([number] for number in range(1, 21)))


async def test_so_many_calls_are_under_way_at_once(settings: SettingsFor, speaker: SpeakerFor, ears: Endpoint) -> None:
    ears.open.clear()
    async with serving(service, settings(stt_concurrency=2)):
        speakers = [await speaker() for _ in range(5)]
        for number, each in enumerate(speakers, 1):
            await each.say(number)
        await until(lambda: ears.waiting == 2, "two are under way")
        for number, each in enumerate(speakers, 1):
            await each.end()
            assert ears.waiting <= 2, number
        ears.open.set()
        for number, each in enumerate(speakers, 1):
            await each.hears([number])


async def test_noise_that_is_no_speech_publishes_nothing(
    settings: SettingsFor, speaker: SpeakerFor, ears: Endpoint
) -> None:
    ears.silent = True
    async with serving(service, settings()):
        alice = await speaker()
        await alice.say(1)
        await until(lambda: ears.calls, "it is transcribed")
        ears.silent = False
        await alice.say(2)
        await alice.hears([2])


# -- partial transcripts


async def test_partial_transcripts_grow_and_the_final_one_closes_them(
    settings: SettingsFor, speaker: SpeakerFor
) -> None:
    async with serving(service, settings(partials=True, partial_interval_ms=300)):
        alice = await speaker()
        last = await alice.say_until_shown()
        await alice.pause(900)
        await alice.hears(list(range(1, last + 1)))
    assert [event.sequence for event in alice.events if event.type == "transcript"] == [1] * (len(alice.partials) + 1)
    for shorter, longer in zip(alice.partials, [*alice.partials[1:], alice.finals[0]], strict=True):
        assert longer.startswith(shorter)
    partial = next(event for event in alice.events if event.is_partial)
    assert partial.has_voice_activity
    assert not partial.is_final


async def test_partials_of_what_turns_out_to_be_nothing_are_taken_back(
    settings: SettingsFor, speaker: SpeakerFor, ears: Endpoint
) -> None:
    async with serving(service, settings(partials=True, partial_interval_ms=300)):
        alice = await speaker()
        await alice.say_until_shown()
        ears.silent = True
        await alice.pause(900)
        await until(lambda: alice.finals == [""], "it is taken back")


async def test_a_session_may_do_without_partials(settings: SettingsFor, speaker: SpeakerFor, ears: Endpoint) -> None:
    async with serving(service, settings(partials=True, partial_interval_ms=200)):
        alice = await speaker()
        await alice.start(partials=False)
        await alice.say(*range(1, 11))
        await alice.hears(list(range(1, 11)))
        assert len(ears.calls) == 1


# -- interrupts and turns


async def test_speech_while_responding_interrupts_once(settings: SettingsFor, speaker: SpeakerFor) -> None:
    async with serving(service, settings()):
        alice = await speaker()
        await alice.say(1)
        await alice.hears([1])
        assert not [event for event in alice.events if event.type == "interrupt"]
        for phase in (1, 2):
            await alice.send(type="state_change", state="responding")
            await alice.pause(1000)
            await alice.say(2, 3, 4)
            await alice.say(5, 6)
            await alice.send(type="state_change", state="listening")
            await until(lambda least=1 + 2 * phase: len(alice.finals) == least, "all is heard")
        await alice.end()
        await alice.sees("ended")
        interrupts = [event for event in alice.events if event.type == "interrupt"]
        assert len(interrupts) == 2
        assert interrupts[0].state == "responding"
        assert 700 < (interrupts[0].played_ms or 0) < 1100


async def test_short_noise_while_responding_does_not_interrupt(settings: SettingsFor, speaker: SpeakerFor) -> None:
    async with serving(service, settings()):
        alice = await speaker()
        await alice.start(state="responding")
        await alice.say(1)
        await alice.hears([1])
        assert [event.type for event in alice.events] == ["status", "transcript"]


async def test_each_transcript_is_asked_as_a_turn_and_names_it(
    settings: SettingsFor, speaker: SpeakerFor, nc: Connection
) -> None:
    async with serving(service, settings(session_users=True)):
        alice = await speaker()
        await alice.start(turn={"collection": "plants", "top_k": 3}, user_id="alice", language="en")
        await alice.say(1)
        await alice.say(2, 3)
        await alice.hears([1], [2, 3])
        await alice.send(type="state_change", state="responding")
        await alice.say(4, 5, 6)
        await until(lambda: any(event.type == "interrupt" for event in alice.events), "it is interrupted")
        await until(lambda: len(alice.finals) == 3, "all is heard")
    asked = await stored(nc, "AI_VOICE", "ai.voice.user.alice.request")
    requests = [decode(message.data, VoiceRequest) for message in asked]
    assert [request.text for request in requests] == ["w1", "w2 w3", "w4 w5 w6"]
    first = requests[0]
    assert (first.collection, first.top_k, first.language) == ("plants", 3, "en")
    assert (first.session_id, first.user_id) == (alice.session, "alice")
    assert [event.request_id for event in alice.events if event.is_final] == [r.request_id for r in requests]
    [interrupt] = [event for event in alice.events if event.type == "interrupt"]
    assert interrupt.request_id == requests[1].request_id


async def test_a_transcript_with_half_a_surrogate_pair_is_asked_all_the_same(
    settings: SettingsFor, speaker: SpeakerFor, nc: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handler_core.testing_speech.text", lambda words: "yes \ud83d no")
    async with serving(service, settings()):
        alice = await speaker()
        await alice.start(turn={})
        await alice.say(1)
        await until(lambda: alice.finals == ["yes ? no"], "it is heard")
    [asked] = await stored(nc, "AI_VOICE", "ai.voice.request")
    assert decode(asked.data, VoiceRequest).text == "yes ? no"
    assert alice.errors == []


async def test_nobody_is_another_user_by_saying_so(settings: SettingsFor, speaker: SpeakerFor, nc: Connection) -> None:
    async with serving(service, settings()):
        mallory = await speaker()
        await mallory.start(turn={"collection": "user_bob"}, user_id="bob")
        await mallory.say(1)
        await until(lambda: any(event.type == "error" for event in mallory.events), "the start is refused")
        await mallory.start(turn={})
        await mallory.say(2)
        await mallory.hears([2])
    [error] = [event.error for event in mallory.events if event.error is not None]
    assert error.message.startswith("user_id: is not taken from sessions here (SESSION_USERS)")
    assert await stored(nc, "AI_VOICE", "ai.voice.user.bob.request") == []
    [asked] = await stored(nc, "AI_VOICE", "ai.voice.request")
    assert decode(asked.data, VoiceRequest).user_id is None


@pytest.mark.parametrize("seq", [2**53, 2**64 - 1])
async def test_a_count_beyond_all_reason_is_refused_and_the_session_goes_on(
    settings: SettingsFor, speaker: SpeakerFor, seq: int
) -> None:
    async with serving(service, settings()):
        alice = await speaker()
        await alice.say(1)
        await alice.send(type="chunk", audio=bytes(640), seq=seq)
        await alice.say(2)
        await alice.hears([1], [2])
        await until(lambda: alice.errors, "the count is refused")
    [error] = [event.error for event in alice.events if event.error is not None]
    assert error.message.startswith("seq: ")


async def test_a_full_queue_of_turns_is_told_with_the_transcript(
    settings: SettingsFor, speaker: SpeakerFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stt_module.turns.TRIES", 2)
    async with serving(service, settings()) as runtime:
        await Api(runtime.nc).request("STREAM.DELETE.AI_VOICE")
        try:
            alice = await speaker()
            await alice.start(turn={})
            await alice.say(1)
            await alice.hears([1])
            await until(lambda: alice.errors, "it is told")
        finally:
            await streams.apply(Api(runtime.nc))
    [final] = [event for event in alice.events if event.is_final]
    assert final.request_id is None


# -- the end of a session


async def test_a_session_that_falls_silent_ends_and_its_ticket_is_gone(
    settings: SettingsFor, speaker: SpeakerFor, nc: Connection
) -> None:
    async with serving(service, settings(idle_timeout=0.3)):
        alice = await speaker()
        await alice.say(1, 2, after_ms=0)
        await alice.sees("ended")
        assert alice.finals == ["w1 w2"]
        assert alice.events[-1].reason == "idle"

        async def settled() -> bool:
            return await stored(nc, "AI_STT_SESSIONS", "ai.voice.session.*") == []

        await until(settled, "the ticket is gone")


async def test_a_client_that_sends_only_speech_is_heard_when_it_pauses(
    settings: SettingsFor, speaker: SpeakerFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.2)
    monkeypatch.setattr(module, "HOLD", 0.1)
    async with serving(service, settings()):
        alice = await speaker(numbered=True)
        await alice.say(1, 2, after_ms=0)
        await alice.hears([1, 2])
        await alice.say(3, after_ms=0)
        await alice.hears([1, 2], [3])
        assert alice.statuses == ["started"]


async def test_a_reader_that_stands_still_ends_no_utterance(
    settings: SettingsFor, speaker: SpeakerFor, nc: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not read for longer than a pause lasts was said all the same."""
    monkeypatch.setattr(module, "PAUSE", 0.4)
    monkeypatch.setattr(module, "HOLD", 0.1)
    async with serving(service, settings(idle_timeout=0.5)) as runtime:
        alice = await speaker()
        await alice.play(word(1) + word(2))
        await until(lambda: "lag_seconds_count 30" in runtime.metrics.render(), "they are heard")
        sinks = runtime.nc._ps.sinks
        sid = next(sid for sid, sink in sinks.items() if "_receive_live" in repr(sink))
        sinks[sid] = lambda *_: None
        await alice.say(3)
        await alice.hears([1, 2, 3])
        assert alice.statuses == ["started"]


async def test_a_server_that_stands_still_ends_no_utterance(
    settings: SettingsFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.5)
    monkeypatch.setattr(module, "HOLD", 0.1)
    with nats_server() as server:
        async with connection(server.url) as nc:
            await streams.apply(Api(nc))
            async with serving(service, settings(nats_url=server.url)) as runtime:
                alice = await Speaker(nc, "alice").listen()
                await alice.play(word(1) + word(2))
                await until(lambda: "lag_seconds_count 30" in runtime.metrics.render(), "they are heard")
                assert server.process is not None
                server.process.send_signal(signal.SIGSTOP)
                await alice.say(3)
                await asyncio.sleep(0.9)  # the length of the stall
                server.process.send_signal(signal.SIGCONT)
                await alice.hears([1, 2, 3])


async def test_who_waits_for_the_endpoint_keeps_nobody_from_being_listened_to(
    settings: SettingsFor, speaker: SpeakerFor, ears: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stt_module.worker.CATCHING_UP", 1)
    monkeypatch.setattr("stt_module.worker.MOST_HELD", 50_000)
    monkeypatch.setattr(module, "CATCH_UP", 1000.0)
    ears.open.clear()
    alice, bob = await speaker(), await speaker()
    for number in range(1, 11):
        await alice.say(number)
    async with serving(service, settings()):
        await until(lambda: ears.waiting == 1, "alice's first words are being transcribed")
        await bob.start(state="responding")
        await bob.say(1, 2, 3)
        await until(lambda: any(event.type == "interrupt" for event in bob.events), "bob is listened to")
        ears.open.set()
        await alice.hears(*([number] for number in range(1, 11)))


async def test_a_chunk_after_the_end_begins_a_new_session(settings: SettingsFor, speaker: SpeakerFor) -> None:
    async with serving(service, settings()):
        alice = await speaker()
        await alice.start(speaker_id="alice")
        await alice.say(1)
        await alice.end()
        await alice.say(2)  # published before the first session's end is settled, or just then
        await alice.sees("started", times=2)
        await until(lambda: alice.finals == ["w1", "w2"], "both are heard")
        second = [event for event in alice.events if event.is_final][1]
        assert (second.sequence, second.speaker_id) == (1, None)
        await alice.end()
        await alice.sees("ended", times=2)


async def test_a_long_silence_has_signs_of_life(
    settings: SettingsFor, speaker: SpeakerFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LISTENING_EVERY", 0.1)
    async with serving(service, settings()):
        alice = await speaker()
        await alice.pause(100)
        await alice.sees("listening", times=2)


async def test_events_that_are_no_longer_kept_do_not_end_the_session(
    settings: SettingsFor, speaker: SpeakerFor, nc: Connection
) -> None:
    async with serving(service, settings()):
        alice = await speaker()
        await alice.say(1)
        await alice.hears([1])
        await Api(nc).request("STREAM.PURGE.AI_EVENTS")
        await alice.say(2)
        await alice.hears([1], [2])


async def test_a_server_that_restarts_in_mid_utterance_costs_no_word(ears: Endpoint, settings: SettingsFor) -> None:
    with nats_server() as server:
        async with connection(server.url) as nc:
            await streams.apply(Api(nc))
            async with serving(service, settings(nats_url=server.url)) as runtime:
                alice = await Speaker(nc, "alice").listen()
                await alice.play(word(1) + word(2))
                await alice.sees("started")
                server.kill()
                await until(lambda: not (nc.is_connected or runtime.nc.is_connected), "it is gone")
                server.start()
                await until(lambda: nc.is_connected and runtime.nc.is_connected, "it is back")
                await alice.say(3)
                await alice.hears([1, 2, 3])
                assert alice.statuses.count("started") == 1


async def test_the_trace_of_the_first_chunk_goes_on_in_every_event_and_call(
    settings: SettingsFor, speaker: SpeakerFor, ears: Endpoint
) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    async with serving(service, settings()):
        alice = await speaker()
        await alice.send(type="start", headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
        await alice.say(1)
        await alice.hears([1])
    assert {event.trace_id for event in alice.events} == {trace}
    assert all(trace in headers["traceparent"] for headers in alice.headers)
    assert trace in ears.headers[0]["traceparent"]


async def test_metrics_tell_of_sessions_and_of_the_lag(settings: SettingsFor, speaker: SpeakerFor) -> None:
    async with serving(service, settings()) as runtime:
        alice = await speaker()
        await alice.say(1)
        await alice.hears([1])
        shown = runtime.metrics.render()
        assert "handler_stt_sessions 1" in shown
        assert 'handler_stt_utterances_total{outcome="transcribed"} 1' in shown
        assert "handler_stt_final_seconds_count 1" in shown
        assert "handler_stt_chunk_lag_seconds_count 60" in shown
        await alice.end()
        await alice.sees("ended")
        await until(lambda: "handler_stt_sessions 0" in runtime.metrics.render(), "it is over")


async def test_many_sessions_at_once(settings: SettingsFor, speaker: SpeakerFor) -> None:
    async with serving(service, settings()):
        speakers = [await speaker() for _ in range(30)]
        async with asyncio.TaskGroup() as tasks:
            for number, each in enumerate(speakers, 1):
                tasks.create_task(each.say(number, number + 1))
        for number, each in enumerate(speakers, 1):
            await each.hears([number, number + 1])
