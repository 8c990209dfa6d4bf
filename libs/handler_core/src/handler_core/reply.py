"""From a request to its one reply: what stands between an endpoint and a handler."""

from typing import Any, Generic, TypeVar

import structlog

from handler_core import tracing
from handler_core.calls import Call
from handler_core.cancel import Cancellations
from handler_core.codec import unpack_either
from handler_core.context import Context
from handler_core.contract.answer import Response
from handler_core.contract.base import Message, Request
from handler_core.errors import HandlerError, Internal
from handler_core.fairness import Fairness
from handler_core.generation import Generation, complete, failed, named
from handler_core.limits import Limits

log = structlog.get_logger("handler_core.reply")

Q = TypeVar("Q", bound=Request)
R = TypeVar("R", bound=Response)
C = TypeVar("C")


class Reply(Generic[Q, R, C]):
    """Replies to the requests of an endpoint; the handlers are those that answer from a stream, and their text is
    only sent whole."""

    def __init__(
        self,
        response: type[R],
        generation: Generation[Q, R, C],
        limits: Limits,
        cancellations: Cancellations,
        fairness: Fairness,
    ) -> None:
        self._response = response
        self._generation = generation
        self._limits = limits
        self._cancellations = cancellations
        self._fairness = fairness

    async def process(self, call: Call) -> R:
        """The response, or one that tells of the error."""
        body: dict[str, Any] = {}
        ctx: Context[C] | None = None
        try:
            body, _ = unpack_either(call.data)
            request, ctx = self._generation.begin(call, body)
            with self._fairness.turn(request.user_id, self._limits.max_per_user, call.identity, None):
                async with self._cancellations.limited(ctx.request_id, ctx.deadline, queued=False):
                    response = await self._generation.run(request, ctx, _drop)
        except HandlerError as raised:
            error = raised
        except Exception as raised:
            log.exception("request_failed", subject=call.subject)
            error = Internal(f"{type(raised).__name__} in the handler", retryable=True)
        else:
            ctx.log.info("request_answered", degraded=response.degraded, **ctx.timings.as_dict())
            return complete(response, ctx)
        ctx = ctx or self._generation.context(call, named(body))
        ctx.log.warning("request_refused", type=error.type.value, error=error.message, stage=error.stage)
        tracing.annotate({"error.type": error.type.value})
        return failed(self._response, error, ctx)


def _drop(_: str | Message) -> None:
    """There is nobody who would read the text before it is whole."""
