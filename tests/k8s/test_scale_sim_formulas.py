"""The formulas of KEDA and the HPA, by the examples of their documentation and at their edges."""

import dataclasses
import itertools

import pytest

from handler_core import streams
from tools.k8s.scaling import Scaling
from tools.scale_sim.autoscaler import Hpa, Keda
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

NOW = 1000.0


# -- KEDA: activation and cool-down


@pytest.mark.parametrize(
    ("lag", "threshold", "expected"),
    [(0, 0, False), (1, 0, True), (5, 5, False), (6, 5, True)],
    ids=["none", "one", "the threshold itself", "one more than the threshold"],
)
def test_keda_activates_above_the_threshold_not_at_it(lag: int, threshold: int, expected: bool) -> None:
    assert active(lag, threshold) is expected


def keda(replicas: int, is_active: bool, *, least: int = 0, last_active: float | None = None) -> int:
    return keda_replicas(replicas, is_active, min_replicas=least, last_active=last_active, cooldown_period=300, now=NOW)


def test_keda_starts_the_first_replica() -> None:
    assert keda(0, True) == 1


def test_keda_starts_as_many_as_the_minimum() -> None:
    assert keda(0, True, least=3) == 3


def test_keda_leaves_to_the_hpa_what_is_above_the_first_replica() -> None:
    assert keda(4, True) == 4


def test_keda_takes_all_replicas_away_when_the_cooldown_is_over() -> None:
    assert keda(4, False, last_active=NOW - 301) == 0


@pytest.mark.parametrize("ago", [0, 299, 300], ids=["at once", "in it", "at its very end"])
def test_keda_keeps_the_replicas_during_the_cooldown(ago: float) -> None:
    assert keda(4, False, last_active=NOW - ago) == 4


def test_keda_waits_for_no_cooldown_of_what_it_never_saw_active() -> None:
    assert keda(2, False, last_active=None) == 0


def test_keda_never_goes_below_a_minimum() -> None:
    assert keda(1, False, least=1, last_active=NOW - 10_000) == 1


def test_keda_brings_an_idle_deployment_to_its_minimum() -> None:
    assert keda(0, False, least=2, last_active=NOW - 10_000) == 2


# -- the HPA: the metric


@pytest.mark.parametrize(
    ("lag", "threshold", "replicas", "expected"),
    [
        (200, 100, 1, 2),  # 200m where 100m is desired: twice the replicas
        (100, 100, 2, 1),  # an average of 50m where 100m is desired: half of them
        (1000, 150, 5, 7),
        (1, 16, 3, 1),
        (17, 16, 1, 1),
        (18, 16, 1, 2),
    ],
)
def test_one_replica_for_every_threshold_of_lag_rounded_up(
    lag: int, threshold: int, replicas: int, expected: int
) -> None:
    assert metric_replicas(lag, threshold, replicas) == expected


@pytest.mark.parametrize("lag", [90, 91, 100, 109, 110])
def test_within_the_tolerance_the_replicas_stay(lag: int) -> None:
    assert metric_replicas(lag, 10, 10) == 10


@pytest.mark.parametrize(("lag", "expected"), [(89, 9), (111, 12)])
def test_just_outside_the_tolerance_they_follow_the_lag(lag: int, expected: int) -> None:
    assert metric_replicas(lag, 10, 10) == expected


def test_without_lag_the_metric_calls_for_none() -> None:
    assert metric_replicas(0, 16, 4) == 0


def test_from_no_replica_there_is_no_tolerance() -> None:
    assert metric_replicas(15, 16, 0) == 1


# -- the HPA: looking back


def look_back(desired: int, replicas: int, earlier: list[Recommendation], *, up: float = 0, down: float = 300) -> int:
    return stabilized(desired, replicas, earlier, up_window=up, down_window=down, now=NOW)


