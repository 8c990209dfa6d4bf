"""The image of the pipeline bridge, run as in a cluster: read-only, not as root, with a pod's own access to an
emulated API server, over TLS."""

import asyncio
import json
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, aclosing
from pathlib import Path
from typing import Any

import pytest

from handler_core import pipelines
from handler_core.connection import Connection
from handler_core.contract.pipeline import PipelineStatus, RunStatus, TriggerRequest
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, connection, free_port, until
from handler_core.testing_images import NOBODY_NEEDS, PYTHON, Container, Engine, answers, importing
from handler_core.testing_imports import offenders, probe
from local_cluster.store import WORKFLOWS
from local_cluster.testing import RunningCluster, running

CATALOGUE = "pipelines: {ingest: {engine: argo, template: document-ingestion}}\n"
TOKEN = "the-token-of-a-service-account"
NEVER = [
    "kubernetes_asyncio.client.models", "kubernetes_asyncio.client.api", "kubernetes_asyncio.client.api_client",
    "kubernetes_asyncio.watch", "urllib3", "dateutil", "six", "http.client", "requests", "opentelemetry",
    "handler_core.otlp", "pymilvus", "grpc", "google", "numpy", "pandas", "handler_core.vectors", "handler_core.rag",
    "handler_core.contract.chat", "handler_core.contract.voice", "handler_core.contract.stt",
    "handler_core.contract.tts", "handler_core.clients.llm", "aiohttp.web", "aiohttp.cookiejar", "multiprocessing",
    "stamina", "tenacity", "nkeys", "nacl", "pydantic.networks", "pydantic_settings.sources.providers.cli", "argparse",
    "pickle", "zipfile", "email.policy", "sysconfig", "compression.zstd", "tarfile", "typer", "unittest", "xml",
]  # fmt: skip
FINAL = {status for status in RunStatus if status.final}

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="session")
def image(image_of: Callable[[str], str]) -> str:
    return image_of("pipeline_bridge")


@pytest.fixture
async def cluster() -> AsyncIterator[RunningCluster]:
    """A cluster whose runs move only by hand."""
    async with running(tls=True, tokens=[TOKEN], hold=True) as cluster:
        yield cluster


@pytest.fixture
async def nc(nats: NatsServer) -> AsyncIterator[Connection]:
    async with connection(nats.url) as nc:
        for name in ("AI_PIPELINE", "AI_PIPELINE_STATUS"):
            await Api(nc).request(f"STREAM.PURGE.{name}")
        yield nc


Start = Callable[..., AbstractContextManager[Container]]


@pytest.fixture
def start(engine: Engine, image: str, nats: NatsServer, cluster: RunningCluster, tmp_path: Path) -> Start:
    """Starts a container as a pod of the cluster; by code of one's own, if there are arguments."""
    tmp_path.chmod(0o755)
    (tmp_path / "pipelines.yaml").write_text(CATALOGUE)
    cluster.service_account(tmp_path / "account")
    mounted = ("--volume", f"{tmp_path}:/etc/pipelines:ro")
    environment = {
        "NATS_URL": nats.url, "HEALTH_HOST": "127.0.0.1", "SERVICE_ACCOUNT_DIR": "/etc/pipelines/account",
        **cluster.in_cluster,
    }  # fmt: skip

    def begin(port: int, *arguments: str, **variables: str) -> AbstractContextManager[Container]:
        options = (*mounted, *(PYTHON if arguments else ()))
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        given = {**environment, "HEALTH_PORT": str(port), **variables}
        return engine.running(image, given, *arguments, options=options, **pipes)

    return begin


async def ready(port: int) -> None:
    await answers(f"http://127.0.0.1:{port}/readyz")


async def trigger(nc: Connection) -> str:
    request = TriggerRequest(pipeline="ingest", request_id=uuid.uuid4().hex)
    await pipelines.trigger(Api(nc), request)
    return str(request.request_id)


async def told(nc: Connection, request_id: str, *states: RunStatus) -> list[PipelineStatus]:
    """The statuses up to the first of these states; up to the final one without any."""
    found = []
    async with aclosing(pipelines.statuses(nc, request_id)) as statuses, asyncio.timeout(60):
        async for status in statuses:
            found.append(status)
            if status.status in (states or FINAL):
                break
    return found


