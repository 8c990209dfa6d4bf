import json
import shutil
import subprocess
from array import array
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handler_core.audio import read_wav
from stt_module.segmenter import Dropped, Event, Interrupt, Position, Rules, Segmenter, Started, Utterance

RATE = 16_000
AUDIO = Path(__file__).parents[3] / "tests" / "audio"
SENTENCE = "Five fish finished first, which was surprising for everyone who saw them."


@pytest.fixture(scope="module")
def sentence(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """One spoken sentence without a pause in it, at 16 kHz."""
    for path in sorted(AUDIO.glob("*.wav")):
        wav = read_wav(path.read_bytes())
        pcm = bytes(wav.pcm)
        if wav.format.sample_rate == RATE and wav.format.channels == 1 and wav.format.width == 2:
            loud = loud_ms(pcm)
            if 1500 < len(pcm) / 32 < 8000 and max(b - a for a, b in pairwise(loud)) < 400:
                return pcm
    if shutil.which("flite") is None:
        pytest.skip("no recorded speech, and no flite to make some")
    path = tmp_path_factory.mktemp("speech") / "sentence.wav"
    subprocess.run(["flite", "-voice", "slt", "-t", SENTENCE, "-o", path], check=True)
    return bytes(read_wav(path.read_bytes()).pcm)


def silence(ms: int, rate: int = RATE) -> bytes:
    return bytes(ms * rate // 1000 * 2)


def loud_ms(pcm: bytes, rate: int = RATE) -> list[int]:
    """The beginnings of all stretches of 10 ms with sound in them."""
    samples, step = array("h", pcm[: len(pcm) // 2 * 2]), rate // 100
    peaks = [max(map(abs, samples[at : at + step]), default=0) for at in range(0, len(samples), step)]
    return [number * 10 for number, peak in enumerate(peaks) if peak > max(peaks) / 100]


def chunks(pcm: bytes, size: int = 640) -> list[bytes]:
    return [pcm[at : at + size] for at in range(0, len(pcm), size)]


def feed(segmenter: Segmenter, pieces: Iterable[bytes], first: int = 1) -> list[Event]:
    return [event for mark, piece in enumerate(pieces, first) for event in segmenter.feed(piece, mark)]


def utterances(events: Iterable[Event]) -> list[Utterance]:
    return [event for event in events if isinstance(event, Utterance)]


def marked(flags: Iterable[bool], rate: int = RATE, frame_ms: int = 20) -> bytes:
    """Frames that `by_mark` takes for speech, which is loud, or for silence, and samples unlike those around."""
    out = array("h")
    for flag in flags:
        out.extend((len(out) * 2 % (16_000 if flag else 200)) + flag * 16_001 for _ in range(rate * frame_ms // 1000))
    return out.tobytes()


def by_mark(frame: bytes | bytearray | memoryview, _rate: int) -> bool:
    return bool(frame[0] & 1)


def frames(*runs: int) -> list[bool]:
    """So many silent frames, so many voiced ones, and so on."""
    return [number % 2 == 1 for number, run in enumerate(runs) for _ in range(run)]


def stub(at: Position | None = None, rate: int = RATE, **rules: int) -> Segmenter:
    return Segmenter(Rules(**{"noise_ms": 0, **rules}), rate, at, by_mark)  # type: ignore[arg-type]


def test_half_a_minute_of_silence_gives_nothing() -> None:
    segmenter = Segmenter(Rules(), RATE)
    assert feed(segmenter, chunks(silence(30_000))) == []
    assert segmenter.flush() == ()
    assert segmenter.clock_ms == 30_000
    assert segmenter.position == Position(1476, 0, 29_500.0)  # 500 ms before now


def test_the_first_consonant_is_not_clipped_nor_the_last(sentence: bytes) -> None:
    pcm = silence(1000) + sentence + silence(1000)
    loud = loud_ms(pcm)
    [utterance] = utterances(feed(Segmenter(Rules(), RATE), chunks(pcm)))
    assert utterance.begin.ms <= loud[0] - 200
    assert utterance.begin.ms + len(utterance.pcm) / 32 >= loud[-1] + 10
    assert utterance.pcm in pcm
    assert abs(utterance.start_ms - loud[0]) < 250
    assert abs(utterance.end_ms - loud[-1]) < 250
    assert not utterance.cut


def test_two_sentences_with_a_pause_are_two_utterances_that_share_no_audio(sentence: bytes) -> None:
    pcm = silence(500) + sentence + silence(1000) + sentence + silence(1000)
    events = feed(Segmenter(Rules(), RATE), chunks(pcm))
    assert [type(event) for event in events] == [Started, Utterance, Started, Utterance]
    first, second = utterances(events)
    assert first.after.ms == first.begin.ms + len(first.pcm) / 32
    assert second.begin.ms >= first.after.ms


@pytest.mark.parametrize("frame_ms", [10, 20, 30])
@pytest.mark.parametrize("rate", [8000, 16_000, 32_000, 48_000])
def test_every_rate_and_frame_finds_the_sentence(sentence: bytes, rate: int, frame_ms: int) -> None:
    pcm = silence(1000, rate) + resampled(sentence, rate) + silence(1000, rate)
    loud = loud_ms(pcm, rate)
    segmenter = Segmenter(Rules(frame_ms=frame_ms), rate)
    [utterance] = utterances(feed(segmenter, chunks(pcm, rate // 25)))
    assert abs(utterance.start_ms - loud[0]) < 300
    assert abs(utterance.end_ms - loud[-1]) < 300
    assert segmenter.clock_ms == pytest.approx(len(pcm) * 500 / rate)


def resampled(pcm: bytes, rate: int) -> bytes:
    samples = array("h", pcm)
    if rate < RATE:
        pairs = zip(samples[0::2], samples[1::2], strict=False)
        return array("h", [(a + b) // 2 for a, b in pairs]).tobytes()
    times = rate // RATE
    out = array("h")
    for a, b in pairwise(samples):
        out.extend((a * (times - k) + b * k) // times for k in range(times))
    return out.tobytes()


@pytest.mark.parametrize("size", [1, 3, 100, 641, 4096, 65_536])
def test_the_size_of_chunks_changes_nothing(sentence: bytes, size: int) -> None:
    pcm = silence(700) + sentence + silence(900) + sentence[:48_000] + silence(700)

    def bare(events: list[Event]) -> list[tuple[object, ...]]:
        return [tuple(value for value in event if not isinstance(value, Position)) for event in events]

    expected = feed(Segmenter(Rules(), RATE), chunks(pcm))
    assert utterances(expected)
    assert bare(feed(Segmenter(Rules(), RATE), chunks(pcm, size))) == bare(expected)


def test_bytearrays_and_views_are_taken_as_they_are() -> None:
    pcm = marked(frames(30, 30, 40))
    expected = feed(stub(), chunks(pcm))
    for kind in (bytearray, memoryview):
        segmenter = stub()
        assert [e for n, c in enumerate(chunks(pcm), 1) for e in segmenter.feed(kind(c), n)] == expected


def test_speech_that_never_ends_is_cut_and_no_sample_is_lost() -> None:
    pcm = marked(frames(50, 4000, 50))
    segmenter = stub()
    events = feed(segmenter, chunks(pcm))
    parts = utterances(events)
    assert [part.cut for part in parts] == [True, True, False]
    assert [type(event) for event in events].count(Started) == 1
    assert max(len(part.pcm) for part in parts) <= 30_000 * 32
    assert b"".join(part.pcm for part in parts) == pcm[25 * 640 : (4050 + 15) * 640]
    assert sum(part.voiced_ms for part in parts) == 80_000
    assert [part.begin.ms for part in parts[1:]] == [part.after.ms for part in parts[:-1]]


def test_a_long_utterance_is_cut_in_a_pause() -> None:
    pcm = marked(frames(50, 1400, 10, 300, 100))
    first, second = utterances(feed(stub(), chunks(pcm)))
    assert (first.cut, second.cut) == (True, False)
    assert (50 + 1400 + 2) * 20 < first.after.ms < (50 + 1400 + 8) * 20
    assert (first.end_ms, second.end_ms) == ((50 + 1400) * 20, (50 + 1400 + 10 + 300) * 20)


def test_a_word_after_a_cut_is_kept_however_short() -> None:
    pcm = marked(frames(50, 1463, 6, 10, 100))
    parts = utterances(feed(stub(), chunks(pcm)))
    assert [part.cut for part in parts] == [True, False]
    assert parts[1].voiced_ms == 200


def test_bytes_are_a_limit_too() -> None:
    parts = utterances(feed(stub(max_bytes=200_000), chunks(marked(frames(50, 500, 50)))))
    assert [len(part.pcm) <= 200_000 for part in parts] == [True] * len(parts)
    assert len(parts) > 1


def test_what_is_too_short_is_dropped_unless_asked_for() -> None:
    pcm = marked(frames(50, 12, 50))
    events = feed(stub(), chunks(pcm))
    assert events == [Started(1000.0), Dropped(1000.0, 1240.0, 240.0)]
    [utterance] = utterances(feed(Segmenter(Rules(keep_short=True), RATE, is_speech=by_mark), chunks(pcm)))
    assert (utterance.start_ms, utterance.end_ms, utterance.voiced_ms) == (1000.0, 1240.0, 240.0)


def test_a_click_is_neither_a_start_nor_does_it_prolong() -> None:
    assert feed(stub(), chunks(marked(frames(50, 5, 20, 1, 20, 9, 50)))) == []
    _, utterance = feed(stub(), chunks(marked(frames(50, 50, 20, 1, 40))))
    assert isinstance(utterance, Utterance)
    assert utterance.end_ms == (50 + 50 + 20 + 1) * 20


def test_the_open_utterance_can_be_looked_at_while_it_grows() -> None:
    segmenter = stub()
    pieces = chunks(marked(frames(50, 60)))
    feed(segmenter, pieces[:50])
    assert (segmenter.voice_activity, segmenter.open_ms, segmenter.growing()) == (False, 0.0, b"")
    feed(segmenter, pieces[50:], 51)
    assert segmenter.voice_activity
    assert segmenter.growing() == b"".join(pieces[25:])
    assert segmenter.open_ms == 85 * 20


def test_the_end_of_a_session_gives_what_is_open() -> None:
    segmenter = stub()
    pcm = marked(frames(50, 40)) + b"\1\0\1"
    events = [*feed(segmenter, chunks(pcm)), *segmenter.flush()]
    [utterance] = utterances(events)
    assert utterance.pcm == pcm[25 * 640 : -1]
    assert segmenter.flush() == ()
    assert not segmenter.voice_activity
    assert [type(e) for e in feed(segmenter, chunks(b"\0" + marked(frames(50, 40, 40))), 200)] == [
        Started,
        Utterance,
    ]


def test_the_end_of_a_session_drops_what_is_too_short_too() -> None:
    segmenter = stub()
    feed(segmenter, chunks(marked(frames(50, 12))))
    assert [type(event) for event in segmenter.flush()] == [Dropped]


def test_speech_while_responding_interrupts_once() -> None:
    segmenter = stub()
    pieces = chunks(marked(frames(50, 100, 50, 100, 50)))
    segmenter.responding = True
    events = feed(segmenter, pieces)
    assert [event for event in events if isinstance(event, Interrupt)] == [Interrupt(1000.0)]
    segmenter.responding = True
    assert Interrupt not in map(type, feed(segmenter, pieces, 1000))
    segmenter.responding = False
    assert Interrupt not in map(type, feed(segmenter, pieces, 2000))
    segmenter.responding = True
    assert list(map(type, feed(segmenter, pieces, 3000))).count(Interrupt) == 1


def test_only_enough_speech_of_that_time_interrupts() -> None:
    segmenter = stub()
    feed(segmenter, chunks(marked(frames(50, 100))))
    segmenter.responding = True
    assert feed(segmenter, chunks(marked(frames(0, 24, 50, 20, 50, 24, 50))), 200) != []
    assert segmenter.responding
    assert Interrupt not in map(type, feed(segmenter, chunks(marked(frames(0, 24, 50))), 500))
    assert Interrupt in map(type, feed(segmenter, chunks(marked(frames(0, 25))), 800))


def test_an_interrupt_given_by_an_earlier_worker_is_not_given_again() -> None:
    segmenter = stub()
    segmenter.responding = True
    segmenter.disarm()
    assert Interrupt not in map(type, feed(segmenter, chunks(marked(frames(50, 100)))))


def test_audio_gone_from_the_stream_is_not_left_out_of_what_is_there() -> None:
    segmenter = stub(Position(7, 640, 1000.0))
    feed(segmenter, chunks(silence(100)), 8)
    assert segmenter.clock_ms == 1100


@pytest.mark.parametrize(
    "wrong",
    [
        {"frame_ms": 25},
        {"mode": 4},
        {"start_ms": 0},
        {"pre_roll_ms": -1},
        {"end_share": 0},
        {"max_ms": 1500},
        {"noise_ms": 1000},
        {"noise_margin": 0},
    ],
    ids=str,
)
def test_rules_that_cannot_work_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Rules(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_bytes"):
        Segmenter(Rules(max_bytes=1000), RATE)


SMALL = Rules(
    frame_ms=10, start_ms=40, end_ms=80, pre_roll_ms=60, min_ms=50, max_ms=600, tail_ms=30, interrupt_ms=70, noise_ms=0
)  # fmt: skip
runs = st.lists(st.integers(0, 25), min_size=1, max_size=20)
sizes = st.lists(st.integers(1, 900), min_size=1, max_size=10)


def ragged(pcm: bytes, sizes: list[int]) -> list[bytes]:
    pieces: list[bytes] = []
    while pcm:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(pcm[:size])
        pcm = pcm[size:]
    return pieces


def small(at: Position | None = None) -> Segmenter:
    return Segmenter(SMALL, 8000, at, by_mark)


@given(runs=runs, sizes=sizes, cut=st.floats(0, 1))
@settings(deadline=None, max_examples=100)
def test_another_segmenter_goes_on_exactly_from_the_position(runs: list[int], sizes: list[int], cut: float) -> None:
    pieces = ragged(marked(frames(*runs), 8000, 10), sizes)
    whole = small()
    expected = [*feed(whole, pieces), *whole.flush()]
    first = small()
    place = round(cut * len(pieces))
    events = feed(first, pieces[:place])
    position = Position(*json.loads(json.dumps(first.position)))
    begin = max(position.mark, 1)
    second = small(position)
    events += [*feed(second, pieces[begin - 1 :], begin), *second.flush()]
    assert events == expected
    assert second.clock_ms == whole.clock_ms


@given(runs=runs, sizes=sizes)
@settings(deadline=None, max_examples=50)
def test_every_utterance_is_found_again_from_its_begin_and_the_next_from_its_end(
    runs: list[int], sizes: list[int]
) -> None:
    pieces = ragged(marked(frames(*runs), 8000, 10), sizes)
    whole = small()
    expected = utterances([*feed(whole, pieces), *whole.flush()])
    for number, utterance in enumerate(expected[:-1]):
        for position, rest in ((utterance.begin, expected[number:]), (utterance.after, expected[number + 1 :])):
            again = small(position)
            assert utterances([*feed(again, pieces[position.mark - 1 :], position.mark), *again.flush()]) == rest


@given(runs=runs, sizes=sizes)
@settings(deadline=None, max_examples=50)
def test_the_position_never_moves_back_and_lies_before_what_is_open(runs: list[int], sizes: list[int]) -> None:
    segmenter = small()
    last = segmenter.position
    for mark, piece in enumerate(ragged(marked(frames(*runs), 8000, 10), sizes), 1):
        segmenter.feed(piece, mark)
        position = segmenter.position
        assert position[:3] >= last[:3] or (last.offset and position.ms >= last.ms)
        assert position.mark >= last.mark
        assert position.ms >= last.ms
        assert (position.onset_ms is not None) == segmenter.voice_activity
        last = position


@pytest.mark.parametrize("part", [0.1, 0.3, 0.5, 0.62, 0.7, 0.9])
def test_no_spoken_word_is_lost_or_doubled_by_a_takeover(sentence: bytes, part: float) -> None:
    pcm = silence(900) + sentence + silence(1100) + sentence + silence(1000)
    pieces = chunks(pcm)
    place = int(len(pieces) * part)
    first = Segmenter(Rules(), RATE)
    events = feed(first, pieces[:place])
    position = first.position
    second = Segmenter(Rules(), RATE, position)
    events += feed(second, pieces[position.mark - 1 :], position.mark)
    found = utterances(events)
    assert len(found) == 2
    spans = [(u.begin.ms, u.begin.ms + len(u.pcm) / 32) for u in found]
    assert spans[0][1] <= spans[1][0]
    for loud in loud_ms(pcm):
        assert any(a <= loud and loud + 10 <= b for a, b in spans)


def test_memory_stays_small_in_silence_and_while_nobody_asks() -> None:
    segmenter = stub()
    feed(segmenter, [silence(1000)] * 120)
    assert len(segmenter._audio) < 100_000
    assert len(segmenter._starts) < 10
