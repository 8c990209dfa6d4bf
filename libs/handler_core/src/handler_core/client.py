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

    The request needs a fresh `request_id`, by which it is also queued once only. There is no time limit: bound it
    with `asyncio.timeout`.

    Raises:
        Transient: no stream takes the subject, or NATS does not answer.
        JetStreamError: the stream refused it, for instance because it is full.
    """
    if request.request_id is None:
        raise ValueError("request_id: is needed to follow the answer")
    streaming = bool(getattr(request, "enable_streaming", False))
    arrived: asyncio.Queue[StreamEvent | R] = asyncio.Queue()

    async def on_event(message: Any) -> None:
        arrived.put_nowait(decode(message.data, StreamEvent))

    async def on_response(message: Any) -> None:
        arrived.put_nowait(decode(message.data, family.response))

    subscriptions = [await nc.subscribe(family.response_subject(request.request_id), cb=on_response)]
    if streaming:
        subscriptions.append(await nc.subscribe(family.stream_subject(request.request_id), cb=on_event))
    try:
        await Api(nc).publish(subject, encode(request), {MSG_ID: request.request_id, **(headers or {})})
        response: R | None = None
        ended = not streaming
        while response is None or not ended:
            item = await arrived.get()
            if isinstance(item, StreamEvent):
                ended = item.done
                yield item
            else:
                response = item
        yield response
    finally:
        if not nc.is_closed:
            for subscription in subscriptions:
                await subscription.unsubscribe()
