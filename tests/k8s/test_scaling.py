"""The scaling's figures fit the services' own."""

import dataclasses
import re

import pytest

from handler_core import streams
from tools.k8s.permissions import services
from tools.k8s.scaling import SCALINGS, Scaling
from tools.scale_sim.formulas import active

SERVICES = {service.name: service for service in services()}


def limits(scaling: Scaling) -> tuple[int, int]:
    """What a worker of the service takes on and buffers, by its settings' defaults."""
    service = SERVICES[scaling.service]
    [binding] = service._bindings
    found = binding.limits(service.settings.model_construct())
    return found.max_in_flight, found.prefetch


def test_each_declared_consumer_is_scaled_by_the_service_that_works_it_off() -> None:
    assert [scaling.consumer for scaling in SCALINGS] == list(streams.CONSUMERS)
    assert [(scaling.consumer,) for scaling in SCALINGS] == [SERVICES[s.service].consumers for s in SCALINGS]


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling.service)
class TestScaling:
    def test_the_next_replica_starts_well_before_messages_wait(self, scaling: Scaling) -> None:
        max_in_flight, _ = limits(scaling)
        # With the HPA's tolerance: at the most messages that add no replica there is still room.
        assert scaling.lag_threshold * 1.1 < max_in_flight * 0.75

    def test_the_server_hands_out_as_many_messages_as_all_replicas_take(self, scaling: Scaling) -> None:
        max_in_flight, prefetch = limits(scaling)
        assert scaling.consumer.max_ack_pending >= scaling.max_replicas * (max_in_flight + prefetch)

    def test_one_replica_stays_where_request_reply_is_served(self, scaling: Scaling) -> None:
        assert not SERVICES[scaling.service].subjects or scaling.min_replicas >= 1

    def test_one_message_is_enough_for_the_first_replica(self, scaling: Scaling) -> None:
        """A threshold would leave the last few waiting until others come."""
        assert not active(0, scaling.activation_lag)
        assert active(1, scaling.activation_lag)

    def test_it_goes_up_at_once_and_down_slowly(self, scaling: Scaling) -> None:
        drain = SERVICES[scaling.service].settings.model_fields["drain_timeout"].default
        assert scaling.scale_up_stabilization < scaling.scale_down_stabilization
        assert scaling.scale_down_period > drain  # the one that goes has drained before the next does
        assert scaling.scale_down_pods == 1

    def test_without_figures_something_runs(self, scaling: Scaling) -> None:
        assert 1 <= scaling.fallback_replicas <= scaling.max_replicas
        assert scaling.fallback_failures >= 1

    def test_it_says_why(self, scaling: Scaling) -> None:
        assert len(scaling.why) > 100

    def test_it_says_why_so_many_stay_when_the_lag_is_not_known(self, scaling: Scaling) -> None:
        clause = f"While the lag cannot be read, at least {scaling.fallback_replicas}"
        assert re.search(rf"{clause}[:,] .{{30,}}", scaling.why)


CHAT = SCALINGS[0]


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"min_replicas": 9}, "min_replicas"),
        ({"min_replicas": -1}, "min_replicas"),
        ({"fallback_replicas": 0}, "fallback_replicas"),
        ({"fallback_replicas": 9}, "fallback_replicas"),
        ({"activation_lag": 16}, "activation_lag"),
    ],
)
def test_figures_that_contradict_each_other_are_refused(wrong: dict[str, int], complaint: str) -> None:
    with pytest.raises(ValueError, match=f"chat_handler: {complaint}"):
        dataclasses.replace(CHAT, **wrong)  # type: ignore[arg-type]
