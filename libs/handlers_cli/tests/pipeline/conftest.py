"""A stand-in for pipeline_bridge that needs no cluster: it has a catalogue, and tells statuses as scripted."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from handler_core import streams
from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.contract.control import CancelRequest
from handler_core.contract.errors import ErrorInfo, ErrorType
from handler_core.contract.pipeline import (
    LIST_SUBJECT,
    STORED_STATUS_SUBJECT,
    USER_LIST_SUBJECT,
    ParameterInfo,
    PipelineInfo,
    PipelinesRequest,
    PipelinesResponse,
    PipelineStatus,
    RunStatus,
    TriggerRequest,
)
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, connection

INGESTION = PipelineInfo(
    name="document-ingestion",
    description="Read documents and store them in a collection.",
    engine="argo",
    namespace="pipelines",
    timeout=7200,
    parameters=[
        ParameterInfo(
            name="source",
            type="string",
            required=True,
            description="Where they are.",
            pattern="^s3://",
            max_length=1024,
        ),
        ParameterInfo(name="chunk_size", type="integer", default=512, minimum=64, maximum=4096),
        ParameterInfo(name="overlap", type="number", minimum=0),
        ParameterInfo(name="dry_run", type="boolean", default=False),
        ParameterInfo(name="tags", type="array", min_length=1, max_length=8),
        ParameterInfo(name="options", type="object"),
        ParameterInfo(name="language", type="string", enum=["en", "de"], default="en"),
    ],
)
QUERY = PipelineInfo(name="rag-query", engine="kubeflow", timeout=90)
RUN_ID = "document-ingestion-abc"
GOOD = ("submitted", "pending", "running", "succeeded")


def error(type: ErrorType, message: str) -> ErrorInfo:
    return ErrorInfo(type=type, message=message, retryable=False, stage="run")


@dataclass
class FakeBridge:
    """Ends each run as `script` says; `hold` keeps it from going on after the first status."""

    nc: Connection
    catalogue: PipelinesResponse = field(default_factory=lambda: PipelinesResponse(pipelines=[INGESTION, QUERY]))
    script: tuple[str | dict[str, Any], ...] = GOOD
    hold: bool = False
    silent: bool = False
    """Takes triggers and never tells anything."""
    obedient: bool = True
    """Stops a run that is canceled."""
    seen: list[TriggerRequest] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)
    asked: list[PipelinesRequest] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    told: dict[str, int] = field(default_factory=dict)

    async def take(self, message: Any) -> None:
        request = decode(message.data, TriggerRequest)
        self.seen.append(request)
        self.subjects.append(message.subject)
        if not self.silent:
            await self.tell(request.request_id or "", *(self.script[:1] if self.hold else self.script))
        self.arrived.set()

    async def list(self, message: Any) -> None:
        self.asked.append(decode(message.data, PipelinesRequest))
        await self.nc.publish(message.reply, encode(self.catalogue))

    async def cancel(self, message: Any) -> None:
        request_id = message.subject.rpartition(".")[2]
        if self.obedient and request_id in self.told:
            reason = decode(message.data, CancelRequest).reason
            why = error(ErrorType.CANCELED, f"canceled: {reason}" if reason else "canceled")
            await self.tell(request_id, {"status": "canceled", "message": why.message, "error": why})

    async def tell(self, request_id: str, *states: str | dict[str, Any]) -> None:
        """Store statuses; after a final one, the trigger leaves its queue."""
        for state in states:
            fields = dict(state) if isinstance(state, dict) else {"status": state}
            seq = self.told[request_id] = self.told.get(request_id, 0) + 1
            made = {
                "request_id": request_id,
                "seq": seq,
                "pipeline": "document-ingestion",
                "engine": "argo",
                "namespace": "pipelines",
                "run_id": RUN_ID,
                "raw_status": "" if fields["status"] == "submitted" else fields["status"].capitalize(),
                "timestamp": time.time(),
                "timings": {"queue_ms": 12.0, "submit_ms": 300.0, "total_ms": 1000.0 * seq},
            }
            status = PipelineStatus(**{**made, **fields})
            await Api(self.nc).publish(STORED_STATUS_SUBJECT.format(request_id=request_id), encode(status), {})
            if RunStatus(fields["status"]).final:
                await Api(self.nc).request("STREAM.PURGE.AI_PIPELINE")


@pytest.fixture
async def nc(nc: Connection) -> Connection:
    """A connection to a server whose streams know nothing of a request id that another test used."""
    await Api(nc).request("STREAM.DELETE.AI_PIPELINE")
    await streams.apply(Api(nc))
    return nc


@pytest.fixture
async def bridge(nats: NatsServer, nc: Connection) -> AsyncIterator[FakeBridge]:
    """A bridge on a connection of its own."""
    async with connection(nats.url) as own:
        fake = FakeBridge(own)
        for subject in streams.AI_PIPELINE.subjects:
            await own.subscribe(subject, cb=fake.take)
        for subject in (LIST_SUBJECT, USER_LIST_SUBJECT.format(user="*")):
            await own.subscribe(subject, cb=fake.list)
        await own.subscribe("ai.turn.cancel.*", cb=fake.cancel)
        assert await own.responds(5)
        yield fake
