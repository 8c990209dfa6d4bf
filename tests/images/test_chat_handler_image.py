"""The image of the chat handler, run as in production: read-only, not as root, against real servers."""

import asyncio
import json
import subprocess
import uuid
from collections.abc import Callable, Iterator

import aiohttp
import pytest

from handler_core.contract.chat import CHAT, ChatRequest
from handler_core.testing import NatsServer, ask, connection, free_port, process
from handler_core.testing_images import NOBODY_NEEDS, PYTHON, Engine, answers, importing
from handler_core.testing_imports import offenders, probe
from handler_core.testing_milvus import milvus_lite_server
from handler_core.vectors import Row, VectorStore

NOWHERE = "http://127.0.0.1:9"
NEVER = [
    "pandas", "numpy", "pymilvus", "kubernetes", "kubernetes_asyncio", "requests", "opentelemetry", "typer", "rich",
    "handler_core.otlp", "unittest", "stamina", "tenacity", "nkeys", "nacl", "pydantic.networks", "multiprocessing",
    "xml", "tarfile",
]  # fmt: skip

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="session")
def image(image_of: Callable[[str], str]) -> str:
    return image_of("chat_handler")


@pytest.fixture(scope="session")
def models() -> Iterator[str]:
    port = free_port()
    with process("local_inference", {"HOST": "127.0.0.1", "PORT": str(port), "LOG_LEVEL": "error"}):
        url = f"http://127.0.0.1:{port}"
        asyncio.run(answers(f"{url}/health"))
        yield url


@pytest.fixture(scope="session")
def milvus(tmp_path_factory: pytest.TempPathFactory, models: str) -> Iterator[str]:
    with milvus_lite_server(tmp_path_factory.mktemp("milvus")) as uri:
        asyncio.run(_fill(uri, models))
        yield uri


async def _fill(uri: str, models: str) -> None:
    text = "A cactus needs water, weekly at most."
    async with aiohttp.ClientSession() as session, session.post(f"{models}/embed", json={"inputs": [text]}) as answer:
        [vector] = await answer.json()
    async with VectorStore(uri) as store:
        await store.ensure_collection("documents", len(vector))
        await store.upsert("documents", [Row("cactus", text, "plants.md", "hash", {"rank": 1}, vector)])


def environment(nats: NatsServer, port: int, models: str = NOWHERE, milvus: str = NOWHERE) -> dict[str, str]:
    urls = dict.fromkeys(("LLM_URL", "EMBEDDINGS_URL", "RERANKER_URL"), models)
    return {**urls, "MILVUS_URI": milvus, "NATS_URL": nats.url, "HEALTH_HOST": "127.0.0.1", "HEALTH_PORT": str(port)}


async def test_it_answers_with_embedding_search_reranker_and_llm_and_ends_in_order(
    engine: Engine, image: str, nats: NatsServer, models: str, milvus: str
) -> None:
    port = free_port()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with engine.running(image, environment(nats, port, models, milvus), **pipes) as container:
        await answers(f"http://127.0.0.1:{port}/readyz")
        async with connection(nats.url) as nc:
            request = ChatRequest(
                query="How much water does a cactus need?", enable_streaming=True, request_id=uuid.uuid4().hex,
                filter={"rank": 1},
            )  # fmt: skip
            answered = await ask(nc, CHAT, "ai.chat.request", request)
        user = container.user
        code, out, logged = await container.ended()
    response = answered.response
    assert response.error is None
    assert "water" in response.response
    assert answered.text == response.response
    assert [source.id for source in response.sources] == ["cactus"]
    assert response.degraded == []
    assert user != "0"
    assert (code, out) == (0, "")
    lines = [json.loads(line) for line in logged.splitlines()]
    assert lines[-1]["event"] == "service_stopped"
    assert {line["level"] for line in lines} == {"info"}


async def test_ready_it_has_loaded_nothing_that_it_does_not_need(engine: Engine, image: str, nats: NatsServer) -> None:
    port = free_port()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with engine.running(
        image, environment(nats, port), "-c", probe("chat_handler"), options=PYTHON, **pipes
    ) as container:
        await answers(f"http://127.0.0.1:{port}/readyz")
        _, out, _ = await container.ended()
    assert offenders(out, NEVER) == []


async def test_with_a_collector_named_it_exports(engine: Engine, image: str, nats: NatsServer) -> None:
    port = free_port()
    variables = {**environment(nats, port), "OTEL_EXPORTER_OTLP_ENDPOINT": NOWHERE}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with engine.running(image, variables, "-c", probe("chat_handler"), options=PYTHON, **pipes) as container:
        await answers(f"http://127.0.0.1:{port}/readyz")
        code, out, _ = await container.ended()
    assert code == 0
    assert offenders(out, ["opentelemetry.exporter"])


async def test_every_module_in_it_can_be_imported_but_those_of_uses_it_does_not_have(
    engine: Engine, image: str
) -> None:
    assert await engine.run(image, importing("handler_core", "chat_handler")) == (0, "", "")


async def test_it_has_no_shell_and_no_package_manager(engine: Engine, image: str) -> None:
    code = f"import shutil; print([name for name in {NOBODY_NEEDS} if shutil.which(name)])"
    assert await engine.run(image, code) == (0, "[]\n", "")


async def test_it_trusts_public_certificate_authorities(engine: Engine, image: str) -> None:
    code = (
        "import glob, ssl, requests.certs\n"
        "context = ssl.create_default_context(); context.load_verify_locations(requests.certs.where())\n"
        "assert len(context.get_ca_certs()) > 100, context.get_ca_certs()\n"
        "assert len(glob.glob(ssl.get_default_verify_paths().capath + '/*.[0-9]')) > 100\n"
    )
    assert await engine.run(image, code) == (0, "", "")
