"""Argo's workflow controller without pods: Workflows pass through their phases, and can be asked to end otherwise."""

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from local_cluster.access import Access
from local_cluster.controller import Controller, annotations_of, now, spec_of, status_of
from local_cluster.gateway import NOT_FOUND, UNAUTHENTICATED, GatewayError
from local_cluster.status import StatusError
from local_cluster.steering import Pace, Step, outcome_of, seconds_of
from local_cluster.store import WORKFLOW_TEMPLATES, WORKFLOWS, Object, Store

PHASE_LABEL = "workflows.argoproj.io/phase"
COMPLETED_LABEL = "workflows.argoproj.io/completed"

_FINAL = frozenset({"Succeeded", "Failed", "Error"})
_PHASES = frozenset({"Pending", "Running", *_FINAL})
_OUTCOMES = {phase.lower(): phase for phase in _FINAL}
_TTL = {"Succeeded": "secondsAfterSuccess", "Failed": "secondsAfterFailure", "Error": "secondsAfterFailure"}
_MESSAGES = {"Failed": "Error (exit code 1)", "Error": "pod deleted"}


class Workflows(Controller):
    """Every Workflow of the store."""

    def __init__(self, store: Store, pace: Pace) -> None:
        super().__init__(store, WORKFLOWS, pace)
        self.archiving = True
        """Whether finished workflows are kept for the Argo server to show when the resource is gone."""
        self.archive: dict[tuple[str, str], Object] = {}

    def show(self, namespace: str, name: str) -> Object:
        """A Workflow as the Argo server shows it: the resource, or else what the archive has.

        Raises:
            GatewayError: it is in neither.
        """
        try:
            return self._store.get(WORKFLOWS, namespace, name)
        except StatusError as error:
            if (namespace, name) in self.archive:
                return self.archive[namespace, name]
            raise GatewayError(NOT_FOUND, error.message) from None

    def _state(self, run: Mapping[str, Any]) -> str:
        return str(status_of(run).get("phase", ""))

    def _next(self, found: Object) -> Step | None:
        spec, name, phase = spec_of(found), found["metadata"]["name"], self._state(found)
        if phase in _FINAL:
            strategy = self._setting(found, "ttlStrategy") or {}
            seconds = strategy.get(_TTL[phase], strategy.get("secondsAfterCompletion"))
            return None if seconds is None else self._deletion(found, seconds)
        if spec.get("suspend"):
            return None  # the controller does not look at it, not even to stop it
        if (shutdown := spec.get("shutdown")) and self._obeys(name):
            return self._step(found, 0, "Failed", f"Stopped with strategy '{shutdown}'")
        if self._held(name):
            return None
        match phase:
            case "" if problem := self._problem(found):
                return self._step(found, 0, *problem)
            case "":
                return self._step(found, 0, "Pending")
            case "Pending":
                return self._step(found, self.pace.pending, "Running")
        return self._end(found)

    def _end(self, found: Object) -> Step:
        """How a running one ends: as it was asked to, unless its time is over before."""
        parameters = {parameter["name"]: parameter.get("value") for parameter in _parameters(spec_of(found))}
        seconds = seconds_of(self.pace.running, parameters, annotations_of(found))
        deadline = self._setting(found, "activeDeadlineSeconds")
        if deadline is not None and deadline < seconds:
            return self._step(found, deadline, "Failed", "Step exceeded its deadline")
        outcome = outcome_of(_OUTCOMES, parameters, annotations_of(found)) or "Succeeded"
        return self._step(found, seconds, outcome, _MESSAGES.get(outcome, ""))

    def _problem(self, found: Object) -> tuple[str, str] | None:
        """Why a Workflow cannot run, with the phase that it ends in."""
        name = (spec_of(found).get("workflowTemplateRef") or {}).get("name")
        if name is None:
            return None
        if (template := self._template(found)) is None:
            return "Error", f'workflowtemplates.argoproj.io "{name}" not found'
        given = {parameter["name"] for parameter in _parameters(spec_of(found))}
        for parameter in _parameters(spec_of(template)):
            if not {"value", "valueFrom"} & set(parameter) and parameter["name"] not in given:
                missing = f"spec.arguments.{parameter['name']}.value or spec.arguments.{parameter['name']}.valueFrom"
                return "Failed", f"invalid spec: {missing} is required"
        return None

    def _setting(self, found: Object, key: str) -> Any:
        """A field of the spec, which a template may set too."""
        template = self._template(found)
        return spec_of(found).get(key, spec_of(template).get(key) if template else None)

    def _template(self, found: Object) -> Object | None:
        name = (spec_of(found).get("workflowTemplateRef") or {}).get("name")
        try:
            return self._store.get(WORKFLOW_TEMPLATES, found["metadata"]["namespace"], name) if name else None
        except StatusError:
            return None

    def _enter(self, found: Object, phase: str, message: str = "") -> None:
        if phase not in _PHASES:
            raise ValueError(f"{phase!r} is no phase of a Workflow: {', '.join(sorted(_PHASES))}")
        metadata, status, final = found["metadata"], status_of(found), phase in _FINAL
        patch = {
            "metadata": {"labels": {PHASE_LABEL: phase, COMPLETED_LABEL: "true" if final else "false"}},
            "status": {
                "phase": phase,
                "message": message or None,
                "progress": "1/1" if phase == "Succeeded" else "0/1",
                "startedAt": None if phase == "Pending" else status.get("startedAt") or now(),
                "finishedAt": now() if final else None,
                "conditions": [{"type": "Completed", "status": "True"}] if final else None,
            },
        }
        changed = self._store.merge_patch(WORKFLOWS, metadata["namespace"], metadata["name"], patch)
        if final and self.archiving:
            self.archive[metadata["namespace"], metadata["name"]] = changed


def add_argo_server(app: web.Application, workflows: Workflows, access: Access) -> None:
    """Serve what of the Argo server's own API tells how a workflow ended that is gone."""

    async def show(request: web.Request) -> web.Response:
        try:
            if not access.knows(request):
                raise GatewayError(
                    UNAUTHENTICATED, "token not valid. see https://argo-workflows.readthedocs.io/en/latest/faq/"
                )
            return web.json_response(workflows.show(request.match_info["namespace"], request.match_info["name"]))
        except GatewayError as error:
            return web.json_response({"code": error.code, "message": error.message}, status=error.status)

    app.router.add_get("/api/v1/workflows/{namespace}/{name}", show, allow_head=False)


def _parameters(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    parameters: list[Mapping[str, Any]] = (spec.get("arguments") or {}).get("parameters") or []
    return parameters
