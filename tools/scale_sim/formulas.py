"""What KEDA and the Horizontal Pod Autoscaler decide, as functions of what they see.

Times and periods are seconds on one clock of any origin, replicas are whole numbers; nothing here sleeps or remembers.

Sources: KEDA's documentation of the nats-jetstream scaler and of the ScaledObject, and its `pkg/scaling/executor`;
Kubernetes' "Horizontal Pod Autoscaling" (Algorithm details; Configurable scaling behavior) and its
`pkg/controller/podautoscaler` (`replica_calculator.go`, `horizontal.go`).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from tools.k8s.scaling import TOLERANCE


@dataclass(frozen=True)
class Policy:
    """How many replicas may come, or go, in a period."""

    type: Literal["Pods", "Percent"]
    value: int
    """Replicas, or percent of those that there were when the period began."""
    period: float


@dataclass(frozen=True)
class Rules:
    """An HPA's behaviour in one direction."""

    policies: tuple[Policy, ...]
    stabilization: float = 0.0
    """Seconds of recommendations that are looked back on."""
    select: Literal["Max", "Min", "Disabled"] = "Max"
    """Which policy counts: the one that changes most, or least; `Disabled` for no scaling in this direction."""


@dataclass(frozen=True)
class Recommendation:
    """What the metric alone called for at a time."""

    time: float
    replicas: int


@dataclass(frozen=True)
class Change:
    """Replicas that were added, or taken away, at a time."""

    time: float
    replicas: int


# -- KEDA


def active(lag: int, activation_lag: int = 0) -> bool:
    """Whether KEDA wants a replica at all: more lag than `activationLagThreshold`, which itself is not enough.

    Source: KEDA's nats-jetstream scaler; "Activating and Scaling thresholds" in KEDA's concepts.
    """
    return lag > activation_lag


def keda_replicas(
    replicas: int,
    is_active: bool,
    *,
    min_replicas: int,
    last_active: float | None,
    cooldown_period: float,
    now: float,
) -> int:
    """The replicas after one look of KEDA, which only moves between none and the first; the rest is the HPA's.

    Args:
        last_active: when the trigger was last seen active; None for never, which waits for no cool-down.

    Source: KEDA's `RequestScale`; `minReplicaCount` and `cooldownPeriod` of the ScaledObject.
    """
    if is_active:
        return replicas or max(1, min_replicas)
    if replicas and min_replicas == 0:
        cold = last_active is None or last_active + cooldown_period < now
        return 0 if cold else replicas
    return max(replicas, min_replicas)


# -- the HPA


def metric_replicas(lag: int, lag_threshold: int, replicas: int, *, tolerance: float = TOLERANCE) -> int:
    """What an external metric of the type AverageValue calls for.

    That is ceil(lag / threshold), or the replicas that there are, while lag / (threshold * replicas) is within the
    tolerance of 1.

    Source: `GetExternalPerPodMetricReplicas` and `Tolerances.isWithin`; "Algorithm details": desired =
    ceil(current * metric / target), where the metric of an AverageValue is already divided by the current replicas.
    """
    # The bounds are within; compared as the controller does, since |1 - 1.1| is more than 0.1 in floats.
    if replicas and 1.0 - tolerance <= lag / (lag_threshold * replicas) <= 1.0 + tolerance:
        return replicas
    return math.ceil(lag / lag_threshold)


def stabilized(
    desired: int,
    replicas: int,
    earlier: Iterable[Recommendation],
    *,
    up_window: float,
    down_window: float,
    now: float,
) -> int:
    """The recommendation after looking back: up to the lowest of the last `up_window` seconds, down to the highest of
    the last `down_window`; within these bounds the replicas stay as they are.

    Source: `stabilizeRecommendationWithBehaviors`; "Stabilization window".
    """
    known = list(earlier)
    lowest = min([desired, *(r.replicas for r in known if r.time > now - up_window)])
    highest = max([desired, *(r.replicas for r in known if r.time > now - down_window)])
    return min(max(replicas, lowest), highest)


def up_limit(replicas: int, added: Iterable[Change], removed: Iterable[Change], rules: Rules, now: float) -> int:
    """The most replicas that the policies allow; a percentage is rounded up.

    Source: `calculateScaleUpLimitWithScalingRules`; "Scaling policies".
    """
    if rules.select == "Disabled":
        return replicas
    added, removed = list(added), list(removed)
    proposals = []
    for policy in rules.policies:
        began = replicas - _within(added, policy.period, now) + _within(removed, policy.period, now)
        by_percent = math.ceil(round(began * (1 + policy.value / 100), 9))  # 100 * 1.1 is a bit more than 110
        proposals.append(began + policy.value if policy.type == "Pods" else by_percent)
    # As in the controller: an earlier period's replicas may have gone otherwise; a limit takes nothing away.
    return max(replicas, (max if rules.select == "Max" else min)(proposals))


def down_limit(replicas: int, added: Iterable[Change], removed: Iterable[Change], rules: Rules, now: float) -> int:
    """The fewest replicas that the policies allow; what a percentage leaves is rounded down.

    Source: `calculateScaleDownLimitWithBehaviors`; "Scaling policies".
    """
    if rules.select == "Disabled":
        return replicas
    added, removed = list(added), list(removed)
    proposals = []
    for policy in rules.policies:
        began = replicas - _within(added, policy.period, now) + _within(removed, policy.period, now)
        by_percent = math.floor(round(began * (1 - policy.value / 100), 9))
        proposals.append(began - policy.value if policy.type == "Pods" else by_percent)
    return min(replicas, (min if rules.select == "Max" else max)(proposals))


def _within(changes: Iterable[Change], period: float, now: float) -> int:
    """How many replicas changed in the last `period` seconds (`getReplicasChangePerPeriod`)."""
    return sum(change.replicas for change in changes if change.time > now - period)


def bounded(stable: int, replicas: int, fewest: int, most: int, min_replicas: int, max_replicas: int) -> int:
    """The stabilized recommendation within the policies' limits and those of the HPA.

    Source: `convertDesiredReplicasWithBehaviorRate`, and `reconcileAutoscaler` for replicas outside the HPA's own
    limits, which are brought back at once.
    """
    if replicas > max_replicas:
        return max_replicas
    if replicas < min_replicas:
        return min_replicas
    if stable > replicas:
        return min(stable, most, max_replicas)
    return max(stable, fewest, min_replicas)
