"""A progress bar for long work, where a person is watching."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from handlers_cli.session import err, interactive

LONG = 20
"""Steps from which a bar is worth it."""


@contextlib.contextmanager
def progress(what: str, steps: int) -> Iterator[Callable[[], None]]:
    """Show a bar on stderr, gone at the end; gives the function to call after each step."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not interactive() or steps < LONG,
        redirect_stdout=sys.stdout.isatty(),  # else what is piped elsewhere would land on the terminal
    )
    with bar:
        task = bar.add_task(what, total=steps)
        yield lambda: bar.advance(task)
