"""From a delivered request to a coherent answer: what stands between the consumer and a family's handler."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Generic, TypeVar, cast

from handler_core.answer import AlreadyAnswered, Answer
from handler_core.codec import unpack, validate
from handler_core.connection import Connection
from handler_core.context import Context
from handler_core.contract.answer import Family, Response
from handler_core.contract.base import Request
from handler_core.contract.errors import ErrorType
from handler_core.deadline import Deadline
from handler_core.delivery import Delivery
from handler_core.errors import Abandoned, DeadlineExceeded, HandlerError, Internal, from_info
from handler_core.limits import Limits
from handler_core.telemetry import current

Q = TypeVar("Q", bound=Request)
R = TypeVar("R", bound=Response)
C = TypeVar("C")

_DONE_WITH = (ErrorType.DEADLINE_EXCEEDED, ErrorType.CANCELED)
"""Errors that need no dead letter: nobody waits for the answer any more."""

TurnHandler = Callable[[Q, Context[C]], AsyncIterator[str | R] | Awaitable[R]]
"""An async generator that yields text as it comes and last the response, or a coroutine that returns the response."""


class Turn(Generic[Q, R, C]):
    """Answers the requests of one family; `process` and `refuse` are what the consumer calls."""

    def __init__(
        self,
        nc: Connection,
        clients: C,
        family: Family[R],
        request: type[Q],
        handler: TurnHandler[Q, C, R],
        limits: Limits,
    ) -> None:
        self._nc = nc
        self._clients = clients
        self._family = family
        self._request = request
        self._handler = handler
        self._limits = limits

    async def process(self, delivery: Delivery) -> None:
        """Answer one request; see `PullConsumer` for what returning and raising mean."""
        body = unpack(delivery.data)
        if (user := _user(delivery.subject)) is not None:
            body["user_id"] = user
        request = validate(body, self._request)
        ctx = self._context(delivery, request.request_id, request.deadline_ms)
        answer = self._answer(ctx, getattr(request, "enable_streaming", False), request.response_subject)
        try:
            await answer.open()
            await self._respond(request, ctx, answer)
        except AlreadyAnswered as before:
            ctx.log.info("already_answered", attempt=ctx.attempt)
            if before.error is not None and not (before.error.retryable or before.error.type in _DONE_WITH):
                raise from_info(before.error) from None  # answered, but perhaps not kept as a dead letter yet
        except Abandoned:
            if not await answer.answered():
                raise
            ctx.log.info("already_answered", attempt=ctx.attempt)

    async def refuse(self, delivery: Delivery, error: HandlerError) -> None:
        """Tell the caller of a message that will be dead-lettered, as far as it says who that is."""
        if error.answered:
            return
        try:
            body = unpack(delivery.data)
        except HandlerError:
            self._context(delivery)
            return
        ctx = self._context(delivery, _named(body))
        streaming, copy_to = body.get("enable_streaming") is True, body.get("response_subject")
        try:
            answer = self._answer(ctx, streaming, copy_to if isinstance(copy_to, str) else None)
        except HandlerError:
            answer = self._answer(ctx, streaming, None)
        try:
            await answer.open()
            await answer.fail(error, ctx.timings.as_dict())
        except (AlreadyAnswered, Abandoned):
            ctx.log.info("already_answered", attempt=ctx.attempt)

    def _context(self, delivery: Delivery, request_id: str | None = None, deadline_ms: int | None = None) -> Context[C]:
        """The message's context, from here on the current one; times count from when the stream stored it."""
        queued = max(0.0, time.time() - delivery.timestamp)
        deadline = Deadline.after(deadline_ms / 1000 - queued) if deadline_ms else None
        ctx = Context(self._nc, self._clients, delivery, request_id or _made_id(delivery), deadline)
        ctx.timings.record("queue", queued)
        current.set(ctx)
        return ctx

    def _answer(self, ctx: Context[C], streaming: bool, copy_to: str | None) -> Answer[R]:
        return Answer(
            self._nc,
            self._family,
            ctx.request_id,
            attempt=ctx.attempt,
            streaming=streaming,
            copy_to=copy_to,
            source=ctx.delivery.identity,
            headers=ctx.trace_headers,
        )

    async def _respond(self, request: Q, ctx: Context[C], answer: Answer[R]) -> None:
        try:
            ctx.deadline.timeout(at_most=1)  # raises if the wait in the stream has used it up
            response = await self._generate(request, ctx, answer)
            await answer.finish(
                response.model_copy(update={"request_id": ctx.request_id, "timings": ctx.timings.as_dict()})
            )
        except Abandoned:
            raise
        except HandlerError as error:
            if self._comes_back(error, ctx):
                raise
            ctx.log.warning("turn_failed", type=error.type.value, error=error.message, stage=error.stage)
            await answer.fail(error, ctx.timings.as_dict())
            if error.type in _DONE_WITH or (error.retryable and self._too_late(error, ctx)):
                return  # nobody waits for it any more
            error.retryable = False  # what is left is kept as a dead letter
            raise
        else:
            ctx.log.info("turn_answered", attempt=ctx.attempt, degraded=response.degraded, **ctx.timings.as_dict())

    def _comes_back(self, error: HandlerError, ctx: Context[C]) -> bool:
        return error.retryable and ctx.attempt < self._limits.max_deliveries and not self._too_late(error, ctx)

    def _too_late(self, error: HandlerError, ctx: Context[C]) -> bool:
        """Whether the deadline will have passed before another attempt."""
        return ctx.deadline.remaining() < self._limits.soonest_retry(ctx.attempt, error.retry_after)

    async def _generate(self, request: Q, ctx: Context[C], answer: Answer[R]) -> R:
        """Run the handler, streaming its text, within the deadline."""
        try:
            async with asyncio.timeout_at(_loop_time(ctx.deadline)) as limit:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(answer.pump())
                    response = await self._drive(request, ctx, answer)
                    answer.close()
                return response
        except BaseExceptionGroup as group:
            # The handler's failure or the pump's: whichever came first has cancelled the other.
            raise group.exceptions[0] from None
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceeded("the deadline passed before the answer was ready") from None

    async def _drive(self, request: Q, ctx: Context[C], answer: Answer[R]) -> R:
        result: Any = self._handler(request, ctx)
        if not hasattr(result, "__aiter__"):
            response: R = await result
            return response
        last: R | None = None
        async with AsyncExitStack() as stack:
            if hasattr(result, "aclose"):
                stack.push_async_callback(result.aclose)
            async for piece in result:
                if isinstance(piece, str):
                    answer.write(piece)
                elif isinstance(piece, Response):
                    last = cast("R", piece)
                else:
                    raise TypeError(f"a handler yields str and last its response, not {type(piece).__name__}")
        if last is None:
            raise Internal("the handler ended without a response")
        return last


def _loop_time(deadline: Deadline) -> float | None:
    remaining = deadline.remaining()
    return None if remaining == float("inf") else asyncio.get_running_loop().time() + remaining


def _made_id(delivery: Delivery) -> str:
    """An id for a request that has none: the same at every redelivery."""
    return f"{delivery.sequence}-{delivery.timestamp * 1e6:.0f}"


def _user(subject: str) -> str | None:
    """The user in `ai.{family}.user.{user}.…`, which the server's permissions vouch for."""
    tokens = subject.split(".")
    return tokens[3] if len(tokens) > 4 and tokens[2] == "user" else None


def _named(body: dict[str, Any]) -> str | None:
    """The id that a refused request gave itself, if that at least is valid."""
    try:
        return validate({"request_id": body.get("request_id")}, Request).request_id
    except HandlerError:
        return None
