"""The cluster as a whole: as a process, and as tests hold it in their hands."""

import asyncio
import json
import os
import signal
import socket
import ssl
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
import yaml

from local_cluster.store import RAY_JOBS, WORKFLOW_TEMPLATES, WORKFLOWS
from local_cluster.testing import RunningCluster, running

PATH = "/apis/argoproj.io/v1alpha1/namespaces/argo/workflows"


def workflow(name: str, **spec: Any) -> dict[str, Any]:
    spec = {"workflowTemplateRef": {"name": "document-ingestion"}, **spec}
    return {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": {"name": name}, "spec": spec}


@asynccontextmanager
async def process(*arguments: str, **environment: str) -> AsyncIterator[Process]:
    env = {**os.environ, "PORT": "0", "LOG_FORMAT": "json", **environment}
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "local_cluster", *arguments, stdout=PIPE, stderr=PIPE, env=env
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_says_where_it_serves_runs_runs_and_stops_when_told_with_watches_open(
    number: signal.Signals, tmp_path: Path
) -> None:
    config = tmp_path / "kubeconfig"
    quick = {"PENDING_SECONDS": "0", "RUNNING_SECONDS": "0", "TOKENS": "secret, other"}
    known = {"Authorization": "Bearer secret"}
    async with (
        process("--write-kubeconfig", str(config), **quick) as started,
        aiohttp.ClientSession(headers=known) as session,
    ):
        assert started.stderr is not None
        line = json.loads(await started.stderr.readline())
        assert line["kubeconfig"] == str(config)
        written, url = yaml.safe_load(config.read_text()), line["url"]
        assert written["clusters"][0]["cluster"] == {"server": url}
        assert written["users"][0]["user"] == {"token": "secret"}
        async with aiohttp.request("GET", url + PATH) as response:
            assert response.status == 401
        async with session.get(url + PATH, params={"watch": "true"}) as watch:
            async with session.post(url + PATH, json=workflow("run")) as response:
                assert response.status == 201
            phases = []
            while phases[-1:] != ["Succeeded"]:
                phases.append(json.loads(await watch.content.readline())["object"].get("status", {}).get("phase"))
            assert phases == [None, "Pending", "Running", "Succeeded"]
            started.send_signal(number)
            assert await started.wait() == 0
        assert await started.stderr.read() == b""


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"PORT": "many"}, "setting PORT: Input should be a valid integer"),
        ({"RUNNING_SECONDS": "-1"}, "setting RUNNING_SECONDS: Input should be greater than or equal to 0"),
    ],
)
async def test_a_wrong_setting_ends_it_with_one_line(environment: dict[str, str], line: str) -> None:
    async with process(**environment) as started:
        out, err = await started.communicate()
    assert (started.returncode, out) == (2, b"")
    assert err.decode().startswith(f"local_cluster: {line}")
    assert err.count(b"\n") == 1


async def test_a_taken_port_ends_it_with_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with process(PORT=str(port)) as started:
            _, err = await started.communicate()
    assert started.returncode == 1
    assert err.decode().startswith(f"local_cluster: cannot listen on 127.0.0.1:{port}: ")
    assert err.count(b"\n") == 1


async def test_it_writes_over_no_kubeconfig_but_its_own(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("kind: Config\n")
    async with process("--write-kubeconfig", str(config)) as started:
        _, err = await started.communicate()
    assert (started.returncode, config.read_text()) == (1, "kind: Config\n")
    assert err.decode().startswith(f"local_cluster: --write-kubeconfig: {config} is there")


async def test_a_kubeconfig_that_cannot_be_written_ends_it_with_one_line(tmp_path: Path) -> None:
    config = tmp_path / "nowhere" / "config"
    async with process("--write-kubeconfig", str(config)) as started:
        _, err = await started.communicate()
    assert started.returncode == 1
    assert err.decode() == f"local_cluster: cannot write {config}: No such file or directory\n"


async def test_print_config_shows_what_is_in_force() -> None:
    async with process("--print-config", RUNNING_SECONDS="9", TOKENS="secret") as started:
        out, _ = await started.communicate()
    assert started.returncode == 0
    assert b"secret" not in out
    assert {"HOST=127.0.0.1", "RUNNING_SECONDS=9.0", "KUBEFLOW_VERSIONS=1,2"} <= set(out.decode().splitlines())


async def test_it_begins_with_the_templates_and_pipelines_that_it_is_told() -> None:
    async with running(workflow_templates="a, b", argo_namespace="ns", kubeflow_pipelines="c") as cluster:
        templates = cluster.store.objects(WORKFLOW_TEMPLATES, "ns")
        assert [template["metadata"]["name"] for template in templates] == ["a", "b"]
        assert [pipeline["name"] for pipeline in cluster.kubeflow.pipelines.values()] == ["c"]
    async with running() as cluster:
        templates = cluster.store.objects(WORKFLOW_TEMPLATES, "argo")
        names = {template["metadata"]["name"] for template in templates}
        assert names == {"document-ingestion", "batch-inference", "model-evaluation"}
        assert cluster.kubeflow.version_id("voice-pipeline", "2")


async def test_a_restart_cuts_every_connection_and_keeps_the_port_and_what_is_stored() -> None:
    async with running(hold=True) as cluster, aiohttp.ClientSession(cluster.url) as session:
        cluster.store.create(WORKFLOWS, "argo", workflow("kept"))
        run = cluster.kubeflow.create(
            {
                "display_name": "kept",
                "pipeline_version_reference": {"pipeline_id": cluster.kubeflow.pipeline_id("rag-query")},
            }
        )
        version = str(cluster.store.version)
        async with session.get(PATH, params={"watch": "true", "resourceVersion": version}) as watch:
            await cluster.restart()
            with suppress(aiohttp.ClientError):  # the stream may end as it should, or be cut
                assert await watch.content.read() == b""
        async with session.get(f"{PATH}/kept") as response:
            assert response.status == 200
        async with session.get(f"/apis/v2beta1/runs/{run['run_id']}") as response:
            assert (await response.json()) == run


async def test_while_it_is_stopped_it_refuses_connections_and_time_goes_on() -> None:
    async with running() as cluster, aiohttp.ClientSession(cluster.url) as session:
        await cluster.stop()
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(PATH)
        cluster.store.create(WORKFLOWS, "argo", workflow("meanwhile"))
        await cluster.workflows.until("meanwhile", "Succeeded")
        await cluster.start()
        async with session.get(f"{PATH}/meanwhile") as response:
            assert (await response.json())["status"]["phase"] == "Succeeded"


async def test_with_tls_only_its_own_authority_vouches_for_it(tmp_path: Path) -> None:
    async with running(tls=True) as cluster:
        trusting = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=cluster.ca_file))
        async with aiohttp.ClientSession(cluster.url, connector=trusting) as session:
            async with session.get(PATH) as response:
                assert response.status == 200
            await cluster.restart()
            async with session.get(PATH) as response:
                assert response.status == 200
        async with aiohttp.ClientSession(cluster.url) as session:
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await session.get(PATH)


