"""Watches as the Kubernetes API gives them: each change as a line of JSON, for as long as it was asked for."""

import asyncio
import json
import math
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from aiohttp import web

from local_cluster.body import body_of
from local_cluster.fault import is_set
from local_cluster.history import Event, Watch
from local_cluster.pages import Query, whole
from local_cluster.resources import Resource
from local_cluster.selection import selecting
from local_cluster.status import StatusError
from local_cluster.store import Object, Store, at_version


class Watching:
    """One watch.

    Args:
        query: `resourceVersion` (absent or 0: what there is comes first, as added), `allowWatchBookmarks`,
            `timeoutSeconds` (by default something between half an hour and an hour), `labelSelector`, `fieldSelector`.
        namespace: None: all.
        bookmark_interval: seconds.

    Raises:
        StatusError: 400.
    """

    def __init__(
        self, query: Query, store: Store, resource: Resource, namespace: str | None, bookmark_interval: float
    ) -> None:
        self._store = store
        self._resource = resource
        self._namespace = namespace
        self._selects = selecting(query.get("labelSelector", ""), query.get("fieldSelector", ""))
        self._since = whole(query, "resourceVersion")
        self._timeout = whole(query, "timeoutSeconds") or random.uniform(1800, 3600)
        self._bookmark_interval = math.inf
        if is_set(query.get("allowWatchBookmarks")):
            self._bookmark_interval = bookmark_interval

    async def serve(self, request: web.Request, *, expired_as_status: bool) -> web.StreamResponse:
        """Answer with the changes as they come.

        Args:
            expired_as_status: refuse a version that is forgotten with HTTP 410; or else with an ERROR event.

        Raises:
            StatusError: 410, 504.
        """
        refused: StatusError | None = None
        watch = self._store.watch(self._resource, self._store.version)
        present = [] if self._since else self._store.objects(self._resource, self._namespace)
        try:
            if self._since:
                watch = self._store.watch(self._resource, self._since)
        except StatusError as error:
            if expired_as_status or error.code != 410:
                raise
            refused = error
        response = web.StreamResponse(
            headers={"Content-Type": "application/json", "Cache-Control": "no-cache, private"}
        )
        body = body_of(request)
        await body.begin(response)
        try:
            if refused:
                raise refused
            for found in filter(self._selects, present):
                await body.write(response, _line("ADDED", found))
            async with aclosing(self._lines(watch)) as lines:
                async for line in lines:
                    await body.write(response, line)
        except StatusError as error:
            await body.write(response, _line("ERROR", error.body()))
        return response

    async def _lines(self, watch: Watch) -> AsyncGenerator[bytes, None]:
        now = asyncio.get_running_loop().time
        end, bookmark = now() + self._timeout, now() + self._bookmark_interval
        while (left := end - now()) > 0:
            for event in await watch.next(min(left, bookmark - now())):
                if line := self._told(event):
                    yield line
            if now() >= bookmark:
                yield self._bookmark(watch)
                bookmark = now() + self._bookmark_interval
        if bookmark < math.inf:
            yield self._bookmark(watch)

    def _told(self, event: Event) -> bytes:
        """What this watch is told of a change; nothing if it is not about it. An object that ceases to be selected is
        deleted, as far as the watch goes, and one that comes to be selected is added."""
        if self._namespace not in (None, event.object["metadata"]["namespace"]):
            return b""
        was = event.previous is not None and self._selects(event.previous)
        is_now = event.type != "DELETED" and self._selects(event.object)
        if is_now:
            return _line("MODIFIED" if was else "ADDED", event.object)
        if was and event.previous is not None:
            return _line("DELETED", at_version(event.previous, event.version))
        return b""

    def _bookmark(self, watch: Watch) -> bytes:
        metadata = {"resourceVersion": str(watch.version)}
        about = {"kind": self._resource.kind, "apiVersion": self._resource.api_version, "metadata": metadata}
        return _line("BOOKMARK", about)


def _line(type: str, object: Object | dict[str, Any]) -> bytes:
    return json.dumps({"type": type, "object": object}, separators=(",", ":")).encode() + b"\n"
