"""The loop one writes by hand with nats-py: fetch a hundred, handle them in turn, fetch again."""

import contextlib
import os

import msgpack
import nats
import uvloop
from nats.errors import TimeoutError as NatsTimeoutError

from benchmarks.loop.messages import RESULT_SUBJECT, STREAM, Work, compute


async def main() -> None:
    """Handle messages until the process is ended."""
    connection = await nats.connect(os.environ["NATS_URL"])
    consumer = os.environ["BENCH_CONSUMER"]
    subscription = await connection.jetstream().pull_subscribe_bind(consumer, stream=STREAM)
    while True:
        messages = []
        with contextlib.suppress(NatsTimeoutError):
            messages = await subscription.fetch(100, timeout=5)
        for message in messages:
            work = Work.model_validate(msgpack.unpackb(message.data))
            result = compute(work)
            await connection.publish(
                f"{RESULT_SUBJECT}.{work.user_id}",
                msgpack.packb(result.model_dump()),
                headers={"traceparent": (message.headers or {})["traceparent"]},
            )
            await message.ack()


if __name__ == "__main__":
    uvloop.run(main())
