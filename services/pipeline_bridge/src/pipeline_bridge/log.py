"""What is stored of a run: the record of what was decided, and its statuses, in an order that all its writers agree on.

A trigger may be in the hands of two workers, when the first is only stalled. So a status is stored on the condition
that its writer knows the one before it (`Nats-Expected-Last-Subject-Sequence`). A writer that is refused reads what is
there: written by a later delivery of the trigger, it stops; by an earlier one, it goes on from there. After a final
status nothing more is stored.

The record is stored before the run is submitted, by the same rule, and never changed. So a trigger that comes again
does the same again, whatever the catalogue says by then, and of two messages with one request id one begins the run.
"""

import asyncio
import contextlib
import time
import uuid
from typing import Any, Final

import structlog

from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.contract.base import Message
from handler_core.contract.pipeline import STORED_STATUS_SUBJECT, PipelineStatus, RunStatus
from handler_core.errors import Abandoned, Transient
from handler_core.jetstream import EXPECTED_LAST, MSG_ID, WRONG_LAST_SEQUENCE, Api, JetStreamError, Stored
from handler_core.pipelines import RECORD_SUBJECT
from handler_core.streams import AI_PIPELINE, AI_PIPELINE_STATUS
from pipeline_bridge.engine import Run

log = structlog.get_logger("pipeline_bridge.log")

SOURCE: Final = "Run-Source"
"""Header: the identity of the trigger's message."""
ATTEMPT: Final = "Run-Attempt"
"""Header: how many times the trigger had been delivered."""
STORE_AGAIN: Final = 1.0
"""Seconds after which a publish that was not acknowledged is repeated."""


class Ended(Exception):
    """The run's final status is stored already; `own` tells whether this very trigger led to it."""

    def __init__(self, status: PipelineStatus, own: bool) -> None:
        super().__init__()
        self.status = status
        self.own = own


class Repeated(Exception):
    """Another message has the same request id, and is still in the queue: it is that one whose run is followed."""


