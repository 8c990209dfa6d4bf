"""Noise that voice activity detection takes for voice."""

import json
import random
from array import array
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from handler_core.audio import read_wav
from stt_module.segmenter import Dropped, Event, Interrupt, Position, Rules, Segmenter, Started, Utterance

RATE = 16_000
AUDIO = Path(__file__).parents[3] / "tests" / "audio"
NOISE, SPEECH = 300, 3000


def sound(*stretches: tuple[int, int], rate: int = RATE) -> bytes:
    """Random samples, so many milliseconds at so much amplitude, and so on."""
    random_ = random.Random(1)
    some = [random_.uniform(-1, 1) for _ in range(rate)]  # one second, again and again: enough to be no tone
    out = array("h")
    for ms, amplitude in stretches:
        size = ms * rate // 1000
        second = array("h", (round(value * amplitude) for value in some))
        out.extend((second * (size // rate + 1))[:size])
    return out.tobytes()


def always(_frame: object, _rate: int) -> bool:
    """Voice activity detection among many who talk."""
    return True


def loud(frame: bytes | bytearray | memoryview, _rate: int) -> bool:
    """Voice activity detection that finds the pauses."""
    return max(array("h", frame)) > NOISE * 2


def segmenter(
    at: Position | None = None, is_speech: Callable[..., bool] | None = always, rate: int = RATE, **rules: int
) -> Segmenter:
    return Segmenter(Rules(**rules), rate, at, is_speech)  # type: ignore[arg-type]


def pieces(pcm: bytes, size: int = 640) -> list[bytes]:
    return [pcm[at : at + size] for at in range(0, len(pcm), size)]


def feed(to: Segmenter, chunks: list[bytes], first: int = 1) -> list[Event]:
    return [event for mark, chunk in enumerate(chunks, first) for event in to.feed(chunk, mark)]


def utterances(events: list[Event]) -> list[Utterance]:
    return [event for event in events if isinstance(event, Utterance)]


@pytest.mark.parametrize("frame_ms", [10, 20, 30])
@pytest.mark.parametrize("rate", [8000, 16_000, 48_000])
def test_a_turn_begins_and_ends_among_many_who_talk(rate: int, frame_ms: int) -> None:
    pcm = sound((5000, NOISE), (2000, SPEECH), (1500, NOISE), (1000, SPEECH), (1500, NOISE), rate=rate)
    events = feed(segmenter(rate=rate, frame_ms=frame_ms), pieces(pcm, rate // 25))
    assert [type(event) for event in events] == [Started, Utterance] * 3
    first, second, third = utterances(events)
    assert first.end_ms < 4000  # of the noise, before it was known for one
    for utterance, start_ms, end_ms in ((second, 5000, 7000), (third, 8500, 9500)):
        assert utterance.start_ms == pytest.approx(start_ms, abs=100)
        assert utterance.end_ms == pytest.approx(end_ms, abs=600)


def test_recorded_speech_among_many_voices_is_one_utterance_a_sentence() -> None:
    sentence = array("h", bytes(read_wav((AUDIO / "server_restarted.wav").read_bytes()).pcm))
    voices = array("h", reversed(sentence))
    size = 16 * RATE
    crowd = [voices[shift:] + voices * (size // len(voices) + 1) for shift in range(0, len(voices), len(voices) // 8)]
    noise = array("h", (sum(values) // 16 for values in islice(zip(*crowd, strict=False), size)))
    begins = [6 * RATE, 6 * RATE + len(sentence) + RATE * 3 // 2]
    for begin in begins:
        for place, value in enumerate(sentence, begin):
            noise[place] += value
    chunks = pieces(noise.tobytes())
    *_, first, second = utterances(feed(Segmenter(Rules(), RATE), chunks))
    ends = [(begin + len(sentence)) / 16 for begin in begins]
    for utterance, begin, end in zip((first, second), begins, ends, strict=True):
        assert utterance.begin.ms <= begin / 16 < utterance.start_ms + 100
        assert utterance.end_ms == pytest.approx(end, abs=500)
    assert utterances(feed(Segmenter(Rules(noise_ms=0), RATE), chunks)) == []  # it would run on


def test_a_voice_that_drops_in_mid_sentence_is_not_cut_off() -> None:
    pcm = sound((5000, NOISE), (2000, SPEECH * 4), (2000, SPEECH * 4 // 6), (2000, NOISE))
    *_, last = utterances(feed(segmenter(), pieces(pcm)))
    assert last.start_ms == pytest.approx(5000, abs=100)
    assert last.end_ms == pytest.approx(9000, abs=600)


def test_noise_alone_is_taken_for_voice_once() -> None:
    to = segmenter()
    events = feed(to, pieces(sound((30_000, NOISE))))
    assert [type(event) for event in events] == [Started, Utterance]
    assert utterances(events)[0].end_ms < 4000
    assert not to.voice_activity
    assert to.position.ms > 29_000


def test_noise_that_begins_later_is_soon_known() -> None:
    pcm = sound((10_000, 1), (20_000, NOISE))
    to = segmenter(is_speech=lambda frame, _rate: max(array("h", frame)) > NOISE // 2)
    [utterance] = utterances(feed(to, pieces(pcm)))
    assert utterance.end_ms < 10_000 + 7000


def test_noise_that_ends_leaves_no_threshold_behind() -> None:
    to = segmenter(is_speech=lambda frame, _rate: max(array("h", frame)) > 10)
    feed(to, pieces(sound((10_000, NOISE))))
    assert to.position.noise > 0
    events = feed(to, pieces(sound((1000, 1), (1000, NOISE // 4), (1000, 1))), 1000)
    assert to.position.noise == 0
    assert [type(event) for event in events] == [Started, Utterance]


@pytest.mark.parametrize("level", [1, NOISE])
def test_where_pauses_are_found_nothing_changes(level: int) -> None:
    speech = [(900, SPEECH), (250, level), (1700, SPEECH // 8), (900, level), (3000, SPEECH), (700, level)]
    pcm = pieces(sound((500, level), *speech, *speech, *speech))

    def events(**rules: int) -> list[list[object]]:
        found = feed(Segmenter(Rules(**rules), RATE, is_speech=loud if level == NOISE else None), pcm)  # type: ignore[arg-type]
        return [[v._replace(noise=0) if isinstance(v, Position) else v for v in event] for event in found]

    assert events() == events(noise_ms=0)


def test_speech_from_the_first_frame_on_is_not_taken_for_noise() -> None:
    pcm = sound((1500, SPEECH), (1000, NOISE))
    [utterance] = utterances([*feed(to := segmenter(), pieces(pcm)), *to.flush()])
    assert utterance.start_ms == 0
    assert utterance.begin == Position(1, 0, 0.0, 0.0)


def test_noise_does_not_interrupt_and_a_voice_does() -> None:
    to = segmenter()
    feed(to, pieces(sound((5000, NOISE))))
    to.responding = True
    assert Interrupt not in map(type, feed(to, pieces(sound((5000, NOISE))), 1000))
    assert Interrupt in map(type, feed(to, pieces(sound((1000, SPEECH))), 2000))


@pytest.mark.parametrize("taken_over_at", [5500, 6500, 7500])
def test_after_a_takeover_the_noise_is_known(taken_over_at: int) -> None:
    chunks = pieces(sound((5000, NOISE), (2000, SPEECH), (3000, NOISE)))
    expected = utterances(feed(segmenter(), chunks))[-1]
    first = segmenter()
    feed(first, chunks[: taken_over_at // 20])
    position = Position(*json.loads(json.dumps(first.position)))
    assert position.noise > NOISE
    [again] = utterances(feed(segmenter(position), chunks[position.mark - 1 :], position.mark))
    assert again.begin[:4] == expected.begin[:4]
    # What the first one had heard of the noise is known as one number only.
    assert again.end_ms == pytest.approx(expected.end_ms, abs=100)


def test_a_position_from_before_the_noise_was_known_can_still_be_read() -> None:
    to = segmenter(Position(*json.loads("[7, 0, 1000.0, 1500.0, false]")))
    assert to.voice_activity
    assert Dropped not in map(type, feed(to, pieces(sound((1000, SPEECH))), 7))
