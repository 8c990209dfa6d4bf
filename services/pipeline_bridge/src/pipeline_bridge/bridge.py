"""From a delivered trigger to the end of its run: decide, submit, follow, and stop where that is asked for.

Whatever has been done before, by this worker or another one, is found in the run's log and at its engine; so each step
may be the first of a takeover. The trigger is settled when the final status is stored, and not before.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Mapping
from functools import partial
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
from pipeline_bridge.definitions import Pipeline
from pipeline_bridge.engine import Engine, Observed, Run
from pipeline_bridge.follow import follow, stop, within
from pipeline_bridge.log import Ended, Repeated, RunLog

ATTEMPTS: Final = 10
"""Deliveries in a row that may begin a run and leave no trace; then the trigger is taken for what kills workers."""
TELL_FAILURES: Final = 3
"""As often as this a submission may fail before it is told."""
LATE: Final = 60.0
"""Seconds by which a submission that was cut off has taken effect, or never will: servers give up a call before."""
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
            attempt=lambda: ctx.attempt,
            received=delivery.timestamp,
            trace_id=ctx.trace_id,
            headers=ctx.trace_headers,
        )
        self.followed += 1
        try:
            try:
                letter = await self._end(request, wrong, ctx, log)
                unsure = ctx.attempt > 1 or log.failed  # a submission may have been cut off, and take effect yet
            except Ended as before:
                ctx.log.info("already_ended", attempt=ctx.attempt, status=before.status.status.value)
                letter, unsure = _letter(before), before.own
            self._count(ctx, log)
            await self._copy(body.get("response_subject"), ctx, log)
            if unsure:
                await self._stop_others(ctx, log, later=True)
            if letter is not None:
                raise letter
        except Abandoned:
            await self._stop_others(ctx, log)
            raise
        except Repeated:
            ctx.log.info("trigger_repeated", reason="the run of another message with this request id is followed")
        finally:
            self.followed -= 1

    async def _copy(self, subject: Any, ctx: Context[None], log: RunLog) -> None:
        """Send the final status to the inbox that the trigger names, too; again with each delivery that finds it."""
        if log.last is not None and log.last.status.final and isinstance(subject, str) and inbox(self._nc, subject):
            with contextlib.suppress(HandlerError):  # no inbox has so long a name
                await self._nc.publish(subject, encode(log.last), headers=ctx.trace_headers)

    async def _end(
        self, request: TriggerRequest | None, wrong: HandlerError | None, ctx: Context[None], log: RunLog
    ) -> HandlerError | None:
        """Have a trigger's run seen through, or its refusal told; returns what to keep it for as a dead letter."""
        try:
            await retried(log.open, ctx, "log_awaited")
            if request is None:
                raise wrong or Internal("no request")
            if log.run is not None and log.run.engine not in self._engines:
                raise Transient(f"this bridge has no access to {log.run.engine}: another one has to follow the run")
            if request.response_subject and not inbox(self._nc, request.response_subject):
                raise InvalidRequest("response_subject: has to be an _INBOX", stage="decode")
            await retried(lambda: self._see_through(request, ctx, log), ctx, "nats_awaited")
        except (Ended, Repeated):
            raise
        except HandlerError as error:
            if error.retryable or isinstance(error, Abandoned):
                raise
            return await self._refuse(error, ctx, log)
        except Exception:
            if log.run_id or ctx.attempt < ATTEMPTS:
                raise  # it comes back, as for every fault of ours
            ctx.log.exception("run_given_up")
            given_up = Internal(f"given up after {ctx.attempt} deliveries: the bridge fails", stage="max_deliveries")
            return await self._refuse(given_up, ctx, log)
        return None

    def _count(self, ctx: Context[None], log: RunLog) -> None:
        if log.last is not None and log.told_the_end:
            self._ended[log.last.status].value += 1
            ctx.log.info("run_ended", status=log.last.status.value, run_id=log.run_id, **log.last.timings)

    async def _see_through(self, request: TriggerRequest, ctx: Context[None], log: RunLog) -> None:
        """Have the run submitted and follow it to its end, or stop it when it is taken back or takes too long."""
        if log.last is not None and log.last.stopping is not None:
            await self._stop(from_info(log.last.stopping), ctx, log)
            return
        try:
            async with self._cancellations.limited(ctx.request_id, ctx.deadline):
                run = log.run or await self._decided(request, ctx, log)
                if not log.run_id:
                    await self._submit(run, ctx, log)
                async with within(run, log), self._alone(ctx, log):
                    await follow(self._engine(run), run, log)
        except (Canceled, DeadlineExceeded) as error:
            await self._stop(error, ctx, log)

    async def _decided(self, request: TriggerRequest, ctx: Context[None], log: RunLog) -> Run:
        """The run that the catalogue makes of the request, once there is a catalogue; stored.

        Raises:
            NotFound, InvalidRequest: as the catalogue says.
        """

        async def find() -> Pipeline:
            return self.catalogue.find(request.pipeline, request.user_id)

        try:
            pipeline = await retried(find, ctx, "catalogue_awaited")
        except NotFound as error:
            ctx.known["available_pipelines"] = self.catalogue.names(request.user_id)
            raise error
        if ctx.attempt > 1:
            await self._begin(log)
        if log.run is not None:  # an earlier delivery's, whose worker goes on
            return log.run
        return await log.decide(pipeline.run(ctx.request_id, request.parameters, request.user_id, ctx.traceparent))

    async def _begin(self, log: RunLog) -> None:
        """Begin what a worker may die of, unless too many seem to have done so."""
        if log.begun >= ATTEMPTS:
            text = f"given up: {log.begun} workers in a row began with it and were heard of no more"
            raise Internal(text, stage="max_deliveries")
        await log.begin()

    def _engine(self, run: Run) -> Engine:
        if (engine := self._engines.get(run.engine)) is None:
            raise Internal(f"this bridge has no access to {run.engine}: it is not configured", stage="submit")
        return engine

    async def _submit(self, run: Run, ctx: Context[None], log: RunLog) -> None:
        engine = self._engine(run)
        observed = None
        failed = partial(self._not_taken, run, log)
        if ctx.attempt > 1:  # it may be there, and even be done and gone from where `submit` would find it
            observed = await retried(lambda: engine.describe(run), ctx, "describe_failed", keep_on=True, failed=failed)
        if observed is None:
            await self._begin(log)
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
            return await retried(submit, ctx, "submit_failed", failed=partial(self._not_taken, run, log))
        except asyncio.CancelledError:
            log.failed = True  # as far as is known
            raise
        except HandlerError as error:
            if tries == 1 or isinstance(error, Abandoned):
                raise
            # What is refused now may have been done by an earlier try, although that failed.
            found = await retried(lambda: engine.describe(run), ctx, "describe_failed", keep_on=True)
            if found is None:
                raise
            return found

    async def _not_taken(self, run: Run, log: RunLog, error: HandlerError, failures: int) -> None:
        """Note that a submission failed, and tell why if it does not pass."""
        await log.survive()
        message = f"{run.engine} has not taken it yet: {error.message}"
        if failures >= TELL_FAILURES and (log.last is None or log.last.message != message):
            await log.tell(RunStatus.PENDING, message=message)

    async def _stop(self, why: HandlerError, ctx: Context[None], log: RunLog) -> None:
        """Have a run stopped that was taken back or takes too long, and follow it until it has."""
        ctx.log.info("run_stopping", reason=why.message)
        if (run := log.run) is None:
            raise why  # nothing was begun
        engine = self._engine(run)
        if not log.run_id:
            # It may have been submitted all the same, just before a worker died.
            found = await retried(lambda: engine.describe(run), ctx, "describe_failed", keep_on=True)
            if found is None:
                raise why
            await log.tell(RunStatus.SUBMITTED, run_id=found.run_id, raw_status=found.raw)
        await stop(engine, run, why, ctx, log)

    @contextlib.asynccontextmanager
    async def _alone(self, ctx: Context[None], log: RunLog) -> AsyncIterator[None]:
        """A block beside which runs are stopped that earlier attempts turn out to have started as well."""

        async def look() -> None:
            pause = LATE * random.uniform(1, 2)  # not for all at once that were taken over together
            while True:
                await asyncio.sleep(pause)
                await self._stop_others(ctx, log)
                pause *= 2

        if ctx.attempt == 1 and not log.failed:
            yield
            return
        async with background(look()):
            yield

    async def _stop_others(self, ctx: Context[None], log: RunLog, *, later: bool = False) -> None:
        """Stop what the newest status, final or of a run, knows nothing of.

        One worker submitted it while another, to which the trigger had been delivered as well, told that there is none;
        or an attempt to submit it that was cut off took effect after the next had looked.

        Args:
            later: look once more, after a while, where there should be no run at all.
        """
        last, run = log.last, log.run
        if last is None or run is None or not (last.run_id or last.status.final):
            return
        if (engine := self._engines.get(run.engine)) is None:
            return
        reason = "its trigger has ended without it"
        for pause in (0.0, LATE) if later and not last.run_id else (0.0,):
            await asyncio.sleep(pause)
            call = partial(engine.stop_others, run, last.run_id, reason)
            await retried(call, ctx, "cancel_failed", keep_on=True)

    async def _refuse(self, error: HandlerError, ctx: Context[None], log: RunLog) -> HandlerError | None:
        """Tell the end of a run that never was; returns what its trigger is kept for where it may be looked into."""
        ctx.log.warning("run_refused", type=error.type.value, error=error.message, stage=error.stage)
        tracing.annotate({"error.type": error.type.value})
        status = RunStatus.CANCELED if error.type is ErrorType.CANCELED else RunStatus.ERROR
        await log.tell(status, message=error.message, error=error.info(), **ctx.known)
        return None if error.type in _DONE_WITH else error


def _letter(before: Ended) -> HandlerError | None:
    """What to bury a trigger for that was refused before, for it may not be kept as a dead letter yet."""
    status = before.status
    refused = status.error if before.own and status.status is RunStatus.ERROR and not status.run_id else None
    return None if refused is None or refused.type in _DONE_WITH else from_info(refused)
