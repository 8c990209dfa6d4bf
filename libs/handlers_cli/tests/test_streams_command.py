"""`handlers streams apply` where the server has no room, and why nothing happens, as `waiting` tells it."""

import asyncio
import re
from pathlib import Path

import pytest
import typer

from handler_core import streams
from handler_core.connection import Connection
from handler_core.jetstream import Api
from handler_core.testing import nats_server
from handlers_cli import waiting
from handlers_cli.settings import CliSettings
from handlers_cli.streams import apply


@pytest.mark.parametrize(
    "limits", ["jetstream { max_file_store: 1G }", "accounts { A { jetstream { max_file: 1G }, users [{user: a}] } }"]
)
async def test_a_server_with_too_little_room_is_told_how_much_it_needs(
    limits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "nats.conf"
    config.write_text(limits if limits.startswith("jet") else f"jetstream {{}}\nno_auth_user: a\n{limits}")
    with nats_server("-c", str(config)) as server, pytest.raises(typer.Exit) as ended:
        await apply(CliSettings(nats_url=server.url), 1, 5)
    assert ended.value.exit_code == 1
    told = capsys.readouterr().err
    assert re.search(r"the streams reserve up to \d GiB on each server: give it a larger disk or max_file_store", told)


async def test_a_busy_worker_is_said_to_be_busy(
    nc: Connection, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "PATIENCE", 0.01)
    for _ in range(3):
        await Api(nc).publish("ai.voice.tts.request.s", b"x", {})
    inbox = await nc.subscribe("_INBOX.busy")
    await nc.publish("$JS.API.CONSUMER.MSG.NEXT.AI_TTS.tts_module", b'{"batch": 2}', "_INBOX.busy")
    for _ in range(2):
        await inbox.next_msg(timeout=5)
    await waiting.explain(nc, streams.TTS_MODULE, asyncio.Event())
    assert capsys.readouterr().err == "tts_module is busy: 2 in work, 1 wait\n"
    began = asyncio.Event()
    began.set()
    await waiting.explain(nc, streams.TTS_MODULE, began)
    await Api(nc).request("CONSUMER.DELETE.AI_TTS.tts_module")
    await waiting.explain(nc, streams.TTS_MODULE, asyncio.Event())
    assert capsys.readouterr().err.startswith("nothing yet, and NATS does not say why")
