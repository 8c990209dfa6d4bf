"""How much of a query's wording a text shares: BM25 over a handful of candidates."""

import math
import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"\w+")
_K1 = 1.2
_B = 0.75
# Cutting words to a prefix stands in for a stemmer: "redelivers", "redelivered" and "redelivery" meet, in any language.
_STEM = 6
_FUNCTION_WORDS = """
a an and are as at be been being but by can could did do does for from had has have how i if in into is it its may
me my no not of on or our should so than that the their them then there these they this those to was we were what
when where which while who why will with would you your
"""
_STOPWORDS = frozenset(_FUNCTION_WORDS.split())


def terms(text: str) -> list[str]:
    """The words of a text that carry meaning, in lower case, cut to six letters."""
    return [word[:_STEM] for word in _WORD.findall(text.lower()) if word not in _STOPWORDS]


def overlap(query: str, texts: Sequence[str]) -> list[float]:
    """BM25 of each text for the query, over the highest value that any text could reach: 0 to 1.

    Robertson & Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009), k₁ = 1.2, b = 0.75, with
    the texts themselves as the collection: a word that few of them have weighs more.
    """
    wanted = set(terms(query))
    documents = [Counter(terms(text)) for text in texts]
    if not wanted or not documents:
        return [0.0] * len(texts)
    average_length = sum(document.total() for document in documents) / len(documents) or 1.0
    weights: dict[str, float] = {}
    for term in wanted:
        having = sum(term in document for document in documents)
        weights[term] = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
    highest = sum(weights.values()) * (_K1 + 1)
    return [
        sum(
            weights[term] * document[term] * (_K1 + 1)
            / (document[term] + _K1 * (1 - _B + _B * document.total() / average_length))
            for term in wanted
        )
        / highest
        for document in documents
    ]  # fmt: skip
