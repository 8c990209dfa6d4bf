"""`handlers lag` against a real NATS server: JetStream's API and the monitoring port tell the same."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import typer
from aiohttp import web
from aiohttp.test_utils import TestServer
from typer.testing import CliRunner

from handler_core.clients.http import new_session
from handler_core.connection import Connection
from handler_core.jetstream import Api
from handler_core.streams import CHAT_HANDLER, CONSUMERS, STT_MODULE, Consumer, apply
from handler_core.testing import NatsServer, connection, free_port, nats_server, until
from handlers_cli.lag import Lag, Options, from_jetstream, lag
from handlers_cli.main import app
from handlers_cli.monitor import Monitor
from handlers_cli.session import Unreachable
from handlers_cli.settings import CliSettings

HANDLERS = Path(sys.executable).parent / "handlers"


@pytest.fixture(scope="module")
def monitoring() -> str:
    """The URL of the monitoring port of `nats`."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def nats(monitoring: str) -> Iterator[NatsServer]:
    with nats_server("-m", monitoring.rpartition(":")[2]) as server:
        yield server


@pytest.fixture
async def nc(nats: NatsServer) -> AsyncIterator[Connection]:
    """A connection to a server that has the declared streams and consumers, all empty."""
    async with connection(nats.url) as connected:
        api = Api(connected)
        await apply(api)
        await api.request("STREAM.PURGE.AI_CHAT")
        await api.request("CONSUMER.DELETE.AI_CHAT.chat_handler")
        await apply(api)
        yield connected


@pytest.fixture
def config(nats: NatsServer) -> CliSettings:
    return CliSettings(nats_url=nats.url)


async def backlog(nc: Connection, *, messages: int, pulled: int) -> None:
    """So many questions in AI_CHAT, some of them with a worker."""
    for _ in range(messages):
        await Api(nc).publish("ai.chat.request", b"x", {})
    if pulled:
        inbox = await nc.subscribe("_INBOX.lag.work")
        pull = json.dumps({"batch": pulled}).encode()
        await nc.publish("$JS.API.CONSUMER.MSG.NEXT.AI_CHAT.chat_handler", pull, reply="_INBOX.lag.work")
        for _ in range(pulled):
            message = await inbox.next_msg(timeout=5)
        await nc.request(message.reply, b"-NAK", timeout=5)
        await nc.publish("$JS.API.CONSUMER.MSG.NEXT.AI_CHAT.chat_handler", b'{"batch": 1}', reply="_INBOX.lag.work")
        await inbox.next_msg(timeout=5)
        await inbox.unsubscribe()


async def from_monitor(url: str, consumer: Consumer = CHAT_HANDLER, account: str = "$G") -> Lag:
    async with new_session() as session:
        [row] = await Monitor(session, url, account).lags([consumer])
        return row


@pytest.mark.parametrize("source", ["jetstream", "monitor"])
async def test_lag_is_what_waits_and_what_is_in_progress(nc: Connection, monitoring: str, source: str) -> None:
    await backlog(nc, messages=25, pulled=4)
    row = (await from_jetstream(Api(nc)))[0] if source == "jetstream" else await from_monitor(monitoring)
    assert (row.stream, row.consumer, row.error) == ("AI_CHAT", "chat_handler", None)
    assert (row.waiting, row.in_progress, row.lag, row.redelivered) == (21, 4, 25, 1)
    assert row.oldest is not None
    assert 0 <= row.oldest < 60


@pytest.mark.parametrize("source", ["jetstream", "monitor"])
async def test_an_idle_consumer_has_no_lag_and_no_oldest(nc: Connection, monitoring: str, source: str) -> None:
    row = (await from_jetstream(Api(nc)))[0] if source == "jetstream" else await from_monitor(monitoring)
    assert (row.lag, row.oldest, row.error) == (0, None, None)


@pytest.mark.parametrize("source", ["jetstream", "monitor"])
@pytest.mark.parametrize(
    ("consumer", "complaint"),
    [
        (Consumer("AI_CHAT", "nobody"), "the consumer is missing; handlers streams apply creates it"),
        (Consumer("NOTHING", "nobody"), "the stream is missing; handlers streams apply creates it"),
    ],
)
async def test_a_missing_consumer_is_an_error(
    nc: Connection, monitoring: str, source: str, consumer: Consumer, complaint: str
) -> None:
    if source == "jetstream":
        [row] = await from_jetstream(Api(nc), [consumer])
    else:
        row = await from_monitor(monitoring, consumer)
    assert row.error == complaint


