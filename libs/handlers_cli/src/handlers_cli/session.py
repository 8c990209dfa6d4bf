"""What every command needs: settings, a connection within a time limit, and errors as one line."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import nats.errors
import typer
from rich.console import Console
from rich.markup import escape

from handler_core import logs
from handler_core.config import LogSettings, NatsSettings, SettingsError, load_or_exit, masked
from handler_core.connection import Connection, connect
from handler_core.errors import HandlerError
from handler_core.jetstream import JetStreamError
from handlers_cli.settings import CliSettings

out = Console(highlight=False, soft_wrap=True, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def settings() -> CliSettings:
    """The settings, or exit with one line that names the wrong one."""
    return load_or_exit(CliSettings)


class Unreachable(Exception):
    """NATS did not accept a connection in time."""


@contextlib.asynccontextmanager
async def connected(config: NatsSettings, timeout: float) -> AsyncIterator[Connection]:
    """A connection made within `timeout` seconds, closed afterwards."""
    failures: list[str] = []
    try:
        async with asyncio.timeout(timeout):
            nc = await connect(config, "handlers", on_failure=failures.append)
    except TimeoutError:
        # A refusal is sometimes seen as such, and sometimes as the reset of the connection that follows it.
        refusals = [failure for failure in failures if "authorization" in failure.lower()]
        reason = [*failures, *refusals][-1] if failures else "no answer"
        raise Unreachable(f"no connection to NATS at {masked(config.nats_url)} (NATS_URL): {reason}") from None
    try:
        yield nc
    finally:
        await nc.close()


EXPECTED = (HandlerError, JetStreamError, SettingsError, Unreachable, nats.errors.Error, OSError, TimeoutError)
"""Failures that have a reason a user can act on; anything else is a bug, and keeps its traceback."""


def run(command: Coroutine[Any, Any, None]) -> None:
    """Run a command's coroutine; a failure that has a reason is one line on stderr and exit code 1, Ctrl-C is 130."""
    logs.configure(LogSettings(log_level="warning", log_format="console"), "handlers")
    try:
        asyncio.run(command)
    except KeyboardInterrupt:
        err.print("interrupted")
        raise typer.Exit(130) from None
    except EXPECTED as error:
        say_error(str(error) or type(error).__name__)
        raise typer.Exit(1) from None


def say_error(text: str) -> None:
    """One line on stderr."""
    err.print(f"[bold red]error:[/] {escape(text)}")


def interactive() -> bool:
    """Whether progress and colours make sense: a person reads stderr."""
    return sys.stderr.isatty()
