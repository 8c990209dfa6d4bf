"""The same handler on handler_core: a light one, so it prefetches."""

import os
from typing import Any

from benchmarks.loop.messages import RESULT_SUBJECT, STREAM, WORK_SUBJECT, Work, compute
from handler_core.config import ServiceSettings
from handler_core.context import Context
from handler_core.limits import Limits
from handler_core.service import Service
from handler_core.streams import Consumer

LIMITS = Limits(max_in_flight=64, prefetch=1_000)
CONSUMER = Consumer(STREAM, os.environ["BENCH_CONSUMER"], (WORK_SUBJECT,), ack_wait=30.0, max_ack_pending=100_000)

service = Service("bench", ServiceSettings)


@service.consumes(CONSUMER, lambda _: LIMITS)
async def handle(work: Work, ctx: Context[Any]) -> None:
    await ctx.publish(f"{RESULT_SUBJECT}.{work.user_id}", compute(work))


if __name__ == "__main__":
    service.main()
