"""What a check found, and how checks are run so that none holds up another."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from handler_core.errors import HandlerError
from handler_core.jetstream import JetStreamError
from handlers_cli.plain import printable

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: Level
    check: str
    """What was checked."""
    found: str
    fix: str = ""
    """A command or a setting that mends it."""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def ok(check: str, found: str) -> Finding:
    return Finding("ok", check, printable(found))


def warn(check: str, found: str, fix: str) -> Finding:
    return Finding("warn", check, printable(found), fix)


def fail(check: str, found: str, fix: str) -> Finding:
    return Finding("fail", check, printable(found), fix)


Check = Callable[[], Awaitable[list[Finding]]]


@dataclass(frozen=True)
class Named:
    """A check, with what to say when it does not end or fails in a way of its own."""

    name: str
    run: Check
    fix: str


async def run_checks(checks: Sequence[Named], timeout: float) -> list[Finding]:
    """Run them all at once, each for `timeout` seconds at most; their findings in the order of `checks`."""
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(_bounded(check, timeout)) for check in checks]
    return [finding for task in running for finding in task.result()]


async def _bounded(check: Named, timeout: float) -> list[Finding]:
    try:
        async with asyncio.timeout(timeout):
            return await check.run()
    except TimeoutError:
        return [fail(check.name, f"no answer within {timeout:g} s", check.fix)]
    except (HandlerError, JetStreamError, OSError, ValueError) as error:
        return [fail(check.name, str(error) or type(error).__name__, check.fix)]


class Stopwatch:
    """Milliseconds since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def __str__(self) -> str:
        return f"{(time.perf_counter() - self._began) * 1000:,.1f} ms"


def size(count: Any) -> str:
    """Bytes in their largest whole unit."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:,.0f} {unit}"
        value /= 1024
    return f"{value:,.0f} TiB"
