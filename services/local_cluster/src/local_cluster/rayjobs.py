"""KubeRay's RayJob controller without Ray: RayJobs pass through their states, retries and suspension too."""

import json
from collections.abc import Mapping
from typing import Any

from local_cluster.controller import Controller, annotations_of, now, spec_of, status_of
from local_cluster.steering import Pace, Step, outcome_of, seconds_of
from local_cluster.store import RAY_JOBS, Object, Store

_OUTCOMES = {"succeeded": "SUCCEEDED", "failed": "FAILED", "stopped": "STOPPED"}
_ENDS = {"SUCCEEDED": "Complete/SUCCEEDED", "FAILED": "Failed/FAILED", "STOPPED": "Complete/STOPPED"}
"""What becomes of a RayJob whose job has ended."""
_JOB_STATUS = {"Running": "RUNNING", "Complete": "SUCCEEDED", "Failed": "FAILED", "Retrying": "FAILED"}
"""The jobStatus that usually goes with a jobDeploymentStatus."""
_FINAL = frozenset({"Complete", "Failed"})
_ENDED = _FINAL | {"ValidationFailed"}
_STATES = _ENDED | {"", "Initializing", "Running", "Suspending", "Suspended", "Retrying", "Waiting"}
_MESSAGES = {
    "SUCCEEDED": "Job finished successfully.",
    "STOPPED": "Job was intentionally stopped.",
    "FAILED": "Job entrypoint command failed with exit code 1",
}
_NAME_LENGTH = 47


class RayJobs(Controller):
    """Every RayJob of the store."""

    def __init__(self, store: Store, pace: Pace) -> None:
        super().__init__(store, RAY_JOBS, pace)
        self.delete_finished = False
        """Whether a RayJob goes with its cluster, `ttlSecondsAfterFinished` after its end; the operator's
        DELETE_RAYJOB_CR_AFTER_JOB_FINISHES."""

    def _state(self, run: Mapping[str, Any]) -> str:
        status = status_of(run)
        return f"{status.get('jobDeploymentStatus', '')}/{status.get('jobStatus', '')}"

    def _next(self, found: Object) -> Step | None:
        spec, name = spec_of(found), found["metadata"]["name"]
        state, _, job = self._state(found).partition("/")
        if state in _ENDED:
            deletes = self.delete_finished and state in _FINAL
            return self._deletion(found, spec.get("ttlSecondsAfterFinished", 0)) if deletes else None
        if problem := _problem(found):
            return self._step(found, 0, "ValidationFailed", problem)
        stopping = bool(spec.get("suspend")) and self._obeys(name)
        match state:
            case "" if stopping or not self._held(name):
                return self._step(found, 0, "Initializing")
            case "Initializing" | "Running" if stopping:
                return self._step(found, 0, "Suspending")
            case "Suspending" if self._obeys(name):
                return self._step(found, 0, "Suspended")
            case "Suspended" if not spec.get("suspend"):
                return self._step(found, 0, "")
            case "Retrying" if not self._held(name):
                return self._step(found, 0, "")
            case "Initializing" if not self._held(name):
                return self._unless_late(found, self.pace.pending, 0, "Running/PENDING")
            case "Running" if not self._held(name):
                return self._run(found, job)
        return None

    def _run(self, found: Object, job: str) -> Step:
        """What becomes of a job that has been submitted: it ends as it was asked to, and its RayJob after it."""
        if job in _ENDS:
            return self._step(found, 0, _ENDS[job], _MESSAGES[job])
        if job != "RUNNING":
            return self._step(found, 0, "Running/RUNNING")
        annotations, parameters = annotations_of(found), _parameters(found)
        seconds = seconds_of(self.pace.running, parameters, annotations)
        outcome = outcome_of(_OUTCOMES, parameters, annotations) or "SUCCEEDED"
        return self._unless_late(found, seconds, self.pace.pending, f"Running/{outcome}")

    def _unless_late(self, found: Object, after: float, before: float, phase: str) -> Step:
        """A step, unless the job's time is over before; `before`: how much of it has gone by."""
        deadline = spec_of(found).get("activeDeadlineSeconds")
        if deadline is None or deadline >= before + after:
            return self._step(found, after, phase, _MESSAGES.get(phase.partition("/")[2], ""))
        started = status_of(found).get("startTime", "")
        message = (
            f"The RayJob has passed the activeDeadlineSeconds. StartTime: {started}. ActiveDeadlineSeconds: {deadline}"
        )
        late = self._unless_changed(found, lambda present: self._fail(present, "DeadlineExceeded", message))
        return Step(max(0, deadline - before), late)

    def _enter(self, found: Object, phase: str, message: str = "") -> None:
        deployment, slash, job = phase.partition("/")
        if deployment not in _STATES:
            raise ValueError(f"{deployment!r} is no jobDeploymentStatus: {', '.join(sorted(_STATES))}")
        status = dict(status_of(found))
        if not slash:
            job = status.get("jobStatus", "") if deployment == "Suspending" else _JOB_STATUS.get(deployment, "")
        if deployment == "Failed":
            self._fail(found, "AppFailed", message, job)
            return
        if deployment in ("", "Suspended"):
            for key in ("jobId", "rayClusterName", "dashboardURL", "rayJobInfo", "reason", "message"):
                status.pop(key, None)
        if deployment == "Initializing":
            name = found["metadata"]["name"]
            status |= {"jobId": f"{name}-{found['metadata']['uid'][:5]}", "rayClusterName": f"{name}-cluster"}
            status["startTime"] = now()
        elif deployment == "Running":
            status["dashboardURL"] = f"{status.get('rayClusterName', '')}-head-svc:8265"
        elif deployment == "ValidationFailed":
            status["reason"] = "ValidationFailed"
        if (deployment, job) == ("Complete", "SUCCEEDED"):
            status["succeeded"] = status.get("succeeded", 0) + 1
        self._write(found, status, deployment, job, message)

    def _fail(self, found: Object, reason: str, message: str, job: str | None = None) -> None:
        """End in failure, or begin again if there are attempts left; a job that took too long is not tried again."""
        status = dict(status_of(found))
        status |= {"reason": reason, "failed": status.get("failed", 0) + 1}
        again = reason != "DeadlineExceeded" and status["failed"] <= spec_of(found).get("backoffLimit", 0)
        job_status = status.get("jobStatus", "") if job is None else job
        self._write(found, status, "Retrying" if again else "Failed", job_status, message)

    def _write(self, found: Object, status: dict[str, Any], deployment: str, job: str, message: str) -> None:
        status |= {"jobDeploymentStatus": deployment, "jobStatus": job}
        if message:
            status["message"] = message
        if deployment in _FINAL:
            status["endTime"] = now()
        status = {key: value for key, value in status.items() if value != ""}
        self._store.update_status(RAY_JOBS, found["metadata"]["namespace"], found["metadata"]["name"], status)


