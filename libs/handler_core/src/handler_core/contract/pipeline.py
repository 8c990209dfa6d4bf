"""Pipelines: start a run on a cluster, follow it to its end, stop it.

A trigger goes to `ai.pipeline.trigger`, or to `ai.pipeline.user.{user}.trigger` where the subject vouches for the user;
each change of its run's state comes on `ai.pipeline.status.{request_id}` until one that is final. To stop the run,
`ai.turn.cancel.{request_id}`. What may be triggered is told on `ai.pipeline.list`, request/reply.
"""

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from handler_core.contract.answer import Response
from handler_core.contract.base import Message, Request
from handler_core.contract.errors import ErrorInfo

TRIGGER_SUBJECT = "ai.pipeline.trigger"
USER_TRIGGER_SUBJECT = "ai.pipeline.user.{user}.trigger"
STATUS_SUBJECT = "ai.pipeline.status.{request_id}"
STORED_STATUS_SUBJECT = "evt.pipeline.status.{request_id}"
"""Where a status is written, and stored; readers listen to `STATUS_SUBJECT`, as the stream republishes it."""
LIST_SUBJECT = "ai.pipeline.list"
USER_LIST_SUBJECT = "ai.pipeline.user.{user}.list"


class RunStatus(StrEnum):
    """The state of a run, the same whichever engine runs it."""

    SUBMITTED = "submitted"
    """The engine has taken the run."""
    PENDING = "pending"
    """It waits for room, for its cluster, or until it is resumed; before `submitted`, for its engine to take it."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """It ran and failed, or exceeded its time limit."""
    CANCELED = "canceled"
    ERROR = "error"
    """It never ran, as the trigger is wrong or the engine refuses it; or how it ended is unknown."""

    @property
    def final(self) -> bool:
        """Whether no other state follows."""
        return self in _FINAL


_FINAL = frozenset({RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELED, RunStatus.ERROR})


class TriggerRequest(Request):
    """A request for one run of a pipeline; `request_id` names the run, and there is never a second one of it.

    `deadline_ms` bounds the run from the trigger's arrival, besides the pipeline's own timeout.
    """

    pipeline: str = Field(min_length=1, max_length=128)
    """Its name in the catalogue."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """By name, as the catalogue declares them; those with a default may be left out."""


class PipelineStatus(Message):
    """The state of a run at one moment; a final one is the last, and there is exactly one."""

    request_id: str
    seq: int
    """Rises by one with each status of a run, from 1."""
    status: RunStatus
    pipeline: str = ""
    engine: str = ""
    """`argo`, `kubeflow` or `rayjob`."""
    namespace: str = ""
    run_id: str = ""
    """The engine's own name for the run: that of the Workflow or RayJob, or the id in Kubeflow."""
    raw_status: str = ""
    """The engine's own state, as it stands in its API."""
    message: str = ""
    """What the engine says of it."""
    available_pipelines: list[str] | None = None
    """What the user may trigger, where the name was unknown."""
    error: ErrorInfo | None = None
    """With `failed`, `canceled` and `error`."""
    stopping: ErrorInfo | None = None
    """Why the run was told to stop; the `error` that it ends with, unless it ends by itself first."""
    submitted_at: float | None = None
    """When the engine had the run."""
    timeout: float | None = None
    """Seconds from then after which it is stopped."""
    started_at: float | None = None
    """When the run was first seen running."""
    timings: dict[str, float] = Field(default_factory=dict)
    """Milliseconds: `queue_ms` in the stream, `submit_ms` until the engine had it, `pending_ms` until it ran, `run_ms`
    while it ran, `total_ms` from the trigger's arrival."""
    trace_id: str = ""
    timestamp: float


class ParameterInfo(Message):
    """One parameter as the catalogue declares it, in the words of JSON Schema."""

    name: str
    type: Literal["string", "integer", "number", "boolean", "array", "object"]
    description: str = ""
    required: bool = False
    default: Any = None
    enum: list[Any] | None = None
    minimum: float | None = None
    maximum: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    pattern: str | None = None


class PipelineInfo(Message):
    """One pipeline of the catalogue."""

    name: str
    description: str = ""
    engine: str
    namespace: str = ""
    timeout: float
    """Seconds."""
    parameters: list[ParameterInfo] = Field(default_factory=list)


class PipelinesRequest(Request):
    """Asks which pipelines the user may trigger."""


class PipelinesResponse(Response):
    """The catalogue, as far as the user may use it."""

    pipelines: list[PipelineInfo] = Field(default_factory=list)
    problem: str = ""
    """Why the catalogue's newest edit is not in force; empty when it is."""
