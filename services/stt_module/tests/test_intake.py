"""What a session's messages do to the worker that listens to it, without anything around it."""

import base64
from typing import Any

import msgpack
import pytest

from handler_core.errors import HandlerError
from handler_core.telemetry import Metrics
from handler_core.testing_speech import silence, word
from stt_module import intake as module
from stt_module.checkpoint import Checkpoint, Phase
from stt_module.intake import MAX_BODY, Intake
from stt_module.meters import Meters
from stt_module.segmenter import Event, Position, Utterance
from stt_module.settings import Settings


class Listener:
    """An intake, and what it tells."""

    def __init__(self, checkpoint: Checkpoint | None = None) -> None:
        self.events: list[Event] = []
        self.errors: list[HandlerError] = []
        self.sequence = 0
        self.intake = Intake(
            checkpoint or Checkpoint(1),
            Settings(),
            Meters(Metrics()),
            on_event=self.events.append,
            on_error=self.errors.append,
            on_end=lambda: None,
            on_due=lambda: None,
            on_hold=lambda: None,
        )

    def hear(self, body: bytes | None = None, **message: Any) -> None:
        self.sequence += 1
        self.intake.receive(self.sequence, 0.0, body or msgpack.packb(message), None)

    def play(self, pcm: bytes) -> None:
        for place in range(0, len(pcm), 640):
            self.hear(type="chunk", audio=pcm[place : place + 640])

    @property
    def utterances(self) -> list[Utterance]:
        return [event for event in self.events if isinstance(event, Utterance)]

    def held(self) -> list[Phase]:
        return self.intake._phases


def test_a_flood_of_starts_fills_nothing() -> None:
    listener = Listener()
    for number in range(200):
        listener.hear(type="start", speaker_id=str(number))
        listener.hear(type="start", sample_rate=44_100)
        listener.hear(type="chunk", audio=bytes(640))
        listener.hear(type="state_change", state="responding")
    assert len(listener.held()) == 2
    assert listener.intake.phase.deaf
    listener.hear(type="start", speaker_id="last")
    assert listener.intake.phase_at(Position(listener.sequence)).config.speaker_id == "last"


def test_a_flood_of_starts_with_audio_between_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PHASES", 20)
    listener = Listener()
    for number in range(200):
        listener.hear(type="start", speaker_id=str(number))
        listener.hear(type="chunk", audio=bytes(640))
        listener.hear(type="state_change", state="responding")
        listener.hear(type="chunk", audio=bytes(640))
    assert len(listener.held()) <= 21
    assert listener.errors[0].message.startswith("type: more than 20 changes await their transcripts")
    listener.intake.phase_at(listener.intake.segmenter.position)  # asked with each event that is published
    listener.hear(type="start", speaker_id="last")
    assert listener.intake.phase.config.speaker_id == "last"
    assert not listener.intake.phase.deaf


def test_what_held_for_audio_is_known_for_as_long_as_that_is_needed() -> None:
    listener = Listener()
    listener.hear(type="start", speaker_id="alice")
    listener.play(word(1) + word(2))
    spoken = listener.sequence
    listener.hear(type="start", speaker_id="nobody")
    listener.hear(type="start", speaker_id="bob")
    listener.hear(type="state_change", state="responding")
    changed = listener.sequence
    listener.play(silence(20))
    assert listener.utterances[0].begin.mark <= spoken
    phase_at = listener.intake.phase_at
    assert phase_at(listener.utterances[0].begin).config.speaker_id == "alice"
    phase = phase_at(Position(changed + 1))
    assert (phase.sequence, phase.config.speaker_id, phase.state) == (changed, "bob", "responding")


def test_a_phase_of_an_earlier_worker_is_not_replaced_by_one_that_comes_before_any_audio() -> None:
    """The audio that it held for is still to be read again, if this worker dies as well."""
    before = Phase(3, state="responding")
    listener = Listener(Checkpoint(1, Position(5, 0, 100.0), before))
    listener.sequence = 5
    listener.hear(type="state_change", state="listening")
    assert listener.intake.phase_at(Position(5)) is before


def test_a_refused_start_ends_what_was_said_before_it() -> None:
    listener = Listener()
    listener.play(word(1) + word(2))
    listener.hear(type="start", sample_rate=44_100)
    assert len(listener.utterances) == 1
    assert not listener.intake.segmenter.voice_activity
    assert listener.intake.phase.deaf


def test_audio_of_the_largest_chunk_as_base64_is_heard() -> None:
    listener = Listener()
    text = base64.encodebytes(bytes(64 * 1024)).decode()
    listener.hear(type="chunk", audio=f"data:audio/pcm;base64,{text}", seq=1)
    assert listener.errors == []
    assert listener.intake.segmenter.clock_ms == 2048


def test_a_message_that_is_too_large_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handler_core.codec.unpack", lambda _: pytest.fail("it was unpacked"))
    listener = Listener()
    listener.hear(b"\x82\xa4type\xa5chunk\xa5audio".ljust(MAX_BODY + 1, b"\0"))
    [error] = listener.errors
    assert error.message == f"body: has {MAX_BODY + 1} bytes, {MAX_BODY} at most"
    assert not listener.intake.phase.deaf
    listener.hear(type="start", sample_rate=48_000, turn={"filter": [0] * MAX_BODY})
    assert listener.intake.phase.deaf, "nobody knows what the audio is"


@pytest.mark.parametrize("depth", [*range(200, 260, 3), 400, 900, 1020])
def test_a_start_however_deep_is_taken_or_refused(depth: int) -> None:
    listener = Listener()
    listener.hear(b"\x82\xa4type\xa5start\xa4turn" + b"\x81\xa1a" * depth + b"\x01")
    for error in listener.errors:
        assert error.message.startswith(("turn: holds what JSON cannot", "body: is not MessagePack")), error.message
