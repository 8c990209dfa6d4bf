"""A session's events as they are printed: lines for what stays, one line that changes for what is being said."""

import contextlib
from collections.abc import Iterator

from rich.live import Live
from rich.markup import escape
from rich.text import Text

from handler_core.contract.stt import TranscriptEvent
from handlers_cli.answer_view import print_error
from handlers_cli.plain import printable
from handlers_cli.session import err, out

_MARGIN = 4
"""Columns left free beside a partial transcript."""


class Transcripts:
    """Prints events.

    Args:
        json: one object a line, of every event.
        partials: whether to print partial transcripts where there is no terminal; on one they replace each other.
    """

    def __init__(self, *, json: bool, partials: bool) -> None:
        self._json = json
        self._partials = partials
        self._live: Live | None = None
        self.finals = 0
        """Final transcripts that say something."""
        self.errors = 0

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Where there is a terminal, a live line is kept below all that is printed."""
        if self._json or not out.is_terminal:
            yield
            return
        with Live(console=out, auto_refresh=False, transient=True) as self._live:
            yield

    def take(self, event: TranscriptEvent) -> None:
        """Print one event, and count it."""
        self.finals += event.is_final and bool(event.transcript)
        self.errors += event.type == "error" and event.status != "waiting"
        if self._json:
            print(event.model_dump_json(exclude_none=True), flush=True)
            return
        if event.is_partial:
            self._partial(event)
        elif event.is_final:
            self._replace("")
            if event.transcript:
                out.print(f"[dim]{_span(event)}[/]  {escape(printable(event.transcript))}")
        elif event.type == "interrupt":
            after = "" if event.played_ms is None else f", {event.played_ms / 1000:.1f} s into the answer"
            err.print(f"[dim](interrupted{after})[/]")
        elif event.error is not None and event.status != "waiting":
            print_error(event.error)
        elif (text := _STATUS.get(event.status or "")) is not None:
            err.print(f"[dim]({text})[/]")

    def _partial(self, event: TranscriptEvent) -> None:
        text = printable(event.transcript)
        if self._live is not None:
            self._replace(text)
        elif self._partials:
            out.print(f"{_span(event)}  {text} …", markup=False)

    def _replace(self, text: str) -> None:
        """Show the end of it, as much as one line holds."""
        if self._live is None:
            return
        line = Text(text, style="italic dim", no_wrap=True)
        if (over := line.cell_len - max(1, out.width - _MARGIN)) > 0:
            line = Text("…" + text[over + 1 :], style="italic dim", no_wrap=True, overflow="crop")
        self._live.update(line, refresh=True)


_STATUS = {
    "resumed": "another worker goes on with the session",
    "waiting": "all workers are full; what is said is kept until one is free",
}


def _span(event: TranscriptEvent) -> str:
    return "-".join("?" if ms is None else clock(ms) for ms in (event.start_ms, event.end_ms) if ms is not None) or "-"


def clock(ms: float) -> str:
    """A place in audio: `0:03.4`, `12:00.0`."""
    minutes, rest = divmod(round(ms / 100), 600)
    return f"{minutes}:{rest // 10:02d}.{rest % 10}"
