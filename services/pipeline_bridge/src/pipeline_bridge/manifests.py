"""What is sent to Kubernetes for a run: its resource, and in it the parameters, where nothing interprets them."""

import copy
import json
import math
from collections.abc import Iterator
from typing import Any, Final

from handler_core.errors import Internal, InvalidRequest
from pipeline_bridge.engine import (
    CANCEL_ANNOTATION,
    MANAGED_BY,
    MANAGER,
    PIPELINE_LABEL,
    REQUEST_ANNOTATION,
    TRACE_ANNOTATION,
    Run,
)

Object = dict[str, Any]

PARAMETERS_VARIABLE: Final = "PIPELINE_PARAMETERS"
REQUEST_VARIABLE: Final = "PIPELINE_REQUEST_ID"
GRACE: Final = 120
"""Seconds that a resource's own time limit is longer than the run's: it is for when no bridge is there to stop it."""
_EXPRESSION: Final = "{{"


def workflow(run: Run) -> Object:
    """The Argo Workflow of a run: a WorkflowTemplate with arguments.

    Raises:
        InvalidRequest: a parameter is one that Argo would evaluate, or has no JSON.
    """
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": _metadata(run, {}),
        "spec": {
            "workflowTemplateRef": {"name": run.reference["template"]},
            "arguments": {
                "parameters": [
                    {"name": name, "value": _argument(name, run.parameters[name])} for name in run.parameters
                ]
            },
            "activeDeadlineSeconds": _time_limit(run),
        },
    }


def ray_job(run: Run) -> Object:
    """The RayJob of a run: the catalogue's manifest, with the parameters in the environment of its Ray containers.

    They are kept from `entrypoint`, `metadata` and `runtimeEnvYAML`: KubeRay puts those into a shell's command line.

    Raises:
        InvalidRequest: a parameter has no JSON.
        Internal: the manifest has no place for the parameters.
    """
    job: Object = copy.deepcopy(run.reference["manifest"])
    try:
        spec: Object = job["spec"]
        containers = list(_ray_containers(spec["rayClusterSpec"]))
    except (KeyError, IndexError, TypeError):
        raise Internal(f"the manifest of pipeline {run.pipeline} has a Ray group without a container") from None
    variables = [
        {"name": PARAMETERS_VARIABLE, "value": environment_json(run.parameters)},
        {"name": REQUEST_VARIABLE, "value": run.request_id},
    ]
    ours = {variable["name"] for variable in variables}
    for container in containers:
        others = [variable for variable in container.get("env") or () if variable.get("name") not in ours]
        container["env"] = [*others, *copy.deepcopy(variables)]
    own_limit = spec.get("activeDeadlineSeconds")
    spec["activeDeadlineSeconds"] = min(_time_limit(run), own_limit) if own_limit else _time_limit(run)
    spec.setdefault("shutdownAfterJobFinishes", True)  # without it a run that is done keeps its GPUs
    return {**job, "apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": _metadata(run, job.get("metadata") or {})}


def environment_json(parameters: dict[str, Any]) -> str:
    """Parameters as JSON fit for a container's environment.

    Kubernetes expands `$(NAME)` in the value of a variable; a `$` can only stand in a JSON string, where `\\u0024` is
    the same.
    """
    return _json("parameters", parameters).replace("$", "\\u0024")


def unevaluated(name: str, value: Any) -> str:
    """A parameter's value as compact JSON, once it is certain that Argo will leave it alone.

    Raises:
        InvalidRequest: it has `{{`, for which Argo has no escape; or it has no JSON.
    """
    text = _json(f"parameters.{name}", value)
    if _EXPRESSION in text:
        raise InvalidRequest(
            f"parameters.{name}: must not contain {_EXPRESSION}, which the engine would evaluate", stage="submit"
        )
    return text


def annotation(resource: Object, name: str) -> str:
    """The value of an annotation; empty where there is none."""
    return str(((resource.get("metadata") or {}).get("annotations") or {}).get(name) or "")


def canceled(resource: Object) -> bool:
    """Whether the run is one that we had stopped."""
    return bool(annotation(resource, CANCEL_ANNOTATION))


def _argument(name: str, value: Any) -> str:
    text = unevaluated(name, value)
    return value if isinstance(value, str) else text


def _metadata(run: Run, base: Object) -> Object:
    """The catalogue's metadata with ours; ours count."""
    annotations = {**(base.get("annotations") or {}), REQUEST_ANNOTATION: run.request_id}
    if run.traceparent:
        annotations[TRACE_ANNOTATION] = run.traceparent
    return {
        **base,
        "name": run.name,
        "namespace": run.namespace,
        "labels": {**(base.get("labels") or {}), MANAGED_BY: MANAGER, PIPELINE_LABEL: run.pipeline},
        "annotations": annotations,
    }


def _time_limit(run: Run) -> int:
    return math.ceil(run.timeout) + GRACE


def _ray_containers(cluster: Object) -> Iterator[Object]:
    """The Ray container of the head and of each group of workers, which is the first of its pod."""
    for group in (cluster["headGroupSpec"], *(cluster.get("workerGroupSpecs") or ())):
        container: Object = group["template"]["spec"]["containers"][0]
        yield container


def _json(name: str, value: Any) -> str:
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        raise InvalidRequest(f"{name}: cannot be written as JSON", stage="submit") from None
