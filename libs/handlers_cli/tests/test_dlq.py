"""`handlers dlq` against a real NATS server: letters as workers write them, read, replayed and purged."""

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import typer
from typer.testing import CliRunner

from handler_core.answer import SOURCE
from handler_core.codec import encode
from handler_core.connection import Connection
from handler_core.contract.chat import CHAT
from handler_core.contract.pipeline import PipelineStatus, RunStatus
from handler_core.deadletter import dead_letter
from handler_core.delivery import Delivery
from handler_core.errors import HandlerError, InvalidRequest, NotFound, Transient
from handler_core.jetstream import MSG_ID, Api
from handler_core.streams import STREAMS, apply
from handler_core.testing import NatsServer, connection, nats_server, stored
from handlers_cli.letter_view import body, ls, show
from handlers_cli.letters import BATCH, Letter, Wanted, read, scan
from handlers_cli.main import app
from handlers_cli.purge import purge
from handlers_cli.replay import CannotReplay, Options, original, replay, replay_one
from handlers_cli.settings import CliSettings

HANDLERS = Path(sys.executable).parent / "handlers"
QUESTION = {"query": "Why?", "request_id": "q1"}


@pytest.fixture(scope="module")
def nats() -> Iterator[NatsServer]:
    with nats_server() as server:
        yield server


@pytest.fixture
async def nc(nats: NatsServer) -> AsyncIterator[Connection]:
    """A connection to a server that has the declared streams, all empty, and no consumers."""
    async with connection(nats.url) as connected:
        api = Api(connected)
        await apply(api, STREAMS, [])
        for stream in STREAMS:  # a stream that is deleted and made anew may come back with what it held
            await api.request(f"STREAM.PURGE.{stream.name}")
        yield connected


@pytest.fixture
def config(nats: NatsServer) -> CliSettings:
    return CliSettings(nats_url=nats.url)


def delivery(
    nc: Connection,
    data: bytes,
    *,
    sequence: int = 10,
    stream: str = "AI_CHAT",
    consumer: str = "chat_handler",
    subject: str = "ai.chat.request",
    headers: dict[str, str] | None = None,
) -> Delivery:
    """A message as a worker gets it, at its second delivery."""
    reply = f"$JS.ACK.{stream}.{consumer}.2.{sequence}.3.{time.time_ns()}.0"
    block = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    return Delivery(nc, subject.encode(), reply.encode(), data, f"NATS/1.0\r\n{block}\r\n".encode())


async def bury(
    nc: Connection, content: Any = None, error: HandlerError | None = None, *, data: bytes | None = None, **more: Any
) -> int:
    """Store a dead letter as a worker does; returns its sequence in DLQ."""
    data = msgpack.packb(QUESTION if content is None else content) if data is None else data
    await dead_letter(Api(nc), nc, delivery(nc, data, **more), error or NotFound("no such collection", stage="search"))
    last = await Api(nc).last("DLQ", "dlq.>")
    assert last is not None
    return last.sequence


async def letters_left(nc: Connection) -> int:
    info = await Api(nc).request("STREAM.INFO.DLQ")
    return int(info["state"]["messages"])


