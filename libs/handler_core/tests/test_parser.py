"""However the bytes arrive, the same messages come out."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nats.errors import ProtocolError

from handler_core.parser import MAX_LINE, DirectParser

SUNK, PLAIN = 7, 8


class Recorder:
    """What a parser calls on its connection."""

    def __init__(self) -> None:
        self.stats = {"in_msgs": 0, "in_bytes": 0}
        self.seen: list[tuple[Any, ...]] = []

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        self.seen.append(("plain", sid, subject, reply, data, headers))

    async def _process_ping(self) -> None:
        self.seen.append(("ping",))

    async def _process_pong(self) -> None:
        self.seen.append(("pong",))

    async def _process_err(self, text: str) -> None:
        self.seen.append(("err", text))

    async def _process_info(self, info: dict[str, Any]) -> None:
        self.seen.append(("info", info))


async def parsed(*reads: bytes) -> Recorder:
    recorder = Recorder()
    parser = DirectParser(recorder)  # type: ignore[arg-type]
    parser.sinks[SUNK] = lambda *message: recorder.seen.append(("sunk", *message))
    for read in reads:
        await parser.parse(read)
    return recorder


def message(sid: int, reply: bytes, payload: bytes, headers: bytes | None) -> bytes:
    reply = reply + b" " if reply else b""
    if headers is None:
        return b"MSG a.b %d %b%d\r\n%b\r\n" % (sid, reply, len(payload), payload)
    return b"HMSG a.b %d %b%d %d\r\n%b%b\r\n" % (
        sid, reply, len(headers), len(headers) + len(payload), headers, payload,
    )  # fmt: skip


payloads = st.binary(max_size=40) | st.sampled_from([b"\r\n", b"PING\r\n", b"MSG a 7 3\r\nabc\r\n"])
headers = st.sampled_from([None, b"NATS/1.0\r\na: b\r\n\r\n", b"NATS/1.0 409 Leadership Change\r\n\r\n"])
messages = st.builds(message, st.sampled_from([SUNK, PLAIN]), st.sampled_from([b"", b"re.ply"]), payloads, headers)
others = st.sampled_from([b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b"-ERR 'x'\r\n", b'INFO {"a":1}\r\n'])


@settings(deadline=None)
@given(st.lists(messages | others, max_size=8), st.data())
def test_any_cut_gives_the_same_messages(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    reads = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    expected = asyncio.run(parsed(*parts)).seen
    assert asyncio.run(parsed(*reads)).seen == expected
    assert asyncio.run(parsed(*(whole[i : i + 1] for i in range(len(whole))))).seen == expected
    assert len(expected) == sum(part != b"+OK\r\n" for part in parts)


async def test_a_message_for_a_sink_arrives_with_its_parts() -> None:
    raw = b"NATS/1.0\r\na: b\r\n\r\n"
    recorder = await parsed(message(SUNK, b"re.ply", b"data", raw))
    assert recorder.seen == [("sunk", b"a.b", b"re.ply", b"data", raw)]
    assert recorder.stats == {"in_msgs": 1, "in_bytes": 4}


@pytest.mark.parametrize(
    "line", [b"MSG a 7\r\n", b"MSG a b c d e 3\r\n", b"HMSG a 7 3\r\n", b"NONSENSE\r\n", b"MSG a x y\r\n"]
)
async def test_what_is_not_the_protocol_is_an_error(line: bytes) -> None:
    with pytest.raises((ProtocolError, ValueError)):
        await parsed(line)


async def test_a_control_line_without_an_end_is_an_error_and_not_ever_more_memory() -> None:
    with pytest.raises(ProtocolError):
        await parsed(b"MSG " + b"a" * (MAX_LINE + 1))


async def test_a_sink_that_fails_does_not_stop_the_reading() -> None:
    recorder = Recorder()
    parser = DirectParser(recorder)  # type: ignore[arg-type]

    def fail(*_: Any) -> None:
        raise RuntimeError("a fault")

    parser.sinks[SUNK] = fail
    await parser.parse(message(SUNK, b"", b"x", None) + b"PING\r\n")
    assert recorder.seen == [("ping",)]
