"""Pipelines: trigger → catalogue → a run on Argo, Kubeflow or Ray → each change of its state, until its end."""

import contextlib
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from pydantic import Field

from handler_core import streams
from handler_core.clients.http import new_session
from handler_core.config import ServiceSettings, SettingsError, url_field
from handler_core.context import Context
from handler_core.contract import pipeline as contract
from handler_core.contract.pipeline import PipelinesRequest, PipelinesResponse
from handler_core.delivery import Delivery
from handler_core.health import ended
from handler_core.limits import Limits
from handler_core.runtime import Runtime
from handler_core.service import Service
from handler_core.tasks import background
from pipeline_bridge.api import Api
from pipeline_bridge.argo import Argo
from pipeline_bridge.bridge import Bridge
from pipeline_bridge.catalogue import Catalogue
from pipeline_bridge.cluster import Cluster
from pipeline_bridge.engine import Engine
from pipeline_bridge.kubeflow import Kubeflow
from pipeline_bridge.rayjob import RayJobs

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class Settings(ServiceSettings):
    """Settings of the pipeline bridge."""

    pipelines_file: Path = Path("/etc/pipelines/pipelines.yaml")
    """The catalogue."""
    max_in_flight: int = Field(default=1000, ge=1, le=16_384)
    """Runs followed at once by one worker."""
    kubeconfig: Path | None = None
    """How to reach Kubernetes; without it, as a pod does, and where there is neither, Argo and Ray are left out."""
    kubernetes_service_host: str | None = None
    """Set by Kubernetes in every pod; it counts where the pod has a token as well."""
    kube_context: str | None = None
    """A context of `KUBECONFIG`; its current one without."""
    service_account_dir: Path = SERVICE_ACCOUNT
    """Where a pod's token and certificate authority are mounted."""
    argo_namespace: str = "argo"
    """Of the Argo pipelines that name none."""
    argo_host: str | None = url_field("ARGO_HOST")
    """The Argo server, asked how a workflow ended that is gone from Kubernetes."""
    argo_token_file: Path | None = None
    ray_namespace: str = "ray"
    """Of the Ray pipelines that name none."""
    kubeflow_host: str | None = url_field("KUBEFLOW_HOST")
    """The Kubeflow Pipelines API; without it Kubeflow is left out."""
    kubeflow_namespace: str = ""
    """Of the Kubeflow pipelines that name none; empty in an installation for one user."""
    kubeflow_token_path: Path = Path("/var/run/secrets/kubeflow/pipelines/token")
    """A projected service-account token, sent if the file is there."""
    kubeflow_poll_interval: float = Field(default=5.0, gt=0)
    """Seconds between two looks at the runs that are followed."""
    watch_poll_interval: float = Field(default=300.0, gt=0)
    """Seconds between two lists beside a watch of Kubernetes."""
    watch_stall_timeout: float = Field(default=90.0, gt=0)
    """Seconds of silence after which a watch is taken for dead; an API server sends a bookmark each minute."""

    @property
    def encrypted(self) -> bool:
        if self.kubeconfig is None:
            return super().encrypted or self.kubernetes_service_host is not None  # a pod's own access is by TLS
        try:
            return super().encrypted or b"https://" in self.kubeconfig.read_bytes()
        except OSError:
            return True  # what is wrong with it, is told by whoever needs it


@dataclass(frozen=True)
class Clients:
    """What the handlers need."""

    bridge: Bridge
    catalogue: Catalogue


def limits(settings: Settings) -> Limits:
    return Limits(
        max_in_flight=settings.max_in_flight,
        handler_timeout=math.inf,  # a run takes as long as its pipeline allows
        hands_over=True,
        max_deliveries=2**31,  # each may be a takeover; `Bridge` leaves out what workers die of
    )


service = Service(
    "pipeline_bridge",
    Settings,
    description="Starts runs of pipelines, follows them, and stops them.",
    reads=(streams.AI_PIPELINE, streams.AI_PIPELINE_STATUS, streams.AI_CONTROL),
    publishes=("evt.pipeline.status.*", "evt.pipeline.run.*"),
    uvloop=False,  # a run changes its state now and then
)


@service.lifespan
async def clients(settings: Settings, runtime: Runtime) -> AsyncIterator[Clients]:
    namespaces = {
        "argo": settings.argo_namespace,
        "rayjob": settings.ray_namespace,
        "kubeflow": settings.kubeflow_namespace,
    }
    catalogue = Catalogue(settings.pipelines_file, namespaces=namespaces, metrics=runtime.metrics)
    await catalogue.load()
    runtime.health.ready["catalogue"] = lambda: "" if catalogue.loaded else catalogue.problem
    async with contextlib.AsyncExitStack() as stack:
        http = await stack.enter_async_context(new_session())
        engines = await connect(settings, runtime, http, stack)
        serving = {"catalogue": catalogue.watch, **{name: engine.serve for name, engine in engines.items()}}
        for name, serve in serving.items():
            runtime.health.alive[name] = ended(await stack.enter_async_context(background(serve())))
        yield Clients(Bridge(runtime, catalogue, engines), catalogue)


async def connect(
    settings: Settings, runtime: Runtime, http: aiohttp.ClientSession, stack: contextlib.AsyncExitStack
) -> dict[str, Engine]:
    """The engines that the settings give access to; they are contacted at their first use."""
    engines: dict[str, Engine] = {}
    if settings.kubeflow_host is not None:
        api = Api(
            http,
            "kubeflow",
            settings.kubeflow_host,
            token=settings.kubeflow_token_path,
            observe=runtime.metrics.upstream,
        )
        engines["kubeflow"] = Kubeflow(api, poll_interval=settings.kubeflow_poll_interval)
    account = settings.kubernetes_service_host is not None and (settings.service_account_dir / "token").is_file()
    if settings.kubeconfig is not None or account:
        cluster = await kubernetes(settings, runtime)
        stack.push_async_callback(cluster.close)
        server = None
        if settings.argo_host is not None:
            server = Api(
                http, "argo", settings.argo_host, token=settings.argo_token_file, observe=runtime.metrics.upstream
            )
        watching: dict[str, Any] = {
            "poll_interval": settings.watch_poll_interval,
            "stall_timeout": settings.watch_stall_timeout,
            "metrics": runtime.metrics,
        }
        engines["argo"] = Argo(cluster, server=server, **watching)
        engines["rayjob"] = RayJobs(cluster, **watching)
    return engines


async def kubernetes(settings: Settings, runtime: Runtime) -> Cluster:
    try:
        return await Cluster.connect(
            kubeconfig="" if settings.kubeconfig is None else str(settings.kubeconfig),
            context=settings.kube_context or "",
            service_account=settings.service_account_dir,
            observe=runtime.metrics.upstream,
        )
    except ValueError as error:
        raise SettingsError(f"KUBECONFIG: {error}" if settings.kubeconfig else str(error)) from None


@service.consumes(streams.PIPELINE_BRIDGE, limits)
async def trigger(delivery: Delivery, ctx: Context[Clients]) -> None:
    await ctx.clients.bridge.process(delivery)


@service.replies("list", contract.LIST_SUBJECT, contract.USER_LIST_SUBJECT, response=PipelinesResponse)
async def list_pipelines(request: PipelinesRequest, ctx: Context[Clients]) -> PipelinesResponse:
    catalogue = ctx.clients.catalogue
    return PipelinesResponse(pipelines=catalogue.pipelines(request.user_id), problem=catalogue.problem)