@pytest.mark.parametrize("source", ["jetstream", "monitor"])
async def test_a_live_session_is_lag_for_as_long_as_its_ticket_is_held(
    nc: Connection, monitoring: str, source: str
) -> None:
    async def row() -> Lag:
        if source == "monitor":
            return await from_monitor(monitoring, STT_MODULE)
        return (await from_jetstream(Api(nc), [STT_MODULE]))[0]

    async def has_lag(sessions: int) -> bool:
        return (await row()).lag == sessions

    await Api(nc).request("STREAM.PURGE.AI_STT_SESSIONS")
    for _ in range(3):  # chunks, of which the first makes the ticket
        await Api(nc).publish("ai.voice.stream.talk", b"x", {})
    # A republished message is on its way for a moment after its original has been acknowledged.
    await until(lambda: has_lag(1), "the session has one ticket")
    inbox = await nc.subscribe("_INBOX.lag.ticket")
    await nc.publish("$JS.API.CONSUMER.MSG.NEXT.AI_STT_SESSIONS.stt_module", b'{"batch": 1}', "_INBOX.lag.ticket")
    ticket = await inbox.next_msg(timeout=5)
    assert ((await row()).in_progress, (await row()).waiting) == (1, 0)
    await nc.request(ticket.reply, b"+ACK", timeout=5)
    assert (await row()).lag == 0
    await inbox.unsubscribe()


async def test_another_account_is_an_error(nc: Connection, monitoring: str) -> None:
    assert (await from_monitor(monitoring, account="TEAM")).error == "the account TEAM has no streams here"


@pytest.mark.parametrize(
    ("messages", "threshold", "at_most", "wanted"),
    [(0, 10, 100, 0), (1, 10, 100, 1), (10, 10, 100, 1), (11, 10, 100, 2), (5000, 10, 100, 100), (7, 1, 3, 3)],
)
def test_replicas_are_lag_by_threshold_rounded_up_and_bounded(
    messages: int, threshold: int, at_most: int, wanted: int
) -> None:
    assert Lag("S", "c", waiting=messages).replicas(threshold, at_most) == wanted


