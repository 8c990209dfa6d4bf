"""`handlers ask`: a question, its answer as it is written, its sources, and where the time went."""

import asyncio
import json as json_module
import uuid
from contextlib import aclosing
from typing import Any

import typer
from rich.markup import escape

from handler_core.client import follow
from handler_core.codec import validate
from handler_core.connection import Connection
from handler_core.contract.answer import StreamEvent
from handler_core.contract.chat import CHAT, REQUEST_SUBJECT, USER_SUBJECT, ChatRequest, ChatResponse
from handler_core.errors import Busy, InvalidRequest
from handler_core.jetstream import Api
from handlers_cli.ask_trace import Seen, print_waterfall
from handlers_cli.cancel import stored_response, take_back
from handlers_cli.session import connected, err, interactive, out, say_error
from handlers_cli.settings import CliSettings

STAGES = {
    "queue_ms": "wait in the stream",
    "embed_ms": "embed the question",
    "search_ms": "search",
    "rerank_ms": "rerank",
    "llm_first_token_ms": "LLM, first token",
    "llm_ms": "LLM, whole answer",
    "total_ms": "total",
}
NEXT_STEP = "Is a chat_handler running, and have the streams been applied (handlers streams apply)?"
EXCERPT = 110
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
                earlier = await stored_response(Api(nc), fields["request_id"]) if fields.get("request_id") else None
                response = earlier or await _follow(nc, subject, request, seen)
        except TimeoutError:
            say_error(f"no answer within {timeout:g} s. {NEXT_STEP}")
            raise typer.Exit(1) from None
        except asyncio.CancelledError:
            await take_back(nc, request.request_id or "")
            raise
        except Busy as error:
            _complain(error.type, error.message, error.retry_after)
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


def _complain(type: str, message: str, retry_after: float | None) -> None:
    again = "" if retry_after is None else f" (try again in {retry_after:g} s)"
    told = message.removeprefix(type).removeprefix(": ")  # "canceled: too slow", of a turn that was canceled
    say_error(f"{type}{f': {told}' if told else ''}{again}")


def _print(response: ChatResponse, seen: Seen, *, json: bool, trace: bool, streamed: bool) -> None:
    if json:
        print(response.model_dump_json(exclude_none=True))
        return
    if response.error is None:
        _print_answer(response, streamed=streamed)
    if trace:
        print_waterfall(response, seen)
    elif response.error is None:
        _print_timings(response)
    if response.degraded:
        err.print(f"[yellow]answered without: {', '.join(response.degraded)}[/]")
    if (error := response.error) is not None:
        wait = error.retry_after_ms
        _complain(error.type, error.message, None if wait is None else wait / 1000)


def _print_answer(response: ChatResponse, *, streamed: bool) -> None:
    if not streamed:
        out.print(response.response, markup=False)
    cited = {citation.index for citation in response.citations}
    if response.sources:
        out.print("\n[bold]Sources[/]")
    for number, source in enumerate(response.sources, 1):
        place = " > ".join([str(source.metadata.get("source") or source.id), *_headings(source.metadata)])
        mark = "cited" if number in cited else "     "
        text = " ".join(source.text.split())
        excerpt = text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"
        out.print(f"  [bold]\\[{number}][/] {source.score:5.2f}  {mark}  [cyan]{escape(place)}[/]")
        out.print(f"      [dim]{escape(excerpt)}[/]")


def _print_timings(response: ChatResponse) -> None:
    out.print("\n[bold]Where the time went[/]")
    for key, label in STAGES.items():
        if key in response.timings:
            out.print(f"  {label:<20} {response.timings[key]:10,.1f} ms")


def _headings(metadata: dict[str, Any]) -> list[str]:
    headings = metadata.get("headings")
    return [str(heading) for heading in headings][-1:] if isinstance(headings, list) else []
