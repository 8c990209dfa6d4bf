"""Kubeflow Pipelines without a cluster: pipelines by name, and runs that pass through their states and run nothing."""

import asyncio
import copy
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from local_cluster.gateway import INVALID_ARGUMENT, NOT_FOUND, GatewayError
from local_cluster.steering import Pace, Steered, Step, outcome_of, seconds_of

_OUTCOMES = {state.lower(): state for state in ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")}
_FINAL = frozenset(_OUTCOMES.values())
_STATES = frozenset({*_FINAL, "PENDING", "RUNNING", "CANCELING", "PAUSED"})
_STOPPABLE = frozenset({"PENDING", "RUNNING", "PAUSED"})
_FAILED = "The run failed, as it was asked to."


class Kubeflow(Steered):
    """What the server knows.

    Args:
        pipelines: each with its versions, the oldest first.
        experiments: besides `Default`, which is there like in every installation for one user.
        multi_user: whether runs belong to namespaces, which then must be named.
        namespace: of the experiments, with `multi_user`.
    """

    def __init__(
        self,
        pace: Pace,
        pipelines: Mapping[str, Sequence[str]],
        experiments: Iterable[str] = (),
        *,
        multi_user: bool = False,
        namespace: str = "",
    ) -> None:
        super().__init__(pace)
        self.multi_user = multi_user
        self.namespace = namespace if multi_user else ""
        self.terminated_state = "CANCELED"
        """What a terminated run ends in; a server over Argo says FAILED."""
        self.created = 0
        """Runs ever created."""
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        """By id, as the API shows them, in the order of their creation."""
        for name in ["Default", *experiments]:
            self._add_experiment(name)
        for name, versions in pipelines.items():
            self.add_pipeline(name, versions)

    def add_pipeline(self, name: str, versions: Sequence[str]) -> str:
        """Add a pipeline with its versions, the oldest first; returns its id."""
        named = {"pipeline_id": str(uuid.uuid4()), "display_name": name, "name": name, "created_at": _now()}
        self.pipelines[named["pipeline_id"]] = named
        for number, version in enumerate(versions):
            made = {
                "pipeline_id": named["pipeline_id"],
                "pipeline_version_id": str(uuid.uuid4()),
                "display_name": version,
                "name": version,
                "created_at": _now(number - len(versions)),  # the newest one can be told by its time
            }
            self.versions[made["pipeline_version_id"]] = made
        return named["pipeline_id"]

    def pipeline_id(self, name: str) -> str:
        """The id of the pipeline of that name; KeyError if there is none."""
        return _id_of(self.pipelines, name)

    def version_id(self, pipeline: str, name: str) -> str:
        """The id of a pipeline's version of that name; KeyError if there is none."""
        parent = self.pipeline_id(pipeline)
        return _id_of({key: row for key, row in self.versions.items() if row["pipeline_id"] == parent}, name)

    def experiment_id(self, name: str) -> str:
        """The id of the experiment of that name; KeyError if there is none."""
        return _id_of(self.experiments, name)

    def create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create a run, another one each time.

        Raises:
            GatewayError: the body lacks something, or refers to something that does not exist.
        """
        experiment = self._experiment(body.get("experiment_id", ""))
        now = _now()
        run = {
            "experiment_id": experiment["experiment_id"],
            "run_id": str(uuid.uuid4()),
            "display_name": body.get("display_name", ""),
            "storage_state": "AVAILABLE",
            "description": body.get("description", ""),
            "pipeline_version_reference": self._reference(body.get("pipeline_version_reference")),
            "runtime_config": _runtime_config(body.get("runtime_config", {})),
            "service_account": body.get("service_account") or "pipeline-runner",
            "created_at": now,
            "scheduled_at": now,
            "finished_at": _rfc3339(0),
            "state": "PENDING",
            "state_history": [{"update_time": now, "state": "PENDING"}],
        }
        if not isinstance(run["display_name"], str) or not run["display_name"]:
            raise _refused("The run name is empty. Please specify a valid name")
        run = {key: value for key, value in run.items() if value not in ("", {})}
        self.created += 1
        self.runs[run["run_id"]] = run
        self._saw(run, *_names(run))
        self._consider(run["run_id"])
        return run

    def run(self, run_id: str) -> dict[str, Any]:
        """A run by its id; GatewayError if there is none."""
        if run_id not in self.runs:
            raise GatewayError(NOT_FOUND, f"Run {run_id} not found.", "Failed to get a run")
        return self.runs[run_id]

    def terminate(self, run_id: str) -> None:
        """Have a run stopped; one that is being stopped or has ended is refused."""
        if self.run(run_id)["state"] not in _STOPPABLE:
            message = f"Failed to terminate a run {run_id}. Row not found"
            raise GatewayError(INVALID_ARGUMENT, message, "Failed to terminate a run")
        self._enter(self.runs[run_id], "CANCELING")

    def retry(self, run_id: str) -> None:
        """Run a run again that failed or was canceled."""
        if (state := self.run(run_id)["state"]) not in ("FAILED", "CANCELED"):
            message = f"Failed to retry run {run_id} as its state is {state}"
            raise GatewayError(INVALID_ARGUMENT, message, "Failed to retry a run")
        self._enter(self.runs[run_id], "PENDING")

    def delete(self, run_id: str) -> None:
        """Forget a run; GatewayError if there is none."""
        self.run(run_id)
        del self.runs[run_id]
        self._forget(run_id)

    def advance(self, name: str, phase: str, message: str = "") -> None:
        """Put a run, by its id or display name, into a state now, held or not."""
        if (run := self._find(name)) is None:
            raise KeyError(name)
        if phase not in _STATES:
            raise ValueError(f"{phase!r} is no state of a run: {', '.join(sorted(_STATES))}")
        self._enter(run, phase, message)

    async def serve(self) -> None:
        """Let the clock move the runs until cancelled."""
        try:
            self._reconsider()
            await asyncio.Event().wait()
        finally:
            self._stop_clock()

    def _find(self, name: str) -> dict[str, Any] | None:
        named = (run for run in self.runs.values() if run["display_name"] == name)
        return self.runs.get(name) or next(named, None)

    def _state(self, run: Mapping[str, Any]) -> str:
        return str(run["state"])

    def _reconsider(self) -> None:
        for run_id in list(self.runs):
            self._consider(run_id)

    def _consider(self, key: str) -> None:
        if run := self.runs.get(key):
            self._schedule(key, run["state"], self._next(run))

    def _next(self, run: dict[str, Any]) -> Step | None:
        parameters = run.get("runtime_config", {}).get("parameters", {})
        match run["state"]:
            case "CANCELING" if self._obeys(*_names(run)):
                return Step(0, lambda: self._enter(run, self.terminated_state))
            case "PENDING" if not self._held(*_names(run)):
                return Step(self.pace.pending, lambda: self._enter(run, "RUNNING"))
            case "RUNNING" if not self._held(*_names(run)):
                outcome = outcome_of(_OUTCOMES, parameters, {}) or "SUCCEEDED"
                message = _FAILED if outcome == "FAILED" else ""
                after = seconds_of(self.pace.running, parameters, {})
                return Step(after, lambda: self._enter(run, outcome, message))
        return None

    def _enter(self, run: dict[str, Any], state: str, message: str = "") -> None:
        """Give the run another state; readers have the old one in hand, so it is another object."""
        if self.runs.get(run["run_id"]) is None:
            return
        now = _now()
        history = [*run["state_history"], {"update_time": now, "state": state}]
        finished_at = now if state in _FINAL else _rfc3339(0)
        changed = {**run, "state": state, "state_history": history, "finished_at": finished_at}
        changed.pop("error", None)
        if message:
            changed["error"] = {"code": 13, "message": message}
        self.runs[run["run_id"]] = changed
        self._saw(changed, *_names(changed))
        self._consider(run["run_id"])

    def _add_experiment(self, name: str) -> None:
        key = str(uuid.uuid4())
        made = {"experiment_id": key, "display_name": name, "created_at": _now(), "storage_state": "AVAILABLE"}
        self.experiments[key] = {**made, "namespace": self.namespace} if self.namespace else made

    def _experiment(self, experiment_id: Any) -> dict[str, Any]:
        if not experiment_id:
            if self.multi_user:
                raise _refused("Experiment id and namespace cannot both be empty in multi-user mode")
            return self.experiments[self.experiment_id("Default")]
        if experiment_id not in self.experiments:
            raise GatewayError(NOT_FOUND, f"Experiment {experiment_id} not found.", "Failed to create a new run")
        return self.experiments[experiment_id]

    def _reference(self, given: Any) -> dict[str, str]:
        """The version that is run: the newest of the pipeline, if none is named."""
        if not isinstance(given, dict) or not isinstance(pipeline_id := given.get("pipeline_id"), str):
            raise _refused("Failed to fetch a template due to missing pipeline source")
        if pipeline_id not in self.pipelines:
            raise GatewayError(NOT_FOUND, f"Pipeline {pipeline_id} not found.", "Failed to create a new run")
        versions = [key for key, row in self.versions.items() if row["pipeline_id"] == pipeline_id]
        version_id = given.get("pipeline_version_id") or (versions[-1] if versions else "")
        if version_id not in versions:
            raise GatewayError(NOT_FOUND, f"PipelineVersion {version_id} not found.", "Failed to create a new run")
        return {"pipeline_id": pipeline_id, "pipeline_version_id": version_id}


def _runtime_config(given: Any) -> dict[str, Any]:
    if not isinstance(given, dict) or not isinstance(given.get("parameters", {}), dict):
        raise GatewayError(INVALID_ARGUMENT, "proto: invalid value for runtime_config")
    return copy.deepcopy({key: value for key, value in given.items() if key in ("parameters", "pipeline_root")})


def _names(run: Mapping[str, Any]) -> tuple[str, str]:
    return run["run_id"], run["display_name"]


def _id_of(rows: Mapping[str, Mapping[str, Any]], name: str) -> str:
    for key, row in rows.items():
        if row["display_name"] == name:
            return key
    raise KeyError(name)


def _refused(message: str) -> GatewayError:
    return GatewayError(INVALID_ARGUMENT, message, "Failed to create a new run")


def _now(offset: int = 0) -> str:
    return _rfc3339(int(time.time()) + offset)


def _rfc3339(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
