"""A run that has been submitted: told at each change of its state, until its end or until it was stopped."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from handler_core.context import Context
from handler_core.contract.errors import ErrorInfo, ErrorType
from handler_core.contract.pipeline import RunStatus
from handler_core.errors import Canceled, DeadlineExceeded, HandlerError, Internal, NotFound
from handler_core.tasks import background
from pipeline_bridge.attempts import retried
from pipeline_bridge.engine import Changes, Engine, Observed, Run, RunGone
from pipeline_bridge.log import RunLog

STOP_AGAIN: Final = 60.0
"""Seconds after which a run that was to stop, and goes on, is told again."""


async def follow(engine: Engine, run: Run, log: RunLog) -> None:
    """Tell each change of the run's state until its last; raises as `RunLog.tell`."""
    with engine.follow(run, log.run_id) as changes:
        try:
            ended = await _last(changes, log)
        except RunGone as gone:
            await log.tell(RunStatus.ERROR, message=str(gone), error=NotFound(str(gone), stage="follow").info())
            return
    await _tell(ended, log, error=_reason(ended))


async def stop(engine: Engine, run: Run, why: HandlerError, ctx: Context[None], log: RunLog) -> None:
    """Have the run stopped, and follow it until it is; what it is stopped for is stored before anything is done.

    A run that ends by itself first has its own end. Raises as `RunLog.tell`.
    """
    if (last := log.last) is not None and last.stopping is None:
        message = f"stopping: {why.message}"
        await log.tell(last.status, raw_status=last.raw_status, message=message, stopping=why.info())
    status = RunStatus.CANCELED if why.type is ErrorType.CANCELED else RunStatus.FAILED
    with engine.follow(run, log.run_id) as changes:
        async with background(_keep_stopping(engine, run, log.run_id, why.message, ctx)):
            try:
                ended = await _last(changes, log)
            except RunGone as gone:
                await log.tell(status, message=f"{why.message}; {gone}", error=why.info())
                return
    if ended.status is RunStatus.CANCELED:
        await log.tell(status, raw_status=ended.raw, message=why.message, error=why.info())
    else:
        await _tell(ended, log, error=_reason(ended))


@asynccontextmanager
async def within(run: Run, log: RunLog) -> AsyncIterator[None]:
    """A block that ends, with `DeadlineExceeded`, when the run has taken longer than its pipeline allows."""
    submitted = log.last.submitted_at if log.last else None
    left = run.timeout - (0.0 if submitted is None else time.time() - submitted)
    limit = asyncio.timeout(max(0.0, left))
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlineExceeded(f"the run took longer than {run.timeout:g} s", stage="run") from None


async def _last(changes: Changes, log: RunLog) -> Observed:
    """The run's last state; those before it are told.

    Raises:
        RunGone: nobody knows it.
    """
    while not (observed := await changes.next()).status.final:
        await _tell(observed, log)
    return observed


async def _tell(observed: Observed, log: RunLog, **fields: Any) -> None:
    """Store a state unless it is the newest one, or one that says no more than that the run is submitted."""
    last = log.last
    if last is not None and not observed.status.final:
        if (last.status, last.raw_status) == (observed.status, observed.raw):
            return
        if last.status is RunStatus.SUBMITTED and not observed.raw.strip("/"):
            return
    await log.tell(observed.status, run_id=observed.run_id, raw_status=observed.raw, message=observed.message, **fields)


def _reason(ended: Observed) -> ErrorInfo | None:
    """The `error` of a run that did not succeed."""
    if ended.status is RunStatus.SUCCEEDED:
        return None
    if ended.status is RunStatus.CANCELED:
        return Canceled(ended.message or "canceled at its engine", stage="run").info()
    return Internal(ended.message or f"the run ended as {ended.raw}", stage="run").info()


async def _keep_stopping(engine: Engine, run: Run, run_id: str, reason: str, ctx: Context[None]) -> None:
    """Tell the engine to stop the run, again and again until cancelled."""
    while True:
        await retried(lambda: engine.cancel(run, run_id, reason), ctx, "cancel_failed", keep_on=True)
        await asyncio.sleep(STOP_AGAIN)
