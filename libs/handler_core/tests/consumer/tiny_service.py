"""A service of one handler: `STREAM=… CONSUMER=… python tiny_service.py`.

It tells on `{stream}.started` and `{stream}.finished` what it does; a handler ends when something is published to
`{stream}.release`.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from handler_core.config import ServiceSettings
from handler_core.context import Context
from handler_core.contract.base import Message
from handler_core.limits import Limits
from handler_core.runtime import Runtime
from handler_core.service import Service
from handler_core.streams import Consumer

STREAM = os.environ["STREAM"]


class Work(Message):
    name: str


service = Service("tiny_service", ServiceSettings)


@service.lifespan
async def lifespan(settings: ServiceSettings, runtime: Runtime) -> AsyncIterator[asyncio.Event]:
    release = asyncio.Event()

    async def released(_: Any) -> None:
        release.set()

    await runtime.nc.subscribe(f"{STREAM}.release", cb=released)
    yield release


@service.consumes(Consumer(STREAM, os.environ["CONSUMER"]), lambda _: Limits(max_in_flight=1, prefetch=2))
async def handle(work: Work, ctx: Context[asyncio.Event]) -> None:
    await ctx.publish(f"{STREAM}.started", work)
    await ctx.clients.wait()
    await ctx.publish(f"{STREAM}.finished", work)


if __name__ == "__main__":
    service.main()
