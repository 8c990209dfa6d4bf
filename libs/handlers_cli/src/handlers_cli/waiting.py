"""Why nothing happens: looked up where it takes longer than it should, and said once."""

import asyncio
import contextlib

from handler_core.connection import Connection
from handler_core.errors import HandlerError
from handler_core.jetstream import Api, JetStreamError
from handler_core.streams import Consumer
from handlers_cli.session import err

PATIENCE = 3.0
"""Seconds without a sign of life until it is looked up."""


async def explain(nc: Connection, consumer: Consumer, began: asyncio.Event) -> None:
    """Unless it has begun within `PATIENCE`, say on stderr what the consumer tells of the reason."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            await began.wait()
            return
    try:
        info = await Api(nc).request(f"CONSUMER.INFO.{consumer.stream}.{consumer.name}")
    except (HandlerError, JetStreamError):
        err.print("nothing yet, and NATS does not say why; handlers doctor looks at all of it")
        return
    waiting, running, pulls = info["num_pending"], info["num_ack_pending"], info["num_waiting"]
    if not pulls and not running:
        err.print(f"nobody takes work from {consumer.stream}: is a {consumer.name} running? It is queued until one is")
    elif waiting:
        err.print(f"{consumer.name} is busy: {running} in work, {waiting} wait")
