"""What surrounds the pipeline bridge: NATS, an emulated cluster, a catalogue, and a caller."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from handler_core import pipelines, streams
from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.contract.control import CancelRequest
from handler_core.contract.pipeline import PipelineStatus, TriggerRequest
from handler_core.jetstream import Api, Stored
from handler_core.testing import NatsServer, connection, nats_server, stored, until
from local_cluster.store import WORKFLOWS
from local_cluster.testing import RunningCluster, running
from pipeline_bridge.service import Settings


@pytest.fixture(scope="session")
def nats() -> Iterator[NatsServer]:
    with nats_server() as server:
        yield server


@pytest.fixture
async def nc(nats: NatsServer) -> AsyncIterator[Connection]:
    """A connection to a server on which everything is declared and nothing is queued."""
    async with connection(nats.url) as nc:
        await streams.apply(Api(nc))
        for name in ("AI_PIPELINE", "AI_PIPELINE_STATUS", "AI_CONTROL", "DLQ"):
            await Api(nc).request(f"STREAM.PURGE.{name}")
        yield nc


CATALOGUE = """
pipelines:
  ingest:
    engine: argo
    template: document-ingestion
    namespace: pipelines
    description: Reads documents.
    parameters:
      source: {type: string, required: true, maxLength: 64}
      chunk_size: {type: integer, default: 512, minimum: 64}
  short:
    engine: argo
    template: batch-inference
    timeout: 1
  train:
    engine: rayjob
    template: train.yaml
    parameters:
      epochs: {type: integer, default: 3}
  ask:
    engine: kubeflow
    pipeline: rag-query
    parameters:
      question: {type: string, required: true}
  private:
    engine: argo
    template: model-evaluation
    users: [alice]
"""
RAYJOB = """
apiVersion: ray.io/v1
kind: RayJob
spec:
  entrypoint: python train.py
  rayClusterSpec:
    headGroupSpec:
      rayStartParams: {}
      template: {spec: {containers: [{name: head, image: ray}]}}
    workerGroupSpecs:
      - groupName: workers
        rayStartParams: {}
        template: {spec: {containers: [{name: worker, image: ray}]}}
"""


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    """A catalogue of a folder of its own."""
    (tmp_path / "train.yaml").write_text(RAYJOB)
    path = tmp_path / "pipelines.yaml"
    path.write_text(CATALOGUE)
    return path


@pytest.fixture
async def cluster() -> AsyncIterator[RunningCluster]:
    """A cluster whose runs move only by hand."""
    async with running(hold=True) as cluster:
        yield cluster


SettingsFor = Callable[..., Settings]


@pytest.fixture
def settings(nats: NatsServer, cluster: RunningCluster, catalogue: Path, tmp_path: Path) -> SettingsFor:
    """Settings of a bridge of its own, changed as the arguments say."""
    kubeconfig = cluster.kubeconfig(tmp_path / "kubeconfig")

    def make(**changes: Any) -> Settings:
        own = {"nats_url": nats.url, "health_host": "127.0.0.1", "health_port": 0, "pipelines_file": catalogue}
        there = {"kubeconfig": kubeconfig, "kubeflow_host": cluster.url, "kubeflow_poll_interval": 0.05}
        return Settings(**{**own, **there, **changes})

    return make


class Caller:
    """Triggers runs and reads what is told of them."""

    def __init__(self, nc: Connection) -> None:
        self.nc = nc

    async def trigger(self, pipeline: str, user: str | None = None, **fields: Any) -> str:
        """Queue a trigger with the parameters named as fields, unless `request_id` and the like; returns its id."""
        known = {name: fields.pop(name) for name in list(fields) if name in TriggerRequest.model_fields}
        request = TriggerRequest(**{"request_id": uuid.uuid4().hex, **known}, pipeline=pipeline, parameters=fields)
        await pipelines.trigger(Api(self.nc), request, user)
        return str(request.request_id)

    async def cancel(self, request_id: str, reason: str = "") -> None:
        await Api(self.nc).publish(f"ai.turn.cancel.{request_id}", encode(CancelRequest(reason=reason)), {})

    async def statuses(self, request_id: str) -> list[PipelineStatus]:
        """What is stored by now."""
        found = await stored(self.nc, "AI_PIPELINE_STATUS", f"evt.pipeline.status.{request_id}")
        return [decode(each.data, PipelineStatus) for each in found]

    async def until(self, request_id: str, *states: str) -> list[PipelineStatus]:
        """What is told up to the first of these states; up to the end without any."""
        told = []
        async with aclosing(pipelines.statuses(self.nc, request_id)) as statuses, asyncio.timeout(20):
            async for status in statuses:
                told.append(status)
                if status.status in states:
                    break
        return told

    async def settled(self) -> None:
        """Wait until no trigger is left in the queue."""

        async def empty() -> bool:
            return int((await Api(self.nc).request("STREAM.INFO.AI_PIPELINE"))["state"]["messages"]) == 0

        await until(empty, "every trigger is settled")

    async def letters(self) -> list[Stored]:
        """The dead letters."""
        return await stored(self.nc, "DLQ", "dlq.>")


@pytest.fixture
def caller(nc: Connection) -> Caller:
    return Caller(nc)


def states(told: list[PipelineStatus]) -> list[str]:
    return [status.status.value for status in told]


def stopped(cluster: RunningCluster, namespace: str, name: str) -> bool:
    """Whether there is this workflow, and it was told to stop."""
    found = [each for each in cluster.store.objects(WORKFLOWS) if each["metadata"]["name"] == name]
    return any(each["metadata"]["namespace"] == namespace and each["spec"].get("shutdown") for each in found)
