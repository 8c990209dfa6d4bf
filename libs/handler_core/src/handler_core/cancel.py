"""Turns that are taken back: `ai.turn.cancel.{request_id}`, at any moment.

The stream `AI_CONTROL` keeps each cancellation for a day, so that a turn that is still queued, or is redelivered,
finds it before its work begins; a turn that runs hears of it as it is published. A turn watches first and looks then,
so that none falls between the two.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import nats.errors
import structlog

from handler_core import streams
from handler_core.codec import unpack_either, validate
from handler_core.connection import Connection
from handler_core.contract.base import is_token
from handler_core.contract.control import CANCEL_SUBJECT, CancelRequest
from handler_core.deadline import Deadline
from handler_core.errors import Canceled, DeadlineExceeded, HandlerError, Transient
from handler_core.jetstream import Api, JetStreamError

log = structlog.get_logger("handler_core.cancel")

LOOK_AGAIN = 1.0
"""Seconds after which a look-up that failed after a reconnect is repeated."""

REMEMBERED = 10.0
"""Seconds for which a cancellation that was heard is kept: in a cluster it may be heard before it can be looked up."""

REMEMBERED_AT_MOST = 4096

_PREFIX = CANCEL_SUBJECT.removesuffix("{request_id}")


class _Watch:
    """A turn that can be canceled: its time limit is moved to now, and `reason` says why."""

    __slots__ = ("limit", "reason")

    def __init__(self, limit: asyncio.Timeout) -> None:
        self.limit = limit
        self.reason: str | None = None

    def cancel(self, reason: str) -> None:
        if self.reason is None and not self.limit.expired():
            self.reason = reason
            self.limit.reschedule(asyncio.get_running_loop().time())


class Cancellations:
    """What was canceled, for all turns of a process; `run` listens."""

    def __init__(self, nc: Connection) -> None:
        self._nc = nc
        self._api = Api(nc)
        self._watched: dict[str, list[_Watch]] = {}
        self._lately: dict[str, tuple[float, str]] = {}
        self._look_again = asyncio.Event()
        self._stream_missing = False

    async def run(self) -> None:
        """Listen until cancelled. After a reconnect, look up what was missed for the turns that run."""
        try:
            subscription = await self._nc.subscribe(f"{_PREFIX}*", cb=self._heard)
        except nats.errors.ConnectionClosedError:
            return  # which ends the service
        self._nc.on_reconnect.append(self._look_again.set)
        try:
            while True:
                await self._look_again.wait()
                self._look_again.clear()
                for request_id in list(self._watched):
                    try:
                        if (reason := await self._looked_up(request_id)) is not None:
                            self._cancel(request_id, reason)
                    except (HandlerError, JetStreamError):  # a stream may be without its leader for a while
                        self._look_again.set()
                if self._look_again.is_set():
                    await asyncio.sleep(LOOK_AGAIN)
        finally:
            self._nc.on_reconnect.remove(self._look_again.set)
            with contextlib.suppress(Exception):
                await subscription.unsubscribe()

    @contextlib.asynccontextmanager
    async def limited(self, request_id: str, deadline: Deadline, *, queued: bool = True) -> AsyncIterator[None]:
        """A block that ends when the turn is canceled, or its time is up; it does not begin when either is so already.

        Args:
            queued: whether the turn came from a queue, where it may have been canceled long ago. One that did not
                goes on when JetStream cannot be asked.

        Raises:
            Canceled: the turn was taken back.
            DeadlineExceeded: the deadline passed.
        """
        remaining = deadline.remaining()
        when = None if remaining == float("inf") else asyncio.get_running_loop().time() + remaining
        limit = asyncio.timeout_at(when)
        watch = _Watch(limit)
        self._watched.setdefault(request_id, []).append(watch)
        try:
            async with limit:
                if (reason := await self._known(request_id, queued)) is not None:
                    raise _canceled(reason)
                yield
        except TimeoutError:
            if watch.reason is not None:
                raise _canceled(watch.reason) from None
            if not limit.expired():
                raise
            raise DeadlineExceeded("the deadline passed before the answer was ready") from None
        finally:
            watches = self._watched[request_id]
            watches.remove(watch)
            if not watches:
                del self._watched[request_id]

    async def _known(self, request_id: str, queued: bool) -> str | None:
        if (heard := self._lately.get(request_id)) is not None:
            return heard[1]
        try:
            return await self._looked_up(request_id)
        except (Transient, JetStreamError) as error:
            if queued:
                raise Transient(f"whether it was canceled cannot be looked up: {error}") from None
            return None

    async def _looked_up(self, request_id: str) -> str | None:
        """Why the turn was canceled, or None."""
        try:
            found = await self._api.last(streams.AI_CONTROL.name, _PREFIX + request_id)
        except JetStreamError as error:
            if error.err_code != streams.STREAM_NOT_FOUND:
                raise
            if not self._stream_missing:
                log.warning(
                    "cancel_unavailable", problem="stream AI_CONTROL is missing", remedy="handlers streams apply"
                )
            self._stream_missing = True
            return None
        return None if found is None else _reason(found.data)

    async def _heard(self, message: Any) -> None:
        request_id, reason, now = message.subject.removeprefix(_PREFIX), _reason(message.data), time.monotonic()
        self._cancel(request_id, reason)
        if not is_token(request_id):
            return
        self._lately.pop(request_id, None)
        self._lately[request_id] = now, reason
        while (oldest := next(iter(self._lately))) != request_id:
            if len(self._lately) <= REMEMBERED_AT_MOST and self._lately[oldest][0] > now - REMEMBERED:
                break
            del self._lately[oldest]

    def _cancel(self, request_id: str, reason: str) -> None:
        for watch in self._watched.get(request_id, ()):
            watch.cancel(reason)


def _reason(data: bytes) -> str:
    """What it says, in MessagePack or JSON; that it came suffices, as from `nats pub ai.turn.cancel.{id} ''`."""
    with contextlib.suppress(HandlerError):
        return validate(unpack_either(data)[0], CancelRequest).reason
    return ""


def _canceled(reason: str) -> Canceled:
    return Canceled(f"canceled: {reason}" if reason else "canceled")
