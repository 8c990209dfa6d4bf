import pytest

from stt_module.notices import MAX_NOTICES, Notices


def test_a_client_that_makes_ever_new_mistakes_is_told_the_first_and_fills_nothing() -> None:
    notices = Notices()
    told = [number for number in range(10_000) if notices.worth_telling(f"key{number}: is unknown")]
    assert told == list(range(MAX_NOTICES))
    assert len(notices._mistakes) == MAX_NOTICES


def test_mistakes_of_long_ago_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    notices, now = Notices(), 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    assert [notices.worth_telling(str(number % (MAX_NOTICES + 1))) for number in range(100)].count(True) == MAX_NOTICES
    now = 105.0
    assert notices.worth_telling("one more")
    assert notices.worth_telling("0")
    assert not notices.worth_telling("0")


def test_what_is_no_error_is_always_told() -> None:
    notices = Notices()
    for _ in range(100):
        notices.add({"type": "error"})
    notices.add({"type": "interrupt"})
    told = []
    while notices:
        told.append(notices.pop()["type"])
    assert told == ["error"] * MAX_NOTICES + ["interrupt"]
