"""`handlers` as a user runs it: against a real NATS, Milvus Lite, local_inference and chat_handler."""

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from handler_core.streams import CONSUMERS
from handler_core.testing import free_port, nats_server, process
from handler_core.testing_milvus import milvus_lite_server

HANDLERS = Path(sys.executable).parent / "handlers"
ANSWER = "The server redelivers a message when ack_wait has passed without a sign of progress."

pytestmark = pytest.mark.timeout(120)


def run(environment: dict[str, str], *arguments: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(HANDLERS), *arguments],
        env={**os.environ, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def wait_for(url: str) -> None:
    give_up = time.monotonic() + 40
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as reply:
            if reply.status == 200:
                return
        assert time.monotonic() < give_up, f"{url} did not become ready"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a running stack whose streams are applied."""
    inference, health = free_port(), free_port()
    local = f"http://127.0.0.1:{inference}"
    with nats_server() as nats, milvus_lite_server(tmp_path_factory.mktemp("milvus")) as milvus:
        environment = {
            "NATS_URL": nats.url,
            "MILVUS_URI": milvus,
            "LLM_URL": local,
            "EMBEDDINGS_URL": local,
            "RERANKER_URL": local,
            "COLLECTION_NAME": "cli",
            "HEALTH_HOST": "127.0.0.1",
            "HEALTH_PORT": str(health),
            "COLUMNS": "120",
        }
        with process("local_inference", {"PORT": str(inference)}), process("chat_handler", environment):
            applied = run(environment, "streams", "apply")
            assert applied.returncode == 0, applied.stderr
            wait_for(f"{local}/health")
            wait_for(f"http://127.0.0.1:{health}/readyz")
            yield environment


@pytest.fixture(scope="module")
def documents(stack: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two documents, ingested."""
    root = tmp_path_factory.mktemp("corpus")
    docs = root / "docs"
    docs.mkdir()
    (docs / "loop.md").write_text(f"# The loop\n\n## Redelivery\n\n{ANSWER} A worker therefore reports progress.\n")
    (docs / "tea.md").write_text("# Tea\n\nGreen tea is brewed at eighty degrees for two minutes.\n")
    ingested = run(stack, "ingest", "docs", cwd=root)
    assert ingested.returncode == 0, ingested.stderr
    assert "2 files added" in ingested.stdout
    return root


def test_ask_prints_the_answer_its_sources_and_where_the_time_went(stack: dict[str, str], documents: Path) -> None:
    asked = run(stack, "ask", "When does the server redeliver a message?")
    assert asked.returncode == 0, asked.stderr
    assert "ack_wait has passed" in asked.stdout
    assert "[1]" in asked.stdout
    assert "docs/loop.md" in asked.stdout
    for stage in ("wait in the stream", "embed the question", "search", "rerank", "LLM, first token", "total"):
        assert stage in asked.stdout


def test_ask_json_is_one_object_with_the_whole_response(stack: dict[str, str], documents: Path) -> None:
    asked = run(stack, "ask", "--json", "How is green tea brewed?")
    response = json.loads(asked.stdout)
    assert response["success"]
    assert "eighty degrees" in response["response"]
    assert response["citations"][0]["index"] == 1
    assert response["sources"][0]["metadata"]["source"] == "docs/tea.md"


def test_ask_filters_by_metadata(stack: dict[str, str], documents: Path) -> None:
    only = json.dumps({"source": "docs/loop.md"})
    asked = run(stack, "ask", "--json", "--filter", only, "How is green tea brewed?")
    assert {source["metadata"]["source"] for source in json.loads(asked.stdout)["sources"]} == {"docs/loop.md"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--filter", "{", "x"], "filter: is not JSON"),
        (["--collection", "no such", "x"], "collection:"),
        (["--user", "a.b", "x"], "user_id:"),
        (["  "], "query: is empty"),
        (["--collection", "missing", "x"], "not_found"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(stack: dict[str, str], arguments: list[str], complaint: str) -> None:
    asked = run(stack, "ask", *arguments)
    assert asked.returncode == 1
    assert complaint in asked.stderr
    assert "Traceback" not in asked.stderr


def test_asking_as_a_user_goes_over_the_users_subject(stack: dict[str, str], documents: Path) -> None:
    asked = run(stack, "ask", "--json", "--user", "alice", "How is green tea brewed?")
    assert json.loads(asked.stdout)["success"]


def test_a_second_ingest_changes_nothing_and_a_removed_file_leaves(stack: dict[str, str], tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "a.txt").write_text("The first note.")
    (notes / "b.txt").write_text("The second note.")
    assert "2 files added" in run(stack, "ingest", "notes", cwd=tmp_path).stdout
    assert "0 chunks stored" in run(stack, "ingest", "notes", cwd=tmp_path).stdout
    (notes / "b.txt").unlink()
    report = json.loads(run(stack, "ingest", "--json", "notes", cwd=tmp_path).stdout)
    assert (report["removed"], report["unchanged"]) == (["notes/b.txt"], ["notes/a.txt"])


def test_a_file_that_cannot_be_read_is_named_and_the_others_go_in(stack: dict[str, str], tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "good.md").write_text("# Good\n\nA good note.\n")
    (mixed / "[bad].pdf").write_bytes(b"%PDF-1.7 broken")
    ingested = run(stack, "ingest", "mixed", cwd=tmp_path)
    assert ingested.returncode == 1
    assert "mixed/[bad].pdf" in ingested.stderr
    assert "1 files added" in ingested.stdout


def test_streams_diff_is_silent_when_nothing_differs(stack: dict[str, str]) -> None:
    compared = run(stack, "streams", "diff")
    assert (compared.returncode, compared.stderr) == (0, "")


def test_streams_diff_and_apply_against_an_empty_server() -> None:
    with nats_server() as nats:
        environment = {"NATS_URL": nats.url}
        compared = run(environment, "streams", "diff")
        assert compared.returncode == 1
        assert "stream AI_CHAT is missing" in compared.stdout
        assert "consumer AI_CHAT/chat_handler is missing" in compared.stdout
        first, second = run(environment, "streams", "apply"), run(environment, "streams", "apply")
        assert "created stream AI_CHAT" in first.stdout
        assert "0 changed" in second.stdout


def test_without_nats_a_command_says_so_in_one_line() -> None:
    asked = run({"NATS_URL": f"nats://127.0.0.1:{free_port()}"}, "streams", "diff", "--wait", "0.3")
    assert asked.returncode == 1
    assert len(asked.stderr.strip().splitlines()) == 1
    assert "NATS_URL" in asked.stderr


def test_a_wrong_setting_is_one_line_that_names_it() -> None:
    asked = run({"NATS_URL": "http://x"}, "streams", "diff")
    assert (asked.returncode, asked.stderr.strip()) == (
        2,
        "setting NATS_URL: must start with nats://, tls://, ws:// or wss://",
    )


def test_ask_with_no_worker_times_out_with_what_to_check() -> None:
    with nats_server() as nats:
        environment = {"NATS_URL": nats.url}
        run(environment, "streams", "apply")
        asked = run(environment, "ask", "--timeout", "0.5", "x")
    assert asked.returncode == 1
    assert "chat_handler running" in asked.stderr


@pytest.mark.parametrize("command", [[], ["ask"], ["ingest"], ["streams", "apply"], ["streams", "diff"]])
def test_help_needs_no_settings_and_shows_an_example(command: list[str]) -> None:
    shown = run({"NATS_URL": "nonsense"}, *command, "--help")
    assert shown.returncode == 0
    assert "Usage" in shown.stdout


def test_a_session_is_remembered_shown_to_its_user_and_forgotten(stack: dict[str, str], documents: Path) -> None:
    for question in ("How is green tea brewed?", "And for how long?"):
        asked = run(stack, "ask", question, "--session", "tea", "--user", "alice", "--trace")
        assert asked.returncode == 0, asked.stderr
    for stage in ("recall", "embed", "search", "rerank", "llm", "remember", "stored", "trace_id"):
        assert stage in asked.stdout
    shown = run(stack, "sessions", "show", "tea", "--user", "alice")
    assert "> How is green tea brewed?" in shown.stdout
    assert "> And for how long?" in shown.stdout
    assert run(stack, "sessions", "show", "tea", "--user", "bob").returncode == 1
    assert run(stack, "sessions", "rm", "tea", "--user", "alice").returncode == 0
    gone = run(stack, "sessions", "show", "tea", "--user", "alice")
    assert (gone.returncode, gone.stderr) == (1, "error: no such session of this user\n")


def test_a_turn_is_canceled_before_it_comes(stack: dict[str, str]) -> None:
    canceled = run(stack, "cancel", "e2e-turn", "--reason", "a test", "--wait", "0.1")
    assert canceled.returncode == 0, canceled.stderr
    asked = run(stack, "ask", "Anything?", "--request-id", "e2e-turn", "--no-rag")
    assert asked.returncode == 1
    assert "canceled: a test" in asked.stderr


def test_what_was_buried_is_listed_shown_replayed_and_purged(stack: dict[str, str]) -> None:
    assert run(stack, "dlq", "purge", "--all", "--yes").returncode == 0  # what other tests have left
    asked = run(stack, "ask", "Where?", "--collection", "nowhere", "--request-id", "buried")
    assert "not_found" in asked.stderr
    [letter] = [json.loads(line) for line in run(stack, "dlq", "ls", "--json").stdout.splitlines()]
    sequence = str(letter["sequence"])
    assert "Where?" in run(stack, "dlq", "show", sequence).stdout
    assert run(stack, "dlq", "replay", sequence).returncode == 1, "its answer is stored already"
    replayed = run(stack, "dlq", "replay", sequence, "--new-id")
    assert (replayed.returncode, replayed.stdout.split()[0]) == (0, "replayed"), replayed.stderr
    give_up = time.monotonic() + 20
    while not run(stack, "dlq", "ls", "--json").stdout:
        assert time.monotonic() < give_up, "it is buried again, since the collection is still missing"
    assert run(stack, "dlq", "purge", "--all", "--yes").returncode == 0
    assert run(stack, "dlq", "ls", "--json").stdout == ""


def test_lag_services_doctor_and_bench_see_the_running_stack(stack: dict[str, str], documents: Path) -> None:
    lags = [json.loads(line) for line in run(stack, "lag", "--json").stdout.splitlines()]
    assert {(lag["stream"], lag["consumer"], lag["lag"]) for lag in lags} == {
        (consumer.stream, consumer.name, 0) for consumer in CONSUMERS
    }
    [service] = json.loads(run(stack, "services", "chat_handler", "--json").stdout)
    assert "ai.chat.ask" in {endpoint["subject"] for endpoint in service["endpoints"]}
    examined = run(stack, "doctor", "--timeout", "20", "--json")
    assert examined.returncode == 0, examined.stdout
    loaded = run(stack, "bench", "turns", "--turns", "8", "--concurrency", "4", "--no-rag", "--json")
    assert loaded.returncode == 0, loaded.stderr
    assert json.loads(loaded.stdout)["answered"] == 8


def test_the_rendered_streams_are_those_that_were_applied(stack: dict[str, str]) -> None:
    rendered = [json.loads(line) for line in run(stack, "streams", "render", "--json").stdout.splitlines()]
    assert {each["kind"] for each in rendered} == {"Stream", "Consumer"}
    assert run(stack, "streams", "diff").returncode == 0
