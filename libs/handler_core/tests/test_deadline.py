"""Deadlines as they are handed down, and the timings of a turn."""

import math

import pytest

from handler_core.deadline import Deadline
from handler_core.errors import Canceled, DeadlineExceeded, InvalidRequest
from handler_core.timings import Timings


def test_a_call_gets_no_more_than_what_is_left() -> None:
    assert 59 < Deadline.after(60).timeout(at_most=100) <= 60
    assert Deadline.after(60).timeout(at_most=5) == 5
    assert Deadline.never().timeout(at_most=5) == 5


@pytest.mark.parametrize("seconds", [0, -1, -math.inf])
def test_a_deadline_that_is_over_leaves_nothing(seconds: float) -> None:
    deadline = Deadline.after(seconds)
    assert deadline.expired
    assert deadline.remaining() <= 0
    with pytest.raises(DeadlineExceeded) as caught:
        deadline.timeout(at_most=5)
    assert caught.value.retryable is False


def test_never_does_not_pass() -> None:
    assert Deadline.never().remaining() == math.inf
    assert not Deadline.never().expired


def test_a_stage_entered_again_adds_up() -> None:
    timings = Timings()
    timings.record("llm", 0.5)
    timings.record("llm", 0.25)
    with timings.stage("llm"):
        pass
    assert timings.as_dict()["llm_ms"] >= 750


def test_the_total_holds_the_wait_in_the_queue() -> None:
    timings = Timings()
    timings.record("queue", 2.0)
    assert list(timings.as_dict()) == ["queue_ms", "total_ms"]
    assert timings.as_dict()["total_ms"] >= 2000


def test_a_stage_names_itself_in_the_errors_that_leave_it() -> None:
    timings = Timings()
    with pytest.raises(Canceled) as caught, timings.stage("outer"), timings.stage("inner"):
        raise Canceled("stop")
    assert caught.value.stage == "inner"
    assert set(timings.as_dict()) == {"inner_ms", "outer_ms", "total_ms"}


def test_a_stage_that_is_known_already_stays() -> None:
    with pytest.raises(InvalidRequest) as caught, Timings().stage("search"):
        raise InvalidRequest("filter: is empty", stage="decode")
    assert caught.value.info().stage == "decode"


def test_other_exceptions_pass_and_are_timed() -> None:
    timings = Timings()
    with pytest.raises(ZeroDivisionError), timings.stage("search"):
        _ = 1 / 0
    assert "search_ms" in timings.as_dict()
