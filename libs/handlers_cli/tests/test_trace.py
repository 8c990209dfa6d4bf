"""`handlers ask --session`, `--trace` and Ctrl-C, against a real NATS server."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from handler_core import streams
from handler_core.codec import decode
from handler_core.connection import Connection
from handler_core.contract.answer import Stage
from handler_core.contract.chat import ChatResponse
from handler_core.contract.control import CancelRequest
from handler_core.contract.errors import ErrorInfo, ErrorType
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, stored
from handlers_cli.ask import ask
from handlers_cli.ask_trace import bar
from handlers_cli.main import app
from handlers_cli.settings import CliSettings

HANDLERS = Path(sys.executable).parent / "handlers"
STAGES = [
    Stage(name="queue", start_ms=0, ms=10),
    Stage(name="search", start_ms=40, ms=10),
    Stage(name="embed", start_ms=10, ms=30),
    Stage(name="llm", start_ms=50, ms=5000),
]


async def asked(config: CliSettings, json: bool = False, trace: bool = False, **fields: Any) -> None:
    await ask(
        config,
        {"query": "Well?", "enable_streaming": True, **fields},
        json=json,
        timeout=20,
        trace=trace,
        verbose=True,
    )


async def test_a_session_goes_on_over_several_questions(config: CliSettings, worker: Any) -> None:
    for _ in range(2):
        await asked(config, session_id="trip", user_id="alice")
    assert [(request.session_id, request.user_id) for request in worker.seen] == [("trip", "alice")] * 2
    assert worker.seen[0].request_id != worker.seen[1].request_id


async def test_a_trace_is_drawn_in_the_order_in_which_stages_began(
    config: CliSettings, worker: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    worker.script = lambda _: ChatResponse(response="Yes.", stages=STAGES, trace_id="ab" * 16)
    await asked(config, trace=True)
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    handler = lines.index("In the handler, from the arrival in the stream")
    names = [line.split()[0] for line in lines[handler + 1 : handler + 5]]
    assert names == ["queue", "embed", "search", "llm"]
    assert "+50.0    5,000.0 ms" in lines[handler + 4]
    assert lines[handler + 4].count("█") > 20
    assert all(len(line) <= 80 for line in lines)
    here = lines.index("Seen from here, from the publish")
    assert [line.split("+")[0].strip() for line in lines[here + 1 : here + 4]] == ["stored", "first event", "final"]
    assert f"trace_id {'ab' * 16}" in lines
    assert "Where the time went" not in shown
    assert "\x1b" not in shown


async def test_a_handler_that_tells_no_stages_leaves_what_the_caller_saw(
    config: CliSettings, worker: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    await asked(config, trace=True)
    shown = capsys.readouterr().out
    assert "it told no stages" in shown
    assert "final" in shown
    assert "trace_id" not in shown


async def test_a_failed_turn_is_traced_too(
    config: CliSettings, worker: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    error = ErrorInfo(type=ErrorType.INTERNAL, message="broken", retryable=False)
    worker.script = lambda _: ChatResponse(error=error, stages=STAGES)
    with pytest.raises(typer.Exit):
        await asked(config, trace=True)
    shown = capsys.readouterr()
    assert "llm" in shown.out
    assert "internal: broken" in shown.err


async def test_a_named_request_keeps_its_name_and_says_it(
    config: CliSettings, worker: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    await asked(config, request_id="mine")
    assert worker.seen[0].request_id == "mine"
    assert "request mine" in capsys.readouterr().err


async def test_a_name_that_was_used_before_gives_the_answer_of_then(
    config: CliSettings, worker: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    await asked(config, request_id="mine")
    worker.script = lambda _: ChatResponse(response="No.")
    capsys.readouterr()
    await asked(config, request_id="mine", trace=True)
    assert "Yes." in capsys.readouterr().out
    assert len(worker.seen) == 1


async def test_a_busy_answer_says_when_to_try_again(
    config: CliSettings, worker: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    busy = ErrorInfo(type=ErrorType.BUSY, message="8 turns run", retryable=True, retry_after_ms=1500)
    worker.script = lambda _: ChatResponse(error=busy)
    with pytest.raises(typer.Exit) as ended:
        await asked(config)
    assert ended.value.exit_code == 1
    assert "busy: 8 turns run (try again in 1.5 s)" in capsys.readouterr().err


async def test_a_full_queue_says_when_to_try_again(
    nc: Connection, config: CliSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    api = Api(nc)
    await api.request("STREAM.UPDATE.AI_CHAT", {**streams.AI_CHAT.config(), "max_msgs": 1})
    await api.publish("ai.chat.request", b"", {})
    with pytest.raises(typer.Exit) as ended:
        await asked(config)
    assert ended.value.exit_code == 1
    assert "busy: the queue AI_CHAT is full (try again in 1 s)" in capsys.readouterr().err


async def test_ctrl_c_cancels_the_turn(nats: NatsServer, nc: Connection, worker: Any) -> None:
    worker.script = lambda _: None
    process = await asyncio.create_subprocess_exec(
        str(HANDLERS),
        *("ask", "--request-id", "long", "Well?"),
        env={**os.environ, "NATS_URL": nats.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    await worker.arrived.wait()
    process.send_signal(signal.SIGINT)
    _, said = await process.communicate()
    assert process.returncode == 130, said
    assert b"canceled long" in said
    assert b"Traceback" not in said
    (cancel,) = await stored(nc, "AI_CONTROL", "ai.turn.cancel.long")
    assert decode(cancel.data, CancelRequest).request_id == "long"


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [
        (0, 100, "██████████"),
        (50, 50, "     █████"),
        (0, 0, "▏"),
        (100, 0, "         █"),
        (0, 15, "█▌"),
        (95, 500, "         █"),
        (-5, 20, "█▌"),
    ],
)
def test_a_bar_lies_where_its_stage_does(start: float, length: float, expected: str) -> None:
    assert bar(start, length, 100, 10) == expected


def test_a_bar_without_blocks_takes_whole_columns() -> None:
    assert bar(20, 15, 100, 10, plain=True) == "  ##"
    assert bar(0, 0, 0, 10) == ""


def test_help_needs_no_settings_and_has_an_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", "nonsense")
    shown = CliRunner().invoke(app, ["ask", "--help"])
    assert shown.exit_code == 0
    assert "Example: handlers ask" in shown.stdout
