"""`handlers doctor`, against real servers, whole and broken in every way it names."""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from aiohttp import web
from aiohttp.test_utils import TestServer
from typer.testing import CliRunner

from handler_core import streams
from handler_core.connection import Connection
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, connection, free_port, nats_server
from handler_core.testing_milvus import milvus_lite_server
from handler_core.vectors import Row, VectorStore
from handlers_cli.doctor import doctor
from handlers_cli.main import app
from local_inference.app import create_app
from local_inference.echo import Echo
from local_inference.settings import Settings as ModelSettings

DIMENSIONS = 16
TIMEOUT = 20.0


@pytest.fixture(scope="module")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Milvus Lite with the collections `docs` (of `DIMENSIONS`), `other` (of twice as many) and `bare` (no rows)."""
    with milvus_lite_server(tmp_path_factory.mktemp("milvus")) as uri:
        asyncio.run(_fill(uri))
        yield uri


async def _fill(uri: str) -> None:
    async with VectorStore(uri) as store:
        for name, dimension, rows in (("docs", DIMENSIONS, 2), ("other", 2 * DIMENSIONS, 1), ("bare", DIMENSIONS, 0)):
            await store.ensure_collection(name, dimension)
            made = [Row(str(n), "text", "a.md", "hash", {}, [1.0] * dimension) for n in range(rows)]
            await store.upsert(name, made)


@pytest.fixture
async def models() -> AsyncIterator[str]:
    async with TestServer(create_app(ModelSettings(log_level="error"), Echo(dimensions=DIMENSIONS))) as server:
        yield str(server.make_url("")).rstrip("/")


@pytest.fixture
def environment(nats: NatsServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Sets the variables that it is given, beside a NATS that is there and nothing else that is."""
    families = ("NATS", "LLM", "VLLM", "EMBEDDINGS", "RERANKER", "MILVUS", "COLLECTION", "OTEL", "SECRETS")
    families += ("STT", "WHISPER", "TTS", "VOICES")
    for name in list(os.environ):
        if name.startswith(families):
            monkeypatch.delenv(name)
    nowhere = f"http://127.0.0.1:{free_port()}"
    defaults = {"NATS_URL": nats.url, "SECRETS_DIR": str(tmp_path), "MILVUS_TIMEOUT": "0.3"}
    defaults |= dict.fromkeys(("LLM_URL", "EMBEDDINGS_URL", "MILVUS_URI", "STT_URL", "TTS_URL"), nowhere)

    def set_all(**variables: str) -> None:
        for name, value in {**defaults, **variables}.items():
            monkeypatch.setenv(name, value)

    set_all()
    return set_all


Examine = Callable[..., Awaitable[dict[str, dict[str, str]]]]


