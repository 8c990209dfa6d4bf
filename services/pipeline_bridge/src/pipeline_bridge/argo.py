"""Argo Workflows: a run is a Workflow made from a WorkflowTemplate."""

import time
from typing import Final
from urllib.parse import quote

import structlog

from handler_core.clients.failures import UpstreamError
from handler_core.telemetry import Metrics
from pipeline_bridge import manifests, states
from pipeline_bridge.api import Api
from pipeline_bridge.cluster import Cluster
from pipeline_bridge.engine import Observed, Run
from pipeline_bridge.manifests import Object
from pipeline_bridge.resource_engine import ResourceEngine

log = structlog.get_logger("pipeline_bridge.argo")

_STOP: Final = "Stop"
"""The strategy that still runs exit handlers."""
ASK_FOR: Final = 600.0
"""Seconds for which an Argo server that fails is asked for a workflow that is gone; then how it ended is unknown."""
_TERMINATE: Final = "Terminate"
"""The one that a workflow obeys although the controller's `parallelism` keeps it waiting."""


class Argo(ResourceEngine):
    """Runs on Argo Workflows; `Run.reference` is `{"template": name}`.

    Args:
        server: the Argo server, whose archive still knows workflows that are gone from Kubernetes.
    """

    group = "argoproj.io"
    version = "v1alpha1"
    plural = "workflows"

    def __init__(
        self,
        cluster: Cluster,
        *,
        server: Api | None = None,
        poll_interval: float = 300.0,
        stall_timeout: float = 90.0,
        metrics: Metrics | None = None,
    ) -> None:
        super().__init__(cluster, poll_interval=poll_interval, stall_timeout=stall_timeout, metrics=metrics)
        self._server = server
        self._unanswered: dict[str, float] = {}

    def manifest(self, run: Run) -> Object:
        return manifests.workflow(run)

    def observe(self, resource: Object) -> Observed:
        return states.of_workflow(resource)

    def stop(self, resource: Object) -> Object:
        """Stopped, its exit handlers run; terminated, where it still waits for its turn. One that is suspended is
        resumed as well, or its controller would not look at it."""
        spec = resource.get("spec") or {}
        waits = (resource.get("status") or {}).get("phase", "") in ("", "Pending")
        strategy = _TERMINATE if waits else _STOP
        change: Object = {} if spec.get("shutdown") in (_TERMINATE, strategy) else {"shutdown": strategy}
        if spec.get("suspend"):
            change["suspend"] = None
        return change

    async def lost(self, namespace: str, name: str) -> Observed | None:
        """How a workflow ended, from the Argo server, which looks into its archive by itself."""
        if self._server is None:
            return None
        workflow = f"{namespace}/{name}"
        try:
            ended = await self._archived(self._server, f"/api/v1/workflows/{quote(namespace)}/{quote(name)}")
        except UpstreamError as error:
            since = self._unanswered.setdefault(workflow, time.monotonic())
            if error.retryable and time.monotonic() - since < ASK_FOR:
                raise
            if error.status != 404:
                log.warning("archive_not_readable", workflow=workflow, error=error.message)
            ended = None
        self._unanswered.pop(workflow, None)
        return ended

    async def _archived(self, server: Api, path: str) -> Observed:
        found = await server.get(path)
        try:
            ended = self.observe(found)
        except (KeyError, TypeError, AttributeError):
            raise server.nonsense("a workflow that is none") from None
        if not ended.status.final:  # it reads from a cache of its own
            raise server.nonsense("a workflow that goes on, and is gone from Kubernetes")
        return ended
