"""A turn's stages drawn as a waterfall: when each began, how long it took, and what the caller saw of it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.markup import escape

from handler_core.contract.answer import Response, Stage
from handlers_cli.session import out

WIDTH = 80
"""Columns where the output is no terminal."""
_LEAST_BAR = 10
_EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass
class Seen:
    """What only the caller can see of a turn, on its own clock, which needs to agree with no other."""

    published: float = field(default_factory=time.perf_counter)
    marks: dict[str, float] = field(default_factory=dict)
    """Milliseconds after the publish, by what was seen."""

    def mark(self, name: str) -> None:
        """Remember the first time that something was seen."""
        self.marks.setdefault(name, (time.perf_counter() - self.published) * 1000)

    def stages(self) -> list[Stage]:
        """The marks as stages that all begin with the publish."""
        return [Stage(name=name, start_ms=0.0, ms=ms) for name, ms in self.marks.items()]


def print_waterfall(response: Response, seen: Seen) -> None:
    """Draw the handler's stages and, apart from them, the caller's.

    Both count from zero, which is the arrival in the stream for the handler and the publish for the caller: two moments
    between which lies the way to the server, less than what `stored` shows.
    """
    mine = seen.stages()
    theirs = sorted(response.stages, key=lambda stage: (stage.start_ms, -stage.ms))
    total = max((stage.start_ms + stage.ms for stage in (*theirs, *mine)), default=0.0)
    names = max((len(stage.name) for stage in (*theirs, *mine)), default=0)
    width = out.width if out.is_terminal else WIDTH
    print_rows("In the handler, from the arrival in the stream", theirs, names, width, total)
    if not theirs:
        out.print("  [dim]it told no stages[/]")
    if mine:
        print_rows("Seen from here, from the publish", mine, names, width, total)
    if response.trace_id:
        out.print(f"\ntrace_id {escape(response.trace_id)}")


def print_rows(title: str, stages: Sequence[Stage], names: int, width: int, total: float) -> None:
    """A title, and one row a stage: its name, when it began, how long it took, and its bar."""
    out.print(f"\n[bold]{title}[/]")
    room = max(_LEAST_BAR, width - names - 31)
    for stage in stages:
        drawn = bar(stage.start_ms, stage.ms, total, room, plain=not out.encoding.startswith("utf"))
        numbers = f"{stage.start_ms:+10,.1f} {stage.ms:10,.1f} ms"
        out.print(f"  {escape(stage.name):<{names}} {numbers}  [cyan]{drawn}[/]")


def bar(start: float, length: float, total: float, width: int, *, plain: bool = False) -> str:
    """A bar of `width` columns for all of `total`, drawn from `start` on for `length`; never empty.

    Args:
        plain: whole columns of `#` instead of blocks of an eighth of a column.
    """
    if total <= 0:
        return ""
    first = min(width - 1, max(0, int(start / total * width)))
    eighths = round((start + length) / total * width * 8) - first * 8
    eighths = max(1, min(eighths, (width - first) * 8))
    if plain:
        return " " * first + "#" * -(-eighths // 8)
    return " " * first + "█" * (eighths // 8) + _EIGHTHS[eighths % 8].rstrip()
