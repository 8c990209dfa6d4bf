"""Event loops and tasks: the one place where a task is started outside a task group."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, cast


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's event loop for `asyncio.Runner`, where it is installed; else None, for asyncio's own."""
    try:
        import uvloop
    except ImportError:  # an extra, and not for every platform
        return None
    return cast("Callable[[], asyncio.AbstractEventLoop]", uvloop.new_event_loop)


@asynccontextmanager
async def background(work: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
    """Run `work` beside the block, as the task that it yields, and cancel it when the block ends.

    Unlike with a task group, an exception of the block leaves it as it is, in no group; one of `work` is dropped.
    """
    task = asyncio.get_running_loop().create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
