"""What kinds of objects the cluster knows."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object that the cluster knows."""

    group: str
    version: str
    plural: str
    kind: str
    status_subresource: bool = False
    """Whether `status` is written on its own, under `…/status`, and never with the rest."""

    @property
    def api_version(self) -> str:
        """As it stands in each object."""
        return f"{self.group}/{self.version}"


WORKFLOWS = Resource("argoproj.io", "v1alpha1", "workflows", "Workflow")
WORKFLOW_TEMPLATES = Resource("argoproj.io", "v1alpha1", "workflowtemplates", "WorkflowTemplate")
RAY_JOBS = Resource("ray.io", "v1", "rayjobs", "RayJob", status_subresource=True)
RESOURCES = (WORKFLOWS, WORKFLOW_TEMPLATES, RAY_JOBS)