@pytest.fixture
def examine(environment: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> Examine:
    """Runs the doctor with these variables: its findings by what was checked, the last one where there are several."""

    async def run(*, timeout: float = TIMEOUT, **variables: str) -> dict[str, dict[str, str]]:
        environment(**variables)
        failed = False
        try:
            await doctor(timeout, json=True)
        except typer.Exit as ended:
            failed = ended.exit_code == 1
        report = json.loads(capsys.readouterr().out.splitlines()[-1])  # what stands before are logs of local_inference
        assert report["ok"] is not failed
        assert failed is any(check["level"] == "fail" for check in report["checks"])
        assert all(check["fix"] for check in report["checks"] if check["level"] != "ok")
        return {check["check"]: check for check in report["checks"]}

    return run


# -- all is well


async def test_of_a_whole_stack_every_part_is_found_well(
    nc: Connection, models: str, milvus: str, examine: Examine
) -> None:
    for consumer in streams.CONSUMERS:
        await pull(nc, consumer)
    urls = dict.fromkeys(("LLM_URL", "EMBEDDINGS_URL", "RERANKER_URL", "STT_URL", "TTS_URL"), models)
    found = await examine(**urls, MILVUS_URI=milvus, MILVUS_TIMEOUT="10", COLLECTION_NAME="docs")
    assert {name: check for name, check in found.items() if check["level"] != "ok"}.keys() == {"services"}
    assert "16 dimensions" in found["EMBEDDINGS_URL"]["found"]
    assert "2 rows, takes 16 dimensions" in found["COLLECTION_NAME"]["found"]
    assert "version 2." in found["NATS"]["found"]
    assert "1 pulls open" in found["consumer AI_CHAT/chat_handler"]["found"]
    assert "one second of silence in" in found["STT_URL"]["found"]
    assert "first audio in" in found["TTS_URL"]["found"]
    assert "room for 15 minutes of" in found["stream AI_STT"]["found"]


async def test_the_report_is_a_line_a_check_with_the_fix_below(
    nc: Connection, environment: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended:
        await doctor(TIMEOUT, json=False)
    assert ended.value.exit_code == 1
    lines = capsys.readouterr().out.splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("fail  LLM_URL"))
    assert lines[place + 1].strip() == "fix: start it, or set LLM_URL to where it is"
    assert lines[-1].endswith("failed")


# -- settings


async def test_a_setting_is_told_with_where_it_came_from_and_no_secret(
    nc: Connection, examine: Examine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key").write_text("secret-from-a-file")
    (tmp_path / "milvus_token").write_text("secret-of-milvus")
    found = await examine(
        NATS_URL="nats://me:secret-in-a-url@127.0.0.1:1",
        LLM_API_KEY_FILE=str(tmp_path / "key"),
        EMBEDDINGS_API_KEY="secret-in-a-variable",
        VLLM_URL="",
        timeout=0.3,
    )
    assert found["setting LLM_API_KEY"]["found"] == "set (file, LLM_API_KEY_FILE)"
    assert found["setting MILVUS_TOKEN"]["found"] == "set (file in SECRETS_DIR, milvus_token)"
    assert found["setting EMBEDDINGS_API_KEY"]["found"] == "set (environment, EMBEDDINGS_API_KEY)"
    assert found["setting NATS_URL"]["found"] == "nats://…@127.0.0.1:1 (environment, NATS_URL)"
    assert "setting LLM_MODEL" not in found
    assert "secret-" not in json.dumps(found)


async def test_every_wrong_setting_is_named_and_the_rest_is_checked(nc: Connection, examine: Examine) -> None:
    found = await examine(
        LLM_URL="ftp://secret", LLM_TIMEOUT="-1", MILVUS_PORT="many", RERANKER_API_KEY_FILE="/nowhere/secret"
    )
    for name in ("LLM_URL", "LLM_TIMEOUT", "MILVUS_PORT", "RERANKER_API_KEY_FILE"):
        assert found[f"setting {name}"]["level"] == "fail"
        assert name in found[f"setting {name}"]["fix"]
    assert "LLM_URL" not in found
    assert found["NATS"]["level"] == "ok"
    assert found["EMBEDDINGS_URL"]["level"] == "fail"
    assert "secret" not in json.dumps(found)


async def test_settings_that_exclude_each_other_are_named(nc: Connection, examine: Examine) -> None:
    found = await examine(NATS_TOKEN="x", NATS_USER="y")
    assert found["setting NATS_TOKEN"]["found"] == "cannot be set together with NATS_USER"
    assert "NATS" not in found


async def test_a_variable_that_looks_like_a_setting_is_pointed_out(nc: Connection, examine: Examine) -> None:
    found = await examine(LLM_MODLE="mine", LLM_SOMETHING_ELSE="x")
    assert found["setting LLM_MODLE"]["fix"] == "did you mean LLM_MODEL?"
    assert "setting LLM_SOMETHING_ELSE" not in found


# -- NATS


async def test_a_port_that_accepts_and_says_nothing_holds_nothing_up(examine: Examine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        urls = dict.fromkeys(("LLM_URL", "EMBEDDINGS_URL", "RERANKER_URL", "MILVUS_URI"), f"http://{place}")
        found = await examine(**urls, NATS_URL=f"nats://{place}", timeout=0.3)
    assert {found[name]["level"] for name in (*urls, "NATS")} == {"fail"}


async def pull(nc: Connection, consumer: streams.Consumer = streams.CHAT_HANDLER) -> None:
    """Pull as a worker would, and have the server know it."""
    inbox = nc.new_inbox()
    await nc.subscribe(inbox)
    request = json.dumps({"batch": 1, "expires": 60_000_000_000}).encode()
    await nc.publish(f"$JS.API.CONSUMER.MSG.NEXT.{consumer.stream}.{consumer.name}", request, inbox)
    assert await nc.responds(5)


async def test_without_nats_it_says_so_and_looks_at_the_rest(examine: Examine) -> None:
    found = await examine(NATS_URL=f"nats://127.0.0.1:{free_port()}", timeout=0.5)
    assert found["NATS"]["level"] == "fail"
    assert "NATS_URL" in found["NATS"]["fix"]
    assert "streams" not in found
    assert "LLM_URL" in found


async def test_refused_credentials_are_named_as_such(examine: Examine) -> None:
    with nats_server("--user", "me", "--pass", "right") as server:
        found = await examine(NATS_URL=server.url, NATS_USER="me", NATS_PASSWORD="wrong-one", timeout=4)
    assert "authorization" in found["NATS"]["found"].lower()
    assert "NATS_USER" in found["NATS"]["fix"]
    assert "wrong-one" not in json.dumps(found)


async def test_an_account_without_jetstream_is_told_to_enable_it(examine: Examine, tmp_path: Path) -> None:
    config = tmp_path / "nats.conf"
    config.write_text("accounts { A { users [{user: a, password: b}] } }\nno_auth_user: a")
    with nats_server("-c", str(config)) as server:
        found = await examine(NATS_URL=server.url, timeout=2)
    assert found["NATS"]["level"] == "ok"
    assert found["JetStream"]["level"] == "fail"
    assert "enable it" in found["JetStream"]["fix"]


async def test_an_account_too_small_for_the_streams_is_a_warning(examine: Examine, tmp_path: Path) -> None:
    config = tmp_path / "nats.conf"
    config.write_text(
        "max_payload: 65536\njetstream { max_file_store: 10G }\nno_auth_user: a\n"
        "accounts { A { jetstream { max_file: 1M }, users [{user: a, password: b}] } }"
    )
    with nats_server("-c", str(config)) as server:
        found = await examine(NATS_URL=server.url)
    assert found["JetStream"]["level"] == "warn"
    assert "max_file" in found["JetStream"]["fix"]
    assert found["NATS"]["fix"] == "raise max_payload on the server to 1MB"


async def test_on_an_empty_server_the_streams_are_missing(examine: Examine) -> None:
    consumer = streams.CONSUMERS[-1]
    with nats_server() as server:
        found = await examine(NATS_URL=server.url)
    assert found["streams"] == {
        "level": "fail",
        "check": "streams",
        "found": f"consumer {consumer.stream}/{consumer.name} is missing",
        "fix": "handlers streams apply",
    }
    assert not any(name.startswith("stream ") for name in found)


async def test_a_stream_that_differs_harmlessly_is_a_warning_and_its_copies_are_not(
    nc: Connection, examine: Examine
) -> None:
    await Api(nc).request("STREAM.UPDATE.DLQ", {**streams.DLQ.config(), "max_bytes": 1 << 20})
    found = await examine()
    assert found["streams"]["level"] == "warn"
    assert "stream DLQ: max_bytes" in found["streams"]["found"]


async def test_dead_letters_are_a_warning(nc: Connection, examine: Examine) -> None:
    await Api(nc).publish("dlq.AI_CHAT.chat_handler", b"x", {})
    found = await examine()
    assert found["stream DLQ"]["level"] == "warn"
    assert "1 messages" in found["stream DLQ"]["found"]


async def test_a_queue_that_is_nearly_full_is_a_warning(nc: Connection, examine: Examine) -> None:
    await Api(nc).request("STREAM.UPDATE.AI_CHAT", {**streams.AI_CHAT.config(), "max_bytes": 1000})
    await Api(nc).publish("ai.chat.request", b"x" * 850, {})
    found = await examine()
    assert "nearly full" in found["stream AI_CHAT"]["found"]


async def test_questions_that_wait_for_no_worker_are_a_failure_and_no_worker_alone_a_warning(
    nc: Connection, examine: Examine
) -> None:
    assert (await examine())["consumer AI_CHAT/chat_handler"]["level"] == "warn"
    await Api(nc).publish("ai.chat.request", b"x", {})
    found = (await examine())["consumer AI_CHAT/chat_handler"]
    assert (found["level"], found["found"]) == ("fail", "1 wait, 0 in work, 0 pulls open: no worker is there")


async def test_a_worker_with_its_hands_full_is_there(nc: Connection, examine: Examine) -> None:
    await Api(nc).publish("ai.chat.request", b"x", {})
    await pull(nc)
    found = (await examine())["consumer AI_CHAT/chat_handler"]
    assert (found["level"], found["found"]) == ("ok", "0 wait, 1 in work, 0 pulls open")


async def test_runs_that_are_held_do_not_hide_that_no_bridge_takes_more(nc: Connection, examine: Examine) -> None:
    await Api(nc).publish("ai.pipeline.trigger", b"x", {})
    await pull(nc, streams.PIPELINE_BRIDGE)
    name = "consumer AI_PIPELINE/pipeline_bridge"
    found = (await examine())[name]
    said = "0 wait, 1 in work, 0 pulls open: no worker takes more, or none is there"
    assert (found["level"], found["found"]) == ("warn", said)
    await pull(nc, streams.PIPELINE_BRIDGE)
    assert (await examine())[name]["level"] == "ok"


async def test_a_queue_of_runs_that_is_nearly_full_is_not_to_be_purged(nc: Connection, examine: Examine) -> None:
    await Api(nc).request("STREAM.UPDATE.AI_PIPELINE", {**streams.AI_PIPELINE.config(), "max_bytes": 1000})
    await Api(nc).publish("ai.pipeline.trigger", b"x" * 850, {})
    assert (await examine())["stream AI_PIPELINE"]["fix"] == "raise its max_bytes: each message is in use"


@pytest.mark.parametrize("consumer", streams.CONSUMERS, ids=lambda consumer: consumer.name)
async def test_of_a_consumer_without_a_worker_it_says_which_to_start(
    nc: Connection, examine: Examine, consumer: streams.Consumer
) -> None:
    found = (await examine())[f"consumer {consumer.stream}/{consumer.name}"]
    assert found["fix"] == f"start one: make run, or python -m {consumer.name}"


async def test_audio_that_is_forgotten_too_early_is_a_warning(nc: Connection, examine: Examine) -> None:
    await Api(nc).request("STREAM.UPDATE.AI_STT", {**streams.AI_STT.config(), "max_bytes": 1000})
    await Api(nc).publish("ai.voice.stream.one", b"x" * 850, {})
    found = (await examine())["stream AI_STT"]
    assert (found["level"], "forgets audio that is younger than 15 minutes" in found["found"]) == ("warn", True)


async def test_services_that_answer_are_counted(nats: NatsServer, nc: Connection, examine: Examine) -> None:
    async def ping(message: Any) -> None:
        for name in ("one", "two", "two"):
            await nc.publish(message.reply, json.dumps({"name": name, "version": "1.0.0"}).encode())

    subscription = await nc.subscribe("$SRV.PING", cb=ping)
    async with connection(nats.url):
        assert (await examine())["services"]["found"] == "one 1.0.0 x 1, two 1.0.0 x 2"
    await subscription.unsubscribe()


# -- endpoints


@pytest.fixture
async def stub() -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """Starts an endpoint that answers each path as told, `None` never, and what is not told with 404."""
    servers = []

    async def start(**answers: tuple[int, Any] | None) -> str:
        async def handle(request: web.Request) -> web.Response:
            answer = answers.get(request.path.rpartition("/")[2], (404, {"error": "no such path"}))
            if answer is None:
                await asyncio.Event().wait()
            assert answer is not None
            return web.json_response(answer[1], status=answer[0])

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle)
        server = TestServer(app)
        await server.start_server()
        servers.append(server)
        return str(server.make_url("")).rstrip("/")

    yield start
    for server in servers:
        await server.close()


Stub = Callable[..., Awaitable[str]]


async def test_a_model_that_is_listed_is_not_asked(nc: Connection, examine: Examine, stub: Stub) -> None:
    url = await stub(models=(200, {"data": [{"id": "mine"}]}))
    found = await examine(LLM_URL=url, LLM_MODEL="mine")
    assert found["LLM_URL"]["level"] == "ok"
    assert "has mine" in found["LLM_URL"]["found"]


async def test_a_model_that_is_not_there_is_named_with_those_that_are(
    nc: Connection, examine: Examine, stub: Stub
) -> None:
    url = await stub(
        models=(200, {"data": [{"id": "qwen"}, {"id": "llama"}]}), completions=(404, {"message": "unknown model"})
    )
    found = (await examine(LLM_URL=url, LLM_MODEL="mine"))["LLM_MODEL"]
    assert found["level"] == "fail"
    assert "unknown model" in found["found"]
    assert found["fix"] == "set LLM_MODEL to one that it has: qwen, llama"


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_named_and_not_shown(nc: Connection, examine: Examine, stub: Stub, status: int) -> None:
    refusal = (status, {"error": {"message": "bad key sk-secret"}})
    url = await stub(models=refusal, embeddings=refusal, rerank=refusal)
    names = ("LLM", "LLM_PREMIUM", "EMBEDDINGS", "RERANKER")
    keys = {f"{name}_API_KEY": "sk-secret" for name in names}
    found = await examine(**{f"{name}_URL": url for name in names}, **keys)
    for name in names:
        assert found[f"{name}_URL"]["fix"] == f"set {name}_API_KEY to a key that it accepts"
    assert "sk-secret" not in json.dumps(found)


async def test_an_endpoint_that_never_answers_holds_up_no_other(
    nc: Connection, examine: Examine, stub: Stub, models: str
) -> None:
    url = await stub(models=None, rerank=None, traces=None, metrics=None)
    urls = dict.fromkeys(("LLM_URL", "RERANKER_URL", "OTEL_EXPORTER_OTLP_ENDPOINT"), url)
    found = await examine(**urls, EMBEDDINGS_URL=models, timeout=0.4)
    for name in ("LLM_URL", "RERANKER_URL", "OTEL traces"):
        assert found[name]["level"] == "fail"
        assert "0.4 s" in found[name]["found"]
    assert found["EMBEDDINGS_URL"]["level"] == "ok"


async def test_an_endpoint_that_is_none_is_said_to_answer_nonsense(
    nc: Connection, examine: Examine, stub: Stub
) -> None:
    url = await stub(embeddings=(200, {"hello": "world"}), rerank=(200, "hello"))
    found = await examine(EMBEDDINGS_URL=url, RERANKER_URL=url)
    assert "no list of embeddings" in found["EMBEDDINGS_URL"]["found"]
    assert "no list of scores" in found["RERANKER_URL"]["found"]


async def test_a_reranker_is_not_needed(nc: Connection, examine: Examine) -> None:
    assert (await examine())["RERANKER_URL"]["found"].startswith("not set")


# -- speech


async def test_without_speech_endpoints_only_who_has_set_one_fails(
    nc: Connection, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await examine(STT_URL="", TTS_URL="", timeout=0.5)
    if found["STT_URL"]["level"] != "ok":  # unless somebody runs a stack on this machine
        assert (found["STT_URL"]["level"], found["TTS_URL"]["level"]) == ("warn", "warn")
        assert "only voice needs it" in found["TTS_URL"]["found"]
    found = await examine(STT_URL=f"http://127.0.0.1:{free_port()}")
    assert (found["STT_URL"]["level"], found["STT_URL"]["fix"]) == ("fail", "start it, or set STT_URL to where it is")


async def test_speech_endpoints_that_refuse_the_key_or_answer_nonsense_are_named(
    nc: Connection, examine: Examine, stub: Stub
) -> None:
    refusal = (401, {"error": {"message": "bad key"}})
    url = await stub(transcriptions=refusal, speech=refusal)
    found = await examine(
        STT_URL=url, TTS_URL=url, TTS_ENGINE="openai", STT_API_KEY="sk-secret", TTS_API_KEY="sk-secret"
    )
    for name in ("STT", "TTS"):
        assert found[f"{name}_URL"]["fix"] == f"set {name}_API_KEY to a key that it accepts"
    assert "sk-secret" not in json.dumps(found)
    url = await stub(transcriptions=(200, {"hello": "world"}), speech=(200, {"hello": "world"}))
    found = await examine(STT_URL=url, TTS_URL=url, TTS_ENGINE="openai")
    assert (found["STT_URL"]["level"], found["TTS_URL"]["level"]) == ("fail", "fail")


async def test_a_voice_that_is_not_there_is_named(nc: Connection, examine: Examine) -> None:
    async def voices(_: web.Request) -> web.Response:
        return web.Response(text="anna en u\nben en u\n")

    coqui = web.Application()
    coqui.router.add_get("/voices", voices)
    async with TestServer(coqui) as server:
        url = str(server.make_url("")).rstrip("/")
        found = (await examine(TTS_URL=url, TTS_ENGINE="coqui", TTS_SPEAKER="carl"))["TTS_SPEAKER"]
    assert found["level"] == "fail"
    assert "anna" in found["found"]


# -- Milvus


@pytest.mark.parametrize(
    ("collection", "level", "said"),
    [
        ("other", "fail", "holds vectors of 32 dimensions, but the embedding has 16"),
        ("nowhere", "fail", "there is no collection nowhere"),
        ("bare", "warn", "bare has no rows"),
    ],
)
async def test_a_collection_that_does_not_fit_is_named(
    nc: Connection, examine: Examine, models: str, milvus: str, collection: str, level: str, said: str
) -> None:
    variables = {"EMBEDDINGS_URL": models, "MILVUS_URI": milvus, "MILVUS_TIMEOUT": "10"}
    found = await examine(**variables, COLLECTION_NAME=collection)
    assert found["MILVUS_URI"]["level"] == "ok"
    assert (found["COLLECTION_NAME"]["level"], said in found["COLLECTION_NAME"]["found"]) == (level, True)


async def test_without_embeddings_the_rows_are_counted_and_nothing_is_compared(
    nc: Connection, examine: Examine, milvus: str
) -> None:
    found = await examine(MILVUS_URI=milvus, MILVUS_TIMEOUT="10", COLLECTION_NAME="docs")
    assert found["COLLECTION_NAME"]["found"] == "docs: 2 rows, not compared with the embeddings"


async def test_a_milvus_that_is_away_is_named(nc: Connection, examine: Examine, models: str) -> None:
    found = await examine(EMBEDDINGS_URL=models)
    assert found["MILVUS_URI"]["level"] == "fail"
    assert "COLLECTION_NAME" not in found


# -- the collector


@pytest.mark.parametrize(
    ("status", "level", "fix"),
    [(200, "ok", ""), (404, "fail", "without /v1/traces"), (401, "fail", "OTLP_HEADERS"), (503, "fail", "own log")],
)
async def test_a_collector_is_sent_an_empty_export(
    nc: Connection, examine: Examine, stub: Stub, status: int, level: str, fix: str
) -> None:
    url = await stub(traces=(status, {}), metrics=(200, {}))
    found = await examine(OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_EXPORTER_OTLP_HEADERS="key=secret-one")
    assert found["OTEL traces"]["level"] == level
    assert fix in found["OTEL traces"]["fix"]
    assert found["OTEL metrics"]["level"] == "ok"
    assert "secret-one" not in json.dumps(found)


async def test_a_collector_that_is_away_is_named_with_the_usual_port(nc: Connection, examine: Examine) -> None:
    found = await examine(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}")
    assert "4318" in found["OTEL traces"]["fix"]


def test_help_needs_no_settings_and_has_an_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", "nonsense")
    shown = CliRunner().invoke(app, ["doctor", "--help"])
    assert shown.exit_code == 0
    assert "Example: handlers doctor" in shown.stdout
