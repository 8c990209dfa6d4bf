"""Running a family's handler on one request, whoever waits for the answer: a stream or a caller."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Generic, TypeVar, cast

from handler_core.codec import validate
from handler_core.connection import Connection
from handler_core.context import Context
from handler_core.contract.answer import Response
from handler_core.contract.base import Message, Request
from handler_core.deadline import Deadline
from handler_core.delivery import Incoming
from handler_core.errors import HandlerError, Internal
from handler_core.telemetry import current

Q = TypeVar("Q", bound=Request)
R = TypeVar("R", bound=Response)
C = TypeVar("C")

TurnHandler = Callable[[Q, Context[C]], AsyncIterator[str | R] | Awaitable[R]]
"""An async generator that yields text as it comes and last the response, or a coroutine that returns the response and
may stream by `ctx.write` before."""


class Generation(Generic[Q, R, C]):
    """A handler with what its requests and contexts are made of."""

    def __init__(self, nc: Connection, clients: C, request: type[Q], handler: TurnHandler[Q, C, R]) -> None:
        self._nc = nc
        self._clients = clients
        self._request = request
        self._handler = handler

    def streams(self, body: dict[str, Any]) -> bool:
        """Whether a request, valid or not, has its events published: as it says, or as its model has it by default."""
        asked = body.get("enable_streaming")
        if asked is None and (field := self._request.model_fields.get("enable_streaming")) is not None:
            asked = field.default
        return asked is True

    def begin(self, message: Incoming, body: dict[str, Any]) -> tuple[Q, Context[C]]:
        """The request, and its context, from here on the current one.

        Raises:
            InvalidRequest: names the field that is wrong.
        """
        if (user := user_of(message.subject)) is not None:
            body["user_id"] = user
        request = validate(body, self._request)
        return request, self.context(message, request.request_id, request.deadline_ms)

    def context(self, message: Incoming, request_id: str | None = None, deadline_ms: int | None = None) -> Context[C]:
        """The message's context, from here on the current one; see `context_of`."""
        return context_of(self._nc, self._clients, message, request_id, deadline_ms)

    async def run(self, request: Q, ctx: Context[C], write: Callable[[str | Message], None]) -> R:
        """The handler's response; `write` is given the pieces as they come."""
        ctx.write = write
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
                    write(piece)
                elif isinstance(piece, Response):
                    last = cast("R", piece)
                else:
                    raise TypeError(f"a handler yields str and last its response, not {type(piece).__name__}")
        if last is None:
            raise Internal("the handler ended without a response")
        return last


def context_of(
    nc: Connection, clients: C, message: Incoming, request_id: str | None = None, deadline_ms: int | None = None
) -> Context[C]:
    """A message's context, from here on the current one; times count from when the stream stored it, or from its
    arrival."""
    queued = max(0.0, time.time() - message.timestamp)
    deadline = Deadline.after(deadline_ms / 1000 - queued) if deadline_ms else None
    ctx = Context(nc, clients, message, request_id or message.token, deadline)
    ctx.timings.record("queue", queued)
    current.set(ctx)
    return ctx


def complete(response: R, ctx: Context[Any]) -> R:
    """A response with what every response tells of its turn."""
    told = {
        "request_id": ctx.request_id,
        "timings": ctx.timings.as_dict(),
        "stages": ctx.timings.stages(),
        "trace_id": ctx.trace_id,
    }
    return response.model_copy(update=told)


def failed(response: type[R], error: HandlerError, ctx: Context[Any]) -> R:
    """The response that tells of an error."""
    return complete(response(success=False, error=error.info(), **ctx.known), ctx)


def user_of(subject: str) -> str | None:
    """The user in `ai.{family}.user.{user}.…`, which the server's permissions vouch for."""
    tokens = subject.split(".")
    return tokens[3] if len(tokens) > 4 and tokens[2] == "user" else None


def named(body: dict[str, Any]) -> str | None:
    """The id that a refused request gave itself, if that at least is valid."""
    try:
        return validate({"request_id": body.get("request_id")}, Request).request_id
    except HandlerError:
        return None