class RunLog:
    """The record and the statuses of one request's run.

    Args:
        source: the identity of the trigger's message.
        attempt: how many times it has been delivered.
        received: when the trigger reached its stream, in Unix seconds.
        headers: trace context, sent with everything.
    """

    def __init__(
        self,
        nc: Connection,
        request_id: str,
        *,
        source: str,
        attempt: int,
        received: float,
        trace_id: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.request_id = request_id
        self.last: PipelineStatus | None = None
        """The newest status, by whichever worker."""
        self.run: Run | None = None
        """What was decided on."""
        self._api = Api(nc)
        self._source = source
        self._attempt = attempt
        self._received = received
        self._trace_id = trace_id
        self._headers = {**(headers or {}), SOURCE: source, ATTEMPT: str(attempt)}
        self._writer = uuid.uuid4().hex[:12]
        self._subject = STORED_STATUS_SUBJECT.format(request_id=request_id)
        self._record = RECORD_SUBJECT.format(request_id=request_id)
        self._sequence = 0
        self._seq = 0

    async def open(self) -> None:
        """Read what is known of the run.

        Raises:
            Ended: all of it.
            Repeated: another message's run it is.
            Transient: the stream does not answer.
        """
        newest = await self._api.last(AI_PIPELINE_STATUS.name, self._subject)
        if newest is not None:
            self._adopt(newest)
        record = await self._api.last(AI_PIPELINE_STATUS.name, self._record)
        if record is not None:
            await self._take(record)
        elif newest is not None:  # ended before anything was decided, or trimmed by hand
            await self._unless_repeated(newest)

    async def decide(self, run: Run) -> Run:
        """Store what is to be submitted, unless an earlier delivery has; returns what was decided first.

        Raises:
            Repeated: another message's run it is.
        """
        headers = {EXPECTED_LAST: "0", MSG_ID: f"{self.request_id}:{self._writer}:run"}
        try:
            await self._store(self._record, run, headers)
        except JetStreamError as error:
            record = await self._api.last(AI_PIPELINE_STATUS.name, self._record)
            if error.err_code not in WRONG_LAST_SEQUENCE or record is None:
                raise Transient(f"the run could not be recorded: {error.description}") from None
            return await self._take(record)
        self.run = run
        return run

    async def tell(self, status: RunStatus, **fields: Any) -> None:
        """Store a status; what is not given stays as in the one before it. Waits as long as NATS does not answer.

        Raises:
            Abandoned: a later delivery of the trigger is being worked on.
            Ended: the run's final status is stored.
        """
        while True:
            told = self._next(status, fields)
            headers = {EXPECTED_LAST: str(self._sequence), MSG_ID: f"{self.request_id}:{self._writer}:{told.seq}"}
            try:
                self._sequence = await self._store(self._subject, told, headers)
                self._seq, self.last = told.seq, told
                return
            except JetStreamError as error:
                if error.err_code not in WRONG_LAST_SEQUENCE:
                    log.warning("status_refused", request_id=self.request_id, error=error.description)
                    await asyncio.sleep(STORE_AGAIN)
                    continue
            await self._catch_up(headers[MSG_ID])
            if self._told(told):
                return

    def _told(self, status: PipelineStatus) -> bool:
        """Whether the newest status says the same."""
        last = self.last
        return last is not None and (last.status, last.raw_status, last.message) == (
            status.status,
            status.raw_status,
            status.message,
        )

    def _next(self, status: RunStatus, fields: dict[str, Any]) -> PipelineStatus:
        now, last = time.time(), self.last
        kept: dict[str, Any] = {}
        if self.run is not None:
            kept = {"pipeline": self.run.pipeline, "engine": self.run.engine, "namespace": self.run.namespace}
        if last is not None:
            kept |= {"run_id": last.run_id, "submitted_at": last.submitted_at, "started_at": last.started_at}
        if status is RunStatus.SUBMITTED:
            kept["submitted_at"] = now
        elif status is RunStatus.RUNNING and kept.get("started_at") is None:
            kept["started_at"] = now
        told = PipelineStatus(
            request_id=self.request_id,
            seq=self._seq + 1,
            status=status,
            trace_id=self._trace_id,
            timestamp=now,
            **{**kept, **fields},
        )
        return told.model_copy(update={"timings": self._timings(told, fields.get("timings") or {})})

    def _timings(self, told: PipelineStatus, earlier: dict[str, float]) -> dict[str, float]:
        timings = {**(self.last.timings if self.last else {}), **earlier}
        if told.submitted_at is not None:
            timings.setdefault("submit_ms", 1000 * (told.submitted_at - self._received) - timings.get("queue_ms", 0.0))
            waited_until = told.started_at or told.timestamp
            timings["pending_ms"] = 1000 * (waited_until - told.submitted_at)
        if told.started_at is not None:
            timings["run_ms"] = 1000 * (told.timestamp - told.started_at)
        timings["total_ms"] = 1000 * (told.timestamp - self._received)
        return {name: round(max(0.0, value), 3) for name, value in timings.items()}

    async def _store(self, subject: str, message: Message, headers: dict[str, str]) -> int:
        """Publish until it is acknowledged or refused; `Nats-Msg-Id` makes it one message."""
        while True:
            try:
                return await self._api.publish(subject, encode(message), {**self._headers, **headers})
            except Transient as error:
                log.warning("status_not_stored", request_id=self.request_id, error=error.message)
            await asyncio.sleep(STORE_AGAIN)

    async def _catch_up(self, own: str) -> None:
        """Take in the newest status after one of ours was refused."""
        newest = None
        with contextlib.suppress(Transient):
            newest = await self._api.last(AI_PIPELINE_STATUS.name, self._subject)
            if newest is None:  # all of them are gone: purged, or too old
                self._sequence = 0
                return
        if newest is None:
            await asyncio.sleep(STORE_AGAIN)
            return
        if newest.headers.get(SOURCE) == self._source and int(newest.headers.get(ATTEMPT, 0)) > self._attempt:
            raise Abandoned(f"another worker follows the run of {self.request_id}")
        mine = newest.headers.get(MSG_ID) == own
        self._adopt(newest, raising=not mine)

    def _adopt(self, stored: Stored, *, raising: bool = True) -> None:
        self._sequence = stored.sequence
        self.last = decode(stored.data, PipelineStatus)
        self._seq = self.last.seq
        if raising and self.last.status.final:
            raise Ended(self.last, own=stored.headers.get(SOURCE) == self._source)

    async def _take(self, record: Stored) -> Run:
        await self._unless_repeated(record)
        self.run = decode(record.data, Run)
        return self.run

    async def _unless_repeated(self, stored: Stored) -> None:
        """Go on if what is stored is of this trigger, or of one that has left the queue without an end."""
        source = stored.headers.get(SOURCE, "")
        if source == self._source:
            return
        sequence = source.split(":")[1:2]
        if sequence and sequence[0].isdigit():
            waiting = await self._api.next(AI_PIPELINE.name, ">", int(sequence[0]))
            if waiting is not None and waiting.sequence == int(sequence[0]):
                raise Repeated