async def test_the_table_shows_figures_and_replicas(
    nc: Connection, config: CliSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    await backlog(nc, messages=25, pulled=4)
    await lag(config, Options(threshold=4, max_replicas=6))
    heading, row, *others = capsys.readouterr().out.splitlines()
    assert heading.split("  ")[0] == "STREAM"
    assert row.split() == ["AI_CHAT", "chat_handler", "21", "4", "25", "1", "0s", "6"]
    assert [other.split()[:2] for other in others] == [
        ["AI_VOICE", "voice_assistant"],
        ["AI_TTS", "tts_module"],
        ["AI_STT_SESSIONS", "stt_module"],
        ["AI_PIPELINE", "pipeline_bridge"],
    ]


async def test_json_names_the_figures_as_jetstream_does(
    nc: Connection, config: CliSettings, monitoring: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await backlog(nc, messages=25, pulled=4)
    await lag(config, Options(monitor=monitoring, json=True))
    record, *others = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(others) == len(CONSUMERS) - 1
    assert record.pop("oldest_seconds") >= 0
    assert record == {
        "stream": "AI_CHAT",
        "consumer": "chat_handler",
        "num_pending": 21,
        "num_ack_pending": 4,
        "lag": 25,
        "num_redelivered": 1,
        "replicas": 3,
    }


@pytest.mark.parametrize("json_wanted", [False, True])
async def test_a_missing_consumer_is_a_row_and_exit_code_1(
    nc: Connection, config: CliSettings, capsys: pytest.CaptureFixture[str], json_wanted: bool
) -> None:
    await Api(nc).request("CONSUMER.DELETE.AI_CHAT.chat_handler")
    with pytest.raises(typer.Exit) as ended:
        await lag(config, Options(json=json_wanted))
    assert ended.value.exit_code == 1
    assert "the consumer is missing; handlers streams apply creates it" in capsys.readouterr().out


# -- the monitoring port


async def test_the_scheme_may_be_left_out_as_in_kedas_settings(nc: Connection, monitoring: str) -> None:
    assert (await from_monitor(monitoring.removeprefix("http://"))).error is None


async def test_a_monitoring_port_that_does_not_answer_is_said() -> None:
    with pytest.raises(Unreachable, match="the monitoring port does not answer: http://127"):
        await from_monitor(f"http://127.0.0.1:{free_port()}")


@pytest.mark.parametrize(
    ("response", "complaint"),
    [
        (web.Response(status=404), "answers 404"),
        (web.Response(text="hello"), "does not answer with JSON"),
        (web.json_response([]), "is no monitoring port"),
        (web.json_response({"disabled": True}), "is no monitoring port of a NATS server with JetStream"),
    ],
)
async def test_what_is_no_monitoring_port_is_said(response: web.Response, complaint: str) -> None:
    async def answer(_: web.Request) -> web.Response:
        return response

    other = web.Application()
    other.router.add_get("/jsz", answer)
    async with TestServer(other) as server:
        with pytest.raises(Unreachable, match=complaint):
            await from_monitor(f"http://user:secret@127.0.0.1:{server.port}")


@pytest.mark.parametrize("copy_here", [True, False], ids=["a copy here", "no copy here"])
async def test_in_a_cluster_the_figures_are_the_leaders(copy_here: bool) -> None:
    # Two members on one address, told apart by the name that they are asked under: n1 is asked, n2 leads.
    asked: list[str] = []

    def member(request: web.Request) -> str:
        name = {"127.0.0.1": "n1", "localhost": "n2"}[request.url.host or ""]
        asked.append(f"{name}{request.path_qs}")
        return name

    async def jsz(request: web.Request) -> web.Response:
        name = member(request)
        consumer = {"name": "chat_handler", "num_pending": {"n1": 0, "n2": 7}[name], "cluster": {"leader": "n2"}}
        streams = [{"name": "AI_CHAT", "consumer_detail": [consumer]}] if copy_here or name == "n2" else []
        account = {"name": "$G", "stream_detail": streams}
        return web.json_response({"meta_cluster": {"cluster_size": 2}, "account_details": [account]})

    async def varz(request: web.Request) -> web.Response:
        urls = ["127.0.0.1:4222", "localhost:4222"]
        return web.json_response({"server_name": member(request), "connect_urls": urls})

    members = web.Application()
    members.router.add_get("/jsz", jsz)
    members.router.add_get("/varz", varz)
    async with TestServer(members) as server, new_session() as session:
        monitor = Monitor(session, f"http://127.0.0.1:{server.port}", "$G")
        assert [row.waiting for row in await monitor.lags([CHAT_HANDLER])] == [7]
        asked.clear()
        assert [row.waiting for row in await monitor.lags([CHAT_HANDLER])] == [7]
    query = "/jsz?acc=$G&consumers=true&config=true"
    assert asked[:2] == [f"n1{query}", f"n2{query}"]  # the members are remembered


async def test_what_speaks_no_http_is_said(nats: NatsServer) -> None:
    with pytest.raises(Unreachable, match="does not speak HTTP; the monitoring port is usually 8222"):
        await from_monitor(nats.url.removeprefix("nats://"))


# -- the command line


def environment(nats: NatsServer) -> dict[str, str]:
    return {**os.environ, "NATS_URL": nats.url}


async def test_watch_goes_on_until_ctrl_c_and_says_what_fails(nc: Connection, nats: NatsServer) -> None:
    process = await asyncio.create_subprocess_exec(
        HANDLERS, "lag", "--watch", "--every", "0.1", "--json", env=environment(nats), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    first = json.loads(await process.stdout.readline())
    await Api(nc).request("CONSUMER.DELETE.AI_CHAT.chat_handler")
    seen = first
    while "error" not in seen:
        seen = json.loads(await process.stdout.readline())
    process.send_signal(signal.SIGINT)
    await process.stdout.read()
    assert await process.wait() == 130
    assert first["lag"] == 0


async def test_the_monitoring_port_may_come_from_the_environment(nc: Connection, monitoring: str) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [HANDLERS, "lag", "--json"],
        env={**os.environ, "NATS_MONITOR_URL": monitoring, "NATS_URL": f"nats://127.0.0.1:{free_port()}"},
        capture_output=True,
        timeout=30,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, {row["lag"] for row in rows}) == (0, {0})


def test_help_shows_an_example() -> None:
    shown = CliRunner().invoke(app, ["lag", "--help"], env={"COLUMNS": "200"})
    assert (shown.exit_code, "Example: handlers lag" in shown.stdout) == (0, True)
