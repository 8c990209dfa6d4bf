"""Citation markers in streamed text: never cut, never lost, and each mapped to its source."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from handler_core.citations import CitedText, citations
from handler_core.contract.chat import Source

MARKER = re.compile(r"\[\d{1,3}(?:\s?,\s?\d{1,3}){0,19}\]")

text_with_markers = st.lists(
    st.one_of(
        st.sampled_from(
            ["[1]", "[1, 2]", "[12 ,3]", "[1,\n2]", "[[3]]", "[", "]", "[1", "[12, ", ", 3]", "[1]]", "[1 "]
        ),
        st.sampled_from(
            ["a[0]", "`x[1]`", "\n", " ", ",", "[1234]", "[a]", "[]", "[-1]", "[1, , 2]", "[" + "1, " * 19]
        ),
        st.lists(st.integers(0, 999).map(str), min_size=1, max_size=20).map(lambda n: f"[{' , '.join(n)}]"),
        st.text(max_size=5),
    ),
    max_size=12,
).map("".join)


@st.composite
def partitions(draw: st.DrawFn) -> list[str]:
    """A text in pieces, cut anywhere."""
    text = draw(text_with_markers)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=20)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def sources(count: int) -> list[Source]:
    return [Source(id=f"s{n}", text="…", score=0.5) for n in range(1, count + 1)]


def pieces_of(*fed: str) -> list[str]:
    """What each feed returns, and last what closing does."""
    cited = CitedText()
    return [*(cited.feed(piece) for piece in fed), cited.close()]


@given(partitions())
@example(["[", "1", " ", ",", " ", "2", "]", ""])
@example(["[\n", "x"])
def test_however_a_text_is_cut_none_of_it_is_lost_and_no_marker_is_cut(fed: list[str]) -> None:
    cited = CitedText()
    shown = [*(cited.feed(piece) for piece in fed), cited.close()]
    text = "".join(fed)
    assert "".join(shown) == cited.text == text
    ends, position = set(), 0
    for piece in shown:
        position += len(piece)
        ends.add(position)
    for marker in MARKER.finditer(text):
        assert not ends & set(range(marker.start() + 1, marker.end())), f"{marker[0]} is cut"


@given(partitions())
def test_only_what_can_still_become_a_marker_is_held_back(fed: list[str]) -> None:
    cited = CitedText()
    text = shown = ""
    for piece in fed:
        shown += cited.feed(piece)
        text += piece
        held = text[len(shown) :]
        endings = ("]", "1]", "1,1]", ",1]")
        assert not held or any(MARKER.fullmatch(held + ending) for ending in endings), f"{held!r} is held for nothing"


@given(partitions(), st.integers(0, 12))
def test_citations_name_existing_sources_once_each_in_order_of_appearance(fed: list[str], count: int) -> None:
    text = "".join(fed)
    found = citations(text, sources(count))
    assert [item.start for item in found] == sorted(item.start for item in found)
    assert len({item.index for item in found}) == len(found)
    for item in found:
        assert item.source_id == f"s{item.index}"
        marker = MARKER.match(text, item.start)
        assert marker is not None
        assert item.index in [int(number) for number in marker[0].strip("[]").split(",")]


@pytest.mark.parametrize(
    ("fed", "shown"),
    [
        (["as [1", "2]."], ["as ", "[12].", ""]),
        (["see [", "x]"], ["see ", "[x]", ""]),
        (["end ["], ["end ", "["]),
        (["[1, ", "2", "] ok"], ["", "", "[1, 2] ok", ""]),
        (["[123", "4", "]"], ["", "[1234", "]", ""]),
        (["[\n", "1]"], ["[\n", "1]", ""]),
        (["[" + "1, " * 60, "end"], ["[" + "1, " * 60, "end", ""]),
    ],
)
def test_a_piece_is_held_only_while_it_may_become_a_marker(fed: list[str], shown: list[str]) -> None:
    assert pieces_of(*fed) == shown


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("one [1] two [2]", [(1, 4), (2, 12)]),
        ("both [2, 1], again [1]", [(2, 5), (1, 5)]),
        ("a row [1][3]", [(1, 6), (3, 9)]),
        ("too many [12], none [0]", []),
        ("some of [1,9]", [(1, 8)]),
        ("code a[0] and a[99]", []),
        ("spans `a[1]`, then [2]", [(2, 19)]),
        ("```python\na[1] = b[2]\n```\nas said [3]", [(3, 34)]),
        ("an open fence ```a[1]", []),
        ("a lone ` backtick [1]", [(1, 18)]),
        ("ünïcode 😀 [2]", [(2, 10)]),
        ("links [1](http://x) and [x]", [(1, 6)]),
    ],
)
def test_markers_map_to_sources_and_other_brackets_do_not(text: str, found: list[tuple[int, int]]) -> None:
    assert [(item.index, item.start) for item in citations(text, sources(3))] == found


def test_every_character_is_looked_at_a_bounded_number_of_times() -> None:
    # With work that grows with the text so far, these would take minutes and run into the suite's time limit.
    cited = CitedText()
    for _ in range(100_000):
        cited.feed("[1, 2] [")
    cited.feed("[" * 1_000_000)
    cited.feed("[1" + ", 1" * 300_000)
    text = cited.text + cited.close() + "`[" * 100_000 + "```" * 100_001
    assert len(citations(text, sources(2))) == 2
