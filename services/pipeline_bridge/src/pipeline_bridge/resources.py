"""The runs of one kind in one namespace: made, looked at, changed, and followed through one list and watch for all.

Source: Kubernetes API Concepts, "Efficient detection of changes" (list, watch, bookmarks, 410 Gone).
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import quote

import structlog

from handler_core.clients.failures import UpstreamError
from handler_core.clients.http import Backoff
from handler_core.errors import HandlerError
from handler_core.telemetry import Metrics
from pipeline_bridge.attempts import passing
from pipeline_bridge.cluster import Cluster
from pipeline_bridge.engine import MANAGED_BY, MANAGER, Changes, Followed, Observed

log = structlog.get_logger(__name__)

_SELECTOR = f"{MANAGED_BY}={MANAGER}"
PAGE = 100
"""Objects that a list is asked for at once."""
_WATCH_SECONDS = (240, 360)
"""What a watch is asked to last; not all of them the same, or they would end together."""
_SHORT_WATCH = 1.0
"""Seconds; a watch that ends sooner is begun again with a pause, as if it had failed."""
_STEADY = 10.0
"""Seconds; a failure after so long is counted as the first."""
_UNFOLLOWED = 1024
"""Objects that were made or looked at, and are not followed (yet), whose state is kept."""


class _Known(NamedTuple):
    version: int
    observed: Observed


class Resources:
    """The objects of one kind in one namespace that this bridge manages, by their names.

    They are listed and watched only while one of them is followed, and only `serve` does so. Changes missed by a watch,
    whatever the reason, are found by the next list: after every failure, and every `poll_interval`.

    Args:
        cluster: where they are; shared.
        group: with `version` and `plural` the kind, such as `argoproj.io`, `v1alpha1` and `workflows`.
        observe: what an object says of its run, `run_id` being the object's name. A KeyError, TypeError, ValueError or
            AttributeError of it makes the object be passed over.
        lost: asked about a followed run whose object is gone: how it ended, or None where nobody knows.
        poll_interval: seconds between lists where nothing goes wrong.
        stall_timeout: seconds without a byte after which a watch counts as broken; bookmarks come about once a minute.
        backoff: the pauses after failures.
    """

    def __init__(
        self,
        cluster: Cluster,
        group: str,
        version: str,
        plural: str,
        namespace: str,
        observe: Callable[[dict[str, Any]], Observed],
        *,
        lost: Callable[[str], Awaitable[Observed | None]] | None = None,
        poll_interval: float = 300.0,
        stall_timeout: float = 90.0,
        metrics: Metrics | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self._cluster = cluster
        self._path = f"/apis/{quote(group)}/{quote(version)}/namespaces/{quote(namespace, safe='')}/{quote(plural)}"
        self._what = {"resource": plural, "namespace": namespace}
        self._observe = observe
        self._lost = lost
        self._poll_interval = poll_interval
        self._stall_timeout = stall_timeout
        self._metrics = metrics
        self._backoff = backoff or Backoff(initial=0.5, maximum=30.0, jitter=0.5)
        self._followed = Followed()
        self._nobody = asyncio.Event()
        self._page = PAGE
        self._known: dict[str, _Known] = {}
        self._version = 0
        """The newest one that a list or a watch has come to."""
        self._wanted: dict[str, None] = {}
        """Names of followed runs to be looked at, in order."""
        self._wanting = asyncio.Event()
        self._listed = asyncio.Event()
        if metrics:
            text = "Runs that are followed by watching their resources."
            metrics.gauge("handler_pipeline_runs_watched", text, lambda: len(self._followed), **self._what)

    async def create(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Make an object, and give what it has become.

        Raises:
            UpstreamError: with status 409 where the name is taken. After a failure without a status it may exist.
        """
        self._take(made := await self._cluster.request("POST", self._path, body=dict(manifest)), keep=True)
        return made

    async def get(self, name: str) -> dict[str, Any] | None:
        """The object of that name, None where there is none."""
        return await self._named("GET", name)

    async def patch(self, name: str, merge: Mapping[str, Any]) -> dict[str, Any] | None:
        """Change an object by a JSON merge patch (RFC 7386), and give what it has become; None where there is none."""
        return await self._named("PATCH", name, body=dict(merge), content_type="application/merge-patch+json")

    async def _named(self, method: str, name: str, **arguments: Any) -> dict[str, Any] | None:
        try:
            object = await self._cluster.request(method, f"{self._path}/{quote(name, safe='')}", **arguments)
        except UpstreamError as error:
            if error.status != 404:
                raise
            if f'"{name}"' in error.message:
                return None
            # A proxy that lost its way says this of every path, and so does a server that does not know the kind yet.
            raise passing(error) from None
        self._take(object, keep=True)
        return object

    @contextmanager
    def follow(self, name: str, present: Observed | None = None) -> Iterator[Changes]:
        """The run's changes while the block lasts, as far as `serve` runs.

        The first is `present`, what came of `create` or `get`; what has changed since then is not lost. Where nothing
        was seen of the object before, it is looked at soon.
        """
        try:
            with self._followed.following(name) as changes:
                self._nobody.clear()
                if present is not None:
                    changes.push(present)
                if known := self._known.get(name):
                    changes.push(known.observed)
                else:
                    self._want(name)
                yield changes
        finally:
            if name not in self._followed:
                self._known.pop(name, None)
                self._wanted.pop(name, None)
            if not self._followed:
                self._nobody.set()

    async def serve(self) -> None:
        """List and watch while a run is followed, until cancelled. No failure of the cluster ends it."""
        while True:
            await self._followed.any.wait()
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._keep_watching()), group.create_task(self._keep_looking())]
                await self._nobody.wait()
                for task in tasks:
                    task.cancel()
            self._listed.clear()
            self._known.clear()  # nobody keeps it up to date

    async def _keep_watching(self) -> None:
        failures = 0
        while True:
            began, listed = time.monotonic(), False
            try:
                version = await self._list()
                listed = True
                # Lists in place of the watch, not beside it: so what they tell comes in the order it happened.
                async with asyncio.timeout(self._poll_interval * random.uniform(0.9, 1.1)):
                    while True:
                        version = await self._watch(version)
            except TimeoutError:
                failures = 0
            except UpstreamError as error:
                failures = failures + 1 if time.monotonic() - began < _STEADY else 1
                self._failed(error)
                if error.status == 403 and not listed:  # to look at one object may be allowed all the same
                    self._want_all()
                # What has become too old is listed afresh at once, unless that happens again and again.
                if error.status != 410 or failures > 1:
                    await self._pause(failures, error)

    async def _keep_looking(self) -> None:
        """Look at the wanted ones, one by one; not before the first list, which shows most of them."""
        failures = 0
        await self._listed.wait()
        while True:
            await self._wanting.wait()
            if (name := next(iter(self._wanted), None)) is None:
                self._wanting.clear()
                continue
            del self._wanted[name]
            try:
                await self._look(name)
                failures = 0
            except HandlerError as error:  # an UpstreamError, or what `lost` raises
                failures += 1
                self._want(name)
                self._failed(error)
                await self._pause(failures, error)

    async def _look(self, name: str) -> None:
        if await self.get(name) is not None:
            return
        observed = await self._lost(name) if self._lost else None
        if observed is None:
            self._followed.gone(name, f"{name} is no longer there, and how it ended is not known")
        else:
            self._followed.push(observed)

    async def _list(self) -> str:
        """Take in all objects, want what is missing of them, and give the version from which to watch."""
        expected = set(self._followed)
        query = {"labelSelector": _SELECTOR}
        set_back = False
        while True:
            page = await self._part(query)
            try:
                items, version = list(page["items"] or ()), str(page["metadata"]["resourceVersion"])
            except (KeyError, TypeError):
                raise UpstreamError(f"kubernetes: {self._path}: answered with no list", outcome="invalid") from None
            # A server that was set back to a backup counts from there: what it says then is not out of date.
            set_back |= _number(version) < self._version
            for item in items:
                name = self._take(item, believed=set_back)
                expected.discard(name)
                self._wanted.pop(name, None)
            if not (token := page["metadata"].get("continue")):
                break
            query["continue"] = token
        for name in expected:
            self._want(name)
        self._listed.set()
        self._version = _number(version)
        return version

    async def _part(self, query: Mapping[str, str]) -> dict[str, Any]:
        """The next part of a list, of fewer objects where they are too large for so many at once."""
        while True:
            try:
                return await self._cluster.request("GET", self._path, query={**query, "limit": str(self._page)})
            except UpstreamError as error:
                if error.status is not None or error.retryable or self._page == 1:
                    raise
                self._page //= 2
                log.info("list_in_smaller_parts", limit=self._page, **self._what)

    async def _watch(self, version: str) -> str:
        """Take in changes from that version on until the server ends the watch; give the version it has come to."""
        began = time.monotonic()
        query = {
            "watch": "true",
            "labelSelector": _SELECTOR,
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(random.randint(*_WATCH_SECONDS)),
        }
        async with self._cluster.stream(self._path, query, stall_timeout=self._stall_timeout) as events:
            async for event in events:
                object = event["object"]
                version = str(object["metadata"]["resourceVersion"])
                self._version = _number(version)
                if event["type"] == "DELETED":
                    self._deleted(object)
                elif event["type"] != "BOOKMARK":
                    self._take(object)
        if time.monotonic() - began < _SHORT_WATCH:
            await self._pause(1)
        return version

    def _take(self, object: dict[str, Any], *, keep: bool = False, believed: bool = False) -> str:
        """Take in an object as it is now, and give its name; passed over is what is known to be out of date, unless it
        is to be believed."""
        try:
            name, version = object["metadata"]["name"], _number(object["metadata"]["resourceVersion"])
            known = self._known.get(name)
            if known and version < known.version and not believed:
                return str(name)
            observed = self._observe(object)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            log.warning("object_not_understood", error=repr(error), **self._what)
            return ""
        # One that goes on may be handed over to this bridge at any time: it need not be asked for by itself then.
        if keep or known or name in self._followed or not observed.status.final:
            self._known.pop(name, None)
            self._known[name] = _Known(version, observed)
            if len(self._known) > len(self._followed) + _UNFOLLOWED:
                del self._known[next(name for name in self._known if name not in self._followed)]
        self._followed.push(observed)
        return str(name)

    def _deleted(self, object: dict[str, Any]) -> None:
        """Take in an object's last state; if the run had not ended by then, it is looked at."""
        name = self._take(object)
        known = self._known.get(name)
        if known and not known.observed.status.final:
            del self._known[name]
            self._want(name)

    def _want_all(self) -> None:
        """Look at each followed one, as no list shows them."""
        for name in self._followed:
            self._want(name)
        self._listed.set()

    def _want(self, name: str) -> None:
        if name in self._followed:
            self._wanted[name] = None
            self._wanting.set()

    def _failed(self, error: HandlerError) -> None:
        log.warning("watch_failed", error=error.message, **self._what)
        if self._metrics:
            labels = {**self._what, "outcome": error.outcome if isinstance(error, UpstreamError) else error.type.value}
            help = "Failures of following runs by watching their resources; each is mended by a new list."
            self._metrics.counter("handler_pipeline_watch_failures_total", help, **labels).value += 1

    async def _pause(self, failures: int, error: HandlerError | None = None) -> None:
        backoff = self._backoff
        seconds = min(backoff.initial * 2 ** min(failures - 1, 30), backoff.maximum)
        if error is not None and error.retry_after is not None:
            seconds = max(seconds, min(error.retry_after, backoff.longest_wait))
        await asyncio.sleep(seconds + random.uniform(0, backoff.jitter))


def _number(version: str) -> int:
    """A resource version, comparable with others of its kind; 0, where it is no whole number, is older than any."""
    return int(version) if version.isdecimal() else 0
