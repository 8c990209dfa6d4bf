"""`handlers cancel`, against a real NATS server."""

import asyncio
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from handler_core.codec import decode
from handler_core.connection import Connection
from handler_core.contract.chat import ChatRequest, ChatResponse
from handler_core.contract.control import CancelRequest
from handler_core.contract.errors import ErrorInfo, ErrorType
from handler_core.errors import InvalidRequest, Transient
from handler_core.jetstream import Api
from handler_core.testing import connection, nats_server, stored
from handlers_cli.cancel import cancel
from handlers_cli.main import app
from handlers_cli.settings import CliSettings

CANCELED = ErrorInfo(type=ErrorType.CANCELED, message="canceled", retryable=False, stage="llm")


def answered(response: str = "Yes.", error: ErrorInfo | None = None) -> ChatResponse:
    return ChatResponse(response=response, error=error)


async def answer_when_canceled(nc: Connection, worker: Any, response: ChatResponse) -> None:
    """Have the turn `q1` end as the cancel arrives."""

    async def on_cancel(message: Any) -> None:
        assert decode(message.data, CancelRequest).request_id == "q1"
        await worker.answer(ChatRequest(query="x", request_id="q1"), response)

    await nc.subscribe("ai.turn.cancel.*", cb=on_cancel)
    assert await nc.responds(5)


async def test_a_running_turn_is_canceled_and_said_to_be(
    nc: Connection, config: CliSettings, worker: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    await answer_when_canceled(nc, worker, answered(error=CANCELED))
    await cancel(config, "q1", "no need", 20)
    assert capsys.readouterr().out == "q1 was canceled in stage llm\n"
    (message,) = await stored(nc, "AI_CONTROL", "ai.turn.cancel.q1")
    assert decode(message.data, CancelRequest).reason == "no need"


async def test_a_turn_that_was_quicker_is_said_to_be_answered(
    nc: Connection, config: CliSettings, worker: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    await answer_when_canceled(nc, worker, answered())
    with pytest.raises(typer.Exit) as ended:
        await cancel(config, "q1", "", 20)
    assert ended.value.exit_code == 1
    assert capsys.readouterr().out == "q1 was answered\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (None, "q1 was answered before; nothing to cancel"),
        (CANCELED, "q1 was canceled in stage llm before; nothing to cancel"),
        (
            ErrorInfo(type=ErrorType.INTERNAL, message="broken", retryable=False),
            "q1 ended with internal: broken before; nothing to cancel",
        ),
    ],
)
async def test_a_turn_that_ended_before_is_left_alone(
    nc: Connection,
    config: CliSettings,
    worker: Any,
    capsys: pytest.CaptureFixture[str],
    error: ErrorInfo | None,
    said: str,
) -> None:
    await worker.answer(ChatRequest(query="x", request_id="q1"), answered(error=error))
    with pytest.raises(typer.Exit) as ended:
        await cancel(config, "q1", "", 20)
    assert ended.value.exit_code == 1
    assert capsys.readouterr().out.strip() == said
    assert await stored(nc, "AI_CONTROL", "ai.turn.cancel.*") == []


async def test_a_turn_that_nobody_has_seen_is_canceled_beforehand(
    nc: Connection, config: CliSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    await cancel(config, "later", "", 0.05)
    said = capsys.readouterr().out
    assert "no turn of this id was seen within 0.05 s; it is canceled when it comes" in said
    assert len(await stored(nc, "AI_CONTROL", "ai.turn.cancel.later")) == 1


async def test_without_waiting_only_the_cancel_is_stored(
    nc: Connection, config: CliSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    await cancel(config, "q1", "", 0)
    assert "the cancel is stored" in capsys.readouterr().out
    assert len(await stored(nc, "AI_CONTROL", "ai.turn.cancel.q1")) == 1


async def test_the_latest_of_many_cancels_is_kept(nc: Connection, config: CliSettings) -> None:
    await asyncio.gather(*(cancel(config, "q1", f"{number}", 0) for number in range(5)))
    assert len(await stored(nc, "AI_CONTROL", "ai.turn.cancel.q1")) == 1


@pytest.mark.parametrize("request_id", ["", "a.b", "*", "a b", "x" * 65])
async def test_what_can_be_no_id_is_refused_before_anything_is_sent(config: CliSettings, request_id: str) -> None:
    with pytest.raises(InvalidRequest, match="request_id"):
        await cancel(config, request_id, "", 5)


async def test_without_the_stream_a_cancel_is_not_said_to_be_stored() -> None:
    with nats_server() as server:
        async with connection(server.url) as nc:
            config = {"name": "AI_EVENTS", "subjects": ["evt.>"]}
            await Api(nc).request("STREAM.CREATE.AI_EVENTS", config)
        with pytest.raises(Transient, match=r"ai\.turn\.cancel\.q1"):
            await cancel(CliSettings(nats_url=server.url), "q1", "", 5)


def test_help_needs_no_settings_and_has_an_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", "nonsense")
    shown = CliRunner().invoke(app, ["cancel", "--help"])
    assert shown.exit_code == 0
    assert "Example: handlers cancel" in shown.stdout
