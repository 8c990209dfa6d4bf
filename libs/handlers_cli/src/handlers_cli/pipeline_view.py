"""A run as it is watched: a line for each change of its state, and on a terminal one that moves."""

import time
from types import TracebackType

from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from handler_core.contract.pipeline import PipelineStatus, RunStatus
from handlers_cli.answer_view import print_error
from handlers_cli.plain import duration, printable
from handlers_cli.session import err, out

COLOURS = {
    RunStatus.SUBMITTED: "cyan",
    RunStatus.PENDING: "yellow",
    RunStatus.RUNNING: "blue",
    RunStatus.SUCCEEDED: "green",
    RunStatus.FAILED: "bold red",
    RunStatus.CANCELED: "magenta",
    RunStatus.ERROR: "bold red",
}
STAGES = {
    "queue_ms": "in the queue {}",
    "submit_ms": "submitted in {}",
    "pending_ms": "pending {}",
    "run_ms": "ran {}",
    "total_ms": "{} in all",
}


class RunView:
    """Shows statuses while it is entered.

    Args:
        json: each as one JSON object a line, and nothing else on stdout.
        wanted: the final state that is no failure.
    """

    def __init__(self, *, json: bool = False, wanted: RunStatus = RunStatus.SUCCEEDED) -> None:
        self.last: PipelineStatus | None = None
        self._json = json
        self._wanted = wanted
        self._first = 0.0
        self._entered = time.time()
        self._spinner = Spinner("dots")
        moving = out.is_terminal and not json
        self._live = Live(console=out, get_renderable=self._moving, refresh_per_second=8, transient=True)
        self._shown = self._live if moving else None

    def __enter__(self) -> "RunView":
        if self._shown is not None:
            self._shown.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown is not None:
            self._shown.stop()

    def show(self, status: PipelineStatus) -> None:
        """Print a status."""
        before, self.last = self.last, status
        if before is None:
            self._first = status.timestamp
        if self._json:
            print(status.model_dump_json(exclude_none=True), flush=True)
            return
        line = Text(f"{duration(self._elapsed(status)):>7}  ")
        line.append_text(_state(status))
        placed = before is not None and before.run_id == status.run_id
        parts = [status.raw_status.strip("/"), "" if placed else _place(status), self._message(status)]
        line.append("  " + "  ".join(printable(part) for part in parts if part))
        line.rstrip()
        out.print(line)

    def end(self) -> None:
        """Print where the time went, and what went wrong."""
        status = self.last
        if status is None:
            return
        spent = [
            text.format(duration(status.timings[key] / 1000)) for key, text in STAGES.items() if key in status.timings
        ]
        if spent and not self._json:
            out.print(", ".join(spent), style="dim")
        if status.error is not None and status.status != self._wanted:
            print_error(status.error)
        if status.available_pipelines is not None:
            err.print(f"there are: {', '.join(map(printable, status.available_pipelines)) or 'none'}", markup=False)

    def _elapsed(self, status: PipelineStatus) -> float:
        """Seconds from the trigger to a status, by the clock of who told it."""
        total = status.timings.get("total_ms")
        return status.timestamp - self._first if total is None else total / 1000

    def _message(self, status: PipelineStatus) -> str:
        """What is said of it, unless that is the error, which has a line of its own."""
        told = status.error is not None and status.message in status.error.message and status.status != self._wanted
        return "" if told else status.message

    def _moving(self) -> Spinner:
        status = self.last
        if status is None:
            text = Text(f"waiting for its first status, {duration(int(time.time() - self._entered))}")
        else:
            elapsed = self._elapsed(status) + max(0.0, time.time() - status.timestamp)
            text = Text.assemble(_state(status), f"  {duration(int(elapsed))}  ", printable(status.message))
        text.no_wrap, text.overflow = True, "ellipsis"
        self._spinner.update(text=text)
        return self._spinner


def _state(status: PipelineStatus) -> Text:
    return Text(f"{status.status.value:<9}", COLOURS[status.status])


def _place(status: PipelineStatus) -> str:
    """Where the engine has the run."""
    path = "/".join(filter(None, (status.namespace, status.run_id)))
    return f"{status.engine} {path}" if status.run_id else ""
