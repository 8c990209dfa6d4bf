"""`$SRV.PING`, `$SRV.INFO` and `$SRV.STATS`: what makes endpoints visible to standard NATS tools.

The replies are `nats.micro`'s; its endpoints are not used, since they take one request after another. Imported only by
a service that has endpoints, because `nats.micro` takes as long to import as a small service's own code.
"""

import contextlib
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime

import nats.errors
from nats.micro.service import (
    EndpointInfo,
    EndpointStats,
    Service,
    ServiceConfig,
    ServiceInfo,
    ServiceStats,
    ServiceVerb,
    control_subject,
)

from handler_core.connection import Connection
from handler_core.endpoint import QUEUE, Endpoint
from handler_core.schema import json_schema

CONTENT_TYPES = "application/msgpack, application/json"


class Visible(Service):
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its datetime.utcnow()
            super().__init__(nc, ServiceConfig(name=name, version=version, description=description))
        self._since = datetime.now(UTC)
        self._served = endpoints
        self._described: ServiceInfo | None = None

    async def start(self) -> None:
        """Answer from now on; while disconnected, from the reconnect on."""
        self._since = datetime.now(UTC)
        for verb, handle in (
            (ServiceVerb.PING, self._handle_ping_request),
            (ServiceVerb.INFO, self._handle_info_request),
            (ServiceVerb.STATS, self._handle_stats_request),
        ):
            for name, id in ((None, None), (self._name, None), (self._name, self._id)):
                subject = control_subject(verb, name, id)
                self._subscriptions[subject] = await self._client.subscribe(subject, cb=handle)

    async def stop(self) -> None:
        """Answer no more."""
        for subscription in self._subscriptions.values():
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()
        self._subscriptions = {}

    def info(self) -> ServiceInfo:
        """What there is, with the JSON schemas of requests and responses; made when first asked for."""
        if self._described is None:
            self._described = ServiceInfo(
                id=self._id,
                name=self._name,
                version=self._version,
                description=self._description,
                endpoints=[_described(endpoint) for endpoint in self._served],
            )
        return self._described

    def stats(self) -> ServiceStats:
        """What was done since the start."""
        return ServiceStats(
            id=self._id,
            name=self._name,
            version=self._version,
            started=self._since,
            endpoints=[_counted(endpoint) for endpoint in self._served],
        )


def _described(endpoint: Endpoint) -> EndpointInfo:
    config = endpoint.config
    metadata = {
        "content_types": CONTENT_TYPES,
        "max_in_flight": str(config.max_in_flight),
        "request_schema": json_schema(config.request, "validation"),
        "response_schema": json_schema(config.response, "serialization"),
    }
    return EndpointInfo(config.name, config.subject, QUEUE, metadata)


def _counted(endpoint: Endpoint) -> EndpointStats:
    counts, config = endpoint.counts, endpoint.config
    return EndpointStats(
        config.name,
        config.subject,
        QUEUE,
        num_requests=counts.requests,
        num_errors=counts.errors,
        last_error=counts.last_error,
        processing_time=counts.processing_time,
        average_processing_time=counts.processing_time // counts.requests if counts.requests else 0,
        data={
            "in_flight": endpoint.in_flight,
            "max_in_flight": config.max_in_flight,
            "joined": endpoint.joined,
            "busy": counts.by_outcome.get("busy", 0),
            "errors": {outcome: n for outcome, n in counts.by_outcome.items() if outcome != "ok"},
        },
    )
