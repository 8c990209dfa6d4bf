"""An engine whose runs are Kubernetes resources of one type, named for their requests."""

import asyncio
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Final

import structlog

from handler_core.clients.failures import UpstreamError
from handler_core.errors import Internal, NotFound, Transient
from handler_core.telemetry import Metrics
from pipeline_bridge.attempts import passing
from pipeline_bridge.cluster import Cluster
from pipeline_bridge.engine import CANCEL_ANNOTATION, REQUEST_ANNOTATION, Changes, Observed, Run
from pipeline_bridge.manifests import Object, annotation, canceled
from pipeline_bridge.resources import Resources

log = structlog.get_logger("pipeline_bridge.resource_engine")

_PATCHES: Final = 5
"""How often a stop is tried again because the run's state changed meanwhile."""


class ResourceEngine(ABC):
    """What Argo and Ray have in common.

    A name can be had once: so there are never two runs of one request, as long as the first one's resource is there.

    Args:
        cluster: access to Kubernetes.
        poll_interval: seconds between two lists beside the watch.
        stall_timeout: seconds of silence after which a watch is taken for dead.
        metrics: of the process.
    """

    group: ClassVar[str]
    version: ClassVar[str]
    plural: ClassVar[str]

    def __init__(
        self,
        cluster: Cluster,
        *,
        poll_interval: float = 300.0,
        stall_timeout: float = 90.0,
        metrics: Metrics | None = None,
    ) -> None:
        self._cluster = cluster
        self._watching: dict[str, Any] = {
            "poll_interval": poll_interval,
            "stall_timeout": stall_timeout,
            "metrics": metrics,
        }
        self._resources: dict[str, Resources] = {}
        self._added = asyncio.Event()

    @abstractmethod
    def manifest(self, run: Run) -> Object:
        """The resource of a run."""

    @abstractmethod
    def observe(self, resource: Object) -> Observed:
        """What a resource says of its run."""

    @abstractmethod
    def stop(self, resource: Object) -> Object:
        """The `spec` of a merge patch that has a run stopped."""

    async def lost(self, namespace: str, name: str) -> Observed | None:
        """The last state of a run whose resource is gone, where something still knows it."""
        return None

    async def submit(self, run: Run) -> Observed:
        """Create the run's resource, or find the one that an earlier attempt created.

        Raises:
            InvalidRequest: a parameter cannot be handed on.
            Internal: another request has a resource of that name.
            NotFound: there is no such namespace, or no such type of resource in the cluster.
            UpstreamError: as the API server says.
        """
        try:
            return self._state(await self._in(run.namespace).create(self.manifest(run)))
        except UpstreamError as error:
            if error.status == 404:
                raise self._missing(run, error) from None
            if error.status != 409:
                raise
            conflict = error
        try:
            found = await self._find(run)
        except UpstreamError as error:  # there is one of that name, whether we may look at it or not
            raise passing(error) from None
        if found is None:
            raise conflict  # it goes just now, or the conflict was about something else: it is worth another attempt
        return self._state(found)

    async def describe(self, run: Run, run_id: str = "") -> Observed | None:
        """The run as it is now; None when it has no resource, and nothing knows how it ended.

        Raises:
            Internal: another request has a resource of that name.
        """
        if (found := await self._find(run)) is None:
            return await self.lost(run.namespace, run.name)
        return self._state(found)

    def follow(self, run: Run, run_id: str) -> AbstractContextManager[Changes]:
        """Every change of the run's state, the present one first."""
        return self._in(run.namespace).follow(run_id)

    async def cancel(self, run: Run, run_id: str, reason: str) -> None:
        """Have the run stopped, unless it has ended, is gone, or was told before."""
        resources = self._in(run.namespace)
        for attempt in range(_PATCHES):
            resource = await resources.get(run_id)
            if resource is None or self._state(resource).status.final:
                return
            patch = {
                # As it was when it was looked at: one that ended since then is not to look as if it had been stopped.
                "metadata": {"resourceVersion": resource["metadata"]["resourceVersion"]},
                "spec": self.stop(resource),
            }
            if not canceled(resource):
                patch["metadata"]["annotations"] = {CANCEL_ANNOTATION: reason}
            elif not patch["spec"]:
                return
            try:
                await resources.patch(run_id, patch)
                return
            except UpstreamError as error:
                if error.status != 409 or attempt == _PATCHES - 1:
                    raise

    async def stop_others(self, run: Run, run_id: str, reason: str) -> None:
        """Have the run stopped if it is not the one that is known: there is no other one of its name."""
        if run_id:
            return
        resource = await self._in(run.namespace).get(run.name)
        if resource is not None and annotation(resource, REQUEST_ANNOTATION) == run.request_id:
            log.warning("run_unknown", run_id=run.name)
            await self.cancel(run, run.name, reason)

    async def serve(self) -> None:
        """Observe what is followed, in all namespaces, until cancelled."""
        served: set[str] = set()
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._added.clear()
                for namespace in self._resources.keys() - served:
                    served.add(namespace)
                    tasks.create_task(self._resources[namespace].serve())
                await self._added.wait()

    def _in(self, namespace: str) -> Resources:
        if (resources := self._resources.get(namespace)) is None:

            async def lost(name: str) -> Observed | None:
                return await self.lost(namespace, name)

            resources = self._resources[namespace] = Resources(
                self._cluster,
                self.group,
                self.version,
                self.plural,
                namespace,
                self.observe,
                lost=lost,
                **self._watching,
            )
            self._added.set()
        return resources

    async def _find(self, run: Run) -> Object | None:
        found = await self._in(run.namespace).get(run.name)
        if found is not None and self._state(found) and annotation(found, REQUEST_ANNOTATION) != run.request_id:
            raise Internal(f"{self.plural} {run.namespace}/{run.name} is there, and of another request", stage="submit")
        return found

    def _state(self, resource: Object) -> Observed:
        try:
            return self.observe(resource)
        except (KeyError, TypeError, AttributeError):
            raise Transient(f"kubernetes: answered with something that is no object of {self.plural}") from None

    def _missing(self, run: Run, error: UpstreamError) -> NotFound:
        if f'namespaces "{run.namespace}"' in error.message:
            return NotFound(error.message, stage="submit")
        return NotFound(
            f"the cluster has no {self.plural} of {self.group}/{self.version}: is the engine installed there? "
            f"({error.message})",
            stage="submit",
        )
