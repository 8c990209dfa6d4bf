"""`handlers sessions`, against a stand-in that answers on the contract's subjects."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from typer.testing import CliRunner

from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.contract.errors import ErrorInfo, ErrorType
from handler_core.contract.session import SessionRequest, SessionResponse, SessionTurn
from handler_core.errors import HandlerError, InvalidRequest, Transient
from handler_core.testing import NatsServer
from handlers_cli.main import app
from handlers_cli.sessions import _remove, _show
from handlers_cli.settings import CliSettings

TURNS = [
    SessionTurn(request_id="q1", query="Where [bold]is[/] it?", response="There [1].", timestamp=1_700_000_000.0),
    SessionTurn(request_id="q2", query="And now?", response="Gone.\x1b[2J", timestamp=1_700_000_060.0),
]


@pytest.fixture
async def asked(nc: Connection) -> AsyncIterator[list[tuple[str, SessionRequest]]]:
    """What was asked, by subject; only the session `trip` of `alice`, or of nobody, is known."""
    seen: list[tuple[str, SessionRequest]] = []

    async def answer(message: Any) -> None:
        request = decode(message.data, SessionRequest)
        seen.append((message.subject, request))
        response = SessionResponse(session_id=request.session_id, turns=TURNS)
        if request.session_id != "trip" or request.user_id not in (None, "alice"):
            error = ErrorInfo(type=ErrorType.NOT_FOUND, message="no such session", retryable=False)
            response = SessionResponse(session_id=request.session_id, success=False, error=error)
        await nc.publish(message.reply, encode(response))

    subjects = ("ai.chat.session.*", "ai.chat.user.*.session.*")
    async with contextlib.AsyncExitStack() as stack:
        for subject in subjects:
            stack.push_async_callback((await nc.subscribe(subject, cb=answer)).unsubscribe)
        assert await nc.responds(5)
        yield seen


async def test_a_session_is_shown_turn_by_turn(
    config: CliSettings, asked: list[tuple[str, SessionRequest]], capsys: pytest.CaptureFixture[str]
) -> None:
    await _show(config, "trip", None, False, 5)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("q1")
    assert lines[1:3] == ["> Where [bold]is[/] it?", "There [1]."]
    assert "> And now?" in lines
    assert asked[0][0] == "ai.chat.session.show"


async def test_a_stored_answer_plays_no_tricks_on_the_terminal(
    config: CliSettings, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    await _show(config, "trip", None, False, 5)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "Gone.\\x1b[2J" in shown


async def test_a_user_s_session_is_asked_for_on_the_user_s_own_subject(
    config: CliSettings, asked: list[tuple[str, SessionRequest]]
) -> None:
    await _show(config, "trip", "alice", False, 5)
    await _remove(config, "trip", "alice", False, 5)
    assert [subject for subject, _ in asked] == [
        "ai.chat.user.alice.session.show",
        "ai.chat.user.alice.session.delete",
    ]
    assert asked[0][1].user_id == "alice"


async def test_json_is_the_whole_reply(
    config: CliSettings, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    await _show(config, "trip", None, True, 5)
    shown = json.loads(capsys.readouterr().out)
    assert [turn["request_id"] for turn in shown["turns"]] == ["q1", "q2"]


async def test_a_removed_session_is_said_to_be_forgotten(
    config: CliSettings, asked: list[tuple[str, SessionRequest]], capsys: pytest.CaptureFixture[str]
) -> None:
    await _remove(config, "trip", None, False, 5)
    assert capsys.readouterr().out == "session trip is forgotten\n"
    assert asked[0][0] == "ai.chat.session.delete"


@pytest.mark.parametrize("command", [_show, _remove])
async def test_an_unknown_session_is_not_found(config: CliSettings, asked: list[Any], command: Any) -> None:
    with pytest.raises(HandlerError, match="no such session") as caught:
        await command(config, "other", None, False, 5)
    assert caught.value.type is ErrorType.NOT_FOUND


async def test_without_a_handler_that_is_what_it_says(config: CliSettings, nc: Connection) -> None:
    with pytest.raises(Transient, match="no chat_handler is running"):
        await _show(config, "trip", None, False, 5)


@pytest.mark.parametrize(("session", "user"), [("a.b", None), ("trip", "*"), ("", None)])
async def test_what_can_be_no_name_is_refused(config: CliSettings, session: str, user: str | None) -> None:
    with pytest.raises(InvalidRequest, match=r"session_id|user_id"):
        await _show(config, session, user, False, 5)


@pytest.fixture
def environment(nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", nats.url)


def test_a_failure_is_one_line_and_exit_code_1(environment: None) -> None:
    ended = CliRunner().invoke(app, ["sessions", "show", "trip"])
    assert ended.exit_code == 1
    assert ended.stderr.strip().splitlines() == [
        "error: nobody answers on ai.chat.session.show: no chat_handler is running"
    ]


@pytest.mark.parametrize("command", ["show", "rm"])
def test_help_has_an_example(command: str) -> None:
    assert f"handlers sessions {command} trip" in CliRunner().invoke(app, ["sessions", command, "--help"]).stdout
