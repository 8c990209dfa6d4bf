"""KubeRay: a run is a RayJob, with a Ray cluster of its own."""

from pipeline_bridge import manifests, states
from pipeline_bridge.engine import Observed, Run
from pipeline_bridge.manifests import Object
from pipeline_bridge.resource_engine import ResourceEngine


class RayJobs(ResourceEngine):
    """Runs on Ray; `Run.reference` is `{"manifest": {…}}`, a whole RayJob."""

    group = "ray.io"
    version = "v1"
    plural = "rayjobs"

    def manifest(self, run: Run) -> Object:
        return manifests.ray_job(run)

    def observe(self, resource: Object) -> Observed:
        return states.of_ray_job(resource)

    def stop(self, resource: Object) -> Object:
        """Suspended, which ends the job and its cluster and keeps the resource."""
        return {} if (resource.get("spec") or {}).get("suspend") is True else {"suspend": True}
