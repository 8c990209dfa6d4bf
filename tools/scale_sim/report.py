"""The figures of a run: the table on stdout and `run.json`."""

import dataclasses
import statistics
from typing import Any

from tools.k8s.scaling import SYNC_PERIOD
from tools.scale_sim.simulation import Run
from tools.scale_sim.truth import waits


def percentile(values: list[float], percent: float) -> float:
    """The value that so many percent do not exceed, interpolated; 0 where there is none."""
    if len(values) < 2:
        return values[0] if values else 0.0
    return statistics.quantiles(values, n=1000, method="inclusive")[round(percent * 10) - 1]


def seconds_without_replicas(run: Run) -> float:
    """How long there was no worker at all, between the first sample and the last."""
    pairs = zip(run.samples, run.samples[1:], strict=False)
    return sum(after.time - before.time for before, after in pairs if before.current == 0)


def reactions(run: Run) -> list[float | None]:
    """For each burst that has begun: seconds until the first further worker was ready; None if none came in it."""
    found: list[float | None] = []
    ends = [*run.begins[1:], run.elapsed]
    for phase, begin, end in zip(run.plan.phases, run.begins, ends, strict=False):
        if phase.burst:
            started = {event.pod for event in run.pods if event.what == "started" and begin <= event.time < end}
            ready = [event.time for event in run.pods if event.what == "ready" and event.pod in started]
            found.append(min(ready) - begin if ready else None)
    return found


def figures(run: Run) -> dict[str, Any]:
    """All that the table shows, by name; seconds where the name ends `_s`."""
    counts, waited = run.counts, list(waits(run.truth).values())

    def happened(what: str) -> int:
        return sum(event.what == what for event in run.pods)

    def interrupted(what: str) -> int:
        return sum(event.running_turns for event in run.pods if event.what == what)

    return {
        "published": counts.published,
        "answered": counts.answered,
        "lost": counts.lost,
        "duplicated": counts.duplicated,
        "failed": counts.failed,
        "incoherent": counts.incoherent,
        "not_seen_whole": counts.unseen,
        "left_in_the_queue": counts.queued,
        "dead_letters": counts.dead_letters,
        "redelivered": counts.redelivered,
        "taken_over": counts.taken_over,
        "pods_started": happened("started"),
        "pods_stopped": happened("stopped"),
        "pods_killed": happened("killed"),
        "pods_ended_by_themselves": happened("crashed"),
        "turns_running_when_a_pod_was_stopped": interrupted("stopped"),
        "turns_running_when_a_pod_was_killed": interrupted("killed"),
        "most_replicas_ready": max((sample.ready for sample in run.samples), default=0),
        "wait_p50_s": percentile(waited, 50),
        "wait_p95_s": percentile(waited, 95),
        "wait_max_s": max(waited, default=0.0),
        "without_replicas_s": seconds_without_replicas(run),
        "burst_to_further_replica_s": reactions(run),
    }


def table(run: Run) -> str:
    """The figures as lines of name and value."""
    lines = [f"{name.removesuffix('_s').replace('_', ' '):<38}{_shown(name, value):>16}"
             for name, value in figures(run).items()]  # fmt: skip
    return "\n".join(lines)


def _shown(name: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join("none" if each is None else f"{each:.1f} s" for each in value) or "no burst"
    return f"{value:.2f} s" if name.endswith("_s") else str(value)


def setting(run: Run) -> str:
    """One line that says what was simulated, and what was shortened for it."""
    plan, scaling = run.plan, run.plan.scaling
    return (
        f"{scaling.service}: {plan.slots} turns at once a worker, {scaling.min_replicas} to {scaling.max_replicas}"
        f" workers, lagThreshold {scaling.lag_threshold}; real workers, turns and load, KEDA and HPA paced"
        f" {plan.pace:g} times: polling {scaling.polling_interval} s, sync {SYNC_PERIOD} s, cool-down"
        f" {scaling.cooldown_period} s, stabilization {scaling.scale_down_stabilization} s"
    )


def as_json(run: Run) -> dict[str, Any]:
    """The whole run with its time series; times in seconds from its begin."""
    waited = waits(run.truth)
    again = {event.request_id for event in run.truth.events if event.attempt > 1}
    turns = [
        {"request_id": name, "asked": asked, "wait_s": waited.get(name), "taken_over": name in again}
        for name, asked in run.asked.items()
    ]
    scaling = dataclasses.asdict(run.plan.scaling)
    scaling["consumer"] = run.plan.scaling.consumer.name
    return {
        "plan": dataclasses.asdict(run.plan),
        "scaling": scaling,
        "interrupted": run.interrupted,
        "elapsed_s": run.elapsed,
        "figures": figures(run),
        "problems": dict(run.counts.problems),
        "phase_begins": run.begins,
        "samples": [dataclasses.asdict(sample) for sample in run.samples],
        "pods": [dataclasses.asdict(event) for event in run.pods],
        "turns": turns,
    }
