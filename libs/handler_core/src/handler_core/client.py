"""The caller's side of a turn: publish a request, follow its answer."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from handler_core import streams, tracing
from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.contract.answer import Family, Response, StreamEvent
from handler_core.contract.base import Request
from handler_core.errors import Busy
from handler_core.jetstream import MSG_ID, Api, JetStreamError

R = TypeVar("R", bound=Response)

RETRY_AFTER = 1.0
"""Seconds after which a full queue is worth another try."""
_STORE_FAILED = 10077  # with "maximum bytes exceeded" and the like, but also for a disk that fails
_NO_STORAGE = {10002: "the account's", 10023: "the server's"}


async def publish(api: Api, subject: str, request: Request, headers: dict[str, str] | None = None) -> int:
    """Queue a request, once only by its `request_id`, and return its sequence in the stream.

    Where a span is active, its child for this is what the turn's trace goes on from.

    Raises:
        Busy: the queue, or what it may keep on disk, is full.
        Transient: no stream takes the subject, or NATS does not answer.
        JetStreamError: the stream refused it for another reason.
    """
    stream, template = streams.declared(subject) or (None, subject)
    queue = subject if stream is None else stream.name
    payload = encode(request)
    attributes: dict[str, tracing.Value] = {
        "messaging.system": "nats",
        "messaging.operation.type": "send",
        "messaging.operation.name": "publish",
        "messaging.destination.name": subject,
        "messaging.destination.template": template,
        "messaging.message.id": request.request_id or "",
        "messaging.message.body.size": len(payload),
    }
    with tracing.span(f"send {template}", "producer", attributes):
        carried = {MSG_ID: request.request_id or "", **(headers or {})}
        if (span := tracing.active.get()) is not None:
            carried["traceparent"] = span.traceparent
        try:
            return await api.publish(subject, payload, carried)
        except JetStreamError as error:
            if error.err_code == _STORE_FAILED and error.description.startswith("maximum "):
                raise Busy(f"the queue {queue} is full", stage="queue", retry_after=RETRY_AFTER) from None
            if owner := _NO_STORAGE.get(error.err_code):
                text = f"the queue {queue} cannot grow: {owner} JetStream storage is full"
                raise Busy(text, stage="queue", retry_after=RETRY_AFTER) from None
            raise


async def follow(
    nc: Connection,
    family: Family[R],
    subject: str,
    request: Request,
    *,
    headers: dict[str, str] | None = None,
    on_stored: Callable[[int], None] | None = None,
) -> AsyncGenerator[StreamEvent | R, None]:
    """Publish a request and yield its events as they come (when it asks for streaming), then the final response.

    What was missed while the connection was lost is read from the stream. The request needs a fresh `request_id`, by
    which it is also queued once only. There is no time limit: bound it with `asyncio.timeout`.

    Args:
        on_stored: told the request's sequence as soon as the stream has it.

    Raises:
        Busy, Transient, JetStreamError: as `publish`.
    """
    if request.request_id is None:
        raise ValueError("request_id: is needed to follow the answer")

    async def ask(api: Api) -> bool:
        sequence = await publish(api, subject, request, headers)
        if on_stored is not None:
            on_stored(sequence)
        return False

    streaming = bool(getattr(request, "enable_streaming", False))
    async with aclosing(_followed(nc, family, request.request_id, streaming, ask)) as items:
        async for item in items:
            yield item


async def attach(nc: Connection, family: Family[R], request_id: str) -> AsyncGenerator[StreamEvent | R, None]:
    """Yield the events of a turn that somebody else asked for, from its first, then the final response; as `follow`."""

    async def read(_: Api) -> bool:
        return True

    async with aclosing(_followed(nc, family, request_id, True, read)) as items:
        async for item in items:
            yield item


async def _followed(
    nc: Connection, family: Family[R], request_id: str, streaming: bool, begin: Callable[[Api], Awaitable[bool]]
) -> AsyncGenerator[StreamEvent | R, None]:
    """Listen, `begin`, and yield what comes; `begin` tells whether the turn is somebody else's, and may have begun."""
    api = Api(nc)
    arrived: asyncio.Queue[StreamEvent | R | None] = asyncio.Queue()

    async def on_event(message: Any) -> None:
        arrived.put_nowait(decode(message.data, family.event))

    async def on_response(message: Any) -> None:
        arrived.put_nowait(decode(message.data, family.response))

    def look() -> None:
        arrived.put_nowait(None)

    subscriptions = [await nc.subscribe(family.response_subject(request_id), cb=on_response)]
    if streaming:
        subscriptions.append(await nc.subscribe(family.stream_subject(request_id), cb=on_event))
    nc.on_reconnect.append(look)
    try:
        if attached := await begin(api):
            look()
        response: R | None = None
        seq, ended = 0, not streaming
        while response is None or not ended:
            item = await arrived.get()
            items: list[StreamEvent | R] = [] if item is None else [item]
            if item is None or (isinstance(item, StreamEvent) and item.seq > seq + 1):
                # What was missed comes first: it would be taken for old after what has arrived meanwhile.
                items = [*await _stored(api, family, request_id, streaming), *items]
            for each in items:
                if not isinstance(each, StreamEvent):
                    response = each
                elif each.seq > seq:
                    seq, ended = each.seq, each.done
                    yield each
            if attached and response is not None and not seq:
                # Events are stored before the response: a turn that has none by now does not stream.
                ended = await api.next(family.stream, _written(family.stream_subject(request_id)), 1) is None
        yield response
    finally:
        nc.on_reconnect.remove(look)
        if not nc.is_closed:
            for subscription in subscriptions:
                await subscription.unsubscribe()


async def _stored(api: Api, family: Family[R], request_id: str, streaming: bool) -> list[StreamEvent | R]:
    """The events and the response that the stream holds by now."""
    found: list[StreamEvent | R] = []
    subject = _written(family.stream_subject(request_id))
    sequence = 1
    while streaming and (event := await api.next(family.stream, subject, sequence)) is not None:
        found.append(decode(event.data, family.event))
        sequence = event.sequence + 1
    final = await api.last(family.stream, _written(family.response_subject(request_id)))
    if final is not None:
        found.append(decode(final.data, family.response))
    return found


def _written(subject: str) -> str:
    """Where what is read on a subject was written."""
    return "evt." + subject.removeprefix("ai.")
