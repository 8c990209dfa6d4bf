"""The cluster and its application: one port for the Kubernetes API, Kubeflow Pipelines and the Argo server."""

import asyncio
from dataclasses import dataclass

from aiohttp import web

from local_cluster import gateway, kubeflow_api
from local_cluster.access import Access
from local_cluster.control import add_control
from local_cluster.faults import Faults
from local_cluster.kubeflow import Kubeflow
from local_cluster.kubeflow_api import add_kubeflow
from local_cluster.kubernetes_api import add_kubernetes
from local_cluster.rayjobs import RayJobs
from local_cluster.settings import Settings, listed
from local_cluster.steering import Pace
from local_cluster.steering_api import add_steering
from local_cluster.store import WORKFLOW_TEMPLATES, Store
from local_cluster.workflows import Workflows, add_argo_server

_BODY_LIMIT = 8 * 1024 * 1024


@dataclass(frozen=True)
class Cluster:
    """Everything that there is, whether or not it is served."""

    settings: Settings
    store: Store
    access: Access
    faults: Faults
    workflows: Workflows
    rayjobs: RayJobs
    kubeflow: Kubeflow

    async def serve(self) -> None:
        """Take the runs through their states until cancelled."""
        async with asyncio.TaskGroup() as group:
            for controller in (self.workflows, self.rayjobs, self.kubeflow):
                group.create_task(controller.serve())


def create_cluster(settings: Settings) -> Cluster:
    """A cluster with the templates, pipelines and experiments that the settings name, and no runs."""
    store, pace = Store(), Pace(settings.pending_seconds, settings.running_seconds)
    for name in listed(settings.workflow_templates):
        template = {"name": "main", "container": {"image": "busybox", "command": ["true"]}}
        body = {
            "apiVersion": WORKFLOW_TEMPLATES.api_version,
            "kind": WORKFLOW_TEMPLATES.kind,
            "metadata": {"name": name, "namespace": settings.argo_namespace},
            "spec": {"entrypoint": "main", "templates": [template]},
        }
        store.create(WORKFLOW_TEMPLATES, settings.argo_namespace, body)
    versions = listed(settings.kubeflow_versions)
    kubeflow = Kubeflow(
        pace,
        dict.fromkeys(listed(settings.kubeflow_pipelines), versions),
        listed(settings.kubeflow_experiments),
        multi_user=bool(settings.kubeflow_namespace),
        namespace=settings.kubeflow_namespace,
    )
    access, faults = Access(set(listed(settings.tokens.get_secret_value()))), Faults()
    faults.answers(kubeflow_api.PREFIX, gateway.injected)
    faults.answers("/api/v1/", gateway.injected)
    return Cluster(settings, store, access, faults, Workflows(store, pace), RayJobs(store, pace), kubeflow)


def create_app(cluster: Cluster) -> web.Application:
    """The cluster's server as an application, to be run with `handler_cancellation=True`.

    There may be another one of the same cluster after it: what was stored is still there.
    """
    app = web.Application(middlewares=[cluster.faults.middleware], client_max_size=_BODY_LIMIT)
    add_control(app, cluster.store, cluster.faults)
    add_steering(app, {"argo": cluster.workflows, "rayjob": cluster.rayjobs, "kubeflow": cluster.kubeflow})
    add_kubeflow(app, cluster.kubeflow, cluster.access)
    add_argo_server(app, cluster.workflows, cluster.access)
    add_kubernetes(app, cluster.store, cluster.access, bookmark_interval=cluster.settings.bookmark_seconds)
    return app