def test_going_down_takes_the_highest_of_the_window() -> None:
    earlier = [Recommendation(NOW - 200, 7), Recommendation(NOW - 100, 9), Recommendation(NOW - 50, 3)]
    assert look_back(2, 10, earlier) == 9


def test_what_is_older_than_the_window_counts_no_more() -> None:
    earlier = [Recommendation(NOW - 300, 9), Recommendation(NOW - 299, 4)]
    assert look_back(2, 10, earlier) == 4


def test_the_highest_of_the_window_adds_no_replica() -> None:
    assert look_back(2, 5, [Recommendation(NOW - 10, 9)]) == 5


def test_going_up_is_immediate_without_a_window() -> None:
    assert look_back(8, 2, [Recommendation(NOW - 10, 2)]) == 8


def test_going_up_takes_the_lowest_of_its_window() -> None:
    earlier = [Recommendation(NOW - 50, 4), Recommendation(NOW - 10, 6)]
    assert look_back(8, 2, earlier, up=60) == 4


def test_a_dip_within_the_window_for_going_up_changes_nothing() -> None:
    assert look_back(8, 5, [Recommendation(NOW - 10, 3)], up=60) == 5


# -- the HPA: policies

PODS_4, PERCENT_100 = Policy("Pods", 4, 15), Policy("Percent", 100, 15)
PODS_4_A_MINUTE, PERCENT_10_A_MINUTE = Policy("Pods", 4, 60), Policy("Percent", 10, 60)


@pytest.mark.parametrize(("replicas", "expected"), [(1, 5), (4, 8), (5, 10), (20, 40)])
def test_the_policy_that_adds_most_counts(replicas: int, expected: int) -> None:
    assert up_limit(replicas, [], [], Rules((PODS_4, PERCENT_100)), NOW) == expected


@pytest.mark.parametrize(("replicas", "expected"), [(1, 2), (4, 8), (5, 9)])
def test_with_min_the_policy_that_adds_least_counts(replicas: int, expected: int) -> None:
    assert up_limit(replicas, [], [], Rules((PODS_4, PERCENT_100), select="Min"), NOW) == expected


def test_a_percentage_is_rounded_up_when_adding() -> None:
    assert up_limit(1, [], [], Rules((Policy("Percent", 10, 60),)), NOW) == 2
    assert up_limit(100, [], [], Rules((Policy("Percent", 10, 60),)), NOW) == 110


def test_going_down_from_eighty_takes_ten_percent_a_minute_then_four_pods() -> None:
    """The example of "Scaling policies": 80 replicas to 10; from 40 on the 4 pods are more than the percentage."""
    rules, replicas, now, steps = Rules((PODS_4_A_MINUTE, PERCENT_10_A_MINUTE)), 80, 0.0, [80]
    changes: list[Change] = []
    while replicas > 10:
        now += 60
        lower = max(10, down_limit(replicas, [], changes, rules, now))
        changes.append(Change(now, replicas - lower))
        replicas = lower
        steps.append(replicas)
    assert steps[:4] == [80, 72, 64, 57]
    assert all(before - after == 4 for before, after in itertools.pairwise(steps) if 14 < before <= 40)
    assert steps[-1] == 10


def test_with_min_the_policy_that_takes_least_counts() -> None:
    rules = Rules((Policy("Pods", 5, 60), PERCENT_10_A_MINUTE), select="Min")
    assert down_limit(80, [], [], rules, NOW) == 75
    assert down_limit(20, [], [], rules, NOW) == 18


@pytest.mark.parametrize("limit", [up_limit, down_limit])
def test_disabled_is_no_change_in_this_direction(limit: object) -> None:
    rules = Rules((PODS_4,), select="Disabled")
    assert (up_limit if limit is up_limit else down_limit)(7, [], [], rules, NOW) == 7


def test_what_came_in_the_period_counts_against_the_policy() -> None:
    added = [Change(NOW - 10, 3), Change(NOW - 16, 2)]
    assert up_limit(6, added, [], Rules((PODS_4,)), NOW) == 7


