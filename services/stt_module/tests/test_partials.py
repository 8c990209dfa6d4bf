import pytest
from hypothesis import given
from hypothesis import strategies as st

from stt_module.partials import Agreement, Schedule


@pytest.mark.parametrize(
    ("passes", "published"),
    [
        (["turn on"], [""]),
        (["turn on the light", "turn on the lights in"], ["", "turn on the"]),
        (["Turn on", "turn on, the", "Turn on the light."], ["", "turn on,", "Turn on the"]),
        (["one two", "one two", "one"], ["", "one two", "one two"]),
        (["one two", "one two", "won too", "won too three"], ["", "one two", "one two", "one two"]),
        (["", "", "yes", "Yes!"], ["", "", "", "Yes!"]),
        (["half past", "half pastry"], ["", "half"]),
        (["Straße ist", "STRASSE ist"], ["", "STRASSE ist"]),
        (["- well", "- well then"], ["", "- well"]),
    ],
)
def test_what_two_passes_agree_on_is_published(passes: list[str], published: list[str]) -> None:
    agreement = Agreement()
    assert [agreement.update(text) for text in passes] == published
    assert agreement.published == published[-1]


@given(st.lists(st.lists(st.sampled_from(["a", "A,", "b", "B!", "c", "…"]), max_size=6).map(" ".join)))
def test_what_is_published_only_grows_and_its_words_stay(passes: list[str]) -> None:
    agreement = Agreement()
    words: list[str] = []
    for text in passes:
        now = [word.strip(",!").lower() for word in agreement.update(text).split()]
        assert now[: len(words)] == words
        words = now


def test_a_pass_is_due_after_so_much_new_audio_and_one_at_a_time() -> None:
    schedule = Schedule(1000)
    assert not schedule.due(980)
    assert schedule.due(1000)
    assert not schedule.due(2500)  # the first is still under way
    schedule.done()
    assert schedule.due(2520)
    schedule.done()
    assert not schedule.due(3500)
    assert schedule.due(3520)
