"""`handlers pipeline run`, `watch` and `cancel`, against a real NATS server and a bridge that needs no cluster."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from handler_core.codec import decode
from handler_core.connection import Connection
from handler_core.contract.control import CancelRequest
from handler_core.contract.errors import ErrorInfo, ErrorType
from handler_core.contract.pipeline import PipelinesResponse, TriggerRequest
from handler_core.errors import HandlerError, InvalidRequest, NotFound, Transient
from handler_core.jetstream import Api
from handler_core.pipelines import RECORD_SUBJECT, trigger
from handler_core.testing import NatsServer, nats_server, stored, until
from handlers_cli import pipeline_view, waiting
from handlers_cli.main import app
from handlers_cli.pipeline_run import Options, cancel_run, run_pipeline, watch
from handlers_cli.settings import CliSettings

HANDLERS = Path(sys.executable).parent / "handlers"
NAME = "document-ingestion"
SOURCE = "source=s3://docs"


@contextlib.contextmanager
def exits(code: int) -> Any:
    with pytest.raises(typer.Exit) as ended:
        yield
    assert ended.value.exit_code == code


def options(*parameters: str, **fields: Any) -> Options:
    return Options([SOURCE, *parameters], **{"request_id": "r1", **fields})


@contextlib.asynccontextmanager
async def interrupted(command: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """A command that is cancelled, as by Ctrl-C, after the block."""
    running = asyncio.ensure_future(command)
    yield
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


# -- run


async def test_a_run_is_watched_to_its_end(
    config: CliSettings, bridge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    await run_pipeline(config, NAME, options("chunk_size=64", "dry_run=true"))
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "     1s  submitted  argo pipelines/document-ingestion-abc",
        "     2s  pending    Pending",
        "     3s  running    Running",
        "     4s  succeeded  Succeeded",
        "in the queue 12ms, submitted in 0.3s, 4s in all",
    ]
    assert said.err == "request r1\n"
    (request,) = bridge.seen
    assert request.pipeline == NAME
    assert request.parameters == {"source": "s3://docs", "chunk_size": 64, "dry_run": True}
    assert (bridge.subjects, request.user_id, request.deadline_ms) == (["ai.pipeline.trigger"], None, None)


async def test_the_state_of_a_ray_job_that_has_none_yet_is_not_shown(
    config: CliSettings, bridge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = {"status": "pending", "run_id": "", "raw_status": "", "message": "rayjob has not taken it yet: busy"}
    ray = [{"status": "submitted", "raw_status": "/"}, {"status": "succeeded", "raw_status": "Complete/SUCCEEDED"}]
    bridge.script = (waiting, *ray)
    await run_pipeline(config, NAME, options())
    assert capsys.readouterr().out.splitlines()[:3] == [
        "     1s  pending    rayjob has not taken it yet: busy",
        "     2s  submitted  argo pipelines/document-ingestion-abc",
        "     3s  succeeded  Complete/SUCCEEDED",
    ]


async def test_a_users_run_goes_to_the_users_subject_and_carries_its_time_limit(
    config: CliSettings, bridge: Any
) -> None:
    await run_pipeline(config, NAME, options(user="alice", timeout=90.5))
    (request,) = bridge.seen
    assert bridge.subjects == ["ai.pipeline.user.alice.trigger"]
    assert (request.user_id, request.deadline_ms) == ("alice", 90_500)
    assert [asked.user_id for asked in bridge.asked] == ["alice"]


async def test_without_watching_the_request_id_is_all_that_is_printed(
    config: CliSettings, bridge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bridge.silent = True
    await run_pipeline(config, NAME, options(watch=False))
    await run_pipeline(config, NAME, options(watch=False, request_id="r2", json=True))
    said = capsys.readouterr()
    assert said.out == 'r1\n{"request_id": "r2", "pipeline": "document-ingestion"}\n'
    assert said.err == ""


async def test_a_run_is_given_an_id_of_its_own(config: CliSettings, bridge: Any) -> None:
    await run_pipeline(config, NAME, options(request_id=None))
    await run_pipeline(config, NAME, options(request_id=None))
    assert len({request.request_id for request in bridge.seen} - {None}) == 2


async def test_json_is_one_object_a_line_of_every_status(
    config: CliSettings, bridge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    await run_pipeline(config, NAME, options(json=True))
    said = capsys.readouterr()
    states = [json.loads(line) for line in said.out.splitlines()]
    assert [(state["seq"], state["status"]) for state in states] == [
        (1, "submitted"), (2, "pending"), (3, "running"), (4, "succeeded")
    ]  # fmt: skip
    assert said.err == ""


FAILURE = ErrorInfo(type=ErrorType.INTERNAL, message="OOMKilled (exit code 137)", retryable=False, stage="run")


@pytest.mark.parametrize(
    ("status", "error", "line", "complaint"),
    [
        ("failed", FAILURE, "failed     Failed", "error: internal: OOMKilled (exit code 137)"),
        ("failed", None, "failed     Failed  OOMKilled (exit code 137)", ""),
        (
            "canceled",
            FAILURE.model_copy(update={"type": ErrorType.CANCELED}),
            "canceled   Canceled",
            "error: canceled: OOM",
        ),
        ("error", FAILURE, "error      Error", "error: internal: OOMKilled"),
    ],
)
async def test_a_run_that_does_not_succeed_is_exit_code_1_and_says_why(
    config: CliSettings,
    bridge: Any,
    capsys: pytest.CaptureFixture[str],
    status: str,
    error: ErrorInfo | None,
    line: str,
    complaint: str,
) -> None:
    bridge.script = ("submitted", {"status": status, "message": FAILURE.message, "error": error})
    with exits(1):
        await run_pipeline(config, NAME, options())
    said = capsys.readouterr()
    assert said.out.splitlines()[1] == f"     2s  {line}"
    assert complaint in said.err


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        (["source=s3://x", "chunk_size=five"], "chunk_size: 'five' is no integer"),
        (["chunk_size=64"], r"source: is required \(string: Where they are\.\)"),
        (["source=s3://x", "size=1"], "size: is no parameter of document-ingestion; it has source, chunk_size"),
    ],
)
async def test_wrong_parameters_are_said_before_anything_is_published(
    nc: Connection, config: CliSettings, bridge: Any, parameters: list[str], complaint: str
) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        await run_pipeline(config, NAME, Options(parameters))
    assert await stored(nc, "AI_PIPELINE", ">") == []


async def test_an_unknown_pipeline_is_answered_with_those_that_there_are_and_why_a_new_one_may_be_missing(
    nc: Connection, config: CliSettings, bridge: Any
) -> None:
    bridge.catalogue = bridge.catalogue.model_copy(update={"problem": "line 9"})
    with pytest.raises(NotFound, match=r"no pipeline new; there are: document-ingestion, rag-query \(.*: line 9\)"):
        await run_pipeline(config, "new", options())
    assert await stored(nc, "AI_PIPELINE", ">") == []


async def test_a_bridge_that_knows_no_such_pipeline_names_those_that_it_does(
    config: CliSettings, bridge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = ErrorInfo(type=ErrorType.NOT_FOUND, message="no such pipeline", retryable=False)
    unknown = {"status": "error", "error": gone, "available_pipelines": ["rag-query"], "run_id": "", "raw_status": ""}
    bridge.script = (unknown,)
    with exits(1):
        await run_pipeline(config, NAME, options())
    assert capsys.readouterr().err.splitlines()[1:] == ["error: not_found: no such pipeline", "there are: rag-query"]


async def test_where_nobody_tells_the_catalogue_it_is_queued_all_the_same_and_said_to_be_unchecked(
    nc: Connection, config: CliSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    await run_pipeline(config, "anything", Options(["n=5", "s=five"], watch=False, request_id="r1"))
    assert "the parameters are not checked: nobody answers on ai.pipeline.list" in capsys.readouterr().err
    (message,) = await stored(nc, "AI_PIPELINE", ">")
    assert decode(message.data, TriggerRequest).parameters == {"n": 5, "s": "five"}


async def test_a_bridge_that_refuses_to_tell_the_catalogue_is_not_passed_over(
    nc: Connection, config: CliSettings, bridge: Any
) -> None:
    refused = ErrorInfo(type=ErrorType.VALIDATION_ERROR, message="user_id: no", retryable=False)
    bridge.catalogue = PipelinesResponse(error=refused)
    with pytest.raises(HandlerError, match="user_id: no"):
        await run_pipeline(config, NAME, options())
    assert await stored(nc, "AI_PIPELINE", ">") == []


async def test_an_id_that_was_used_shows_its_run_and_starts_none(
    config: CliSettings, bridge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    await run_pipeline(config, NAME, options())
    first = capsys.readouterr().out
    await run_pipeline(config, NAME, options())
    again = capsys.readouterr()
    assert again.out == first
    assert "r1 was triggered before (succeeded); nothing is run once more" in again.err
    assert len(bridge.seen) == 1


async def test_an_id_of_another_pipelines_run_is_refused(config: CliSettings, bridge: Any) -> None:
    await run_pipeline(config, NAME, options())
    with pytest.raises(InvalidRequest, match="--request-id r1: is that of a run of document-ingestion"):
        await run_pipeline(config, "rag-query", options())


@pytest.mark.parametrize("fields", [{"request_id": "a.b"}, {"user": "a.b"}])
async def test_what_can_be_no_id_is_refused_before_anything_is_sent(fields: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match="_id"):
        await run_pipeline(CliSettings(nats_url="nats://127.0.0.1:1"), NAME, options(**fields))


async def test_without_the_streams_it_is_said_how_to_make_them() -> None:
    with nats_server() as server, pytest.raises(Transient, match=r"no stream .*handlers streams apply"):
        await run_pipeline(CliSettings(nats_url=server.url), NAME, Options([], watch=False))


async def test_a_full_queue_is_exit_code_1(
    nc: Connection, config: CliSettings, bridge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bridge.silent = True
    declared = (await Api(nc).request("STREAM.INFO.AI_PIPELINE"))["config"]
    await Api(nc).request("STREAM.UPDATE.AI_PIPELINE", {**declared, "max_msgs": 1})
    try:
        await run_pipeline(config, NAME, options(watch=False))
        with exits(1):
            await run_pipeline(config, NAME, options(watch=False, request_id="r2"))
    finally:
        await Api(nc).request("STREAM.UPDATE.AI_PIPELINE", declared)
    assert "error: busy: the queue AI_PIPELINE is full (try again in 1 s)" in capsys.readouterr().err


async def test_interrupted_it_leaves_the_run_going_on_and_says_how_to_see_it_again(
    nc: Connection, config: CliSettings, bridge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bridge.hold = True
    async with interrupted(run_pipeline(config, NAME, options())):
        shown = ""

        def started() -> bool:
            nonlocal shown
            shown += capsys.readouterr().out
            return "submitted" in shown

        await until(started, "the first status is shown")
    assert capsys.readouterr().err.splitlines() == [
        "the run goes on",
        "  watch it: handlers pipeline watch r1",
        "  stop it:  handlers pipeline cancel r1",
    ]
    assert await stored(nc, "AI_CONTROL", ">") == []


async def test_ctrl_c_is_exit_code_130(nats: NatsServer, bridge: Any) -> None:
    bridge.hold = True
    process = await asyncio.create_subprocess_exec(
        *(str(HANDLERS), "pipeline", "run", NAME, "-p", SOURCE, "--request-id", "r1"),
        env={**os.environ, "NATS_URL": nats.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert b"submitted" in await process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, told = await process.communicate()
    assert process.returncode == 130, told
    assert told.decode().splitlines()[1:] == [
        "the run goes on",
        "  watch it: handlers pipeline watch r1",
        "  stop it:  handlers pipeline cancel r1",
        "interrupted",
    ]


async def explained(nc: Connection, config: CliSettings, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said on stderr of a run that has no status."""
    told = ""

    def said() -> bool:
        nonlocal told
        told += capsys.readouterr().err
        return len(told.splitlines()) > 1

    async with interrupted(run_pipeline(config, NAME, options())):
        await until(said, "it is explained")
    return told


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "PATIENCE", 0.05)


