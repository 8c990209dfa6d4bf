"""What is stored of a run: the record of what was decided, and its statuses, in an order that all its writers agree on.

A trigger may be in the hands of two workers, when the first is only stalled. So a status is stored on the condition
that its writer knows the one before it (`Nats-Expected-Last-Subject-Sequence`). A writer that is refused reads what is
there: written by a later delivery of the trigger, it stops; by an earlier one, it goes on from there. After a final
status nothing more is stored.

The record is stored before the run is submitted, by the same rule, and what it says never changes. So a trigger that
comes again does the same again, whatever the catalogue says by then. Record and first status exclude each other's
writers: of two messages with one request id one begins the run, or is refused, and the other one is taken for its
repetition.

A later delivery notes with the record, which may still be empty, that it begins what a worker may die of. Those that
leave no trace after that are counted; a delivery that waits, for whatever it is, is none of them.
"""

import asyncio
import contextlib
import itertools
import uuid
from collections.abc import Callable
from typing import Any, Final

import structlog

from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.contract.pipeline import STORED_STATUS_SUBJECT, PipelineStatus, RunStatus
from handler_core.errors import Abandoned, Transient
from handler_core.jetstream import (
    EXPECTED_LAST,
    EXPECTED_LAST_SUBJECT,
    MSG_ID,
    WRONG_LAST_SEQUENCE,
    Api,
    JetStreamError,
    Stored,
)
from handler_core.pipelines import RECORD_SUBJECT
from handler_core.streams import AI_PIPELINE_STATUS
from pipeline_bridge.engine import Run
from pipeline_bridge.statuses import following, submitted_run
from pipeline_bridge.waiting import waits

log = structlog.get_logger("pipeline_bridge.log")

