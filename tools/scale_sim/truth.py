"""What became of every turn, counted from what the server has stored and from what a subscriber saw."""

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from handler_core.codec import decode
from handler_core.connection import Connection
from handler_core.contract.answer import StreamEvent
from handler_core.contract.chat import ChatRequest, ChatResponse
from handler_core.jetstream import Api
from handler_core.streams import AI_EVENTS, CHAT_HANDLER, NANOSECONDS
from handler_core.testing import stored, text_of
from tools.scale_sim.load import Seen
from tools.scale_sim.upstream import whole

READ_TIMEOUT = 20.0


@dataclass(frozen=True)
class Truth:
    """What the server holds when all is over."""

    finals: Sequence[ChatResponse] = ()
    """Every final response of `AI_EVENTS`."""
    events: Sequence[StreamEvent] = ()
    """Every event of a streamed answer there, in order."""
    queued: Collection[str] = ()
    """The ids of the requests that the work queue still holds."""
    dead: Sequence[str] = ()
    """The subjects of the dead letters."""
    deliveries: int = 0
    """How often the consumer has handed out a message, redeliveries included."""
    delivered: int = 0
    """How many messages it has handed out."""


async def read(nc: Connection) -> Truth:
    """Read it from the server.

    Raises:
        JetStreamError, Transient, TimeoutError: it does not answer.
    """
    finals = [decode(data, ChatResponse) for data in await _everything(nc, "evt.chat.response.*")]
    events = [decode(data, StreamEvent) for data in await _everything(nc, "evt.chat.response.stream.*")]
    queued = [decode(message.data, ChatRequest).request_id for message in await stored(nc, "AI_CHAT", "ai.chat.>")]
    dead = [message.subject for message in await stored(nc, "DLQ", "dlq.>")]
    # The stream's sequence counts messages, the consumer's counts hand-outs: the queue is its consumer's alone.
    told = (await Api(nc).request(f"CONSUMER.INFO.{CHAT_HANDLER.stream}.{CHAT_HANDLER.name}"))["delivered"]
    return Truth(finals, events, [str(name) for name in queued], dead, told["consumer_seq"], told["stream_seq"])


async def _everything(nc: Connection, subject: str) -> list[bytes]:
    """The data of all that `AI_EVENTS` holds of a subject, in order, pushed at once: thousands, a request each, would
    take longer than the simulation's last phase."""
    found: list[bytes] = []
    news = asyncio.Event()

    def take(_: bytes, __: bytes, data: bytes, ___: bytes | None) -> None:
        found.append(data)
        news.set()

    inbox, name = nc.new_inbox(), f"scale-sim-{secrets.token_hex(6)}"
    sid = await nc.attach(inbox, take)
    config = {"name": name, "deliver_subject": inbox, "filter_subject": subject, "deliver_policy": "all",
              "ack_policy": "none", "inactive_threshold": 10 * NANOSECONDS, "mem_storage": True}  # fmt: skip
    body = {"stream_name": AI_EVENTS.name, "config": config, "action": "create"}
    try:
        info = await Api(nc).request(f"CONSUMER.CREATE.{AI_EVENTS.name}.{name}", body)
        total = info.get("num_pending", 0) + info.get("delivered", {}).get("consumer_seq", 0)
        async with asyncio.timeout(READ_TIMEOUT):
            while len(found) < total:
                news.clear()
                await news.wait()
    finally:
        await nc.detach(sid)
    return found


@dataclass
class Counts:
    """Turns by what became of them; `problems` names those that make a run fail."""

    published: int = 0
    """Questions that the stream acknowledged."""
    answered: int = 0
    """Those with exactly one final response stored, a successful one."""
    lost: int = 0
    """Those with none, and no longer queued."""
    duplicated: int = 0
    """Those with more than one final response or more than one end of the stream, stored or seen by the subscriber."""
    failed: int = 0
    """Those whose final response tells of an error."""
    incoherent: int = 0
    """Those whose stored events, or what the subscriber saw, are not exactly one whole answer."""
    unseen: int = 0
    """Those that are stored whole, but did not reach the subscriber whole."""
    queued: int = 0
    """Those that are still in the work queue."""
    dead_letters: int = 0
    redelivered: int = 0
    """Deliveries beyond the first of each message."""
    taken_over: int = 0
    """Those that a further attempt answered (attempts > 1)."""
    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """The ids of the turns, by what is wrong with them."""

    @property
    def good(self) -> bool:
        return not self.problems and not self.dead_letters and self.answered == self.published


def count(asked: Iterable[str], truth: Truth, seen: Mapping[str, Seen]) -> Counts:
    """Judge every turn that was asked for."""
    finals, events = defaultdict[str, list[ChatResponse]](list), defaultdict[str, list[StreamEvent]](list)
    for final in truth.finals:
        finals[final.request_id].append(final)
    for event in truth.events:
        events[event.request_id].append(event)
    counts = Counts(dead_letters=len(truth.dead), redelivered=truth.deliveries - truth.delivered)
    for request_id in asked:
        kept = Seen(events[request_id], finals[request_id])
        verdict = _verdict(kept, seen.get(request_id, Seen()), request_id in truth.queued)
        counts.published += 1
        counts.taken_over += any(event.attempt > 1 for event in kept.events)
        setattr(counts, verdict, getattr(counts, verdict) + 1)
        if verdict != "answered":
            counts.problems[verdict].append(request_id)
    return counts


def _verdict(kept: Seen, seen: Seen, queued: bool) -> str:
    """The name of the count that a turn belongs to."""
    ends = max(sum(event.done for event in side.events) for side in (kept, seen))
    if max(ends, len(kept.finals), len(seen.finals)) > 1:
        return "duplicated"
    if not kept.finals:
        return "queued" if queued else "lost"
    if not kept.finals[0].success:
        return "failed"
    if queued:
        return "queued"  # answered, but not settled yet
    if not _coherent(kept):
        return "incoherent"
    if not seen.complete:
        return "unseen"
    return "answered" if _coherent(seen) else "incoherent"


def _coherent(side: Seen) -> bool:
    """Whether events and final response are one whole answer, in order, without a gap and with one end."""
    [final] = side.finals
    numbers = [event.seq for event in side.events]
    in_order = numbers == list(range(1, len(numbers) + 1))
    ended = bool(side.events) and side.events[-1].type == "done"
    return in_order and ended and text_of(side.events) == final.response and whole(final.response)


def waits(truth: Truth) -> dict[str, float]:
    """By `request_id`: seconds from a question's arrival in the stream to the begin of the attempt that answered it."""
    return {final.request_id: final.timings.get("queue_ms", 0.0) / 1000 for final in truth.finals}
