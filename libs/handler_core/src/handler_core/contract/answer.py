"""Answers: the final response of a turn and the events that lead to it, the same in every family.

Workers write below `evt.`; the `AI_EVENTS` stream republishes what it accepts below `ai.`, which is what clients
read: `ai.{prefix}.{request_id}` for the response and `ai.{prefix}.stream.{request_id}` for the events. A republished
message carries `Nats-Sequence`, by which a client that lost its connection resumes from the stream.
"""

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from pydantic import Field

from handler_core.contract.base import Message
from handler_core.contract.errors import ErrorInfo


class Stage(Message):
    """One stage of a turn and when it began, for a waterfall."""

    name: str
    """As in `timings`, without `_ms`."""
    start_ms: float
    """From the message's arrival in its stream."""
    ms: float


class Response(Message):
    """The fields of every final response."""

    request_id: str = ""
    timings: dict[str, float] = Field(default_factory=dict)
    """Milliseconds by stage; `queue_ms` is the wait in the stream and `total_ms` everything."""
    stages: list[Stage] = Field(default_factory=list)
    """What `timings` adds up, in the order it ended."""
    trace_id: str = ""
    """The trace of this turn, 32 hexadecimal digits."""
    degraded: list[str] = Field(default_factory=list)
    """What the answer had to do without."""
    success: bool = True
    error: ErrorInfo | None = None


class StreamEvent(Message):
    """One event of a streamed answer.

    `seq` rises by one with each event, over all attempts. On `restart` a client discards the text it has: another
    attempt begins. A stream ends in exactly one `done` or `error`; the final response is stored before it.
    """

    request_id: str
    seq: int
    attempt: int = 1
    type: Literal["chunk", "restart", "done", "error"]
    content: str = ""
    done: bool = False
    error: ErrorInfo | None = None
    timestamp: float


R = TypeVar("R", bound=Response)


@dataclass(frozen=True)
class Family(Generic[R]):
    """Where a family's answers go, and what they look like."""

    prefix: str
    """Below `evt.` and `ai.`, such as `chat.response`."""
    response: type[R]
    event: type[StreamEvent] = StreamEvent
    """What its events look like."""
    stream: str = "AI_EVENTS"
    """The JetStream stream that keeps them."""

    def response_subject(self, request_id: str) -> str:
        """Where clients read the final response."""
        return f"ai.{self.prefix}.{request_id}"

    def stream_subject(self, request_id: str) -> str:
        """Where clients read the events."""
        return f"ai.{self.prefix}.stream.{request_id}"
