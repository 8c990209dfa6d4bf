"""A worker as a process: `python worker_process.py {url} {stream} {consumer} {ack_wait}`.

A message b"die" ends the process at once, b"hang" runs for ever, any other takes a moment. What it starts it tells on
the subject `{stream}.started`.
"""

import asyncio
import os
import sys

from handler_core.config import NatsSettings
from handler_core.connection import connect
from handler_core.consumer import PullConsumer
from handler_core.delivery import Delivery
from handler_core.limits import Limits
from handler_core.streams import Consumer


async def main(url: str, stream: str, consumer: str, ack_wait: float) -> None:
    nc = await connect(NatsSettings(nats_url=url), "worker")

    async def process(delivery: Delivery) -> None:
        nc.send(f"{stream}.started", delivery.data)
        await nc.flush()
        if delivery.data == b"die":
            os._exit(1)
        if delivery.data == b"hang":
            await asyncio.Event().wait()

    limits = Limits(max_in_flight=1, max_deliveries=2, expires=2.0, idle_heartbeat=0.5)
    await PullConsumer(nc, Consumer(stream, consumer, ack_wait=ack_wait), process, limits).run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])))
