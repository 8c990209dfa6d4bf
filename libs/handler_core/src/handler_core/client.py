"""The caller's side of a turn: publish a request, follow its answer."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.contract.answer import Family, Response, StreamEvent
from handler_core.contract.base import Request
from handler_core.jetstream import MSG_ID, Api

R = TypeVar("R", bound=Response)


async def follow(
    nc: Connection, family: Family[R], subject: str, request: Request, *, headers: dict[str, str] | None = None
) -> AsyncGenerator[StreamEvent | R, None]:
    """Publish a request and yield its events as they come (when it asks for streaming), then the final response.

    What was missed while the connection was lost is read from the stream. The request needs a fresh `request_id`, by
    which it is also queued once only. There is no time limit: bound it with `asyncio.timeout`.

    Raises:
        Transient: no stream takes the subject, or NATS does not answer.
        JetStreamError: the stream refused it, for instance because it is full.
    """
    if request.request_id is None:
        raise ValueError("request_id: is needed to follow the answer")
    streaming = bool(getattr(request, "enable_streaming", False))
    api = Api(nc)
    arrived: asyncio.Queue[StreamEvent | R | None] = asyncio.Queue()

    async def on_event(message: Any) -> None:
        arrived.put_nowait(decode(message.data, StreamEvent))

    async def on_response(message: Any) -> None:
        arrived.put_nowait(decode(message.data, family.response))

    def on_reconnect() -> None:
        arrived.put_nowait(None)

    subscriptions = [await nc.subscribe(family.response_subject(request.request_id), cb=on_response)]
    if streaming:
        subscriptions.append(await nc.subscribe(family.stream_subject(request.request_id), cb=on_event))
    nc.on_reconnect.append(on_reconnect)
    try:
        await api.publish(subject, encode(request), {MSG_ID: request.request_id, **(headers or {})})
        response: R | None = None
        seq, ended = 0, not streaming
        while response is None or not ended:
            item = await arrived.get()
            if item is None:
                for missed in await _stored(api, family, request.request_id, streaming):
                    arrived.put_nowait(missed)
            elif not isinstance(item, StreamEvent):
                response = item
            elif item.seq > seq:
                seq, ended = item.seq, item.done
                yield item
        yield response
    finally:
        nc.on_reconnect.remove(on_reconnect)
        if not nc.is_closed:
            for subscription in subscriptions:
                await subscription.unsubscribe()


async def _stored(api: Api, family: Family[R], request_id: str, streaming: bool) -> list[StreamEvent | R]:
    """The events and the response that the stream holds by now."""
    found: list[StreamEvent | R] = []
    subject = "evt." + family.stream_subject(request_id).removeprefix("ai.")
    sequence = 1
    while streaming and (event := await api.next(family.stream, subject, sequence)) is not None:
        found.append(decode(event.data, StreamEvent))
        sequence = event.sequence + 1
    final = await api.last(family.stream, "evt." + family.response_subject(request_id).removeprefix("ai."))
    if final is not None:
        found.append(decode(final.data, family.response))
    return found