SOURCE: Final = "Run-Source"
"""Header: the identity of the trigger's message."""
ATTEMPT: Final = "Run-Attempt"
"""Header: how many times the trigger had been delivered."""
BEGUN: Final = "Run-Begun"
"""Header of the record: `RunLog.begun`, and one for the delivery that stored it if it has left no trace since."""
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
        attempt: tells how many times it has been delivered, which may rise meanwhile.
        received: when the trigger reached its stream, in Unix seconds.
        headers: trace context, sent with everything.
    """

    def __init__(
        self,
        nc: Connection,
        request_id: str,
        *,
        source: str,
        attempt: Callable[[], int],
        received: float,
        trace_id: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.request_id = request_id
        self.last: PipelineStatus | None = None
        """The newest status, by whichever worker."""
        self.run: Run | None = None
        """What was decided on; where that is no longer stored, what a status tells of it."""
        self.begun = 0
        """Deliveries just before this one that began to decide on the run, or to submit it, and left no trace."""
        self.failed = False
        """Whether a try of this delivery to submit the run has failed, and may take effect all the same."""
        self._api = Api(nc)
        self._source = source
        self._attempt = attempt
        self._received = received
        self._trace_id = trace_id
        self._headers = {**(headers or {}), SOURCE: source}
        self._writer = uuid.uuid4().hex[:12]
        self._published = itertools.count(1)
        self._subject = STORED_STATUS_SUBJECT.format(request_id=request_id)
        self._record = RECORD_SUBJECT.format(request_id=request_id)
        self._all = f"evt.pipeline.*.{request_id}"
        self._recorded = 0
        self._sequence = 0
        self._seq = 0
        self._own = True
        self._newest_writer = ""
        self._began = self._survived = False

    async def open(self) -> None:
        """Read what is known of the run.

        Raises:
            Ended: all of it.
            Repeated: another message's run it is.
            Transient: the stream does not answer.
        """
        newest = await self._newest(self._subject)
        record = await self._newest(self._record)
        if record is not None:
            self._take(record)
            self.begun = int(record.headers.get(BEGUN, 0))
        if newest is not None:
            self._adopt(newest)
            self._unless_ended()
        if (first := record or newest) is not None:  # ended before anything was decided, or trimmed by hand
            await self._unless_repeated(first)

    @property
    def run_id(self) -> str:
        """The engine's name for the run; empty until it is known to have it."""
        return self.last.run_id if self.last else ""

    @property
    def ended(self) -> bool:
        """Whether the run's final status is stored."""
        return self.last is not None and self.last.status.final

    @property
    def told_the_end(self) -> bool:
        """Whether this very writer stored the final status, be it with a publish that was given up."""
        return self.ended and self._newest_writer == self._writer

    async def begin(self) -> None:
        """Note, once, that this delivery begins to decide on the run, or to submit it.

        Raises:
            Abandoned, Ended, Repeated: as `tell`.
            Transient: the stream does not answer.
        """
        if self._began:
            return
        try:
            await self._keep(self.begun + 1, self._expecting(self._recorded))
        except JetStreamError as error:
            if error.err_code not in WRONG_LAST_SEQUENCE:
                raise Transient(f"the run could not be recorded: {error.description}") from None
            await self.catch_up()  # the note that stands there is an earlier delivery's, which is as good

    async def survive(self) -> None:
        """Note that this delivery has tried to submit the run, and goes on: what ends it later is something else."""
        self.failed, self.begun = True, 0
        if self._survived:
            return
        self._survived = True
        with contextlib.suppress(JetStreamError):  # another delivery's note stands there
            await self._keep(0, self._expecting(self._recorded))

    async def decide(self, run: Run) -> Run:
        """Store what is to be submitted, unless an earlier delivery has; returns what was decided first.

        Raises:
            Abandoned: a later delivery of the trigger is being worked on.
            Ended: the run's final status is stored.
            Repeated: another message's run it is.
            Transient: the stream does not answer.
        """
        try:
            await self._keep(self.begun + 1, self._expecting(self._recorded), run)
        except JetStreamError as error:
            if error.err_code not in WRONG_LAST_SEQUENCE:
                raise Transient(f"the run could not be recorded: {error.description}") from None
            await self.catch_up()
            if self.run is None:
                raise Transient("the run could not be recorded: others write of it") from None
            return self.run
        self.run = run
        return run

    async def _keep(self, begun: int, headers: dict[str, str], run: Run | None = None) -> None:
        """Store the record, of a run or of none yet."""
        self._began = True
        run = run or self.run
        payload = b"" if run is None else encode(run)
        self._recorded = await self._store(self._record, payload, {BEGUN: str(begun), **headers})

    async def tell(self, status: RunStatus, **fields: Any) -> None:
        """Store a status; what is not given stays as in the one before it. Waits as long as NATS does not answer.

        Raises:
            Abandoned: a later delivery of the trigger is being worked on.
            Ended: the run's final status is stored.
            Repeated: another message's run it is.
        """
        failures = 0
        self._unless_ended()
        while True:
            told = self._next(status, fields)
            headers = self._expecting(self._sequence)
            try:
                self._sequence = await self._store(self._subject, encode(told), headers)
                self._seq, self.last, self._own, self._newest_writer = told.seq, told, True, self._writer
                return
            except JetStreamError as error:
                if error.err_code not in WRONG_LAST_SEQUENCE:
                    failures += 1
                    self._warn("status_refused", error.description, failures)
                    await asyncio.sleep(STORE_AGAIN)
                    continue
            try:
                await self.catch_up(headers[MSG_ID])
            except Transient:
                await asyncio.sleep(STORE_AGAIN)
                continue
            if self._told(told):
                return

    def _expecting(self, sequence: int) -> dict[str, str]:
        """The headers of a message, no two of which have the same id: one that was given up may still be stored.

        Args:
            sequence: of the newest message of its subject that its writer knows. Until the run is decided on, it has to
                know the newest status and the newest record.
        """
        message_id = {MSG_ID: f"{self.request_id}:{self._writer}:{next(self._published)}"}
        if self.run is not None:
            return {**message_id, EXPECTED_LAST: str(sequence)}
        newest = max(self._sequence, self._recorded)
        return {**message_id, EXPECTED_LAST: str(newest), EXPECTED_LAST_SUBJECT: self._all}

    def _told(self, status: PipelineStatus) -> bool:
        """Whether the newest status says the same."""
        last = self.last
        return last is not None and (last.status, last.raw_status, last.message) == (
            status.status,
            status.raw_status,
            status.message,
        )

    def _next(self, status: RunStatus, fields: dict[str, Any]) -> PipelineStatus:
        told = following(self.last, self.run, status, fields, self._received)
        return PipelineStatus(request_id=self.request_id, seq=self._seq + 1, trace_id=self._trace_id, **told)

    async def _store(self, subject: str, payload: bytes, headers: dict[str, str]) -> int:
        """Publish until it is acknowledged or refused; `Nats-Msg-Id` makes it one message."""
        failures = 0
        headers = {**self._headers, ATTEMPT: str(self._attempt()), **headers}
        while True:
            try:
                return await self._api.publish(subject, payload, headers)
            except Transient as error:
                failures += 1
                self._warn("status_not_stored", error.message, failures)
            await asyncio.sleep(STORE_AGAIN)

    def _warn(self, event: str, error: str, failures: int) -> None:
        """Say so at the first failure, the second, the fourth …: there may be a thousand runs."""
        if failures & (failures - 1) == 0:
            log.warning(event, request_id=self.request_id, error=error, failures=failures)

    async def _newest(self, subject: str) -> Stored | None:
        try:
            return await self._api.last(AI_PIPELINE_STATUS.name, subject)
        except JetStreamError as error:
            raise Transient(str(error)) from None

    async def catch_up(self, own: str = "") -> None:
        """Take in what others have written, as after a message of ours was refused.

        Args:
            own: its id; the refused one may be a repetition of what was stored.

        Raises:
            Abandoned, Ended, Repeated: as `tell`.
            Transient: the stream does not answer.
        """
        newest = await self._newest(self._subject)
        if (record := await self._newest(self._record)) is None:
            self._recorded = 0
        else:
            await self._unless_repeated(record)
            self._unless_abandoned(record)
            self._take(record)
        if newest is None:  # all of them are gone: purged, or too old
            self._sequence = 0
            return
        await self._unless_repeated(newest)
        self._adopt(newest)
        self._unless_abandoned(newest)
        if newest.headers.get(MSG_ID) != own:
            self._unless_ended()

    def _take(self, record: Stored) -> None:
        self._recorded = record.sequence
        if self.run is None and record.data:
            self.run = decode(record.data, Run)

    def _adopt(self, stored: Stored) -> None:
        self._sequence = stored.sequence
        self.last = decode(stored.data, PipelineStatus)
        self._seq = self.last.seq
        self._own = stored.headers.get(SOURCE) == self._source
        self._newest_writer = stored.headers.get(MSG_ID, "::").split(":")[1]
        if self.run is None:  # a long run's record may have made room for others'
            self.run = submitted_run(self.last)

    def _unless_ended(self) -> None:
        if self.last is not None and self.ended:
            raise Ended(self.last, self._own)

    def _unless_abandoned(self, stored: Stored) -> None:
        if stored.headers.get(SOURCE) == self._source and int(stored.headers.get(ATTEMPT, 0)) > self._attempt():
            raise Abandoned(f"another worker follows the run of {self.request_id}")

    async def _unless_repeated(self, stored: Stored) -> None:
        """Go on if what is stored is of this trigger, or of one that has left the queue without an end."""
        source = stored.headers.get(SOURCE, "")
        if source != self._source and await waits(self._api, source):
            raise Repeated
