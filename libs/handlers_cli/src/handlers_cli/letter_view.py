"""`handlers dlq ls` and `show`: dead letters for reading."""

import json as json_module
import math
import sys
import time
from collections import deque
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import msgpack
from rich.markup import escape

from handler_core.jetstream import Api
from handlers_cli.letters import Letter, Wanted, read, scan
from handlers_cli.plain import age, columns, printable
from handlers_cli.session import connected, err, out
from handlers_cli.settings import CliSettings

WAIT = 5.0
"""Seconds to wait for NATS."""
PREFIX = 16
"""Bytes shown of binary data."""
DUMPED = 256
"""Bytes shown of a body that is no MessagePack."""
HEADINGS = ("SEQ", "AGE", "STREAM/CONSUMER", "SUBJECT", "ATTEMPTS", "REASON")


async def ls(config: CliSettings, wanted: Wanted, limit: int, *, json: bool) -> None:
    """Print the newest `limit` letters, newest last, and how many more there are."""
    newest: deque[Letter] = deque(maxlen=limit)
    count = 0
    async with connected(config, WAIT) as nc, aclosing(scan(nc, wanted)) as letters:
        async for letter in letters:
            newest.append(letter)
            count += 1
    if json:
        for letter in newest:
            print(json_module.dumps(_record(letter)))
    elif newest:
        _print_table(list(newest))
    else:
        out.print("no dead letters" if wanted == Wanted() else "no such dead letters")
    if count > len(newest):
        err.print(f"{count - len(newest)} older ones are not shown; --limit {count} shows all")


def _print_table(letters: list[Letter]) -> None:
    now = time.time()
    rows = [
        (
            str(letter.sequence),
            age(now - letter.stored),
            f"{printable(letter.stream)}/{printable(letter.consumer)}",
            printable(letter.original_subject),
            printable(letter.deliveries),
            printable(letter.reason) + (" (truncated)" if letter.full_size else ""),
        )
        for letter in letters
    ]
    width = out.width if out.is_terminal else None
    heading, *lines = columns([HEADINGS, *rows], right=frozenset({0, 1, 4}), width=width)
    out.print(f"[bold]{heading}[/]")
    for line in lines:
        out.print(line, markup=False)


def _record(letter: Letter) -> dict[str, Any]:
    about = {name.removeprefix("Dead-Letter-"): value for name, value in letter.headers.items()}
    return {
        "sequence": letter.sequence,
        "stored": letter.stored,
        "stream": letter.stream,
        "consumer": letter.consumer,
        "subject": letter.original_subject,
        "type": about.get("Type", ""),
        "reason": about.get("Reason", ""),
        "stage": about.get("Stage", ""),
        "deliveries": _number(letter.deliveries, int),
        "original_sequence": _number(about.get("Sequence", ""), int),
        "original_timestamp": _number(about.get("Timestamp", ""), float),
        "size": letter.size,
        "full_size": _number(letter.full_size, int),
    }


def _number(text: str, kind: type[int] | type[float]) -> float | None:
    try:
        return kind(text)
    except ValueError:
        return None


async def show(config: CliSettings, sequence: int, *, raw: bool) -> None:
    """Print a letter's headers and its body, or with `raw` write the body's bytes to stdout."""
    async with connected(config, WAIT) as nc:
        letter = await read(Api(nc), sequence)
    if raw:
        sys.stdout.buffer.write(letter.data)
        sys.stdout.buffer.flush()
        return
    stored = datetime.fromtimestamp(letter.stored, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    out.print(
        f"[bold]Dead letter {letter.sequence}[/] on {escape(printable(letter.subject))}, "
        f"stored {stored} ({age(time.time() - letter.stored)} ago)\n"
    )
    width = max((len(name) for name in letter.headers), default=0)
    for name, value in letter.headers.items():
        out.print(f"{printable(name).ljust(width)}  {printable(value)}", markup=False)
    out.print()
    for line in body(letter):
        out.print(line, markup=False)


def body(letter: Letter) -> list[str]:
    """A letter's body as lines: readable JSON where it is MessagePack, else a hexdump that says why it is not."""
    if letter.full_size:
        cut = f"Body: the first {letter.size:,} bytes of {printable(letter.full_size)}; the rest was not kept"
        return [cut, *hexdump(letter.data)]
    try:
        value = msgpack.unpackb(
            letter.data, unicode_errors="backslashreplace", strict_map_key=False, ext_hook=_extension
        )
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as error:
        why = printable(str(error) or type(error).__name__)
        return [f"Body: {letter.size:,} bytes, not MessagePack ({why})", *hexdump(letter.data)]
    text = json_module.dumps(readable(value), ensure_ascii=False, indent=2)
    return [f"Body: {letter.size:,} bytes of MessagePack", *map(printable, text.split("\n"))]


def readable(value: Any) -> Any:
    """What MessagePack can hold as what JSON can: bytes by their size and beginning, keys as text."""
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(readable(key)): readable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [readable(item) for item in value]
    if isinstance(value, bytes):
        return f"<{len(value)} bytes: {value[:PREFIX].hex()}{'…' if len(value) > PREFIX else ''}>"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | None) else str(value)


def _extension(code: int, data: bytes) -> str:
    return f"<extension {code}, {readable(data)[1:]}"


def hexdump(data: bytes) -> list[str]:
    """The first `DUMPED` bytes, 16 a line, with their ASCII beside them."""
    lines = []
    for start in range(0, min(len(data), DUMPED), 16):
        row = data[start : min(start + 16, DUMPED)]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{start:08x}  {row.hex(' ', 1):<47}  {text}")
    if len(data) > DUMPED:
        lines.append(f"… {len(data) - DUMPED:,} bytes more; --raw writes them all")
    return lines
