"""From a delivered request to its end in the log, and to what becomes of its message."""

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from handler_core import tracing
from handler_core.answer import AlreadyAnswered
from handler_core.codec import unpack, validate
from handler_core.context import Context
from handler_core.contract.base import is_token
from handler_core.contract.errors import ErrorType
from handler_core.contract.tts import SpeakRequest
from handler_core.delivery import Delivery
from handler_core.errors import Abandoned, HandlerError, Internal, InvalidRequest, from_info
from handler_core.generation import context_of, named
from handler_core.limits import Limits
from handler_core.runtime import Runtime
from tts_module.speech import Speech

C = TypeVar("C")

ATTEMPTS: Final = 10
"""Deliveries in which a request may be spoken; one more tells its caller that it was given up."""

_DONE_WITH = (ErrorType.DEADLINE_EXCEEDED, ErrorType.CANCELED)
"""Errors that need no dead letter: nobody waits for the speech any more."""

Say = Callable[[SpeakRequest, Context[C], Speech], Awaitable[None]]
"""Speaks a request from where earlier attempts have left it to its end."""


class Requests:
    """The requests of `ai.voice.tts.request.{session}`."""

    def __init__(self, runtime: Runtime, limits: Limits, chunk_bytes: int) -> None:
        self._nc = runtime.nc
        self._cancellations = runtime.cancellations
        self._limits = limits
        self._chunk_bytes = chunk_bytes

    async def process(self, delivery: Delivery, clients: C, say: Say[C]) -> None:
        """Have one request spoken; see `PullConsumer` for what returning and raising mean."""
        session = delivery.subject.rpartition(".")[2]
        if not is_token(session):
            raise InvalidRequest("session: has to be 1 to 64 letters, digits, _ or -", stage="decode")
        body: dict[str, Any] = {}
        try:
            body = unpack(delivery.data)
            request = validate(body, SpeakRequest)
        except HandlerError as error:
            ctx = context_of(self._nc, clients, delivery, named(body))
            await self._settle(error, ctx, Speech(self._nc, ctx, session, self._chunk_bytes))
            return
        ctx = context_of(self._nc, clients, delivery, request.request_id, request.deadline_ms)
        speech = Speech(self._nc, ctx, session, self._chunk_bytes, request)
        try:
            await self._speak(request, ctx, speech, say)
        except Abandoned:
            raise
        except HandlerError as error:
            await self._settle(error, ctx, speech)
        except AlreadyAnswered as before:
            _raise_again(before, ctx)
        else:
            position = speech.position
            ctx.log.info("speech_completed", attempt=ctx.attempt, chunks=position.chunks, **ctx.timings.as_dict())
        finally:
            speech.close()

    async def _speak(self, request: SpeakRequest, ctx: Context[C], speech: Speech, say: Say[C]) -> None:
        """Speak until the end, the deadline or the cancellation."""
        if ctx.attempt > ATTEMPTS:
            raise Internal(f"given up after {ATTEMPTS} deliveries", stage="max_deliveries")
        ctx.deadline.timeout(at_most=1)  # raises if the wait in the stream has used it up
        async with self._cancellations.limited(ctx.request_id, ctx.deadline):
            await speech.open()
            await say(request, ctx, speech)

    async def _settle(self, error: HandlerError, ctx: Context[Any], speech: Speech) -> None:
        """Have the message come back, or tell the caller of its failure and bury what may be looked into."""
        too_late = ctx.deadline.remaining() < self._limits.soonest_retry(ctx.attempt, error.retry_after)
        if error.retryable and ctx.attempt < ATTEMPTS and not too_late:
            raise error
        ctx.log.warning("speech_failed", type=error.type.value, error=error.message, stage=error.stage)
        tracing.annotate({"error.type": error.type.value})
        try:
            await speech.fail(error)
        except AlreadyAnswered as before:
            _raise_again(before, ctx)
            return
        if error.type in _DONE_WITH or (error.retryable and too_late):
            return
        error.retryable = False  # what is left is kept as a dead letter
        raise error


def _raise_again(before: AlreadyAnswered, ctx: Context[Any]) -> None:
    """Bury what has failed before, for it may not be kept as a dead letter yet."""
    ctx.log.info("already_answered", attempt=ctx.attempt)
    if before.error is not None and not (before.error.retryable or before.error.type in _DONE_WITH):
        raise from_info(before.error)
