"""From a delivered request to a coherent answer: what stands between the consumer and a family's handler."""

import asyncio
from typing import Generic, TypeVar

from handler_core import tracing
from handler_core.answer import AlreadyAnswered, Answer
from handler_core.cancel import Cancellations
from handler_core.codec import unpack
from handler_core.connection import Connection
from handler_core.context import Context
from handler_core.contract.answer import Family, Response
from handler_core.contract.base import Request
from handler_core.contract.errors import ErrorType
from handler_core.delivery import Delivery
from handler_core.errors import Abandoned, HandlerError, Refused, from_info
from handler_core.fairness import RETRY_AFTER, RETRY_MAX, SPARED, Fairness
from handler_core.generation import Generation, complete, failed, named
from handler_core.limits import Limits

Q = TypeVar("Q", bound=Request)
R = TypeVar("R", bound=Response)
C = TypeVar("C")

_DONE_WITH = (ErrorType.DEADLINE_EXCEEDED, ErrorType.CANCELED, ErrorType.BUSY)
"""Errors that need no dead letter: nobody waits for the answer any more, or its sender was told to try later."""


class Turn(Generic[Q, R, C]):
    """Answers the requests of one family; `process` and `refuse` are what the consumer calls."""

    def __init__(
        self,
        nc: Connection,
        family: Family[R],
        generation: Generation[Q, R, C],
        limits: Limits,
        cancellations: Cancellations,
        fairness: Fairness,
    ) -> None:
        self._nc = nc
        self._family = family
        self._generation = generation
        self._limits = limits
        self._cancellations = cancellations
        self._fairness = fairness

    async def process(self, delivery: Delivery) -> None:
        """Answer one request; see `PullConsumer` for what returning and raising mean."""
        request, ctx = self._generation.begin(delivery, unpack(delivery.data))
        answer = self._answer(ctx, getattr(request, "enable_streaming", False), request.response_subject)
        try:
            await self._respond(request, ctx, answer)
        except AlreadyAnswered as before:
            ctx.log.info("already_answered", attempt=ctx.attempt)
            if before.error is not None and not (before.error.retryable or before.error.type in _DONE_WITH):
                raise from_info(before.error) from None  # answered, but perhaps not kept as a dead letter yet
        except Abandoned:
            if not await answer.answered():
                raise
            ctx.log.info("already_answered", attempt=ctx.attempt)
        finally:
            answer.end_span()

    async def refuse(self, delivery: Delivery, error: HandlerError) -> None:
        """Tell the caller of a message that will be dead-lettered, as far as it says who that is."""
        if error.answered:
            return
        try:
            body = unpack(delivery.data)
        except HandlerError:
            self._generation.context(delivery)
            return
        ctx = self._generation.context(delivery, named(body))
        streaming, copy_to = self._generation.streams(body), body.get("response_subject")
        try:
            answer = self._answer(ctx, streaming, copy_to if isinstance(copy_to, str) else None)
        except HandlerError:
            answer = self._answer(ctx, streaming, None)
        try:
            await self._fail(error, ctx, answer)
        except (AlreadyAnswered, Abandoned):
            ctx.log.info("already_answered", attempt=ctx.attempt)

    def _answer(self, ctx: Context[C], streaming: bool, copy_to: str | None) -> Answer[R]:
        return Answer(
            self._nc,
            self._family,
            ctx.request_id,
            attempt=ctx.attempt,
            streaming=streaming,
            copy_to=copy_to,
            source=ctx.message.identity,
            headers=ctx.trace_headers,
        )

    async def _respond(self, request: Q, ctx: Context[C], answer: Answer[R]) -> None:
        try:
            response = await self._generate(request, ctx, answer)
            await answer.finish(complete(response, ctx))
        except Abandoned:
            raise
        except HandlerError as error:
            if self._comes_back(error, ctx):
                raise
            ctx.log.warning("turn_failed", type=error.type.value, error=error.message, stage=error.stage)
            tracing.annotate({"error.type": error.type.value})
            await self._fail(error, ctx, answer)
            if error.type in _DONE_WITH or (error.retryable and self._too_late(ctx, error.retry_after)):
                return  # nobody waits for it any more
            error.retryable = False  # what is left is kept as a dead letter
            raise
        else:
            ctx.log.info("turn_answered", attempt=ctx.attempt, degraded=response.degraded, **ctx.timings.as_dict())

    async def _fail(self, error: HandlerError, ctx: Context[C], answer: Answer[R]) -> None:
        error.answered = True
        await answer.open()
        await answer.fail(failed(self._family.response, error, ctx))

    def _comes_back(self, error: HandlerError, ctx: Context[C]) -> bool:
        if not error.retryable or isinstance(error, Refused):
            return False
        return ctx.attempt < self._limits.max_deliveries and not self._too_late(ctx, error.retry_after)

    def _too_late(self, ctx: Context[C], retry_after: float | None) -> bool:
        """Whether the deadline will have passed before another attempt."""
        return ctx.deadline.remaining() < self._limits.soonest_retry(ctx.attempt, retry_after)

    async def _generate(self, request: Q, ctx: Context[C], answer: Answer[R]) -> R:
        """Run the handler, streaming its text, until its end, its deadline or its cancellation."""
        ctx.deadline.timeout(at_most=1)  # raises if the wait in the stream has used it up
        may_wait = ctx.attempt <= self._limits.max_deliveries - SPARED and not self._too_late(ctx, RETRY_AFTER)
        wait = RETRY_MAX + 1 if may_wait else None
        try:
            with self._fairness.turn(request.user_id, self._limits.max_per_user, ctx.message.identity, wait):
                async with self._cancellations.limited(ctx.request_id, ctx.deadline):
                    await answer.open()
                    ctx.earlier = answer.earlier
                    async with asyncio.TaskGroup() as tasks:
                        tasks.create_task(answer.pump())
                        response = await self._generation.run(request, ctx, answer.write)
                        answer.close()
                    return response
        except BaseExceptionGroup as group:
            # The handler's failure or the pump's: whichever came first has cancelled the other.
            raise group.exceptions[0] from None
