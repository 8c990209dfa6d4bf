"""`handlers services`: every NATS micro service that answers, with its endpoints and how they fare."""

import asyncio
import json as json_module
from dataclasses import dataclass, field
from typing import Any

import typer

from handler_core.connection import Connection
from handlers_cli.plain import columns, printable
from handlers_cli.session import connected, err, out
from handlers_cli.settings import CliSettings

STALL = 0.3
"""Seconds after the last reply in which another may still come."""
_HEAD = ("service", "version", "id", "endpoint", "subject", "queue", "requests", "errors", "average", "in flight")


@dataclass
class Instance:
    """One running instance of a service, from what it says of itself (ADR-32)."""

    info: dict[str, Any] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """All of both, the endpoints by their statistics."""
        merged = {**self.info, **self.stats}
        merged.pop("type", None)
        return merged


async def gather(nc: Connection, subject: str, *, stall: float = STALL, wait: float = 2.0) -> list[dict[str, Any]]:
    """The JSON objects that come in reply, by all who answer; ends `stall` seconds after the last one, or at `wait`."""
    replies: asyncio.Queue[Any] = asyncio.Queue()

    async def on_reply(message: Any) -> None:
        replies.put_nowait(message)

    inbox = nc.new_inbox()
    subscription = await nc.subscribe(inbox, cb=on_reply)
    found: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    give_up = loop.time() + wait
    try:
        await nc.publish(subject, b"", inbox)
        while (left := min(stall if found else wait, give_up - loop.time())) > 0:
            try:
                async with asyncio.timeout(left):
                    message = await replies.get()
            except TimeoutError:
                break
            if (message.headers or {}).get("Status") == "503":
                break
            if (body := _object(message.data)) is not None:
                found.append(body)
    finally:
        await subscription.unsubscribe()
    return found


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        body = json_module.loads(data)
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


async def discover(nc: Connection, name: str | None, wait: float) -> list[Instance]:
    """Every instance that answers, by service and id."""
    below = f".{name}" if name else ""
    async with asyncio.TaskGroup() as tasks:
        infos = tasks.create_task(gather(nc, f"$SRV.INFO{below}", wait=wait))
        stats = tasks.create_task(gather(nc, f"$SRV.STATS{below}", wait=wait))
    found: dict[tuple[str, str], Instance] = {}
    for body in infos.result():
        found.setdefault((str(body.get("name")), str(body.get("id"))), Instance()).info = body
    for body in stats.result():
        found.setdefault((str(body.get("name")), str(body.get("id"))), Instance()).stats = body
    return [instance for _, instance in sorted(found.items())]


async def services(config: CliSettings, name: str | None, wait: float, *, json: bool) -> None:
    """Print a table of who answers; exits 1 when nobody does."""
    async with connected(config, wait) as nc:
        instances = [instance.as_dict() for instance in await discover(nc, name, wait)]
    if json:
        print(json_module.dumps(instances))
    elif instances:
        _print(instances)
    else:
        err.print(f"no service{f' {name}' if name else ''} answers", markup=False)
    if not instances:
        raise typer.Exit(1)


def _print(instances: list[dict[str, Any]]) -> None:
    rows: list[tuple[str, ...]] = []
    failures = []
    for instance in instances:
        whose = tuple(printable(str(instance.get(key, ""))) for key in ("name", "version", "id"))
        endpoints = [endpoint for endpoint in instance.get("endpoints") or [] if isinstance(endpoint, dict)]
        for endpoint in endpoints or [{}]:
            rows.append((*whose, *_columns(endpoint)))
            if last := endpoint.get("last_error"):
                failures.append(printable(f"{whose[0]} {whose[2]} {endpoint.get('name')}: last error: {last}"))
    for line in columns([_HEAD, *rows], right=frozenset({6, 7, 8, 9})):
        out.print(line, markup=False)
    for failure in failures:
        out.print(failure, markup=False)


def _columns(endpoint: dict[str, Any]) -> tuple[str, ...]:
    data = endpoint.get("data")
    in_flight = data.get("in_flight", "") if isinstance(data, dict) else ""
    average = endpoint.get("average_processing_time")
    return (
        *(
            printable(str(endpoint.get(key, "")))
            for key in ("name", "subject", "queue_group", "num_requests", "num_errors")
        ),
        f"{average / 1e6:,.1f} ms" if isinstance(average, int | float) else "",
        printable(str(in_flight)),
    )