def _problem(found: Object) -> str:
    """Why a RayJob is refused; empty if it is not. Mind that these are looked at again when it is changed."""
    spec = spec_of(found)
    if len(found["metadata"]["name"]) > _NAME_LENGTH:
        return f"The RayJob metadata is invalid: RayJob name should be no more than {_NAME_LENGTH} characters"
    if annotations_of(found).get("local-cluster/outcome", "").lower() == "validationfailed":
        return "The RayJob spec is invalid: it was asked to be"
    problem = ""
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        problem = "a RayJob with shutdownAfterJobFinishes set to false is not allowed to be suspended"
    elif not spec.get("shutdownAfterJobFinishes") and spec.get("ttlSecondsAfterFinished"):
        problem = "a RayJob with shutdownAfterJobFinishes set to false cannot have TTLSecondsAfterFinished"
    elif spec.get("suspend") and spec.get("clusterSelector"):
        problem = "the ClusterSelector mode doesn't support the suspend operation"
    elif not spec.get("rayClusterSpec") and not spec.get("clusterSelector"):
        problem = "one of RayClusterSpec or ClusterSelector must be set"
    return f"The RayJob spec is invalid: {problem}" if problem else ""


def _parameters(found: Object) -> Mapping[str, Any]:
    """The parameters of a run, which stand in the head's environment."""
    head = (spec_of(found).get("rayClusterSpec") or {}).get("headGroupSpec") or {}
    containers = ((head.get("template") or {}).get("spec") or {}).get("containers") or [{}]
    for variable in containers[0].get("env") or []:
        if variable.get("name") == "PIPELINE_PARAMETERS":
            try:
                parameters = json.loads(variable.get("value", ""))
            except ValueError:
                return {}
            return parameters if isinstance(parameters, dict) else {}
    return {}
