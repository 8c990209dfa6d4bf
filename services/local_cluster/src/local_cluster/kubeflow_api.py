"""The HTTP API of Kubeflow Pipelines, v2beta1: runs, and the pipelines, versions and experiments that they refer to."""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from local_cluster.access import Access
from local_cluster.gateway import INVALID_ARGUMENT, NOT_FOUND, UNAUTHENTICATED, GatewayError
from local_cluster.kubeflow import Kubeflow
from local_cluster.listing import EXPERIMENTS, PIPELINES, RUNS, VERSIONS, Kind, page_of

PREFIX = "/apis/v2beta1/"

_Answer = Callable[[web.Request], Awaitable[Mapping[str, Any]]]


def add_kubeflow(app: web.Application, kubeflow: Kubeflow, access: Access) -> None:
    """Serve the API; it wants the same bearer tokens as the Kubernetes API, and answers errors in a form of its own."""
    api = _Api(kubeflow)

    def guarded(answer: _Answer, *, open_to_all: bool = False) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            try:
                if not open_to_all and not access.knows(request):
                    message = "Request header error: there is no user identity header."
                    raise GatewayError(UNAUTHENTICATED, message, "Failed to authorize the request")
                return web.json_response(await answer(request))
            except GatewayError as error:
                return web.json_response(error.body(), status=error.status)

        return handle

    run = PREFIX + "runs/{run_id:[^/:]+}"
    pipeline = PREFIX + "pipelines/{pipeline_id}"
    app.add_routes(
        [
            web.post(PREFIX + "runs", guarded(api.create_run)),
            web.get(PREFIX + "runs", guarded(api.list_runs), allow_head=False),
            web.get(run, guarded(api.get_run), allow_head=False),
            web.delete(run, guarded(api.delete_run)),
            web.post(run + ":terminate", guarded(api.terminate_run)),
            web.post(run + ":retry", guarded(api.retry_run)),
            web.get(PREFIX + "pipelines", guarded(api.list_pipelines), allow_head=False),
            web.get(pipeline, guarded(api.get_pipeline), allow_head=False),
            web.get(pipeline + "/versions", guarded(api.list_versions), allow_head=False),
            web.get(pipeline + "/versions/{version_id}", guarded(api.get_version), allow_head=False),
            web.get(PREFIX + "experiments", guarded(api.list_experiments), allow_head=False),
            web.get(PREFIX + "experiments/{experiment_id}", guarded(api.get_experiment), allow_head=False),
            web.get(PREFIX + "healthz", guarded(api.health, open_to_all=True), allow_head=False),
            web.route("*", PREFIX + "{tail:.*}", guarded(_unknown)),
        ]
    )


class _Api:
    """The methods of the API; each answers with a message, or raises GatewayError."""

    def __init__(self, kubeflow: Kubeflow) -> None:
        self._kubeflow = kubeflow

    async def create_run(self, request: web.Request) -> Mapping[str, Any]:
        return self._kubeflow.create(await _read(request))

    async def list_runs(self, request: web.Request) -> Mapping[str, Any]:
        experiments = {row["experiment_id"] for row in self._experiments(request)}
        if wanted := request.query.get("experiment_id"):
            experiments &= {wanted}
        rows = [row for row in self._kubeflow.runs.values() if row["experiment_id"] in experiments]
        return page_of(RUNS, rows, request.query)

    async def get_run(self, request: web.Request) -> Mapping[str, Any]:
        return self._kubeflow.run(request.match_info["run_id"])

    async def delete_run(self, request: web.Request) -> Mapping[str, Any]:
        self._kubeflow.delete(request.match_info["run_id"])
        return {}

    async def terminate_run(self, request: web.Request) -> Mapping[str, Any]:
        self._kubeflow.terminate(request.match_info["run_id"])
        return {}

    async def retry_run(self, request: web.Request) -> Mapping[str, Any]:
        self._kubeflow.retry(request.match_info["run_id"])
        return {}

    async def list_pipelines(self, request: web.Request) -> Mapping[str, Any]:
        return page_of(PIPELINES, self._kubeflow.pipelines.values(), request.query)

    async def get_pipeline(self, request: web.Request) -> Mapping[str, Any]:
        return _one(PIPELINES, self._kubeflow.pipelines, request.match_info["pipeline_id"])

    async def list_versions(self, request: web.Request) -> Mapping[str, Any]:
        pipeline_id = (await self.get_pipeline(request))["pipeline_id"]
        rows = [row for row in self._kubeflow.versions.values() if row["pipeline_id"] == pipeline_id]
        return page_of(VERSIONS, rows, request.query)

    async def get_version(self, request: web.Request) -> Mapping[str, Any]:
        found = _one(VERSIONS, self._kubeflow.versions, request.match_info["version_id"])
        if found["pipeline_id"] != request.match_info["pipeline_id"]:
            raise _missing(VERSIONS, request.match_info["version_id"])
        return found

    async def list_experiments(self, request: web.Request) -> Mapping[str, Any]:
        return page_of(EXPERIMENTS, self._experiments(request), request.query)

    async def get_experiment(self, request: web.Request) -> Mapping[str, Any]:
        return _one(EXPERIMENTS, self._kubeflow.experiments, request.match_info["experiment_id"])

    async def health(self, request: web.Request) -> Mapping[str, Any]:
        return {"commit_sha": "local-cluster", "tag_name": "local-cluster", "multi_user": self._kubeflow.multi_user}

    def _experiments(self, request: web.Request) -> list[dict[str, Any]]:
        """The experiments of the query's namespace; an installation for one user takes no notice of it."""
        rows = list(self._kubeflow.experiments.values())
        namespace = request.query.get("namespace", "")
        if not self._kubeflow.multi_user or (not namespace and "experiment_id" in request.query):
            return rows
        if not namespace:
            raise GatewayError(INVALID_ARGUMENT, "A namespace is required in multi-user mode.", "Failed to list")
        return [row for row in rows if row.get("namespace") == namespace]


async def _read(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise GatewayError(INVALID_ARGUMENT, "proto: syntax error: not a JSON object") from None
    if not isinstance(body, dict):
        raise GatewayError(INVALID_ARGUMENT, "proto: syntax error: not a JSON object")
    return body


async def _unknown(request: web.Request) -> Mapping[str, Any]:
    raise GatewayError(NOT_FOUND, "Not Found")


def _one(kind: Kind, rows: Mapping[str, Mapping[str, Any]], key: str) -> Mapping[str, Any]:
    if key not in rows:
        raise _missing(kind, key)
    return rows[key]


def _missing(kind: Kind, key: str) -> GatewayError:
    name = kind.id_field.removesuffix("_id").replace("_", " ").title().replace(" ", "")
    return GatewayError(NOT_FOUND, f"{name} {key} not found.", f"Failed to get a {kind.plural.removesuffix('s')}")
