"""The engines' own states, and what they are to us; every object an engine may show has one."""

from collections.abc import Mapping
from typing import Any, Final

from handler_core.contract.pipeline import RunStatus
from pipeline_bridge.engine import Observed
from pipeline_bridge.manifests import canceled

Object = dict[str, Any]

MAX_MESSAGE: Final = 2000
"""Characters of an engine's message that are passed on; a status has it twice, and has to fit into one message."""

_ARGO: Final = {
    "Running": RunStatus.RUNNING,
    "Succeeded": RunStatus.SUCCEEDED,
    "Failed": RunStatus.FAILED,
    "Error": RunStatus.FAILED,
}
_KUBEFLOW: Final = {
    "RUNNING": RunStatus.RUNNING,
    "CANCELING": RunStatus.RUNNING,
    "SUCCEEDED": RunStatus.SUCCEEDED,
    "SKIPPED": RunStatus.SUCCEEDED,
    "FAILED": RunStatus.FAILED,
    "CANCELED": RunStatus.CANCELED,
}


def of_workflow(workflow: Object) -> Observed:
    """What a Workflow says of its run: a stopped one ends as `Failed`, so what was asked of it counts as well."""
    spec, status = workflow.get("spec") or {}, workflow.get("status") or {}
    phase = _text(status.get("phase"))
    state = _ARGO.get(phase, RunStatus.PENDING)
    if state is RunStatus.FAILED and (spec.get("shutdown") or canceled(workflow)):
        state = RunStatus.CANCELED
    elif not state.final and spec.get("suspend") is True:
        state = RunStatus.PENDING
    return Observed(workflow["metadata"]["name"], state, phase, _message(status.get("message")))


def of_ray_job(job: Object) -> Observed:
    """What a RayJob says of its run: `jobStatus` is Ray's word, `jobDeploymentStatus` the operator's.

    Only the operator's is final: a job that failed may be tried again (`backoffLimit`).
    """
    status = job.get("status") or {}
    deployment, ray = _text(status.get("jobDeploymentStatus")), _text(status.get("jobStatus"))
    message = _message(status.get("message")) or _message(status.get("reason"))
    return Observed(job["metadata"]["name"], _ray(deployment, ray, canceled(job)), f"{deployment}/{ray}", message)


def _ray(deployment: str, ray: str, asked_to_stop: bool) -> RunStatus:
    match deployment:
        case "Complete" if ray == "SUCCEEDED":
            return RunStatus.SUCCEEDED
        case "Complete" if ray == "STOPPED":
            return RunStatus.CANCELED
        case "Complete" | "Failed":
            return RunStatus.FAILED
        case "ValidationFailed":
            return RunStatus.ERROR
        case "Suspended" if asked_to_stop:
            return RunStatus.CANCELED
        case "Running" | "Suspending" if ray not in {"", "PENDING"}:
            return RunStatus.RUNNING
    return RunStatus.PENDING


def of_run(run: Object) -> Observed:
    """What Kubeflow says of a run; its zero fields are left out."""
    raw = _text(run.get("state"))
    state = _KUBEFLOW.get(raw, RunStatus.PENDING)
    history = [entry for entry in _list(run.get("state_history")) if isinstance(entry, Mapping)]
    if state is RunStatus.FAILED and any(entry.get("state") == "CANCELING" for entry in history):
        state = RunStatus.CANCELED  # a server over Argo ends what it was told to terminate like this
    errors = (run.get("error"), *(entry.get("error") for entry in reversed(history)))
    message = next((_message(error.get("message")) for error in errors if isinstance(error, Mapping)), "")
    return Observed(_text(run.get("run_id")), state, raw, message)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _message(value: Any) -> str:
    text = _text(value)
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
