"""Calls that are made again until they succeed, or are not cut off in the middle."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from handler_core.clients.failures import UpstreamError
from handler_core.context import Context
from handler_core.errors import Abandoned, HandlerError
from handler_core.limits import Limits

T = TypeVar("T")

RETRY: Final = Limits(retry_base=0.5, retry_max=30.0)
"""How long what does not take a call is left alone."""


async def retried(
    call: Callable[[], Awaitable[T]],
    ctx: Context[None],
    event: str,
    *,
    keep_on: bool = False,
    failed: Callable[[HandlerError, int], Awaitable[None]] | None = None,
) -> T:
    """What `call` returns, tried until it succeeds or fails for good; the caller bounds the time.

    Args:
        event: what a failure is called in the log.
        keep_on: whether an upstream that refuses the call itself is asked again all the same.
        failed: called after each failure that is not the last, with it and how many there have been.
    """
    failures = 0
    while True:
        try:
            return await call()
        except HandlerError as error:
            # A 401 is our token's fault, and no trigger's.
            again = error.retryable or (isinstance(error, UpstreamError) and (keep_on or error.status == 401))
            if not again or isinstance(error, Abandoned):
                raise
            failures += 1
            delay = RETRY.retry_delay(min(failures, 16), error.retry_after)
            ctx.log.warning(event, error=error.message, failures=failures, delay=round(delay, 3))
            if failed is not None:
                await failed(error, failures)
            await asyncio.sleep(delay)


def passing(error: UpstreamError) -> UpstreamError:
    """The same failure as one that passes: what was refused says nothing of the run."""
    return UpstreamError(error.message, outcome=error.outcome, status=error.status, retry_after=error.retry_after)


async def uncut(call: Coroutine[Any, Any, T]) -> T:
    """What a call returns; one that is cancelled is waited for first, as it may have its effect all the same."""
    task = asyncio.get_running_loop().create_task(call)
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # whatever it is, it is of no use any more
        raise
    return task.result()