async def queued(nc: Connection) -> int:
    """Triggers that are not settled."""
    return int((await Api(nc).request("STREAM.INFO.AI_PIPELINE"))["state"]["messages"])


async def test_it_follows_a_run_to_its_success_and_ends_in_order(
    start: Start, nc: Connection, cluster: RunningCluster
) -> None:
    port = free_port()
    with start(port) as container:
        await ready(port)
        assert [each.name for each in (await pipelines.catalogue(nc)).pipelines] == ["ingest"]
        request_id = await trigger(nc)
        submitted = await told(nc, request_id, RunStatus.SUBMITTED)
        for phase in ("Pending", "Running", "Succeeded"):
            cluster.workflows.advance(submitted[-1].run_id, phase)
            statuses = await told(nc, request_id, RunStatus(phase.lower()))
        user = container.user
        code, out, logged = await container.ended()
    assert [status.status for status in statuses] == ["submitted", "pending", "running", "succeeded"]
    assert await queued(nc) == 0
    assert user != "0"
    assert (code, out) == (0, "")
    lines = [json.loads(line) for line in logged.splitlines()]
    assert lines[-1]["event"] == "service_stopped"
    assert {line["level"] for line in lines} == {"info"}
    assert TOKEN not in logged


async def test_stopped_it_hands_its_run_to_the_next_one_which_starts_no_other(
    start: Start, nc: Connection, cluster: RunningCluster
) -> None:
    port = free_port()
    with start(port) as container:
        await ready(port)
        request_id = await trigger(nc)
        name = (await told(nc, request_id, RunStatus.SUBMITTED))[-1].run_id
        cluster.workflows.advance(name, "Running")
        await told(nc, request_id, RunStatus.RUNNING)
        code, _, logged = await container.ended()
    assert code == 0, logged
    assert await queued(nc) == 1
    cluster.workflows.advance(name, "Succeeded")
    with start(port):
        statuses = await told(nc, request_id)
        await until(lambda: _settled(nc), "the trigger is settled")
    assert [status.status for status in statuses] == ["submitted", "running", "succeeded"]
    assert [workflow["metadata"]["name"] for workflow in cluster.store.objects(WORKFLOWS)] == [name]


async def _settled(nc: Connection) -> bool:
    return await queued(nc) == 0


async def test_a_certificate_of_another_authority_is_not_trusted(
    start: Start, nc: Connection, cluster: RunningCluster, tmp_path: Path
) -> None:
    async with running(tls=True) as other:
        other.service_account(tmp_path / "account", token=TOKEN)
    port = free_port()
    with start(port) as container:
        await ready(port)
        request_id = await trigger(nc)
        line = await asyncio.wait_for(asyncio.to_thread(_first, container, "submit_failed"), 60)
        await container.ended()
    assert "certificate" in line
    assert await pipelines.latest(Api(nc), request_id) is None
    assert cluster.store.objects(WORKFLOWS) == []


def _first(container: Container, event: str) -> str:
    """The first line of the log that tells of an event."""
    assert container.process.stderr is not None
    return next(line for line in container.process.stderr if f'"{event}"' in line)


async def test_ready_it_has_loaded_nothing_that_it_does_not_need(start: Start) -> None:
    port = free_port()
    with start(port, "-c", probe("pipeline_bridge")) as container:
        await ready(port)
        _, out, _ = await container.ended()
    assert offenders(out, NEVER) == []


async def test_with_a_collector_named_it_exports(start: Start) -> None:
    port = free_port()
    with start(port, "-c", probe("pipeline_bridge"), OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9") as container:
        await ready(port)
        code, out, _ = await container.ended()
    assert code == 0
    assert offenders(out, ["opentelemetry.exporter"])


async def test_every_module_in_it_can_be_imported_but_those_of_uses_it_does_not_have(
    engine: Engine, image: str
) -> None:
    code = importing("handler_core", "pipeline_bridge", without=["handler_core.vectors.searcher"])
    code += "from pipeline_bridge import slim; kubernetes_config = slim.loaders()\n"
    code += importing("kubernetes_asyncio.config")
    assert await engine.run(image, code) == (0, "", "")


async def test_it_has_no_shell_and_no_package_manager(engine: Engine, image: str) -> None:
    code = f"import shutil; print([name for name in {NOBODY_NEEDS} if shutil.which(name)])"
    assert await engine.run(image, code) == (0, "[]\n", "")
