"""Word overlap as BM25 would have it."""

from local_inference.lexical import overlap, terms


def test_inflections_of_a_word_meet() -> None:
    assert terms("redelivery") == terms("redelivered") == terms("The redelivers")


def test_rare_words_weigh_more_than_common_ones() -> None:
    common, rare, neither = overlap("handler timeout", ["a handler", "a timeout", "an apple"])
    assert common == rare > neither == 0
    scores = overlap("handler timeout", ["handler runs", "timeout runs", "handler stops", "handler sleeps"])
    assert scores[1] > scores[0]


def test_values_lie_between_zero_and_one() -> None:
    scores = overlap("one two", ["one two " * 50, "one", ""])
    assert 1 > scores[0] > scores[1] > scores[2] == 0


def test_a_query_of_function_words_matches_nothing() -> None:
    assert overlap("how is it?", ["it is how it is"]) == [0.0]
