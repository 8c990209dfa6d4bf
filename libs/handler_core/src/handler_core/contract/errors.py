"""How a failure looks on the wire, in every family."""

from enum import StrEnum

from handler_core.contract.base import Message


class ErrorType(StrEnum):
    """What kind of failure it is; a client decides by this, never by the message."""

    VALIDATION_ERROR = "validation_error"
    """The request is malformed; the same request will fail again. The message names the field."""
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CANCELED = "canceled"
    NOT_FOUND = "not_found"
    DOWNSTREAM_UNAVAILABLE = "downstream_unavailable"
    """An upstream (LLM, embeddings, …) failed or cannot be reached."""
    BUSY = "busy"
    TRANSIENT = "transient"
    """Something passing on our side; the same request may succeed."""
    INTERNAL = "internal"


class ErrorInfo(Message):
    """The `error` field of a response or a stream event."""

    type: ErrorType
    message: str
    retryable: bool
    retry_after_ms: int | None = None
    """How long to wait before another try, where that is known; always with `busy`."""
    stage: str | None = None
    """Where in the turn it failed: `decode`, `embed`, `search`, `rerank`, `llm`, …"""
