from array import array
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stt_module.ordering import Ordering, Piece, filling
from stt_module.segmenter import Rules, Segmenter

RATE = 16_000
SIZE = 640


def chunk(seq: int, size: int = SIZE) -> bytes:
    return (seq % 30_000 + 1).to_bytes(2, "little") * (size // 2)


KNOWN = {chunk(seq): seq for seq in range(200)}


def push(ordering: Ordering, seqs: Iterable[int], first: int = 1) -> list[Piece]:
    """The chunks of these numbers, at successive marks."""
    return [piece for mark, seq in enumerate(seqs, first) for piece in ordering.push(chunk(seq), mark, seq)]


def names(pieces: Iterable[Piece]) -> list[int | str]:
    """The numbers of chunks, or `fill` and its length in chunks."""
    return [KNOWN.get(pcm, f"fill {len(pcm) // SIZE}") for pcm, _ in pieces]


def test_chunks_in_order_pass_at_once_with_their_own_marks() -> None:
    ordering = Ordering(RATE)
    assert push(ordering, [5, 6, 7]) == [(chunk(5), 1), (chunk(6), 2), (chunk(7), 3)]
    assert not ordering.holding


def test_chunks_without_numbers_pass_untouched() -> None:
    ordering = Ordering(RATE)
    pcm = chunk(1)
    [(out, mark)] = ordering.push(pcm, 9, None)
    assert out is pcm
    assert mark == 9


def test_a_late_chunk_is_put_where_it_belongs() -> None:
    ordering = Ordering(RATE)
    pieces = push(ordering, [0, 2, 3, 1, 4])
    assert names(pieces) == [0, 1, 2, 3, 4]
    assert [mark for _, mark in pieces] == [1, 1, 1, 1, 5]  # to be read again from before the disorder
    assert (ordering.lost, ordering.late, ordering.duplicate) == (0, 0, 0)


def test_what_follows_is_held_back_only_while_something_is_missing() -> None:
    ordering = Ordering(RATE)
    assert names(push(ordering, [0, 2, 3])) == [0]
    assert ordering.holding
    assert names(push(ordering, [1], 4)) == [1, 2, 3]
    assert not ordering.holding


def test_a_lost_chunk_is_replaced_by_as_much_audio() -> None:
    ordering = Ordering(RATE)
    pieces = push(ordering, [0, *range(3, 13), 13])
    assert names(pieces) == [0, "fill 2", *range(3, 14)]
    assert ordering.lost == 2
    assert not ordering.holding


def test_a_chunk_that_comes_too_late_is_dropped_and_counted() -> None:
    ordering = Ordering(RATE)
    assert names(push(ordering, [0, *range(2, 13), 1, 13])) == [0, "fill 1", *range(2, 14)]
    assert (ordering.lost, ordering.late, ordering.duplicate) == (1, 1, 0)


def test_duplicates_are_dropped_also_of_what_is_held_back() -> None:
    ordering = Ordering(RATE)
    assert names(push(ordering, [0, 1, 1, 0, 3, 3, 2, 4])) == [0, 1, 2, 3, 4]
    assert (ordering.lost, ordering.late, ordering.duplicate) == (0, 0, 3)


def test_large_chunks_are_waited_for_by_their_audio() -> None:
    ordering = Ordering(RATE)
    pieces: list[Piece] = []
    for mark, seq in enumerate([0, 2, 3], 1):
        pieces += ordering.push(chunk(seq, 6400), mark, seq)
    assert [len(pcm) for pcm, _ in pieces] == [6400] * 4
    assert ordering.lost == 1


def test_a_long_gap_is_neither_waited_for_nor_filled() -> None:
    ordering = Ordering(RATE)
    assert names(push(ordering, [0, 2, 60, 61])) == [0, "fill 1", 2, 60, 61]
    assert push(ordering, [10**9, 10**9 + 1], 9) == [(chunk(10**9), 9), (chunk(10**9 + 1), 10)]


def test_a_gap_of_a_second_is_filled() -> None:
    ordering = Ordering(RATE)
    assert names([*push(ordering, [0, 51]), *ordering.flush()]) == [0, "fill 50", 51]


def test_a_new_start_counts_anew() -> None:
    ordering = Ordering(RATE)
    assert names(push(ordering, [0, 1, 3])) == [0, 1]
    assert names(ordering.restart()) == ["fill 1", 3]
    assert names(push(ordering, [0, 1], 5)) == [0, 1]


def test_a_client_that_restarts_without_saying_so_is_heard_again() -> None:
    ordering = Ordering(RATE)
    assert names(push(ordering, [*range(60), 0, 1, 2])) == [*range(60), 0, 1, 2]
    assert len(push(ordering, range(100, 130), 50)) > 29
    assert names(push(ordering, range(40, 60), 100)) == list(range(50, 60))  # noticed by eleven old numbers


def test_a_chunk_without_number_lets_go_what_waits() -> None:
    ordering = Ordering(RATE)
    push(ordering, [0, 2])
    assert names(ordering.push(chunk(7), 3, None)) == ["fill 1", 2, 7]


def test_waiting_ends_with_the_session() -> None:
    ordering = Ordering(RATE)
    push(ordering, [0, 2, 5])
    assert names(ordering.flush()) == ["fill 1", 2, "fill 2", 5]
    assert ordering.flush() == []


@st.composite
def deliveries(draw: st.DrawFn) -> list[int]:
    """Numbers as a network brings them: mostly in order, some late, lost or twice."""
    last = draw(st.integers(1, 80))
    order: list[tuple[int, int]] = []
    for seq in range(last):
        fate = draw(st.sampled_from(["", "", "", "", "late", "lost", "twice"]))
        delay = draw(st.integers(1, 12)) if fate else 0
        if fate != "lost" or seq == 0:
            order.append((seq + (delay if fate == "late" and seq else 0), seq))
        if fate == "twice":
            order.append((seq + delay, seq))
    return [seq for _, seq in sorted(order, key=lambda item: item[0])]


@given(deliveries())
@settings(deadline=None, max_examples=50)
def test_every_number_comes_out_once_in_order_and_the_clock_is_right(seqs: list[int]) -> None:
    ordering = Ordering(RATE)
    pieces = [*push(ordering, seqs), *ordering.flush()]
    came = [name for name in names(pieces) if isinstance(name, int)]
    assert came == sorted(set(came))
    assert set(came) | {s for gap in ordering._given_up for s in gap} == set(range(max(seqs) + 1))
    assert sum(len(pcm) for pcm, _ in pieces) == (max(seqs) + 1) * SIZE
    assert [mark for _, mark in pieces] == sorted(mark for _, mark in pieces)


@given(seqs=deliveries(), cut=st.floats(0, 1), restart=st.booleans())
@settings(deadline=None, max_examples=100)
def test_a_takeover_reads_again_what_was_held_back(seqs: list[int], cut: float, restart: bool) -> None:
    if restart:
        seqs = [*seqs, *seqs]
    whole = Ordering(RATE)
    expected = b"".join(pcm for pcm, _ in [*push(whole, seqs), *whole.flush()])
    place = round(cut * len(seqs))
    first, segmenter = Ordering(RATE), Segmenter(Rules(pre_roll_ms=60), RATE, is_speech=lambda _frame, _rate: False)
    for pcm, mark in push(first, seqs[:place]):
        segmenter.feed(pcm, mark)
    position = segmenter.position
    second = Ordering(RATE)
    begin = max(position.mark, 1)
    again = b"".join(pcm for pcm, _ in [*push(second, seqs[begin - 1 :], begin), *second.flush()])
    assert again[position.offset :] == expected[round(position.ms * 32) :]


@pytest.mark.parametrize("size", [0, 2, 3])
def test_odd_and_empty_chunks_do_no_harm(size: int) -> None:
    ordering = Ordering(RATE)
    pieces = [piece for mark, seq in enumerate([0, 3, 4]) for piece in ordering.push(b"\1" * size, mark, seq)]
    assert sum(len(pcm) for pcm, _ in [*pieces, *ordering.flush()]) == 5 * size


def test_what_takes_a_lost_chunks_place_goes_on_where_the_last_one_ended_and_fades_into_the_next() -> None:
    before = array("h", range(-3200, 3200, 20)).tobytes()
    after = array("h", range(-6400, 0, 20)).tobytes()
    filled = array("h", filling(before, after, 3 * SIZE))
    assert len(filled) == 3 * SIZE // 2
    assert abs(filled[0] - 3180) < 20
    assert abs(filled[-1] + 6400) < 40
    assert max(filled[300:320]) < 200
    assert not any(filled[320:640])
    assert min(filled[640:660]) > -400


@given(before=st.binary(max_size=20), after=st.binary(max_size=20), missing=st.integers(1, 4))
def test_any_two_chunks_can_be_joined(before: bytes, after: bytes, missing: int) -> None:
    size = missing * len(before)
    assert len(filling(before, after, size)) == size


def test_the_loudest_audio_does_not_overflow() -> None:
    for low, high in ((-32_768, -32_768), (32_767, 32_767)):
        before, after = array("h", [low] * 320).tobytes(), array("h", [high] * 320).tobytes()
        filled = array("h", filling(before, after, SIZE))
        assert all(abs(sample - low) < 4 for sample in filled)


def test_a_gap_that_has_become_too_long_does_not_take_the_count_back() -> None:
    """Where chunks get larger, a number held back may be above one that is too far ahead to be waited for."""
    ordering = Ordering(RATE)
    pieces = [piece for seq, size in [(0, 20), (1000, 20), (1, 60_000), (5, 640), (1001, 640)]
              for piece in ordering.push(chunk(seq, size), seq + 1, seq)]  # fmt: skip
    assert [len(pcm) for pcm, _ in pieces] == [20, 60_000, 20, 640]
    assert (ordering.lost, ordering.late) == (998, 1)


@pytest.mark.parametrize("first", [b"", b"\1\1", chunk(0)])
def test_the_largest_gap_costs_no_more_than_a_small_one(first: bytes) -> None:
    ordering = Ordering(RATE)
    pieces = [piece for seq in (0, 2**53 - 2, 2**53 - 1) for piece in ordering.push(first, seq, seq)]
    pieces += ordering.flush()
    assert [pcm for pcm, _ in pieces] == [first] * 3
    assert ordering.lost == 2**53 - 3
