"""From a delivered trigger to the end of its run: decide, submit, follow, and stop where that is asked for.

Whatever has been done before, by this worker or another one, is found in the run's log and at its engine; so each step
may be the first of a takeover. The trigger is settled when the final status is stored, and not before.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from handler_core import tracing
from handler_core.answer import inbox
from handler_core.codec import encode, unpack, validate
from handler_core.context import Context
from handler_core.contract.errors import ErrorType
from handler_core.contract.pipeline import RunStatus, TriggerRequest
from handler_core.delivery import Delivery
from handler_core.errors import (
    Abandoned,
    Canceled,
    DeadlineExceeded,
    HandlerError,
    Internal,
    InvalidRequest,
    NotFound,
    Transient,
    from_info,
)
from handler_core.generation import context_of, named, user_of
from handler_core.runtime import Runtime
from handler_core.tasks import background
from pipeline_bridge.attempts import retried, uncut
from pipeline_bridge.catalogue import Catalogue
from pipeline_bridge.engine import Changes, Engine, Observed, Run, RunGone
from pipeline_bridge.log import Ended, Repeated, RunLog

ATTEMPTS: Final = 10
"""Deliveries in a row that may end without a trace; then the trigger is taken for what kills workers."""
STOP_AGAIN: Final = 60.0
"""Seconds after which a run that was to stop, and goes on, is told again."""
_DONE_WITH: Final = (ErrorType.DEADLINE_EXCEEDED, ErrorType.CANCELED)
"""Errors that need no dead letter: nobody waits for the run any more."""


class Bridge:
    """Follows the runs of one worker."""

    def __init__(self, runtime: Runtime, catalogue: Catalogue, engines: Mapping[str, Engine]) -> None:
        self.catalogue = catalogue
        self.followed = 0
        """Runs in the hands of this worker."""
        self._nc = runtime.nc
        self._cancellations = runtime.cancellations
        self._engines = engines
        runtime.metrics.gauge("handler_pipeline_runs", "Runs that are followed.", lambda: self.followed)
        self._ended = {
            status: runtime.metrics.counter("handler_pipeline_runs_total", "Runs that have ended.", status=status.value)
            for status in RunStatus
            if status.final
        }

    async def process(self, delivery: Delivery) -> None:
        """See one trigger through; see `PullConsumer` for what returning and raising mean."""
        body: dict[str, Any] = {}
        request: TriggerRequest | None = None
        wrong: HandlerError | None = None
        try:
            body = unpack(delivery.data)
            if (user := user_of(delivery.subject)) is not None:
                body["user_id"] = user
            request = validate(body, TriggerRequest)
        except HandlerError as error:
            wrong = error
        request_id = request.request_id if request else named(body)
        ctx = context_of(self._nc, None, delivery, request_id, request.deadline_ms if request else None)
        log = RunLog(
            self._nc,
            ctx.request_id,
            source=delivery.identity,
            attempt=ctx.attempt,
            received=delivery.timestamp,
            trace_id=ctx.trace_id,
            headers=ctx.trace_headers,
        )
        self.followed += 1
        try:
            await self._end(request, wrong, ctx, log)
        except Ended as before:
            ctx.log.info("already_ended", attempt=ctx.attempt, status=before.status.status.value)
            if before.own:
                await self._stop_unknown(ctx, log)
            _raise_again(before)
        except Abandoned:
            await self._stop_unknown(ctx, log)
            raise
        except Repeated:
            ctx.log.info("trigger_repeated", reason="the run of another message with this request id is followed")
        finally:
            self.followed -= 1
            await self._copy(body.get("response_subject"), ctx, log)

    async def _copy(self, subject: Any, ctx: Context[None], log: RunLog) -> None:
        """Send the final status to the inbox that the trigger names, too; again with each delivery that finds it."""
        if log.last is not None and log.last.status.final and isinstance(subject, str) and inbox(self._nc, subject):
            with contextlib.suppress(HandlerError):  # no inbox has so long a name
                await self._nc.publish(subject, encode(log.last), headers=ctx.trace_headers)

    async def _end(
        self, request: TriggerRequest | None, wrong: HandlerError | None, ctx: Context[None], log: RunLog
    ) -> None:
        """Have a trigger's run seen through, or its refusal told."""
        try:
            await retried(log.open, ctx, "log_awaited")
            if request is None:
                raise wrong or Internal("no request")
            if log.run is not None and log.run.engine not in self._engines:
                raise Transient(f"this bridge has no access to {log.run.engine}: another one has to follow the run")
            if request.response_subject and not inbox(self._nc, request.response_subject):
                raise InvalidRequest("response_subject: has to be an _INBOX", stage="decode")
            await retried(lambda: self._see_through(request, ctx, log), ctx, "nats_awaited")
            self._count(ctx, log)
        except (Ended, Repeated):
            raise
        except HandlerError as error:
            if error.retryable or isinstance(error, Abandoned):
                raise
            await self._refuse(error, ctx, log)
        except Exception:
            if not _kills(ctx, log):
                raise  # it comes back, as for every fault of ours
            ctx.log.exception("run_given_up")
            await self._refuse(_given_up(), ctx, log)

    def _count(self, ctx: Context[None], log: RunLog) -> None:
        if log.last is not None and log.last.status.final:
            self._ended[log.last.status].value += 1
            ctx.log.info("run_ended", status=log.last.status.value, run_id=log.last.run_id, **log.last.timings)

    async def _see_through(self, request: TriggerRequest, ctx: Context[None], log: RunLog) -> None:
        """Have the run submitted and follow it to its end, or stop it when it is taken back or takes too long."""
        try:
            async with self._cancellations.limited(ctx.request_id, ctx.deadline):
                if (run := log.run) is None:
                    if _kills(ctx, log):
                        raise _given_up()
                    run = await log.decide(await self._decided(request, ctx))
                if log.last is None:
                    await self._submit(run, ctx, log)
                async with _within(run, log):
                    await self._follow(run, log, log.last.run_id if log.last else "")
        except (Canceled, DeadlineExceeded) as error:
            await self._stop(error, ctx, log)

    async def _decided(self, request: TriggerRequest, ctx: Context[None]) -> Run:
        """The run that the catalogue makes of the request, once there is a catalogue.

        Raises:
            NotFound, InvalidRequest: as the catalogue says.
        """

        async def decide() -> Run:
            pipeline = self.catalogue.find(request.pipeline, request.user_id)
            return pipeline.run(ctx.request_id, request.parameters, request.user_id, ctx.traceparent)

        try:
            return await retried(decide, ctx, "catalogue_awaited")
        except NotFound as error:
            ctx.known["available_pipelines"] = self.catalogue.names(request.user_id)
            raise error

    def _engine(self, run: Run) -> Engine:
        if (engine := self._engines.get(run.engine)) is None:
            raise Internal(f"this bridge has no access to {run.engine}: it is not configured", stage="submit")
        return engine

    async def _submit(self, run: Run, ctx: Context[None], log: RunLog) -> None:
        engine = self._engine(run)
        observed = None
        if ctx.attempt > 1:  # it may be there, and even be done and gone from where `submit` would find it
            look = retried(lambda: engine.describe(run), ctx, "describe_failed", keep_on=True, failed=log.survive)
            observed = await look
        if observed is None and _kills(ctx, log):
            raise _given_up()
        if observed is None:
            with tracing.span(f"submit {run.engine}", "internal", {"pipeline.name": run.pipeline}):
                observed = await self._submitted(engine, run, ctx, log)
        queued = ctx.timings.as_dict()
        await log.tell(
            RunStatus.SUBMITTED,
            run_id=observed.run_id,
            raw_status=observed.raw,
            timings={"queue_ms": queued.get("queue_ms", 0.0)},
        )
        ctx.log.info("run_submitted", pipeline=run.pipeline, engine=run.engine, run_id=observed.run_id)

    async def _submitted(self, engine: Engine, run: Run, ctx: Context[None], log: RunLog) -> Observed:
        tries = 0

        async def submit() -> Observed:
            nonlocal tries
            if tries:  # meanwhile another worker may have told that there is none, and left the queue
                await log.catch_up()
            tries += 1
            return await uncut(engine.submit(run))

        try:
            return await retried(submit, ctx, "submit_failed", failed=log.survive)
        except HandlerError as error:
            if tries == 1 or isinstance(error, Abandoned):
                raise
            # What is refused now may have been done by an earlier try, although that failed.
            found = await retried(lambda: engine.describe(run), ctx, "describe_failed", keep_on=True)
            if found is None:
                raise
            return found

    async def _follow(self, run: Run, log: RunLog, run_id: str) -> None:
        """Tell each change of the run's state until its last."""
        with self._engine(run).follow(run, run_id) as changes:
            try:
                while not (observed := await changes.next()).status.final:
                    await _tell(observed, log)
            except RunGone as gone:
                await log.tell(RunStatus.ERROR, message=str(gone), error=NotFound(str(gone), stage="follow").info())
                return
        await _tell(observed, log, error=_reason(observed))

    async def _stop(self, why: HandlerError, ctx: Context[None], log: RunLog) -> None:
        """Have a run stopped that was taken back or takes too long, and follow it until it has."""
        ctx.log.info("run_stopping", reason=why.message)
        if (run := log.run) is None:
            raise why  # nothing was begun
        engine = self._engine(run)
        run_id = log.last.run_id if log.last else ""
        if not run_id:
            # It may have been submitted all the same, just before a worker died.
            found = await retried(lambda: engine.describe(run), ctx, "describe_failed", keep_on=True)
            if found is None:
                raise why
            run_id = found.run_id
            await log.tell(RunStatus.SUBMITTED, run_id=run_id, raw_status=found.raw)
        if log.last is not None:
            await log.tell(log.last.status, raw_status=log.last.raw_status, message=f"stopping: {why.message}")
        with engine.follow(run, run_id) as changes:
            async with background(_stopped(engine, run, run_id, why.message, ctx)):
                ended = await self._until_ended(changes, log)
        if ended is not None and ended.status is not RunStatus.CANCELED:
            await _tell(ended, log, error=_reason(ended))  # it came first
            return
        status = RunStatus.CANCELED if isinstance(why, Canceled) else RunStatus.FAILED
        raw = ended.raw if ended is not None else (log.last.raw_status if log.last else "")
        await log.tell(status, raw_status=raw, message=why.message, error=why.info())

    async def _stop_unknown(self, ctx: Context[None], log: RunLog) -> None:
        """Stop a run that the final status knows nothing of.

        One worker submitted it while another, to which the trigger had been delivered as well, told that there is none.
        """
        if not log.without_run or (run := log.run) is None or (engine := self._engines.get(run.engine)) is None:
            return
        found = await retried(lambda: engine.describe(run), ctx, "describe_failed", keep_on=True)
        if found is not None and not found.status.final:
            ctx.log.warning("run_unknown", run_id=found.run_id)
            reason = "its trigger had ended before"
            await retried(lambda: engine.cancel(run, found.run_id, reason), ctx, "cancel_failed", keep_on=True)

    async def _until_ended(self, changes: Changes, log: RunLog) -> Observed | None:
        """The run's last state, None when it is gone; those before it are told."""
        try:
            while not (observed := await changes.next()).status.final:
                await _tell(observed, log)
        except RunGone:
            return None
        return observed

    async def _refuse(self, error: HandlerError, ctx: Context[None], log: RunLog) -> None:
        """End a run that never was, and have its trigger kept as a dead letter where it may be looked into."""
        ctx.log.warning("run_refused", type=error.type.value, error=error.message, stage=error.stage)
        tracing.annotate({"error.type": error.type.value})
        status = RunStatus.CANCELED if isinstance(error, Canceled) else RunStatus.ERROR
        await log.tell(status, message=error.message, error=error.info(), **ctx.known)
        self._count(ctx, log)
        if error.type not in _DONE_WITH:
            raise error


