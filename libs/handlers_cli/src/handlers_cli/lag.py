"""`handlers lag`: how far the declared consumers are behind, and what KEDA would make of it."""

import asyncio
import contextlib
import json as json_module
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import typer
from rich.live import Live
from rich.text import Text

from handler_core.jetstream import Api, JetStreamError
from handler_core.streams import CONSUMER_NOT_FOUND, CONSUMERS, STREAM_NOT_FOUND, STREAMS, Consumer
from handlers_cli.plain import age, columns, printable
from handlers_cli.session import EXPECTED, connected, out
from handlers_cli.settings import CliSettings

WAIT = 5.0
"""Seconds to wait for NATS."""
HEADINGS = ("STREAM", "CONSUMER", "WAITING", "IN PROGRESS", "LAG", "REDELIVERED", "OLDEST", "REPLICAS")


@dataclass(frozen=True, slots=True)
class Lag:
    """How far one consumer is behind."""

    stream: str
    consumer: str
    waiting: int = 0
    """`num_pending`: not delivered yet."""
    in_progress: int = 0
    """`num_ack_pending`: delivered, and not acknowledged yet."""
    redelivered: int = 0
    """`num_redelivered`: those in progress that have been delivered before."""
    oldest: float | None = None
    """Seconds since the oldest of them was stored; None where that is not known, or there is none."""
    error: str | None = None
    """Why there are no figures; KEDA has none either."""

    @property
    def lag(self) -> int:
        """What KEDA's nats-jetstream scaler compares with its threshold."""
        return self.waiting + self.in_progress

    def replicas(self, threshold: int, at_most: int) -> int:
        """What the autoscaler aims at: a replica for every `threshold` messages, none for none."""
        return min(at_most, -(-self.lag // threshold))


def measured(consumer: Consumer, info: dict[str, Any], first: str | None) -> Lag:
    """The figures of a consumer's info.

    Args:
        info: as `CONSUMER.INFO` and `/jsz` give it.
        first: when the stream's first message was stored (`first_ts`).
    """
    lag = Lag(
        consumer.stream,
        consumer.name,
        waiting=info.get("num_pending", 0),
        in_progress=info.get("num_ack_pending", 0),
        redelivered=info.get("num_redelivered", 0),
        oldest=None,
    )
    # A work queue holds nothing but what its consumers have still to do; other streams keep what is done.
    queue = any(stream.name == consumer.stream and stream.retention == "workqueue" for stream in STREAMS)
    if not (queue and lag.lag and first) or consumer.filter_subjects:
        return lag
    oldest = max(0.0, time.time() - datetime.fromisoformat(first).timestamp())
    return Lag(lag.stream, lag.consumer, lag.waiting, lag.in_progress, lag.redelivered, oldest)


def missing(consumer: Consumer, what: str) -> Lag:
    """A consumer without figures."""
    return Lag(consumer.stream, consumer.name, error=f"{what} is missing; handlers streams apply creates it")


async def from_jetstream(api: Api, consumers: Sequence[Consumer] = CONSUMERS) -> list[Lag]:
    """The consumers' figures as JetStream's API tells them.

    Raises:
        JetStreamError, Transient: the server refused or does not answer.
    """
    return [await _from_jetstream(api, consumer) for consumer in consumers]


async def _from_jetstream(api: Api, consumer: Consumer) -> Lag:
    try:
        info = await api.request(f"CONSUMER.INFO.{consumer.stream}.{consumer.name}")
        stream = await api.request(f"STREAM.INFO.{consumer.stream}")
    except JetStreamError as error:
        if error.err_code == CONSUMER_NOT_FOUND:
            return missing(consumer, "the consumer")
        if error.err_code == STREAM_NOT_FOUND:
            return missing(consumer, "the stream")
        raise
    return measured(consumer, info, stream["state"].get("first_ts"))


@dataclass(frozen=True, slots=True)
class Options:
    """What to show, and where from."""

    monitor: str | None = None
    """The monitoring port's URL; JetStream's API when absent."""
    account: str = "$G"
    threshold: int = 10
    max_replicas: int = 100
    every: float | None = None
    """Seconds between two readings; only one when absent."""
    json: bool = False


async def lag(config: CliSettings, options: Options) -> None:
    """Print how far the consumers are behind; exits 1 when one is missing."""
    async with _source(config, options) as read:
        if options.every is not None:
            await _watch(read, options, options.every)
        rows = await read()
    for line in _lines(rows, options):
        print(line)
    if any(row.error for row in rows):
        raise typer.Exit(1)


@contextlib.asynccontextmanager
async def _source(config: CliSettings, options: Options) -> AsyncIterator[Callable[[], Awaitable[list[Lag]]]]:
    if options.monitor is None:
        async with connected(config, WAIT) as nc:
            yield lambda: from_jetstream(Api(nc))
        return
    from handlers_cli.monitor import Monitor, new_session

    async with new_session() as session:
        monitor = Monitor(session, options.monitor, options.account)
        yield lambda: monitor.lags(CONSUMERS)


async def _watch(read: Callable[[], Awaitable[list[Lag]]], options: Options, every: float) -> None:
    """Read again and again until Ctrl-C; a reading that fails is said, and the next one tried."""
    with contextlib.ExitStack() as stack:
        live = stack.enter_context(Live(console=out, auto_refresh=False)) if out.is_terminal else None
        while True:
            try:
                lines = _lines(await read(), options)
            except EXPECTED as error:
                failure = printable(str(error) or type(error).__name__)
                lines = [json_module.dumps({"error": failure}) if options.json else f"error: {failure}"]
            if not options.json:
                lines.insert(0, time.strftime("%H:%M:%S"))
            if live is None or options.json:
                print("\n".join(lines), flush=True)
            else:
                live.update(Text("\n".join(lines)), refresh=True)
            await asyncio.sleep(every)


def _lines(rows: list[Lag], options: Options) -> list[str]:
    if options.json:
        return [json_module.dumps(_record(row, options)) for row in rows]
    cells: list[tuple[str, ...]] = [HEADINGS]
    for row in rows:
        figures = (row.waiting, row.in_progress, row.lag, row.redelivered)
        wanted = row.replicas(options.threshold, options.max_replicas)
        oldest = "-" if row.oldest is None else age(row.oldest)
        known = (*map(str, figures), oldest, str(wanted))
        cells.append((row.stream, row.consumer, *(("-",) * 6 if row.error else known)))
    lines = columns(cells, right=frozenset(range(2, len(HEADINGS))))
    return lines + [f"error: {row.stream}/{row.consumer}: {row.error}" for row in rows if row.error]


def _record(row: Lag, options: Options) -> dict[str, Any]:
    name = {"stream": row.stream, "consumer": row.consumer}
    if row.error:
        return {**name, "error": row.error}
    return {
        **name,
        "num_pending": row.waiting,
        "num_ack_pending": row.in_progress,
        "lag": row.lag,
        "num_redelivered": row.redelivered,
        "oldest_seconds": None if row.oldest is None else round(row.oldest, 3),
        "replicas": row.replicas(options.threshold, options.max_replicas),
    }
