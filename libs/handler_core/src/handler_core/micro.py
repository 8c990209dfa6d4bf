"""`$SRV.PING`, `$SRV.INFO` and `$SRV.STATS`: what makes endpoints visible to standard NATS tools.

Source: NATS ADR-32, "Service API". `nats.micro` is not used: its endpoints take one request after another, and it takes
longer to import than a small service's own code.
"""

import contextlib
import json
import re
import uuid
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import nats.errors

from handler_core.connection import Connection
from handler_core.endpoint import QUEUE, Endpoint
from handler_core.schema import json_schema

CONTENT_TYPES = "application/msgpack, application/json"

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_VERSION = re.compile(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?", re.ASCII)


class Visible:
    """A service as `nats micro ls`, `info` and `stats` show it.

    Args:
        name: letters, digits, `_` and `-`.
        version: a semantic version.

    Raises:
        ValueError: the name or the version is none.
    """

    def __init__(
        self, nc: Connection, name: str, version: str, description: str, endpoints: Sequence[Endpoint]
    ) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"a service's name consists of letters, digits, _ and -, which {name!r} does not")
        if not _VERSION.fullmatch(version):
            raise ValueError(f"a service's version is a semantic one, as 1.0.0, which {version!r} is not")
        self.id = uuid.uuid4().hex
        """Of this instance among those of one name."""
        self._nc = nc
        self._identity = {"name": name, "id": self.id, "version": version, "metadata": {}}
        self._description = description
        self._endpoints = endpoints
        self._since = datetime.now(UTC)
        self._described: list[dict[str, Any]] | None = None
        self._subscriptions: list[Any] = []

    async def start(self) -> None:
        """Answer from now on; while disconnected, from the reconnect on."""
        self._since = datetime.now(UTC)
        for verb, tell in (("PING", self._ping), ("INFO", self._info), ("STATS", self._stats)):
            for asked in ("", f".{self._identity['name']}", f".{self._identity['name']}.{self.id}"):
                self._subscriptions.append(await self._nc.subscribe(f"$SRV.{verb}{asked}", cb=self._telling(tell)))

    async def stop(self) -> None:
        """Answer no more."""
        for subscription in self._subscriptions:
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()
        self._subscriptions = []

    def _telling(self, tell: Callable[[], dict[str, Any]]) -> Callable[[Any], Awaitable[None]]:
        async def handle(message: Any) -> None:
            if message.reply:
                await message.respond(json.dumps(tell()).encode())

        return handle

    def _ping(self) -> dict[str, Any]:
        return {"type": "io.nats.micro.v1.ping_response", **self._identity}

    def _info(self) -> dict[str, Any]:
        """What there is, with the JSON schemas of requests and responses, which are made when first asked for."""
        if self._described is None:
            self._described = [_described(endpoint) for endpoint in self._endpoints]
        told = {"description": self._description, "endpoints": self._described}
        return {"type": "io.nats.micro.v1.info_response", **self._identity, **told}

    def _stats(self) -> dict[str, Any]:
        """What was done since the start."""
        started = self._since.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        told = {"started": started, "endpoints": [_counted(endpoint) for endpoint in self._endpoints]}
        return {"type": "io.nats.micro.v1.stats_response", **self._identity, **told}


def _described(endpoint: Endpoint) -> dict[str, Any]:
    config = endpoint.config
    return {
        "name": config.name,
        "subject": config.subject,
        "queue_group": QUEUE,
        "metadata": {
            "content_types": CONTENT_TYPES,
            "max_in_flight": str(config.max_in_flight),
            "request_schema": json_schema(config.request, "validation"),
            "response_schema": json_schema(config.response, "serialization"),
        },
    }


def _counted(endpoint: Endpoint) -> dict[str, Any]:
    counts, config = endpoint.counts, endpoint.config
    return {
        "name": config.name,
        "subject": config.subject,
        "queue_group": QUEUE,
        "num_requests": counts.requests,
        "num_errors": counts.errors,
        "last_error": counts.last_error or "",
        "processing_time": counts.processing_time,
        "average_processing_time": counts.processing_time // counts.requests if counts.requests else 0,
        "data": {
            "in_flight": endpoint.in_flight,
            "max_in_flight": config.max_in_flight,
            "joined": endpoint.joined,
            "busy": counts.by_outcome.get("busy", 0),
            "errors": {outcome: n for outcome, n in counts.by_outcome.items() if outcome != "ok"},
        },
    }