async def test_a_trigger_that_nobody_takes_is_said_to_wait(
    nc: Connection, config: CliSettings, bridge: Any, capsys: pytest.CaptureFixture[str], impatient: None
) -> None:
    bridge.silent = True
    told = await explained(nc, config, capsys)
    assert "no pipeline_bridge takes triggers: is one running? It waits until one does" in told


@pytest.mark.parametrize(
    ("recorded", "said"),
    [
        (False, "a pipeline_bridge has the trigger, but has not decided yet what to run"),
        (True, "the engine has not taken it yet; it goes on trying"),
    ],
)
async def test_a_trigger_that_is_taken_and_not_begun_is_said_to_be(
    nc: Connection,
    config: CliSettings,
    bridge: Any,
    capsys: pytest.CaptureFixture[str],
    impatient: None,
    recorded: bool,
    said: str,
) -> None:
    bridge.silent = True
    await nc.subscribe("_INBOX.pulls")
    for _ in range(2):  # one for the trigger, one that stays open
        await nc.publish("$JS.API.CONSUMER.MSG.NEXT.AI_PIPELINE.pipeline_bridge", b'{"batch": 1}', "_INBOX.pulls")
    if recorded:
        await Api(nc).publish(RECORD_SUBJECT.format(request_id="r1"), b"x", {})
    assert said in await explained(nc, config, capsys)


