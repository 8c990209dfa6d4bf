"""`handlers bench turns`, against a real NATS server and a worker that answers as told."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
import typer
from structlog.testing import capture_logs
from typer.testing import CliRunner

from handler_core import streams
from handler_core.connection import Connection
from handler_core.contract.chat import ChatRequest, ChatResponse
from handler_core.contract.errors import ErrorInfo, ErrorType
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, connection, nats_server, stored, until
from handlers_cli.bench import _turns
from handlers_cli.bench_report import buckets, percentiles, print_summary, summary
from handlers_cli.bench_turns import Load, Plan, Tally
from handlers_cli.main import app
from handlers_cli.settings import CliSettings

HANDLERS = Path(sys.executable).parent / "handlers"


async def run(nc: Connection, **options: Any) -> Tally:
    load = Load(nc, Plan(**{"questions": ["Well?"], "timeout": 20.0, **options}))
    await load.run()
    assert load.tally.ended == load.tally.started
    return load.tally


async def test_so_many_turns_are_asked_and_timed(nc: Connection, worker: Any) -> None:
    tally = await run(nc, turns=30, concurrency=4, questions=["a", "b", "c"], fields={"enable_rag": False})
    assert tally.answered == len(tally.total) == len(tally.first_chunk) == 30
    assert all(first <= total for first, total in zip(sorted(tally.first_chunk), sorted(tally.total), strict=True))
    assert Counter(request.query for request in worker.seen) == {"a": 10, "b": 10, "c": 10}
    assert len({request.request_id for request in worker.seen}) == 30
    assert not any(request.enable_rag for request in worker.seen)
    assert {request.deadline_ms for request in worker.seen} == {20_000}


async def test_no_more_turns_run_at_once_than_asked_for(nc: Connection, worker: Any) -> None:
    held: list[ChatRequest] = []

    def hold(request: ChatRequest) -> None:
        held.append(request)

    worker.script = hold
    load = Load(nc, Plan(["Well?"], concurrency=3, turns=7, timeout=20))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(load.run())
        answered = 0
        while answered < 7:
            await until(lambda: len(held) == min(answered + 3, 7), "three turns are asked")  # noqa: B023
            assert load.tally.started == min(answered + 3, 7)
            await worker.answer(held[answered], ChatResponse(response="Yes."))
            answered += 1
    assert load.tally.answered == 7


async def test_a_rate_begins_turns_whether_or_not_others_were_answered(nc: Connection, worker: Any) -> None:
    held: list[ChatRequest] = []
    worker.script = held.append
    load = Load(nc, Plan(["Well?"], rate=500, turns=20, timeout=20))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(load.run())
        await until(lambda: len(held) == 20, "all are asked although none is answered")
        assert load.tally.ended == 0
        for request in held:
            await worker.answer(request, ChatResponse(response="Yes."))
    assert load.tally.answered == 20


async def test_a_duration_ends_the_run(nc: Connection, worker: Any) -> None:
    tally = await run(nc, turns=None, duration=0.2, concurrency=2)
    assert tally.answered > 0
    assert tally.elapsed >= 0.2


async def test_errors_are_counted_by_their_type_and_not_timed(nc: Connection, worker: Any) -> None:
    def script(request: ChatRequest) -> ChatResponse | None:
        number = int((request.request_id or "").rpartition("-")[2])
        if number == 0:
            return None
        kind = ErrorType.BUSY if number == 1 else ErrorType.INTERNAL
        return ChatResponse(error=ErrorInfo(type=kind, message="no", retryable=False))

    worker.script = script
    tally = await run(nc, turns=4, timeout=0.3)
    assert tally.errors == {"timeout": 1, "busy": 1, "internal": 2}
    assert (tally.answered, tally.total) == (0, [])


async def test_a_full_queue_is_counted_as_busy(nc: Connection, worker: Any) -> None:
    await Api(nc).request("STREAM.UPDATE.AI_CHAT", {**streams.AI_CHAT.config(), "max_msgs": 1})
    await Api(nc).publish("ai.chat.request", b"", {})
    assert (await run(nc, turns=3)).errors == {"busy": 3}


async def test_restarts_and_degraded_answers_are_counted(nc: Connection, worker: Any) -> None:
    worker.restarts = 2
    worker.script = lambda _: ChatResponse(response="Yes.", degraded=["reranker"])
    tally = await run(nc, turns=3)
    assert (tally.restarts, tally.degraded) == (6, {"reranker": 3})


async def test_answers_to_others_do_not_count(nc: Connection, worker: Any) -> None:
    def script(request: ChatRequest) -> ChatResponse | None:
        return ChatResponse(response="Yes.") if (request.request_id or "").endswith("-0") else None

    worker.script = script
    load = Load(nc, Plan(["Well?"], turns=1, timeout=20))
    await worker.answer(ChatRequest(query="x", request_id="of-another"), ChatResponse(response="Yes."))
    await load.run()
    assert load.tally.answered == 1


async def test_all_turns_share_two_subscriptions(nc: Connection, worker: Any) -> None:
    before = len(nc._subs)
    held: list[ChatRequest] = []
    worker.script = held.append
    load = Load(nc, Plan(["Well?"], concurrency=20, turns=20, timeout=20))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(load.run())
        await until(lambda: len(held) == 20, "all are asked")
        assert len(nc._subs) <= before + 3  # and the inbox that requests share
        for request in held:
            await worker.answer(request, ChatResponse(response="Yes."))


async def test_a_user_s_turns_go_over_the_user_s_subject(nc: Connection, worker: Any) -> None:
    await run(nc, turns=2, fields={"user_id": "alice"})
    assert len(await stored(nc, "AI_CHAT", "ai.chat.user.alice.message")) == 2


async def test_an_interrupted_run_takes_its_turns_back_and_keeps_what_it_has(nc: Connection, worker: Any) -> None:
    def first_only(request: ChatRequest) -> ChatResponse | None:
        return ChatResponse(response="Yes.") if (request.request_id or "").endswith("-0") else None

    worker.script = first_only
    load = Load(nc, Plan(["Well?"], concurrency=2, turns=10, timeout=20))
    running = asyncio.create_task(load.run())
    await until(lambda: len(worker.seen) == 3 and load.tally.answered == 1, "two turns run")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert summary(load.tally)["unfinished"] == 2
    expected = {f"ai.turn.cancel.{request.request_id}" for request in worker.seen[1:]}

    async def both() -> bool:  # sent and flushed, but the stream stores in its own time
        return {message.subject for message in await stored(nc, "AI_CONTROL", "ai.turn.cancel.*")} == expected

    await until(both, "both turns are taken back")


async def test_ctrl_c_prints_what_there_is(nats: NatsServer, nc: Connection, worker: Any) -> None:
    worker.script = lambda _: None
    process = await asyncio.create_subprocess_exec(
        str(HANDLERS),
        *("bench", "turns", "--concurrency", "2", "--json"),
        env={**os.environ, "NATS_URL": nats.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    await until(lambda: len(worker.seen) == 2, "two turns run")
    process.send_signal(signal.SIGINT)
    printed, said = await process.communicate()
    assert process.returncode == 130, said
    assert json.loads(printed)["unfinished"] == 2
    assert b"Traceback" not in said


async def test_json_has_every_figure_and_a_failed_turn_is_exit_code_1(
    config: CliSettings, worker: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    worker.script = lambda _: ChatResponse(error=ErrorInfo(type=ErrorType.INTERNAL, message="no", retryable=False))
    with pytest.raises(typer.Exit) as ended:
        await _turns(config, Plan(["Well?"], turns=2), json=True)
    assert ended.value.exit_code == 1
    figures = json.loads(capsys.readouterr().out)
    assert (figures["turns"], figures["errors"], figures["total_ms"]) == (2, {"internal": 2}, {})


async def test_where_nats_goes_away_what_was_counted_is_kept(worker: Any, capsys: pytest.CaptureFixture[str]) -> None:
    # Captured: an earlier command of this process may have bound its logs to a stream that is closed by now.
    with nats_server() as own, capture_logs() as logged:
        async with connection(own.url) as nc:
            await streams.apply(Api(nc))
        plan = Plan(["Well?"], concurrency=2, turns=2, timeout=0.5)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(_ended(_turns(CliSettings(nats_url=own.url), plan, json=True)))
            async with connection(own.url) as nc:
                await until(lambda: _waiting(nc, 2), "two turns wait")
            own.kill()
        assert running.result() == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["errors"] == {"timeout": 2}
    assert "nats_disconnected" in {entry["event"] for entry in logged}


async def _ended(command: Coroutine[Any, Any, None]) -> int | None:
    try:
        await command
    except typer.Exit as ended:
        return ended.exit_code
    return None


async def _waiting(nc: Connection, count: int) -> bool:
    info = await Api(nc).request("STREAM.INFO.AI_CHAT")
    return bool(info["state"]["messages"] == count)


def test_percentiles_are_values_that_were_seen() -> None:
    assert percentiles([float(value) for value in range(100, 0, -1)]) == {"p50": 50, "p90": 90, "p99": 99, "max": 100}
    assert percentiles([7.0]) == dict.fromkeys(("p50", "p90", "p99", "max"), 7.0)
    assert percentiles([]) == {}


def test_buckets_grow_by_one_two_five_and_have_no_gap() -> None:
    assert buckets([1.0, 1.99, 2.0, 4.999, 20.0]) == [(1, 2, 2), (2, 5, 2), (5, 10, 0), (10, 20, 0), (20, 50, 1)]
    assert buckets([0.05]) == [(0.05, 0.1, 1)]
    assert buckets([0.0])[0][2] == 1
    assert buckets([]) == []
    assert [count for _, _, count in buckets([10.0**power for power in range(6)])] == [1, 0, 0] * 5 + [1]


def test_the_summary_is_a_table_with_a_histogram(capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally(started=5, answered=3, first_chunk=[10, 20, 30], total=[110, 120, 1300], elapsed=2.0, restarts=1)
    tally.errors["busy"] = 1
    tally.degraded["reranker"] = 2
    print_summary(tally)
    shown = capsys.readouterr().out
    assert "5 turns in 2.0 s: 3 answered, 1 failed, 1 unfinished; 1.5 answered/s" in shown
    assert "errors    busy 1" in shown
    assert "degraded  reranker 2" in shown
    assert "restarts  1" in shown
    rows = [line for line in shown.splitlines() if " - " in line]
    assert [row.split()[4] for row in rows] == ["2", "0", "0", "1"]
    assert rows[0].count("█") == 2 * rows[3].count("█") == 40


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--rate", "5", "--concurrency", "5"], "--rate"),
        (["--turns", "0"], "--turns"),
        (["--questions", "/nowhere"], "--questions"),
    ],
)
def test_wrong_options_are_named(arguments: list[str], complaint: str) -> None:
    ended = CliRunner().invoke(app, ["bench", "turns", *arguments])
    assert ended.exit_code == 2
    assert complaint in ended.stderr


def test_questions_come_from_a_file_and_from_options(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nats: NatsServer
) -> None:
    plans: list[Plan] = []

    async def record(config: CliSettings, plan: Plan, *, json: bool) -> None:
        plans.append(plan)

    monkeypatch.setenv("NATS_URL", nats.url)
    monkeypatch.setattr("handlers_cli.bench._turns", record)
    file = tmp_path / "questions.txt"
    file.write_text("From a file?\n\n  And again?  \n")
    arguments = ["--question", "An option?", "--questions", str(file), "--duration", "5"]
    assert CliRunner().invoke(app, ["bench", "turns", *arguments]).exit_code == 0
    assert CliRunner().invoke(app, ["bench", "turns"]).exit_code == 0
    assert plans[0].questions == ["An option?", "From a file?", "And again?"]
    assert (plans[0].turns, plans[0].duration) == (None, 5)
    assert (plans[1].turns, plans[1].concurrency) == (100, 10)


def test_help_needs_no_settings_and_has_an_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", "nonsense")
    shown = CliRunner().invoke(app, ["bench", "turns", "--help"])
    assert shown.exit_code == 0
    assert "Example: handlers bench turns" in shown.stdout
