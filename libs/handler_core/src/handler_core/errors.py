"""The exceptions that handlers and clients raise, and how each is settled.

A `HandlerError` carries what the wire's `error` field says. One that is `retryable` makes the message come back
after a delay; any other is final: it is answered, and the message is not tried again. An exception that is no
`HandlerError` is a bug on our side: logged with its traceback and retried as `internal`.
"""

import math

from handler_core.contract.errors import ErrorInfo, ErrorType


class HandlerError(Exception):
    """A failure with a place in the wire contract.

    Args:
        message: for the caller; never holds a secret or a traceback.
        stage: where in the turn it happened; filled in by `Timings.stage` when absent.
        retryable: overrides the class's default.
        retry_after: seconds that an upstream asked to wait (Retry-After).
    """

    type = ErrorType.INTERNAL
    default_retryable = False

    def __init__(
        self,
        message: str,
        *,
        stage: str | None = None,
        retryable: bool | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.stage = stage
        self.retryable = self.default_retryable if retryable is None else retryable
        self.retry_after = retry_after
        self.answered = False
        """Whether the caller has been told already."""

    def info(self) -> ErrorInfo:
        """This error as the wire's `error` field."""
        return ErrorInfo(
            type=self.type,
            message=self.message,
            retryable=self.retryable,
            retry_after_ms=None if self.retry_after is None else math.ceil(self.retry_after * 1000),
            stage=self.stage,
        )


def from_info(info: ErrorInfo) -> HandlerError:
    """The exception for an error that was answered before."""
    error = HandlerError(info.message, stage=info.stage, retryable=info.retryable)
    error.type = info.type
    error.answered = True
    return error


class InvalidRequest(HandlerError):
    """The request is malformed; the message names the field."""

    type = ErrorType.VALIDATION_ERROR


class DeadlineExceeded(HandlerError):
    """The time in which the answer was of use is over."""

    type = ErrorType.DEADLINE_EXCEEDED


class Canceled(HandlerError):
    """The user took the request back."""

    type = ErrorType.CANCELED


class NotFound(HandlerError):
    """A thing the request names does not exist."""

    type = ErrorType.NOT_FOUND


class DownstreamUnavailable(HandlerError):
    """An upstream failed. Not retryable when it refused the request itself (400, 401, 404, 422, …)."""

    type = ErrorType.DOWNSTREAM_UNAVAILABLE
    default_retryable = True


class Busy(HandlerError):
    """No room at the moment; `retry_after` says for how long, about."""

    type = ErrorType.BUSY
    default_retryable = True


class Refused(Busy):
    """No room, and no waiting for it in the queue: its sender is told, and may try again."""


class Transient(HandlerError):
    """Something passing on our side."""

    type = ErrorType.TRANSIENT
    default_retryable = True


class Internal(HandlerError):
    """A fault of ours that trying again will not mend."""


class Abandoned(HandlerError):
    """Another worker has taken the message over: stop, and settle nothing."""