def test_what_came_before_the_period_does_not() -> None:
    assert up_limit(6, [Change(NOW - 15, 4)], [], Rules((PODS_4,)), NOW) == 10


def test_what_went_in_the_period_may_come_back_beside_the_policy() -> None:
    assert up_limit(3, [], [Change(NOW - 5, 2)], Rules((PODS_4,)), NOW) == 9


def test_what_went_in_the_period_counts_when_going_down() -> None:
    rules = Rules((Policy("Pods", 1, 60),))
    assert down_limit(5, [], [Change(NOW - 30, 1)], rules, NOW) == 5
    assert down_limit(5, [], [Change(NOW - 61, 1)], rules, NOW) == 4


def test_limits_take_nothing_away_and_add_nothing() -> None:
    assert up_limit(10, [Change(NOW - 1, 9)], [], Rules((PODS_4,)), NOW) == 10
    assert down_limit(2, [], [Change(NOW - 1, 9)], Rules((PODS_4,)), NOW) == 2


# -- the HPA: its own limits


@pytest.mark.parametrize(
    ("stable", "replicas", "expected"),
    [(9, 2, 6), (5, 2, 5), (0, 5, 4), (4, 5, 4), (5, 5, 5), (3, 12, 8), (3, 0, 1)],
    ids=["most", "in between", "fewest", "as recommended", "no change", "above the maximum", "below the minimum"],
)
def test_the_decision_keeps_within_the_policies_and_the_limits(stable: int, replicas: int, expected: int) -> None:
    assert bounded(stable, replicas, fewest=4, most=6, min_replicas=1, max_replicas=8) == expected


# -- both, with their memory


def scaling(**given: int) -> Scaling:
    plain = Scaling("chat_handler", streams.CHAT_HANDLER, lag_threshold=2, max_replicas=6)
    return dataclasses.replace(plain, **given)  # type: ignore[arg-type]


def test_the_hpa_adds_four_at_once_and_the_rest_a_period_later() -> None:
    hpa = Hpa(scaling())
    assert hpa.decide(0, 1, 40) == 5
    assert hpa.decide(14, 5, 40) == 5
    assert hpa.decide(15, 5, 40) == 6
    assert hpa.decide(30, 6, 400) == 6


def test_the_hpa_takes_the_first_away_after_the_window_and_then_one_a_minute() -> None:
    hpa = Hpa(scaling())
    replicas, taken = 6, []
    hpa.decide(0, replicas, 40)
    for now in range(15, 700, 15):
        decided = hpa.decide(now, replicas, 2)
        if decided < replicas:
            taken.append((now, decided))
        replicas = decided
    assert taken == [(300, 5), (360, 4), (420, 3), (480, 2), (540, 1)]


def test_a_burst_within_the_window_puts_off_going_down() -> None:
    hpa = Hpa(scaling())
    hpa.decide(0, 6, 12)
    hpa.decide(150, 6, 12)
    assert hpa.decide(300, 6, 0) == 6
    assert hpa.decide(450, 6, 0) == 5


def test_the_hpa_rests_with_no_replica() -> None:
    assert Hpa(scaling(min_replicas=0)).decide(0, 0, 40) == 0


def test_the_hpa_keeps_one_replica_where_keda_may_take_it() -> None:
    hpa = Hpa(scaling(min_replicas=0, scale_down_stabilization=0, scale_down_pods=10))
    assert hpa.decide(0, 6, 0) == 1


def test_keda_counts_the_cooldown_from_the_last_look_with_lag() -> None:
    operator = Keda(scaling(min_replicas=0))
    assert operator.decide(0, 0, 0) == 0
    assert operator.decide(5, 0, 1) == 1
    assert operator.decide(10, 3, 7) == 3
    assert operator.decide(310, 1, 0) == 1
    assert operator.decide(311, 1, 0) == 0
