"""`handlers services`, against real NATS micro services."""

import json
from collections.abc import AsyncIterator

import nats.micro
import pytest
import typer
from nats.micro.request import Request
from nats.micro.service import Service
from typer.testing import CliRunner

from handler_core.connection import Connection
from handler_core.errors import Internal
from handler_core.testing import NatsServer, connection
from handlers_cli.main import app
from handlers_cli.services import gather, services
from handlers_cli.settings import CliSettings


async def echo(request: Request) -> None:
    if request.data == b"bad":
        raise ValueError("bad \x1b[2Jinput")
    await request.respond(request.data)


async def start(nc: Connection, name: str) -> Service:
    service = await nats.micro.add_service(nc, name=name, version="1.2.3", description="Says it again.")
    await service.add_endpoint(name="say", subject=f"{name}.say", handler=echo, queue_group="sayers")
    return service


@pytest.fixture
async def echoes(nats: NatsServer) -> AsyncIterator[list[Service]]:
    """Two instances of the service `echo` and one of `other`, one of which has worked and failed."""
    async with connection(nats.url) as one, connection(nats.url) as two:
        found = [await start(one, "echo"), await start(two, "other")]
        assert (await one.request("echo.say", b"hello", timeout=5)).data == b"hello"
        await one.request("echo.say", b"bad", timeout=5)
        found.append(await start(two, "echo"))
        assert await two.responds(5)
        yield found
        for service in found:
            await service.stop()


async def test_every_instance_is_listed_with_its_endpoints_and_figures(
    config: CliSettings, echoes: list[Service], capsys: pytest.CaptureFixture[str]
) -> None:
    await services(config, None, 2, json=False)
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert head.split() == [
        *("service", "version", "id", "endpoint", "subject", "queue", "requests", "errors", "average", "in", "flight")
    ]
    assert [row.split()[0] for row in rows] == ["echo", "echo", "other"]
    worked = next(row for row in rows if echoes[0].id in row).split()
    assert worked[:8] == ["echo", "1.2.3", echoes[0].id, "say", "echo.say", "sayers", "2", "1"]
    assert echoes[0].id in last
    assert "last error: " in last
    assert "\x1b" not in last


async def test_one_service_may_be_asked_for(
    config: CliSettings, echoes: list[Service], capsys: pytest.CaptureFixture[str]
) -> None:
    await services(config, "other", 2, json=True)
    (only,) = json.loads(capsys.readouterr().out)
    assert (only["name"], only["description"]) == ("other", "Says it again.")
    assert only["endpoints"][0]["num_requests"] == 0


async def test_where_nobody_answers_it_says_so_at_once(
    config: CliSettings, nc: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended:
        await services(config, "nobody", 60, json=False)  # the server knows that nobody listens: no wait
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err == "no service nobody answers\n"


async def test_replies_that_make_no_sense_are_left_out(nc: Connection) -> None:
    async def nonsense(message: object) -> None:
        for data in (b"", b"\xff", b"[]", b'{"name": "one"}'):
            await nc.publish(message.reply, data)  # type: ignore[attr-defined]

    subscription = await nc.subscribe("ask.all", cb=nonsense)
    assert await gather(nc, "ask.all") == [{"name": "one"}]
    await subscription.unsubscribe()


async def test_gathering_ends_at_its_limit_however_many_still_talk(nc: Connection) -> None:
    async def talk(message: object) -> None:
        await nc.publish(message.reply, b"{}")  # type: ignore[attr-defined]
        await nc.publish("talk", b"", message.reply)  # type: ignore[attr-defined]

    subscription = await nc.subscribe("talk", cb=talk)
    assert await gather(nc, "talk", stall=60, wait=1.0)
    await subscription.unsubscribe()


@pytest.mark.parametrize("name", ["*", "a b", "a..b"])
async def test_what_can_be_no_name_is_refused(config: CliSettings, nc: Connection, name: str) -> None:
    with pytest.raises((Internal, ExceptionGroup)):
        await services(config, name, 2, json=False)


def test_help_needs_no_settings_and_has_an_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", "nonsense")
    shown = CliRunner().invoke(app, ["services", "--help"])
    assert shown.exit_code == 0
    assert "Example: handlers services" in shown.stdout
