"""What the commands print: columns, ages, and text that cannot play tricks on a terminal."""

import re
from collections.abc import Sequence

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[smhd])+").fullmatch


def printable(text: str) -> str:
    """The text on one line, with whatever a terminal would act on written as an escape."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def columns(
    rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset(), width: int | None = None
) -> list[str]:
    """Rows as lines with aligned columns.

    Args:
        right: the columns that are aligned to the right.
        width: cut longer lines to this many characters.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = (
            cell.rjust(space) if index in right else cell.ljust(space)
            for index, (cell, space) in enumerate(zip(row, widths, strict=True))
        )
        line = "  ".join(cells).rstrip()
        lines.append(line if width is None or len(line) <= width else line[: width - 1] + "…")
    return lines


def age(seconds: float) -> str:
    """How long ago, in its largest unit: `42s`, `3m`, `5h`, `12d`."""
    seconds = max(0.0, seconds)
    unit = max((name for name, size in _UNITS.items() if seconds >= size), key=_UNITS.__getitem__, default="s")
    return f"{int(seconds // _UNITS[unit])}{unit}"


def duration(seconds: float) -> str:
    """How long, in its two largest units at most: `40ms`, `0.4s`, `42s`, `2m5s`, `1h30m`, `7d`."""
    if 0 < seconds < 0.1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{max(0.0, seconds):.1f}s".replace(".0s", "s")
    parts: list[str] = []
    left = int(seconds)
    for unit, size in sorted(_UNITS.items(), key=lambda item: -item[1]):
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count}{unit}" if count else "")
    return "".join(parts[:2])


def seconds(text: str) -> float:
    """A duration such as `90s`, `15m`, `2h`, `1h30m` or `7d`, in seconds.

    Raises:
        ValueError: it is none.
    """
    if not _DURATION(text):
        raise ValueError(f"{text!r} is no duration such as 90s, 15m, 2h, 1h30m or 7d")
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)([smhd])", text))
