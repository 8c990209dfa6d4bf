"""The edges of a process: stopped before it has started, settled after a while, closed within bounds."""

import asyncio
import contextlib
import gc
import os
from collections.abc import AsyncIterator

from handler_core.connection import Connection
from handler_core.tasks import background

CLOSE_TIMEOUT = 2.0
"""Seconds that flushing the connection may take, and closing it: with the last export, less than 10 after the drain."""
SETTLED_AFTER = 5.0
"""Seconds from the start until what is loaded stays, modules that are imported late included."""

REAP_INTERVAL = 5.0
"""Seconds that a process which has ended may stay a zombie before it is taken for nobody's."""


class Stopped(Exception):
    """The service was stopped before it had started."""


@contextlib.asynccontextmanager
async def interrupted_by(stop: asyncio.Event) -> AsyncIterator[None]:
    """Cancel the block when `stop` is set, and raise `Stopped` after it."""

    async def watch() -> None:
        await stop.wait()
        limit.reschedule(asyncio.get_running_loop().time())

    limit = asyncio.timeout(None)
    try:
        async with limit, background(watch()):
            yield
    except TimeoutError:
        if limit.expired():
            raise Stopped from None
        raise


def spare_the_collector() -> None:
    """Have the garbage collector look no more at what stays for good: some 100,000 objects of modules, which at its
    defaults cost a tenth of the time of a busy worker, and pauses of 0.1 s."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


async def close(nc: Connection) -> None:
    with contextlib.suppress(Exception):
        async with asyncio.timeout(CLOSE_TIMEOUT):
            if nc.is_connected:
                await nc.flush()
    with contextlib.suppress(Exception):
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await nc.close()


@contextlib.asynccontextmanager
async def reaping(pid: int | None = None) -> AsyncIterator[None]:
    """In the block, bury what processes have left behind, if this one is a container's first, whose duty that is.

    Whoever started a process waits for its end himself and is told at once; what is a zombie twice in a row is an
    orphan's. `pid` is this process's own unless told.
    """
    if (os.getpid() if pid is None else pid) != 1:
        yield
        return
    async with background(_reap()):
        yield


async def _reap() -> None:
    seen = 0
    while True:
        await asyncio.sleep(REAP_INTERVAL)
        while (zombie := _zombie()) == seen != 0:
            os.waitpid(zombie, os.WNOHANG)  # noqa: ASYNC222 - it has ended
        seen = zombie


def _zombie() -> int:
    """The id of a child that has ended, whose end stays to be waited for; 0 for none."""
    try:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # there are no children
        return 0
    return 0 if ended is None else ended.si_pid
