"""Dead letters: messages that will not be tried again, kept with the reason."""

from handler_core.connection import HEADER_NAME, Connection, header_block
from handler_core.delivery import Delivery
from handler_core.errors import HandlerError
from handler_core.jetstream import MSG_ID, Api

KEEP = 256 * 1024
"""Bytes kept of a message that does not fit with its reason."""
MAX_REASON = 1024

MAX_HEADERS = 0xFFFF
"""Bytes of headers that JetStream stores with a message."""

# Nearly all of the server's own headers act on it (expectations, batches, rollups, schedules), and more are to come.
_NOT_COPIED = ("nats-", "dead-letter-", "truncated")


async def dead_letter(api: Api, nc: Connection, delivery: Delivery, error: HandlerError) -> None:
    """Store the message on `dlq.{stream}.{consumer}` and wait until it is stored.

    The original headers are kept but for the server's own (`Nats-…`). Added are `Dead-Letter-Reason`, `-Type`,
    `-Stage`, `-Subject`, `-Stream`, `-Consumer`, `-Sequence`, `-Deliveries`, `-Timestamp`, and `Nats-Msg-Id`, by which
    a letter is stored once: `{stream}:{sequence}:{stored at, in ns}:{consumer}`, where the time tells it from the
    message that had the number before the stream was made anew. A message that does not fit keeps its first `KEEP`
    bytes, and its headers if those fit, and says so: `Truncated: {size}`.

    Raises:
        JetStreamError, Transient: it is not stored, or not known to be.
    """
    stream, consumer, data = delivery.stream, delivery.consumer, delivery.data
    original = {k: v for k, v in delivery.headers.items() if HEADER_NAME(k) and not k.lower().startswith(_NOT_COPIED)}
    about = {
        "Dead-Letter-Reason": error.message[:MAX_REASON],
        "Dead-Letter-Type": error.type.value,
        "Dead-Letter-Stage": error.stage or "",
        "Dead-Letter-Subject": delivery.subject,
        "Dead-Letter-Stream": stream,
        "Dead-Letter-Consumer": consumer,
        "Dead-Letter-Sequence": str(delivery.sequence),
        "Dead-Letter-Deliveries": str(delivery.attempt),
        "Dead-Letter-Timestamp": f"{delivery.timestamp:.6f}",
        MSG_ID: f"{delivery.identity}:{consumer}",
    }
    headers = {**original, **about}
    room = nc.payload_room
    size = len(header_block(headers))
    if size > MAX_HEADERS or size + len(data) > room:
        about["Truncated"] = str(len(data))
        headers = {**original, **about}
        if len(header_block(headers)) > min(MAX_HEADERS, room // 2):
            headers = about
        data = data[: max(0, min(KEEP, room - len(header_block(headers))))]
    await api.publish(f"dlq.{stream}.{consumer}", data, headers)
