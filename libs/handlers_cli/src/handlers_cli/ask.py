"""`handlers ask`: a question, its answer as it is written, its sources, and where the time went."""

import asyncio
import json as json_module
import uuid
from contextlib import aclosing
from typing import Any

import typer
from rich.table import Table

from handler_core.client import follow
from handler_core.codec import validate
from handler_core.contract.answer import StreamEvent
from handler_core.contract.chat import CHAT, REQUEST_SUBJECT, USER_SUBJECT, ChatRequest, ChatResponse
from handler_core.errors import InvalidRequest
from handlers_cli.session import connected, err, out
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
EXCERPT = 160


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
    request = question(fields)
    subject = USER_SUBJECT.format(user=request.user_id) if request.user_id else REQUEST_SUBJECT
    try:
        async with asyncio.timeout(timeout), connected(config, min(timeout, 5.0)) as nc:
            response = await _follow(nc, subject, request)
    except TimeoutError:
        err.print(f"[bold red]error:[/] no answer within {timeout:g} s. {NEXT_STEP}")
        raise typer.Exit(1) from None
    if json:
        out.print(response.model_dump_json(exclude_none=True), markup=False)
    elif response.error is not None:
        err.print(f"[bold red]error:[/] {response.error.type}: {response.error.message}")
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
        table = Table(title="Sources", title_justify="left", box=None, padding=(0, 2, 0, 0), show_header=True)
        for heading in ("", "score", "source", "passage"):
            table.add_column(
                heading, overflow="fold" if heading == "passage" else "ellipsis", no_wrap=heading != "passage"
            )
        for number, source in enumerate(response.sources, 1):
            place = " > ".join([str(source.metadata.get("source") or source.id), *_headings(source.metadata)])
            text = " ".join(source.text.split())
            excerpt = text if len(text) <= EXCERPT else text[:EXCERPT] + "…"
            style = "" if number in cited else "dim"
            table.add_row(f"\\[{number}]", f"{source.score:.2f}", _escaped(place), _escaped(excerpt), style=style)
        out.print()
        out.print(table)
    times = Table(title="Where the time went", title_justify="left", box=None, padding=(0, 2, 0, 0), show_header=False)
    for key, label in STAGES.items():
        if key in response.timings:
            times.add_row(label, f"{response.timings[key]:,.1f} ms")
    out.print()
    out.print(times)
    if response.degraded:
        err.print(f"[yellow]answered without: {', '.join(response.degraded)}[/]")


def _headings(metadata: dict[str, Any]) -> list[str]:
    headings = metadata.get("headings")
    return [str(heading) for heading in headings][-1:] if isinstance(headings, list) else []


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")
