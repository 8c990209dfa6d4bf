"""`handlers cancel`: stop a turn, wherever it is, and say what became of it."""

import asyncio
import contextlib
from typing import Any, TypeVar

import typer

from handler_core.codec import decode, encode, validate
from handler_core.connection import Connection
from handler_core.contract.answer import Family, Response
from handler_core.contract.chat import CHAT
from handler_core.contract.control import CANCEL_SUBJECT, CancelRequest
from handler_core.contract.errors import ErrorType
from handler_core.contract.voice import VOICE
from handler_core.errors import HandlerError
from handler_core.jetstream import Api, JetStreamError
from handlers_cli.session import connected, err, out
from handlers_cli.settings import CliSettings

R = TypeVar("R", bound=Response)

FAMILIES: tuple[Family[Any], ...] = (CHAT, VOICE)
"""Those whose turns are known by nothing but their `request_id`."""
TAKE_BACK = 0.3
"""Seconds that an interrupted command gives to canceling its turn."""


async def cancel(config: CliSettings, request_id: str, reason: str, wait: float) -> None:
    """Cancel a turn and wait for its end; exits 1 when it had ended already.

    Raises:
        InvalidRequest: the id cannot be one.
    """
    validate({"request_id": request_id, "reason": reason}, CancelRequest)
    answered: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

    async def on_response(message: Any) -> None:
        if not answered.done():
            answered.set_result(decode(message.data, Response))

    async with connected(config, 5.0) as nc:
        api = Api(nc)
        for family in FAMILIES:
            await nc.subscribe(family.response_subject(request_id), cb=on_response)
        stored = [await stored_response(api, family, request_id) for family in FAMILIES]
        if (ended := next(filter(None, stored), None)) is not None:
            out.print(f"{request_id} {_ended(ended)} before; nothing to cancel", markup=False)
            raise typer.Exit(1)
        await send(api, request_id, reason)
        if wait <= 0:
            out.print(f"{request_id}: the cancel is stored, for a day", markup=False)
            return
        try:
            async with asyncio.timeout(wait):
                response = await answered
        except TimeoutError:
            text = f"no turn of this id was seen within {wait:g} s; it is canceled when it comes, for a day"
            out.print(f"{request_id}: {text}", markup=False)
            return
    out.print(f"{request_id} {_ended(response)}", markup=False)
    if response.error is None or response.error.type is not ErrorType.CANCELED:
        raise typer.Exit(1)


async def send(api: Api, request_id: str, reason: str) -> None:
    """Store the cancel where every worker, one that is yet to come too, hears of it.

    Raises:
        InvalidRequest: the id cannot be one, or the reason is too long.
    """
    request = validate({"request_id": request_id, "reason": reason}, CancelRequest)
    await api.publish(CANCEL_SUBJECT.format(request_id=request_id), encode(request), {})


async def take_back(nc: Connection, request_id: str) -> None:
    """Cancel one's own turn when interrupted: briefly, and without a complaint if that cannot be."""
    with contextlib.suppress(TimeoutError, HandlerError, JetStreamError):
        async with asyncio.timeout(TAKE_BACK):
            await send(Api(nc), request_id, "interrupted by its user")
            err.print(f"canceled {request_id}")


async def stored_response(api: Api, family: Family[R], request_id: str) -> R | None:
    """The final response of a turn, if the stream has one still."""
    subject = "evt." + family.response_subject(request_id).removeprefix("ai.")
    final = await api.last(family.stream, subject)
    return None if final is None else decode(final.data, family.response)


def _ended(response: Response) -> str:
    if response.error is None:
        return "was answered"
    if response.error.type is ErrorType.CANCELED:
        return f"was canceled{f' in stage {response.error.stage}' if response.error.stage else ''}"
    return f"ended with {response.error.type}: {response.error.message}"
