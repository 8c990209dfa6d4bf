"""What a status says of a run: what is known of it, what is new, and where the time went."""

import time
from typing import Any

from handler_core.contract.pipeline import PipelineStatus, RunStatus
from pipeline_bridge.definitions import MAX_TIMEOUT
from pipeline_bridge.engine import Run, run_name


def following(
    last: PipelineStatus | None, run: Run | None, status: RunStatus, fields: dict[str, Any], received: float
) -> dict[str, Any]:
    """The fields of a run's next status, but for those that say who tells it.

    Args:
        last: the status before it, from which stays what is not given; without one it is the first.
        fields: what is new; its `timings` are added to those before.
        received: when the trigger reached its stream, in Unix seconds.
    """
    now = time.time()
    known: dict[str, Any] = {}
    if run is not None:
        known = {"pipeline": run.pipeline, "engine": run.engine, "namespace": run.namespace, "timeout": run.timeout}
    if last is not None:
        for name in ("run_id", "submitted_at", "started_at", "stopping"):
            known[name] = getattr(last, name)
    if status is RunStatus.SUBMITTED and known.get("submitted_at") is None:
        known["submitted_at"] = now
    elif status is RunStatus.RUNNING and known.get("started_at") is None:
        known["started_at"] = now
    timings = {**(last.timings if last else {}), **fields.get("timings", {})}
    timings = _timings(timings, known.get("submitted_at"), known.get("started_at"), now, received)
    return {**known, **fields, "status": status, "timings": timings, "timestamp": now}


def _timings(
    timings: dict[str, float], submitted_at: float | None, started_at: float | None, now: float, received: float
) -> dict[str, float]:
    if submitted_at is not None:
        timings.setdefault("submit_ms", 1000 * (submitted_at - received) - timings.get("queue_ms", 0.0))
        timings["pending_ms"] = 1000 * ((started_at or now) - submitted_at)
    if started_at is not None:
        timings["run_ms"] = 1000 * (now - started_at)
    timings["total_ms"] = 1000 * (now - received)
    return {name: round(max(0.0, value), 3) for name, value in timings.items()}


def submitted_run(status: PipelineStatus) -> Run | None:
    """As much of a submitted run as it takes to follow and to stop it, from a status alone; None before it is one."""
    if not status.run_id:
        return None
    return Run.model_validate(
        {
            "request_id": status.request_id,
            "pipeline": status.pipeline,
            "engine": status.engine,
            "namespace": status.namespace,
            "name": run_name(status.pipeline, status.request_id),
            "reference": {},
            "parameters": {},
            "timeout": status.timeout or MAX_TIMEOUT,
        }
    )
