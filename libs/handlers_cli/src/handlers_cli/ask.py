"""`handlers ask`: a question, its answer as it is written, its sources, and where the time went."""

import asyncio
import json as json_module
import uuid
from contextlib import aclosing
from typing import Any

import typer

from handler_core.client import follow
from handler_core.codec import validate
from handler_core.connection import Connection
from handler_core.contract.answer import StreamEvent
from handler_core.contract.chat import CHAT, REQUEST_SUBJECT, USER_SUBJECT, ChatRequest, ChatResponse
from handler_core.errors import Busy, InvalidRequest
from handler_core.jetstream import Api
from handlers_cli.answer_view import complain_of, print_end, print_sources
from handlers_cli.ask_trace import Seen
from handlers_cli.cancel import stored_response, take_back
from handlers_cli.session import connected, err, interactive, out, say_error
from handlers_cli.settings import CliSettings

NEXT_STEP = "Is a chat_handler running, and have the streams been applied (handlers streams apply)?"
GRACE = 2.0
"""Seconds beyond the deadline in which the handler may say that it was missed."""


def question(fields: dict[str, Any]) -> ChatRequest:
    """A chat request from the command line's options.

    Raises:
        InvalidRequest: names the option.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    if "filter" in given:
        try:
            given["filter"] = json_module.loads(given["filter"])
        except ValueError as error:
            raise InvalidRequest(f"filter: is not JSON ({error})") from None
    return validate({"request_id": uuid.uuid4().hex, **given}, ChatRequest)


async def ask(
    config: CliSettings, fields: dict[str, Any], *, json: bool, timeout: float, trace: bool, verbose: bool
) -> None:
    """Ask, and print what comes back; exits 1 when the answer is an error. Interrupted, it cancels the turn."""
    request = question({**fields, "deadline_ms": int(timeout * 1000)})
    subject = USER_SUBJECT.format(user=request.user_id) if request.user_id else REQUEST_SUBJECT
    async with connected(config, min(timeout, 5.0)) as nc:
        if verbose or interactive():
            err.print(f"[dim]request {request.request_id}[/]")
        seen = Seen()
        try:
            async with asyncio.timeout(timeout + GRACE):
                # An id that was given may have been used: nothing would be queued, nor answered once more.
                earlier = (
                    await stored_response(Api(nc), CHAT, fields["request_id"]) if fields.get("request_id") else None
                )
                response = earlier or await _follow(nc, subject, request, seen)
        except TimeoutError:
            say_error(f"no answer within {timeout:g} s. {NEXT_STEP}")
            raise typer.Exit(1) from None
        except asyncio.CancelledError:
            await take_back(nc, request.request_id or "")
            raise
        except Busy as error:
            complain_of(error)
            raise typer.Exit(1) from None
    _print(response, seen, json=json, trace=trace, streamed=request.enable_streaming and earlier is None)
    if response.error is not None:
        raise typer.Exit(1)


async def _follow(nc: Connection, subject: str, request: ChatRequest, seen: Seen) -> ChatResponse:
    started = False
    answer = follow(nc, CHAT, subject, request, on_stored=lambda _: seen.mark("stored"))
    async with aclosing(answer):
        async for item in answer:
            if not isinstance(item, StreamEvent):
                seen.mark("final")
                return item
            seen.mark("first event")
            if item.type == "restart" and started:
                out.print("\n[dim](the worker was lost; another one answers anew)[/]\n")
            elif item.content:
                started = True
                out.print(item.content, end="", markup=False)
            elif item.type == "done":
                out.print()
    raise AssertionError("unreachable")


def _print(response: ChatResponse, seen: Seen, *, json: bool, trace: bool, streamed: bool) -> None:
    if json:
        print(response.model_dump_json(exclude_none=True))
        return
    if response.error is None:
        if not streamed:
            out.print(response.response, markup=False)
        print_sources(response.sources, response.citations)
    print_end(response, seen, trace=trace)
