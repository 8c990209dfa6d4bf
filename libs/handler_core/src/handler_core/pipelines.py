"""The caller's side of a pipeline's run: what there is to trigger, trigger it, follow it to its end."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import nats.errors

from handler_core.client import publish
from handler_core.codec import decode, encode, validate
from handler_core.connection import Connection
from handler_core.contract.base import Request, is_token
from handler_core.contract.pipeline import (
    LIST_SUBJECT,
    STATUS_SUBJECT,
    STORED_STATUS_SUBJECT,
    TRIGGER_SUBJECT,
    USER_LIST_SUBJECT,
    USER_TRIGGER_SUBJECT,
    PipelinesRequest,
    PipelinesResponse,
    PipelineStatus,
    TriggerRequest,
)
from handler_core.errors import InvalidRequest, Transient, from_info
from handler_core.jetstream import Api, JetStreamError
from handler_core.streams import AI_PIPELINE_STATUS

RECORD_SUBJECT = "evt.pipeline.run.{request_id}"
"""Where the bridge stores what a run will be, before it submits it, or nothing while it decides; not republished."""
LOOK_EVERY = 30.0
"""Seconds of silence after which a run's statuses are looked up."""
LOOK_AGAIN = 1.0
"""Seconds after which a look-up that failed is repeated."""


async def trigger(
    api: Api, request: TriggerRequest, user: str | None = None, headers: dict[str, str] | None = None
) -> int:
    """Queue a run, once only by its `request_id`, and return the trigger's sequence in AI_PIPELINE.

    Args:
        user: on whose behalf, on the user's own subject, which counts more than the request's `user_id`.

    Raises:
        InvalidRequest: the user's name cannot be part of a subject.
        Busy, Transient, JetStreamError: as `client.publish`.
    """
    if user is not None and not is_token(user):
        raise InvalidRequest("user: is 1 to 64 characters of A-Z, a-z, 0-9, _ and -")
    return await publish(api, USER_TRIGGER_SUBJECT.format(user=user) if user else TRIGGER_SUBJECT, request, headers)


async def statuses(
    nc: Connection, request_id: str, *, look_every: float = LOOK_EVERY
) -> AsyncGenerator[PipelineStatus, None]:
    """Yield a run's statuses, each once and in order, from the first that is stored to the final one.

    The stream keeps the newest 50. What was missed while the connection was lost is read from there, and so is, after
    `look_every` seconds of silence, what was lost on the way; a look-up that fails is repeated. A run that nobody knows
    yet is waited for. There is no time limit: bound it with `asyncio.timeout`.

    Raises:
        InvalidRequest: the id cannot be one.
        Transient, JetStreamError: the first look-up failed, or the connection is closed.
    """
    validate({"request_id": request_id}, Request)
    arrived: asyncio.Queue[PipelineStatus | None] = asyncio.Queue()

    async def on_status(message: Any) -> None:
        arrived.put_nowait(decode(message.data, PipelineStatus))

    def look() -> None:
        arrived.put_nowait(None)

    log = _Log(Api(nc), request_id)
    subscription = await nc.subscribe(STATUS_SUBJECT.format(request_id=request_id), cb=on_status)
    nc.on_reconnect.append(look)
    try:
        found, seq, pause = await log.read(), 0, look_every
        while True:
            for status in found:
                if status.seq > seq:
                    seq = status.seq
                    yield status
                    if status.status.final:
                        return
            newest = await _next(arrived, pause)
            found, pause = [newest] if newest else [], look_every
            if newest is None or newest.seq > seq + 1:
                # What was missed comes first; the newest is stored as well, so a failed look-up loses nothing.
                try:
                    found = [*await log.read(), *found]
                except (Transient, JetStreamError):
                    if nc.is_closed:
                        raise
                    found, pause = [], LOOK_AGAIN
    finally:
        nc.on_reconnect.remove(look)
        if not nc.is_closed:
            await subscription.unsubscribe()


async def _next(arrived: "asyncio.Queue[PipelineStatus | None]", seconds: float) -> PipelineStatus | None:
    """The next status that arrives; None when it is time to look."""
    try:
        async with asyncio.timeout(seconds):
            return await arrived.get()
    except TimeoutError:
        return None


class _Log:
    """The statuses of a run that are stored, read in pieces."""

    def __init__(self, api: Api, request_id: str) -> None:
        self._api = api
        self._subject = STORED_STATUS_SUBJECT.format(request_id=request_id)
        self._sequence = 1

    async def read(self) -> list[PipelineStatus]:
        """Those that no earlier call returned; where it fails, the next one begins at the same place."""
        found, sequence = [], self._sequence
        while (stored := await self._api.next(AI_PIPELINE_STATUS.name, self._subject, sequence)) is not None:
            found.append(decode(stored.data, PipelineStatus))
            sequence = stored.sequence + 1
        self._sequence = sequence
        return found


async def latest(api: Api, request_id: str) -> PipelineStatus | None:
    """The newest status of a run; None when the stream has none.

    Raises:
        Transient, JetStreamError: it cannot be looked up.
    """
    stored = await api.last(AI_PIPELINE_STATUS.name, STORED_STATUS_SUBJECT.format(request_id=request_id))
    return None if stored is None else decode(stored.data, PipelineStatus)


async def accepted(api: Api, request_id: str) -> bool:
    """Whether a bridge has decided what the run will be, and submits it or has done so.

    Raises:
        Transient, JetStreamError: it cannot be looked up.
    """
    record = await api.last(AI_PIPELINE_STATUS.name, RECORD_SUBJECT.format(request_id=request_id))
    return record is not None and record.data != b""


async def catalogue(nc: Connection, user: str | None = None, *, timeout: float = 5.0) -> PipelinesResponse:
    """The pipelines that the user, or anybody, may trigger, as a bridge tells them within `timeout` seconds.

    Raises:
        InvalidRequest: the user's name cannot be one.
        Transient: nobody answers.
        HandlerError: what was answered went wrong.
    """
    request = validate({"user_id": user}, PipelinesRequest)
    subject = LIST_SUBJECT if user is None else USER_LIST_SUBJECT.format(user=user)
    try:
        reply = await nc.request(subject, encode(request), timeout=timeout)
    except nats.errors.NoRespondersError:
        raise Transient(f"nobody answers on {subject}: no pipeline_bridge is running") from None
    except (nats.errors.TimeoutError, TimeoutError):
        raise Transient(f"no answer on {subject} within {timeout:g} s") from None
    response = decode(reply.data, PipelinesResponse)
    if response.error is not None:
        raise from_info(response.error)
    return response