async def test_the_kubernetes_client_finds_it_by_kubeconfig_and_by_service_account(
    tmp_path: Path,
) -> None:
    from kubernetes_asyncio import config
    from kubernetes_asyncio.config.incluster_config import InClusterConfigLoader

    def nothing() -> Any:
        """What they fill in; not the client's own class, which a bridge that was tested before has left out."""
        return SimpleNamespace(api_key={})

    async def status(configuration: Any) -> int:
        trusting = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=configuration.ssl_ca_cert))
        headers = {"Authorization": configuration.api_key["BearerToken"]}
        async with (
            aiohttp.ClientSession(connector=trusting, headers=headers) as session,
            session.get(configuration.host + PATH) as response,
        ):
            return response.status

    async with running(tls=True, tokens=["secret"]) as cluster:
        for token, expected in ((None, 200), ("wrong", 401)):
            path = cluster.kubeconfig(tmp_path / "config", token)
            by_file = nothing()
            await config.load_kube_config(str(path), client_configuration=by_file)
            assert await status(by_file) == expected

        account = cluster.service_account(tmp_path / "account", "argo")
        assert (account / "namespace").read_text() == "argo"
        loader = InClusterConfigLoader(str(account / "token"), str(account / "ca.crt"), environ=cluster.in_cluster)
        by_account = nothing()
        loader.load_and_set(by_account)
        assert await status(by_account) == 200


async def test_a_service_account_wants_tls(tmp_path: Path) -> None:
    async with running() as cluster:
        with pytest.raises(RuntimeError, match="tls=True"):
            cluster.service_account(tmp_path)


async def call(session: aiohttp.ClientSession, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    async with session.post(f"/control/{path}", json=body) as response:
        return response.status, await response.json()


async def test_runs_are_held_advanced_and_released_over_http() -> None:
    async with running() as cluster, aiohttp.ClientSession(cluster.url) as session:
        assert await call(session, "hold") == (200, {})
        cluster.store.create(WORKFLOWS, "argo", workflow("run"))
        assert await call(session, "advance", {"engine": "argo", "name": "run", "phase": "Running"}) == (200, {})
        assert (await cluster.workflows.until("run"))["status"]["phase"] == "Running"
        assert await call(session, "release", {"engine": "argo", "name": "run"}) == (200, {})
        await cluster.workflows.until("run", "Succeeded")
        assert held(cluster) == [True, True, True]
        assert await call(session, "release", {"engine": "rayjob"}) == (200, {})
        assert held(cluster) == [True, False, True]


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("advance", {"engine": "argo", "name": "no", "phase": "Running"}, 404, "there is no run 'no'"),
        ("advance", {"engine": "rayjob", "name": "job", "phase": "Done"}, 400, "'Done' is no jobDeploymentStatus"),
        ("advance", {"engine": "nomad", "name": "no", "phase": "Running"}, 400, "engine: Input should be"),
        ("hold", {"nmae": "no"}, 400, "nmae: Extra inputs are not permitted"),
    ],
)
async def test_steering_that_makes_no_sense_is_refused(
    path: str, body: dict[str, Any], status: int, message: str
) -> None:
    async with running(hold=True) as cluster, aiohttp.ClientSession(cluster.url) as session:
        job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "job"}, "spec": {}}
        cluster.store.create(RAY_JOBS, "ray", job)
        answered, answer = await call(session, path, body)
        assert answered == status
        assert answer["error"].startswith(message)


def held(cluster: RunningCluster) -> list[bool]:
    return [engine._held("any") for engine in (cluster.workflows, cluster.rayjobs, cluster.kubeflow)]
