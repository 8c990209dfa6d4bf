"""What every command needs: settings, a connection within a time limit, and errors as one line."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import nats.errors
import typer
from rich.console import Console

from handler_core import logs
from handler_core.config import LogSettings, load_or_exit
from handler_core.connection import Connection, connect
from handler_core.errors import HandlerError
from handler_core.jetstream import JetStreamError
from handlers_cli.settings import CliSettings

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def settings() -> CliSettings:
    """The settings, or exit with one line that names the wrong one."""
    return load_or_exit(CliSettings)


class Unreachable(Exception):
    """NATS did not accept a connection in time."""


@contextlib.asynccontextmanager
async def connected(config: CliSettings, timeout: float) -> AsyncIterator[Connection]:
    """A connection made within `timeout` seconds, closed afterwards."""
    try:
        async with asyncio.timeout(timeout):
            nc = await connect(config, "handlers", quiet=True)
    except TimeoutError:
        raise Unreachable(f"NATS does not answer at {config.nats_url} (NATS_URL); is it running?") from None
    try:
        yield nc
    finally:
        await nc.close()


def run(command: Coroutine[Any, Any, None]) -> None:
    """Run a command's coroutine; a failure that has a reason is one line on stderr and exit code 1, Ctrl-C is 130."""
    logs.configure(LogSettings(log_level="warning", log_format="console"), "handlers")
    try:
        asyncio.run(command)
    except KeyboardInterrupt:
        err.print("interrupted")
        raise typer.Exit(130) from None
    except (HandlerError, JetStreamError, Unreachable, nats.errors.Error, OSError, TimeoutError) as error:
        err.print(f"[bold red]error:[/] {_plain(error)}")
        raise typer.Exit(1) from None


def _plain(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text.replace("[", "\\[")


def interactive() -> bool:
    """Whether progress and colours make sense: a person reads stderr."""
    return sys.stderr.isatty()
