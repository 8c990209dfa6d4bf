"""Argo Workflows: a run is a Workflow made from a WorkflowTemplate."""

from typing import Final
from urllib.parse import quote

from handler_core.clients.failures import UpstreamError
from handler_core.telemetry import Metrics
from pipeline_bridge import manifests, states
from pipeline_bridge.api import Api
from pipeline_bridge.cluster import Cluster
from pipeline_bridge.engine import Observed, Run
from pipeline_bridge.manifests import Object
from pipeline_bridge.resource_engine import ResourceEngine

_STOP: Final = "Stop"
"""The strategy that still runs exit handlers."""


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
        poll_interval: float = 60.0,
        stall_timeout: float = 90.0,
        metrics: Metrics | None = None,
    ) -> None:
        super().__init__(cluster, poll_interval=poll_interval, stall_timeout=stall_timeout, metrics=metrics)
        self._server = server

    def manifest(self, run: Run) -> Object:
        return manifests.workflow(run)

    def observe(self, resource: Object) -> Observed:
        return states.of_workflow(resource)

    def stop(self, resource: Object) -> Object:
        return {} if (resource.get("spec") or {}).get("shutdown") else {"shutdown": _STOP}

    async def lost(self, namespace: str, name: str) -> Observed | None:
        """How a workflow ended, from the Argo server, which looks into its archive by itself."""
        if self._server is None:
            return None
        try:
            found = await self._server.get(f"/api/v1/workflows/{quote(namespace)}/{quote(name)}")
            ended = self.observe(found)
        except UpstreamError as error:
            if error.status == 404:
                return None
            raise
        except (KeyError, TypeError, AttributeError):
            raise self._server.nonsense("a workflow that is none") from None
        if not ended.status.final:  # it reads from a cache of its own
            raise self._server.nonsense("a workflow that goes on, and is gone from Kubernetes")
        return ended
