import re
from collections import deque
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handler_core.clients.sse import Event, EventParser, EventTooLarge


def parse(*chunks: bytes) -> list[Event]:
    parser = EventParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [Event("a")]),
        (b"data: a\r\n\r\ndata: b\r\rdata: c\n\n", [Event("a"), Event("b"), Event("c")]),
        (b"data:a\n\n", [Event("a")]),
        (b"data:  a \n\n", [Event(" a ")]),
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [Event("YHOO\n+2\n10")]),
        (b": comment\n\ndata: a\n:another\ndata: b\n\n", [Event("a\nb")]),
        (b"data\n\ndata\ndata\n\ndata:", [Event(""), Event("\n")]),
        (b"event: add\ndata: a\n\ndata: b\n\n", [Event("a", "add"), Event("b")]),
        (b"event: add\n\ndata: b\n\n", [Event("b")]),
        (b"id: 1\ndata: a\n\ndata: b\nid\n\ndata: c\n\n", [Event("a", id="1"), Event("b"), Event("c")]),
        (b"id: 1\nid: 2\x00\ndata: a\n\n", [Event("a", id="1")]),
        (b"\xef\xbb\xbfdata: a\n\n", [Event("a")]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),
        (b"Data: a\n data: b\nretry: 7\nfoo\n\n", []),
        (b"data: \xc3\xa9\xff\n\n", [Event("é\ufffd")]),
        (b"data: a\x0b\x0c\x1c\xc2\x85\xe2\x80\xa8b\n\n", [Event("a\x0b\x0c\x1c\x85\u2028b")]),
        (b"data: lost", []),
        (b"data: lost\n", []),
        (b"", []),
    ],
)
def test_streams_are_interpreted_as_the_standard_says(stream, events):
    assert parse(stream) == events
    assert parse(*(stream[i : i + 1] for i in range(len(stream)))) == events


def reference(stream: bytes) -> list[Event]:
    """The whole stream at once, by the standard's grammar, with none of the incremental state."""
    lines = re.split(rb"\r\n|\r|\n", stream.removeprefix(b"\xef\xbb\xbf"))[:-1]
    events, data, name, last_id = [], [], "", ""
    for line in lines:
        field, _, value = line.partition(b":")
        text = value.removeprefix(b" ").decode("utf-8", "replace")
        if not line:
            if data:
                events.append(Event("\n".join(data), name or "message", last_id))
            data, name = [], ""
        elif field == b"data":
            data.append(text)
        elif field == b"event":
            name = text
        elif field == b"id" and "\0" not in text:
            last_id = text
    return events


pieces = st.sampled_from(
    [b"data", b"event", b"id", b":", b": ", b" ", b"\r", b"\n", b"\r\n", b"\n\n", b"\0", b"\xef\xbb\xbf", b"x"]
) | st.text(min_size=1, max_size=3).map(lambda text: text.encode("utf-8", "surrogatepass"))
streams = st.lists(pieces, max_size=40).map(b"".join) | st.binary(max_size=60)


@settings(deadline=None)
@given(stream=streams, cuts=st.lists(st.integers(0, 200), max_size=10))
def test_any_partition_of_a_stream_gives_the_same_events(stream, cuts):
    borders = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    chunks = [stream[start:end] for start, end in pairwise(borders)]
    assert parse(*chunks) == reference(stream)


@settings(deadline=None)
@given(stream=streams)
def test_cutting_a_stream_at_any_byte_gives_the_same_events(stream):
    expected = reference(stream)
    for cut in range(len(stream) + 1):
        assert parse(stream[:cut], stream[cut:]) == expected


@pytest.mark.parametrize("piece", [b"x" * 10, b"data: 1234\n", b": \xc3\xa9"])
def test_lines_and_events_are_bounded(piece):
    parser = EventParser(limit=50)
    with pytest.raises(EventTooLarge, match="more than 50 bytes"):
        deque(map(parser.feed, [piece] * 1000), maxlen=0)


def test_the_bound_is_of_one_event_not_of_the_stream():
    parser = EventParser(limit=50)
    assert sum(len(parser.feed(b"data: " + b"x" * 44 + b"\n\n")) for _ in range(100)) == 100


def test_flush_gives_an_event_that_lacks_its_blank_line():
    for ending in (b"", b"\n", b"\r"):
        parser = EventParser()
        assert parser.feed(b"data: a\n\ndata: b" + ending) == [Event("a")]
        assert parser.flush() == Event("b")
        assert parser.flush() is None
