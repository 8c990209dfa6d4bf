"""An answer as it is printed, whichever way it was asked for: its sources, where the time went, what went wrong."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape

from handler_core.contract.answer import Response
from handler_core.contract.chat import Citation, Source
from handler_core.contract.errors import ErrorInfo
from handler_core.errors import HandlerError
from handlers_cli.ask_trace import Seen, print_waterfall
from handlers_cli.session import err, out, say_error

STAGES = {
    "queue_ms": "wait in the stream",
    "stt_ms": "transcribe",
    "embed_ms": "embed the question",
    "search_ms": "search",
    "rerank_ms": "rerank",
    "llm_first_token_ms": "LLM, first token",
    "llm_ms": "LLM, whole answer",
    "tts_first_audio_ms": "first audio",
    "tts_ms": "speak",
    "total_ms": "total",
}
EXCERPT = 110


def print_sources(sources: Sequence[Source], citations: Sequence[Citation]) -> None:
    """What was searched for the answer, and which of it the answer cites."""
    cited = {citation.index for citation in citations}
    if sources:
        out.print("\n[bold]Sources[/]")
    for number, source in enumerate(sources, 1):
        place = " > ".join([str(source.metadata.get("source") or source.id), *_headings(source.metadata)])
        mark = "cited" if number in cited else "     "
        text = " ".join(source.text.split())
        excerpt = text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"
        out.print(f"  [bold]\\[{number}][/] {source.score:5.2f}  {mark}  [cyan]{escape(place)}[/]")
        out.print(f"      [dim]{escape(excerpt)}[/]")


def _headings(metadata: Mapping[str, Any]) -> list[str]:
    headings = metadata.get("headings")
    return [str(heading) for heading in headings][-1:] if isinstance(headings, list) else []


def print_end(response: Response, seen: Seen, *, trace: bool) -> None:
    """Where the time went, what the answer had to do without, and the error where it is one."""
    if trace:
        print_waterfall(response, seen)
    elif response.error is None:
        print_timings(response.timings)
    if response.degraded:
        err.print(f"[yellow]answered without: {', '.join(response.degraded)}[/]")
    if response.error is not None:
        print_error(response.error)


def print_timings(timings: Mapping[str, float]) -> None:
    """The stages that the handler told, as a table."""
    out.print("\n[bold]Where the time went[/]")
    for key, label in STAGES.items():
        if key in timings:
            out.print(f"  {label:<20} {timings[key]:10,.1f} ms")


def print_error(error: ErrorInfo) -> None:
    """An error of the wire as one line on stderr."""
    wait = error.retry_after_ms
    again = "" if wait is None else f" (try again in {wait / 1000:g} s)"
    told = error.message.removeprefix(error.type).removeprefix(": ")  # "canceled: too slow", of one that was canceled
    say_error(f"{error.type}{f': {told}' if told else ''}{again}")


def complain_of(error: HandlerError) -> None:
    """`print_error` of an error that was raised."""
    print_error(error.info())