async def test_on_a_terminal_it_has_colours_and_a_line_that_moves(
    config: CliSettings, bridge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Console(force_terminal=True, color_system="standard", highlight=False, width=60, file=StringIO())
    monkeypatch.setattr(pipeline_view, "out", terminal)
    bridge.script = ("submitted", {"status": "running", "message": "step [2]\x1b[2J of 3"}, "succeeded")
    await run_pipeline(config, NAME, options())
    assert isinstance(terminal.file, StringIO)
    shown = terminal.file.getvalue()
    assert "\x1b[32msucceeded\x1b[0m" in shown
    assert "\x1b[34mrunning  \x1b[0m  Running  step [2]\\x1b[2J of 3" in shown
    assert "\x1b[?25l" in shown, "a live line hides the cursor"
    assert shown.rstrip().endswith("4s in all\x1b[0m") or shown.rstrip().endswith("3s in all\x1b[0m")


# -- watch


async def test_a_run_that_has_ended_is_shown_from_its_first_status(
    config: CliSettings, bridge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    await bridge.tell("r7", "submitted", "running", "succeeded")
    await watch(config, "r7", json=False)
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[:3]] == [
        "submitted",
        "running",
        "succeeded",
    ]


async def test_a_run_is_joined_where_it_is(
    nc: Connection, config: CliSettings, bridge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bridge.hold = True
    await trigger(Api(nc), TriggerRequest(request_id="r1", pipeline=NAME))
    await bridge.arrived.wait()
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watch(config, "r1", json=True))
        await bridge.tell("r1", "running", "succeeded")
    assert watching.exception() is None
    states = [json.loads(line)["status"] for line in capsys.readouterr().out.splitlines()]
    assert states == ["submitted", "running", "succeeded"]


async def test_a_run_that_failed_is_exit_code_1(config: CliSettings, bridge: Any) -> None:
    await bridge.tell("r1", "submitted", "failed")
    with exits(1):
        await watch(config, "r1", json=False)


async def test_a_run_that_nobody_knows_is_said_to_be_unknown(nc: Connection, config: CliSettings, bridge: Any) -> None:
    bridge.hold = True
    await trigger(Api(nc), TriggerRequest(request_id="another", pipeline=NAME))
    with pytest.raises(NotFound, match=r"^no run of r1 is known: .* \(they are kept for 45d\)$"):
        await watch(config, "r1", json=False)


async def test_a_run_that_waits_in_the_queue_is_waited_for(
    nc: Connection, config: CliSettings, bridge: Any, capsys: pytest.CaptureFixture[str], impatient: None
) -> None:
    bridge.silent = True
    for request_id in ("r0", "r1"):
        await trigger(Api(nc), TriggerRequest(request_id=request_id, pipeline=NAME))
    told = ""

    def explained() -> bool:
        nonlocal told
        told += capsys.readouterr().err
        return "no pipeline_bridge takes triggers" in told

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(watch(config, "r1", json=False))
        await until(explained, "it is explained")
        await bridge.tell("r1", "submitted", "succeeded")


async def test_a_run_that_nobody_follows_any_more_is_not_waited_for(config: CliSettings, bridge: Any) -> None:
    await bridge.tell("r1", "submitted", "running")
    with pytest.raises(NotFound, match="nobody follows r1 any more: it was running, and its trigger is gone"):
        await watch(config, "r1", json=False)


@pytest.mark.parametrize("request_id", ["", "a.b", "*", "x" * 65])
async def test_what_can_be_no_id_is_not_watched(request_id: str) -> None:
    with pytest.raises(InvalidRequest, match="request_id"):
        await watch(CliSettings(nats_url="nats://127.0.0.1:1"), request_id, json=False)


# -- cancel


async def test_a_run_is_canceled_and_watched_to_its_end(
    nc: Connection, config: CliSettings, bridge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bridge.hold = True
    await trigger(Api(nc), TriggerRequest(request_id="r1", pipeline=NAME))
    await bridge.arrived.wait()
    await cancel_run(config, "r1", "wrong documents", wait=True)
    said = capsys.readouterr()
    assert [line.split()[1] for line in said.out.splitlines()[:2]] == ["submitted", "canceled"]
    assert "canceled   Canceled  canceled: wrong documents" in said.out
    assert said.err == ""
    (message,) = await stored(nc, "AI_CONTROL", "ai.turn.cancel.r1")
    assert decode(message.data, CancelRequest).reason == "wrong documents"


async def test_without_waiting_the_cancel_is_stored(
    nc: Connection, config: CliSettings, bridge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bridge.silent = True
    await trigger(Api(nc), TriggerRequest(request_id="r1", pipeline=NAME))
    await cancel_run(config, "r1", "", wait=False)
    assert capsys.readouterr().out == "r1: the cancel is stored; to see it end: handlers pipeline watch r1\n"
    assert len(await stored(nc, "AI_CONTROL", "ai.turn.cancel.r1")) == 1


@pytest.mark.parametrize(
    ("status", "said"),
    [("succeeded", "succeeded"), ("canceled", "been canceled"), ("error", "ended with an error"), ("failed", "failed")],
)
async def test_a_run_that_ended_before_is_left_alone(
    nc: Connection, config: CliSettings, bridge: Any, capsys: pytest.CaptureFixture[str], status: str, said: str
) -> None:
    await bridge.tell("r1", "submitted", status)
    with exits(1):
        await cancel_run(config, "r1", "", wait=True)
    assert capsys.readouterr().out == f"r1 has {said} before; nothing to cancel\n"
    assert await stored(nc, "AI_CONTROL", ">") == []


async def test_a_run_that_nobody_knows_is_canceled_beforehand(
    nc: Connection, config: CliSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    await cancel_run(config, "later", "", wait=True)
    assert capsys.readouterr().out == "later: no run of this id is known; it is canceled when it comes, for a day\n"
    assert len(await stored(nc, "AI_CONTROL", "ai.turn.cancel.later")) == 1


async def test_a_run_that_was_quicker_than_its_cancel_is_exit_code_1(
    nc: Connection, config: CliSettings, bridge: Any
) -> None:
    bridge.hold = True
    await trigger(Api(nc), TriggerRequest(request_id="r1", pipeline=NAME))
    await bridge.arrived.wait()

    async def succeed(_: Any) -> None:
        await bridge.tell("r1", "succeeded")

    bridge.obedient = False
    await nc.subscribe("ai.turn.cancel.r1", cb=succeed)
    with exits(1):
        await cancel_run(config, "r1", "", wait=True)


# -- the command line


@pytest.mark.parametrize("command", ["ls", "run", "watch", "cancel"])
def test_help_needs_no_settings_and_has_an_example(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", "nonsense")
    shown = CliRunner().invoke(app, ["pipeline", command, "--help"])
    assert shown.exit_code == 0
    assert f"Example: handlers pipeline {command}" in shown.stdout


@pytest.mark.parametrize("timeout", ["5", "-1s", "25h", "0s", "soon"])
def test_a_time_limit_that_is_none_is_exit_code_2(timeout: str) -> None:
    shown = CliRunner().invoke(app, ["pipeline", "run", "p", "--deadline", timeout])
    assert shown.exit_code == 2