def _kills(ctx: Context[None], log: RunLog) -> bool:
    """Whether the trigger has to be taken for what workers die of."""
    return log.last is None and ctx.attempt - log.survived >= ATTEMPTS


def _given_up() -> HandlerError:
    return Internal(f"given up after {ATTEMPTS} deliveries", stage="max_deliveries")


async def _tell(observed: Observed, log: RunLog, **fields: Any) -> None:
    """Store a state unless it is the newest one, or one that says no more than that the run is submitted."""
    last = log.last
    if last is not None and not observed.status.final:
        if (last.status, last.raw_status) == (observed.status, observed.raw):
            return
        if last.status is RunStatus.SUBMITTED and not observed.raw.strip("/"):
            return
    await log.tell(observed.status, run_id=observed.run_id, raw_status=observed.raw, message=observed.message, **fields)


def _reason(ended: Observed) -> Any:
    """The `error` of a run that did not succeed."""
    if ended.status is RunStatus.SUCCEEDED:
        return None
    if ended.status is RunStatus.CANCELED:
        return Canceled(ended.message or "canceled at its engine", stage="run").info()
    return Internal(ended.message or f"the run ended as {ended.raw}", stage="run").info()


def _raise_again(before: Ended) -> None:
    """Bury a trigger that was refused before, for it may not be kept as a dead letter yet."""
    status = before.status
    refused = status.error if before.own and status.status is RunStatus.ERROR and not status.run_id else None
    if refused is not None and refused.type not in _DONE_WITH:
        raise from_info(refused)


@contextlib.asynccontextmanager
async def _within(run: Run, log: RunLog) -> AsyncIterator[None]:
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


async def _stopped(engine: Engine, run: Run, run_id: str, reason: str, ctx: Context[None]) -> None:
    """Tell the engine to stop the run, again and again until cancelled."""
    while True:
        await retried(lambda: engine.cancel(run, run_id, reason), ctx, "cancel_failed", keep_on=True)
        await asyncio.sleep(STOP_AGAIN)