def run(nats: NatsServer, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "NATS_URL": nats.url, "COLUMNS": "200"}
    return subprocess.run(
        [str(HANDLERS), "dlq", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


# -- ls


async def test_ls_shows_where_a_letter_came_from_and_why(
    nc: Connection, config: CliSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    sequence = await bury(nc)
    await ls(config, Wanted(), 50, json=False)
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split() == ["SEQ", "AGE", "STREAM/CONSUMER", "SUBJECT", "ATTEMPTS", "REASON"]
    assert line.split(maxsplit=5) == [
        str(sequence),
        "0s",
        "AI_CHAT/chat_handler",
        "ai.chat.request",
        "2",
        "not_found: no such collection",
    ]


async def test_ls_shows_the_newest_last_and_says_how_many_more_there_are(
    nc: Connection, config: CliSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    sequences = [await bury(nc, sequence=number) for number in range(5)]
    await ls(config, Wanted(), 2, json=False)
    captured = capsys.readouterr()
    assert [int(line.split()[0]) for line in captured.out.splitlines()[1:]] == sequences[-2:]
    assert captured.err.strip() == "3 older ones are not shown; --limit 5 shows all"


async def test_ls_json_is_one_object_per_line(
    nc: Connection, config: CliSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = await bury(nc), await bury(nc, sequence=11)
    await ls(config, Wanted(), 50, json=True)
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["sequence"] for record in records] == [first, second]
    assert records[0]["size"] == len(msgpack.packb(QUESTION))
    assert abs(records[0]["stored"] - time.time()) < 60
    expected = {
        "stream": "AI_CHAT",
        "consumer": "chat_handler",
        "subject": "ai.chat.request",
        "type": "not_found",
        "reason": "no such collection",
        "stage": "search",
        "deliveries": 2,
        "original_sequence": 10,
        "full_size": None,
    }
    assert expected.items() <= records[0].items()


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Wanted(stream="AI_CHAT"), {"chat", "bad"}),
        (Wanted(consumer="voice_assistant"), {"voice"}),
        (Wanted(stream="AI_CHAT", consumer="voice_assistant"), set()),
        (Wanted(reason="IS EMPTY"), {"bad"}),
        (Wanted(reason="validation_error"), {"bad"}),
        (Wanted(since=3600), {"chat", "bad", "voice"}),
        (Wanted(since=-3600), set()),
        (Wanted(), {"chat", "bad", "voice"}),
    ],
)
async def test_filters_select_letters(nc: Connection, wanted: Wanted, found: set[str]) -> None:
    names = {
        await bury(nc): "chat",
        await bury(nc, error=InvalidRequest("query: is empty"), sequence=11): "bad",
        await bury(nc, stream="AI_VOICE", consumer="voice_assistant"): "voice",
    }
    assert len(names) == 3
    assert {names[letter.sequence] async for letter in scan(nc, wanted)} == found


async def test_a_listing_longer_than_one_pull_is_whole(nc: Connection) -> None:
    count = BATCH + 10
    for number in range(count - 1):
        nc.send("dlq.AI_CHAT.chat_handler", b"", headers=b"NATS/1.0\r\nDead-Letter-Sequence: %d\r\n\r\n" % number)
    await Api(nc).publish("dlq.AI_CHAT.chat_handler", b"", {"Dead-Letter-Sequence": str(count - 1)})
    seen = [letter.headers["Dead-Letter-Sequence"] async for letter in scan(nc, Wanted())]
    assert seen == [str(number) for number in range(count)]


async def test_a_listing_leaves_no_consumer_behind(nc: Connection) -> None:
    await bury(nc)
    assert [letter.sequence async for letter in scan(nc, Wanted())]
    assert (await Api(nc).request("STREAM.INFO.DLQ"))["state"]["consumer_count"] == 0


async def test_what_others_wrote_below_dlq_is_listed_by_its_subject(
    nc: Connection, config: CliSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    await Api(nc).publish("dlq.OTHER.worker", b"x", {})
    await Api(nc).publish("dlq.strange", b"x", {})
    await ls(config, Wanted(), 50, json=False)
    lines = capsys.readouterr().out.splitlines()
    assert "OTHER/worker" in lines[1]
    assert len(lines) == 3


async def test_a_reason_cannot_steer_the_terminal(
    nc: Connection, config: CliSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    sequence = await bury(nc, {"query": "\x1b[2J\x9b2J"}, NotFound("\x1b[2J [red]x[/]"))
    await ls(config, Wanted(), 50, json=False)
    await show(config, sequence, raw=False)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\x9b" not in printed
    assert "\\x1b[2J [red]x[/]" in printed


async def test_an_empty_dlq_is_said(nc: Connection, config: CliSettings, capsys: pytest.CaptureFixture[str]) -> None:
    await ls(config, Wanted(), 50, json=False)
    await ls(config, Wanted(reason="x"), 50, json=False)
    assert capsys.readouterr().out.splitlines() == ["no dead letters", "no such dead letters"]


# -- show


async def test_show_prints_all_headers_and_the_body_as_json(
    nc: Connection, config: CliSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {"query": "Grüße?", "audio": bytes(range(40)), "top_k": 3, "tags": [None, True, 1.5], 7: float("nan")}
    sequence = await bury(nc, content, headers={"traceparent": "00-abc"})
    await show(config, sequence, raw=False)
    printed = capsys.readouterr().out
    head, _, tail = printed.partition("Body: ")
    assert f"Dead letter {sequence} on dlq.AI_CHAT.chat_handler" in head
    headers = dict(line.split(maxsplit=1) for line in head.splitlines()[2:] if line)
    assert headers["Dead-Letter-Reason"] == "no such collection"
    assert re.fullmatch(r"AI_CHAT:10:\d{19}:chat_handler", headers["Nats-Msg-Id"])
    assert headers["traceparent"] == "00-abc"
    assert json.loads(tail.split("\n", 1)[1]) == {
        "query": "Grüße?",
        "audio": "<40 bytes: 000102030405060708090a0b0c0d0e0f…>",
        "top_k": 3,
        "tags": [None, True, 1.5],
        "7": "nan",
    }


def letter(data: bytes, **headers: str) -> Letter:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Letter(5, 0.0, "dlq.AI_CHAT.chat_handler", named, len(data), data)


@pytest.mark.parametrize(
    "data", [b"", b'{"query": "json"}', b"\xc1", msgpack.packb({}) + b"x", b"\x91" * 5000, b"\xd9\x05\xff"]
)
def test_a_body_that_is_no_messagepack_is_dumped(data: bytes) -> None:
    first, *dump = body(letter(data))
    assert "not MessagePack" in first
    if data:
        assert dump[0].startswith("00000000  " + data[:2].hex(" "))


def test_a_long_dump_is_an_excerpt() -> None:
    lines = body(letter(b"\xc1" * 300))
    assert len(lines) == 1 + 16 + 1
    assert "44 bytes more" in lines[-1]


def test_text_that_is_no_utf8_and_extensions_are_shown() -> None:
    packed = msgpack.packb({"a": msgpack.ExtType(5, b"\x01"), "when": msgpack.Timestamp(0)})
    assert '"<extension 5, 1 bytes: 01>"' in "".join(body(letter(packed)))
    assert r"\\xff" in "".join(body(letter(b"\x81\xa1k\xa1\xff")))


async def test_a_letter_as_large_as_can_be_is_read_whole(nc: Connection) -> None:
    data = msgpack.packb({"audio": os.urandom(nc.payload_room - 1000)})
    assert (await read(Api(nc), await bury(nc, data=data))).data == data


async def test_a_truncated_letter_says_how_much_is_missing(
    nc: Connection, config: CliSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    sequence = await bury(nc, data=b"x" * nc.payload_room)
    await show(config, sequence, raw=False)
    assert f"Body: the first 262,144 bytes of {nc.payload_room}" in capsys.readouterr().out
    await ls(config, Wanted(), 50, json=False)
    assert "no such collection (truncated)" in capsys.readouterr().out


async def test_show_raw_writes_the_bytes_of_the_body(nc: Connection, nats: NatsServer) -> None:
    data = bytes(range(256))
    sequence = await bury(nc, data=data)
    shown = await asyncio.to_thread(
        subprocess.run,
        [str(HANDLERS), "dlq", "show", str(sequence), "--raw"],
        env={**os.environ, "NATS_URL": nats.url},
        capture_output=True,
        timeout=30,
    )
    assert shown.stdout == data


# -- replay


async def test_a_replay_is_the_original_message_and_its_letter_is_gone(nc: Connection, config: CliSettings) -> None:
    sequence = await bury(nc, headers={"traceparent": "00-abc", "Nats-Msg-Id": "q1", "X-Mine": "yes"})
    [letter] = await stored(nc, "DLQ", "dlq.>")
    await replay(config, [sequence], Options())
    [message] = await stored(nc, "AI_CHAT", ">")
    assert (message.subject, message.data) == ("ai.chat.request", msgpack.packb(QUESTION))
    assert message.headers == {
        "traceparent": "00-abc",
        "X-Mine": "yes",
        "Nats-Msg-Id": f"replay:{letter.headers[MSG_ID]}:{sequence}",
    }
    assert await letters_left(nc) == 0


async def test_the_duplicate_window_does_not_swallow_a_replay(nc: Connection, config: CliSettings) -> None:
    await Api(nc).publish("ai.chat.request", msgpack.packb(QUESTION), {MSG_ID: "q1"})
    await replay(config, [await bury(nc, headers={MSG_ID: "q1"})], Options())
    assert len(await stored(nc, "AI_CHAT", ">")) == 2


async def test_a_user_is_asked_about_on_the_users_own_subject(nc: Connection, config: CliSettings) -> None:
    await replay(config, [await bury(nc, subject="ai.chat.user.alice.message")], Options())
    assert len(await stored(nc, "AI_CHAT", "ai.chat.user.alice.message")) == 1


class DiesBeforeTheLetterIsDeleted(Api):
    """Ends as a kill would, between the acknowledgement and what follows."""

    async def store(self, subject: str, payload: bytes, headers: dict[str, str]) -> Any:
        await super().store(subject, payload, headers)
        raise KeyboardInterrupt


async def test_a_kill_between_publish_and_delete_loses_nothing_and_doubles_nothing(
    nc: Connection, config: CliSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    sequence = await bury(nc)
    with pytest.raises(KeyboardInterrupt):
        await replay_one(DiesBeforeTheLetterIsDeleted(nc), sequence, Options())
    assert await letters_left(nc) == 1
    await replay(config, [sequence], Options())
    assert capsys.readouterr().out.startswith(f"replayed {sequence} before, and not again: AI_CHAT ")
    assert len(await stored(nc, "AI_CHAT", ">")) == 1
    assert await letters_left(nc) == 0


async def test_a_replay_that_fails_again_can_be_replayed_again(nc: Connection, config: CliSettings) -> None:
    for number in (10, 11):
        await replay(config, [await bury(nc, sequence=number)], Options())
    assert len(await stored(nc, "AI_CHAT", ">")) == 2


async def test_keep_leaves_the_letter(nc: Connection, config: CliSettings) -> None:
    await replay(config, [await bury(nc)], Options(keep=True))
    assert (await letters_left(nc), len(await stored(nc, "AI_CHAT", ">"))) == (1, 1)


async def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    nc: Connection, config: CliSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = await bury(nc), await bury(nc, data=b"x" * nc.payload_room, sequence=11)
    with pytest.raises(typer.Exit):
        await replay(config, [good, bad], Options(dry_run=True))
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        f"would replay {good} to ai.chat.request, {len(msgpack.packb(QUESTION))} bytes",
        "1 can be replayed, 1 failed",
    ]
    assert f"failed {bad}: only 262,144 of its" in captured.err
    assert (await letters_left(nc), await stored(nc, "AI_CHAT", ">")) == (2, [])


async def test_one_that_fails_does_not_stop_the_others(
    nc: Connection, config: CliSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    truncated = await bury(nc, data=b"x" * nc.payload_room)
    nowhere = await bury(nc, subject="no.stream.takes.this", sequence=11)
    good = await bury(nc, sequence=12)
    foreign = await Api(nc).publish("dlq.OTHER.worker", b"x", {})
    with pytest.raises(typer.Exit) as ended:
        await replay(config, [truncated, nowhere, good, foreign, 999_999], Options())
    assert ended.value.exit_code == 1
    captured = capsys.readouterr()
    assert "1 replayed, 4 failed" in captured.out
    for line in (
        f"failed {truncated}: only 262,144 of its {nc.payload_room} bytes were kept",
        f"failed {nowhere}: no stream or API answers on no.stream.takes.this",
        f"failed {foreign}: it does not say on which subject it was published (Dead-Letter-Subject)",
        "failed 999999: there is no dead letter 999999",
    ):
        assert line in captured.err
    assert await letters_left(nc) == 3


async def test_a_refused_replay_keeps_its_letter(
    nc: Connection, config: CliSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    sequence = await bury(nc)
    await Api(nc).request("STREAM.UPDATE.AI_CHAT", {**STREAMS[0].config(), "max_msg_size": 5})
    with pytest.raises(typer.Exit):
        await replay(config, [sequence], Options())
    assert f"failed {sequence}: JetStream refused ai.chat.request: message size exceeds" in capsys.readouterr().err
    assert await letters_left(nc) == 1
    await Api(nc).request("STREAM.UPDATE.AI_CHAT", STREAMS[0].config())


async def answered(nc: Connection, source: str) -> None:
    """Store the final answer of a turn as the worker does that `source` had its message from."""
    response = CHAT.response(request_id="q1", success=False, error=NotFound("no such collection").info())
    await Api(nc).publish("evt.chat.response.q1", encode(response), {SOURCE: source})


async def test_a_request_that_workers_would_skip_is_refused_with_what_to_do(
    nc: Connection, config: CliSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    await answered(nc, "AI_CHAT:10:1700000000")
    sequence = await bury(nc)
    with pytest.raises(typer.Exit):
        await replay(config, [sequence], Options())
    said = capsys.readouterr().err
    assert "its request q1 has been answered" in said
    assert "for 15m from then on" in said
    assert "--new-id" in said
    assert (await letters_left(nc), await stored(nc, "AI_CHAT", ">")) == (1, [])


async def test_a_request_that_was_answered_after_a_replay_is_told_apart(nc: Connection) -> None:
    await answered(nc, "AI_CHAT:77:1700000000")
    with pytest.raises(CannotReplay, match="answered since"):
        await replay_one(Api(nc), await bury(nc), Options())


async def refused_trigger(nc: Connection) -> int:
    """A trigger that was refused, and its letter."""
    content = {"pipeline": "nope", "request_id": "q1"}
    place = {"stream": "AI_PIPELINE", "consumer": "pipeline_bridge", "subject": "ai.pipeline.trigger"}
    return await bury(nc, content, NotFound("no such pipeline"), **place)


async def ended(nc: Connection, status: RunStatus) -> None:
    told = PipelineStatus(request_id="q1", seq=1, status=status, timestamp=0)
    await Api(nc).publish("evt.pipeline.status.q1", encode(told), {})


async def test_the_trigger_of_a_run_that_has_ended_is_refused_with_what_to_do(nc: Connection) -> None:
    await ended(nc, RunStatus.ERROR)
    sequence = await refused_trigger(nc)
    with pytest.raises(CannotReplay, match=r"request q1 has ended \(error\), and for 45d .* use --new-id"):
        await replay_one(Api(nc), sequence, Options())
    assert "request_id" in await replay_one(Api(nc), sequence, Options(new_id=True))
    [message] = await stored(nc, "AI_PIPELINE", ">")
    assert msgpack.unpackb(message.data)["pipeline"] == "nope"


async def test_the_trigger_of_a_run_that_has_not_ended_is_replayed(nc: Connection) -> None:
    await ended(nc, RunStatus.RUNNING)
    await replay_one(Api(nc), await refused_trigger(nc), Options())
    assert len(await stored(nc, "AI_PIPELINE", ">")) == 1


async def test_new_id_makes_another_request_of_it(
    nc: Connection, config: CliSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    await answered(nc, "AI_CHAT:10:1700000000")
    sequence = await bury(nc, {**QUESTION, "audio": b"\x00\xff", "ext": msgpack.ExtType(5, b"x")})
    await replay(config, [sequence], Options(new_id=True))
    [message] = await stored(nc, "AI_CHAT", ">")
    content = msgpack.unpackb(message.data)
    assert content.pop("request_id") in capsys.readouterr().out
    assert content == {"query": "Why?", "audio": b"\x00\xff", "ext": msgpack.ExtType(5, b"x")}


async def test_new_id_works_after_a_replay_under_the_old_id(nc: Connection, config: CliSettings) -> None:
    sequence = await bury(nc)
    await replay(config, [sequence], Options(keep=True))
    await replay(config, [sequence], Options(new_id=True))
    first, second = (msgpack.unpackb(message.data) for message in await stored(nc, "AI_CHAT", ">"))
    assert first["request_id"] == "q1" != second["request_id"]


def test_new_id_needs_a_map() -> None:
    with pytest.raises(CannotReplay, match="no MessagePack map"):
        original(letter(b"\xc1", Dead_Letter_Subject="ai.chat.request"), new_id=True)


async def test_a_lost_connection_ends_a_replay_and_says_what_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with nats_server() as server:
        async with connection(server.url) as nc:
            await apply(Api(nc), STREAMS, [])
            sequences = [await bury(nc, sequence=number) for number in range(3)]
        config = CliSettings(nats_url=server.url)

        class Dies(Api):
            async def store(self, subject: str, payload: bytes, headers: dict[str, str]) -> Any:
                server.kill()
                return await super().store(subject, payload, headers)

        monkeypatch.setattr("handlers_cli.replay.Api", lambda nc: Dies(nc, timeout=0.3))
        with pytest.raises(Transient, match="connection to NATS is lost"):
            await replay(config, sequences, Options())
    assert "0 replayed, 1 failed, 2 not tried" in capsys.readouterr().out


# -- purge


async def test_purge_deletes_and_says_how_many(
    nc: Connection, config: CliSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = [await bury(nc, sequence=number) for number in range(3)]
    await purge(config, [first, third])
    assert capsys.readouterr().out == "2 dead letters deleted\n"
    assert [letter.sequence async for letter in scan(nc, Wanted())] == [second]
    with pytest.raises(typer.Exit):
        await purge(config, [first, second])
    captured = capsys.readouterr()
    assert captured.out == "1 dead letter deleted\n"
    assert f"there is no dead letter {first}" in captured.err


# -- the command line


async def test_all_with_filters_takes_only_those(nc: Connection, nats: NatsServer) -> None:
    kept = await bury(nc)
    await bury(nc, error=InvalidRequest("query: is empty"), sequence=11)
    purged = await asyncio.to_thread(run, nats, "purge", "--all", "--reason", "empty", "--yes")
    assert (purged.returncode, purged.stdout) == (0, "1 dead letter deleted\n")
    replayed = await asyncio.to_thread(run, nats, "replay", "--all")
    assert (replayed.returncode, replayed.stdout) == (
        0,
        f"replayed {kept} to ai.chat.request: AI_CHAT {(await stored(nc, 'AI_CHAT', '>'))[0].sequence}\n",
    )
    assert (await asyncio.to_thread(run, nats, "replay", "--all")).stdout == "no dead letters\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["replay"], "either sequences or --all"),
        (["replay", "5", "--all"], "either sequences or --all"),
        (["replay", "5", "--stream", "X"], "filters go with --all"),
        (["ls", "--since", "tomorrow"], "is no duration"),
        (["ls", "--stream", "a.>"], "without dots"),
        (["purge", "5"], "where nobody can be asked"),
        (["show", "five"], "SEQ"),
    ],
)
def test_wrong_options_are_said(arguments: list[str], complaint: str) -> None:
    done = CliRunner().invoke(app, ["dlq", *arguments], env={"COLUMNS": "200"})
    assert (done.exit_code, done.stdout) == (2, "")
    assert complaint in done.stderr


async def test_a_letter_that_is_not_there_is_one_line(nc: Connection, nats: NatsServer) -> None:
    done = await asyncio.to_thread(run, nats, "show", "424242")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: there is no dead letter 424242\n")


async def test_without_the_stream_every_command_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with nats_server() as server:
        config = CliSettings(nats_url=server.url)
        for command in (ls(config, Wanted(), 50, json=False), show(config, 1, raw=False), purge(config, [1])):
            with pytest.raises(NotFound, match="there is no stream DLQ; handlers streams apply creates it"):
                await command
        with pytest.raises(typer.Exit):
            await replay(config, [1], Options())
        assert "there is no stream DLQ" in capsys.readouterr().err
        assert "there is no stream DLQ" in (await asyncio.to_thread(run, server, "replay", "--all")).stderr


@pytest.mark.parametrize(("typed", "code", "left"), [("y\n", 0, 0), ("n\n", 1, 1), ("\n", 1, 1), ("", 130, 1)])
async def test_on_a_terminal_purge_asks_first_and_ctrl_c_ends_it(
    nc: Connection, nats: NatsServer, typed: str, code: int, left: int
) -> None:
    await bury(nc)
    assert await asyncio.to_thread(_dialogue, nats, typed.encode()) == code
    assert await letters_left(nc) == left


def _dialogue(nats: NatsServer, typed: bytes) -> int:
    """Purge all on a terminal and answer the question, with Ctrl-C if with nothing; returns the exit code."""
    ours, theirs = pty.openpty()
    command = [str(HANDLERS), "dlq", "purge", "--all"]
    environment = {**os.environ, "NATS_URL": nats.url}
    try:
        with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
            os.close(theirs)  # so that reading ends with an error, should the command end without a question
            seen = b""
            while b"for good?" not in seen:
                seen += os.read(ours, 1024)
            try:
                if typed:
                    os.write(ours, typed)
                    return process.wait(20)
                # A signal in the moment before the terminal is read is seen only after it: pressed again, as one would.
                for _ in range(8):
                    process.send_signal(signal.SIGINT)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        return process.wait(3)  # long enough for an end under load, which a second one would disturb
                raise AssertionError("Ctrl-C does not end it")
            finally:
                process.kill()
    finally:
        os.close(ours)


@pytest.mark.parametrize("command", ["ls", "show", "replay", "purge"])
def test_help_shows_an_example(command: str) -> None:
    shown = CliRunner().invoke(app, ["dlq", command, "--help"], env={"COLUMNS": "200", "NATS_URL": "nonsense"})
    assert (shown.exit_code, f"Example: handlers dlq {command}" in shown.stdout) == (0, True)
