"""KEDA and the HPA with what they remember between two looks; the decisions are those of `formulas`.

A ScaledObject makes both: KEDA's operator moves between none and the first replica at every `pollingInterval`, and the
HPA, which it creates, decides about the others at every sync period of the controller manager. KEDA's metrics server
asks the scaler when the HPA asks it, so that each of the two sees the lag of its own moment.
"""

from dataclasses import dataclass, field

from tools.k8s.scaling import Scaling
from tools.scale_sim.formulas import (
    Change,
    Policy,
    Recommendation,
    Rules,
    active,
    bounded,
    down_limit,
    keda_replicas,
    metric_replicas,
    stabilized,
    up_limit,
)


@dataclass
class Keda:
    """KEDA's operator for one ScaledObject."""

    scaling: Scaling
    last_active: float | None = None

    def decide(self, now: float, replicas: int, lag: int) -> int:
        """The replicas from now on; `now` in seconds of the cluster's clock."""
        is_active = active(lag, self.scaling.activation_lag)
        if is_active:
            self.last_active = now
        return keda_replicas(
            replicas,
            is_active,
            min_replicas=self.scaling.min_replicas,
            last_active=self.last_active,
            cooldown_period=self.scaling.cooldown_period,
            now=now,
        )


@dataclass
class Hpa:
    """The HPA that KEDA makes of one ScaledObject; with no replica it rests."""

    scaling: Scaling
    recommendations: list[Recommendation] = field(default_factory=list)
    added: list[Change] = field(default_factory=list)
    removed: list[Change] = field(default_factory=list)

    @property
    def up(self) -> Rules:
        scaling = self.scaling
        policy = Policy("Pods", scaling.scale_up_pods, scaling.scale_up_period)
        return Rules((policy,), scaling.scale_up_stabilization)

    @property
    def down(self) -> Rules:
        scaling = self.scaling
        policy = Policy("Pods", scaling.scale_down_pods, scaling.scale_down_period)
        return Rules((policy,), scaling.scale_down_stabilization)

    def decide(self, now: float, replicas: int, lag: int) -> int:
        """The replicas from now on; `now` in seconds of the cluster's clock."""
        if replicas == 0:
            return 0
        up, down = self.up, self.down
        desired = metric_replicas(lag, self.scaling.lag_threshold, replicas)
        stable = stabilized(
            desired,
            replicas,
            self.recommendations,
            up_window=up.stabilization,
            down_window=down.stabilization,
            now=now,
        )
        self.recommendations.append(Recommendation(now, desired))
        decided = bounded(
            stable,
            replicas,
            fewest=down_limit(replicas, self.added, self.removed, down, now),
            most=up_limit(replicas, self.added, self.removed, up, now),
            min_replicas=max(1, self.scaling.min_replicas),
            max_replicas=self.scaling.max_replicas,
        )
        if decided > replicas:
            self.added.append(Change(now, decided - replicas))
        elif decided < replicas:
            self.removed.append(Change(now, replicas - decided))
        self._forget(now)
        return decided

    def _forget(self, now: float) -> None:
        """Drop what no window and no period reaches back to."""
        longest = max(self.up.stabilization, self.down.stabilization, *(p.period for p in self.down.policies),
                      *(p.period for p in self.up.policies))  # fmt: skip
        for kept in (self.added, self.removed):
            kept[:] = [change for change in kept if change.time > now - longest]
        self.recommendations[:] = [r for r in self.recommendations if r.time > now - longest]
