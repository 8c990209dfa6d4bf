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
from handler_core.contract.answer import StreamEvent
from handler_core.contract.chat import CHAT, REQUEST_SUBJECT, USER_SUBJECT, ChatRequest, ChatResponse
from handler_core.errors import InvalidRequest
from handlers_cli.session import connected, err, out, say_error
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
    return validate({**given, "request_id": uuid.uuid4().hex}, ChatRequest)


async def ask(config: CliSettings, fields: dict[str, Any], *, json: bool, timeout: float) -> None:
    """Ask, and print what comes back; exits 1 when the answer is an error."""
    request = question({**fields, "deadline_ms": int(timeout * 1000)})
    subject = USER_SUBJECT.format(user=request.user_id) if request.user_id else REQUEST_SUBJECT
    try:
        async with asyncio.timeout(timeout + GRACE), connected(config, min(timeout, 5.0)) as nc:
            response = await _follow(nc, subject, request)
    except TimeoutError:
        say_error(f"no answer within {timeout:g} s. {NEXT_STEP}")
        raise typer.Exit(1) from None
    if json:
        print(response.model_dump_json(exclude_none=True))
    elif response.error is not None:
        say_error(f"{response.error.type}: {response.error.message}")
    else:
        _print_rest(response, streamed=request.enable_streaming)
    if response.error is not None:
        raise typer.Exit(1)


async def _follow(nc: Any, subject: str, request: ChatRequest) -> ChatResponse:
    started = False
    async with aclosing(follow(nc, CHAT, subject, request)) as answer:
        async for item in answer:
            if not isinstance(item, StreamEvent):
                return item
            if item.type == "restart" and started:
                out.print("\n[dim](the worker was lost; another one answers anew)[/]\n")
            elif item.content:
                started = True
                out.print(item.content, end="", markup=False)
            elif item.type == "done":
                out.print()
    raise AssertionError("unreachable")


def _print_rest(response: ChatResponse, *, streamed: bool) -> None:
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
    out.print("\n[bold]Where the time went[/]")
    for key, label in STAGES.items():
        if key in response.timings:
            out.print(f"  {label:<20} {response.timings[key]:10,.1f} ms")
    if response.degraded:
        err.print(f"[yellow]answered without: {', '.join(response.degraded)}[/]")


def _headings(metadata: dict[str, Any]) -> list[str]:
    headings = metadata.get("headings")
    return [str(heading) for heading in headings][-1:] if isinstance(headings, list) else []
