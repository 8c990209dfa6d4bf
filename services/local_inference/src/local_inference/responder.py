"""Answers a question with sentences of the passages in its prompt.

No text is generated: the sentences nearest to the question in meaning and wording are quoted, each with its passage's
marker. Where nothing fits, it says so.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from local_inference.bert import Floats
from local_inference.lexical import overlap
from local_inference.prompt import Prompt
from local_inference.sentences import Sentence, split_sentences

Embed = Callable[[Sequence[str]], Awaitable[Floats]]
"""Embeddings of length 1, as (texts, dimensions)."""

NO_CONTEXT = (
    "I am an extractive development responder: I answer only with sentences from passages in the prompt, and this "
    "prompt has none, so there is nothing to extract from."
)
NO_MATCH = (
    "I am an extractive development responder: I answer only with sentences from the passages in the prompt, and none "
    "of them fits the question well enough to be quoted."
)

_MAX_SENTENCES = 4
_MAX_EMBEDDED = 192
_LEXICAL_WEIGHT = 0.25
# A sentence beside a good one often completes it.
_PARAGRAPH_WEIGHT = 0.2
_LEANING_PENALTY = 0.05
_LEAST = 0.3
_NEAR_BEST = 0.75
_DUPLICATE = 0.92


@dataclass(frozen=True, slots=True)
class _Candidate:
    passage: int
    sentence: Sentence


async def answer(prompt: Prompt, embed: Embed) -> str:
    """The answer's text, with `[n]` before the end of each sentence taken from passage n."""
    if not prompt.passages:
        return NO_CONTEXT
    candidates = _candidates(prompt)
    if not candidates or not prompt.question:
        return NO_MATCH
    texts = [candidate.sentence.text for candidate in candidates]
    vectors = await embed([prompt.question, *texts])
    similarity = vectors[1:] @ vectors[0]
    relevance = similarity + _LEXICAL_WEIGHT * np.array(overlap(prompt.question, texts), dtype=np.float32)
    relevance -= np.array([_LEANING_PENALTY * candidate.sentence.leans for candidate in candidates], dtype=np.float32)
    scores = relevance + _PARAGRAPH_WEIGHT * _best_beside(candidates, similarity)
    chosen = _choose(candidates, relevance, scores, vectors[1:])
    if not chosen:
        return NO_MATCH
    return " ".join(_cited(candidates[index]) for index in _readable(candidates, scores, chosen))


def _candidates(prompt: Prompt) -> list[_Candidate]:
    """All sentences, once each; of very many, those that share most words with the question."""
    found: dict[str, _Candidate] = {}
    for passage in prompt.passages:
        for sentence in split_sentences(passage.text):
            found.setdefault(sentence.text, _Candidate(passage.number, sentence))
    candidates = list(found.values())
    if len(candidates) <= _MAX_EMBEDDED:
        return candidates
    shared = overlap(prompt.question, [candidate.sentence.text for candidate in candidates])
    best = sorted(range(len(candidates)), key=lambda index: -shared[index])[:_MAX_EMBEDDED]
    return [candidates[index] for index in sorted(best)]


def _best_beside(candidates: Sequence[_Candidate], similarity: Floats) -> Floats:
    """For each sentence, the highest similarity among the others of its paragraph; 0 where it stands alone."""
    paragraphs: dict[tuple[int, int], list[int]] = {}
    for index, candidate in enumerate(candidates):
        paragraphs.setdefault((candidate.passage, candidate.sentence.block), []).append(index)
    beside = np.zeros(len(candidates), dtype=np.float32)
    for members in paragraphs.values():
        for index in members:
            beside[index] = max((float(similarity[other]) for other in members if other != index), default=0.0)
    return beside


def _choose(candidates: Sequence[_Candidate], relevance: Floats, scores: Floats, vectors: Floats) -> list[int]:
    """Indexes of the sentences to quote: near the best, unlike each other, and each with what it leans on.

    The first of a passage is measured by itself, so that the paragraph about the best sentence does not keep other
    passages out.
    """
    best_relevance, best_score = float(relevance.max()), float(scores.max())
    chosen: list[int] = []
    for index in (int(index) for index in np.argsort(-scores)):
        if len(chosen) >= _MAX_SENTENCES or scores[index] < _LEAST:
            break
        is_first = all(candidates[other].passage != candidates[index].passage for other in chosen)
        near = scores[index] >= _NEAR_BEST * best_score
        near = near or (is_first and relevance[index] >= max(_LEAST, _NEAR_BEST * best_relevance))
        if not near or index in chosen or any(vectors[index] @ vectors[other] > _DUPLICATE for other in chosen):
            continue
        before = _leant_on(candidates, index)
        if before is not None and before not in chosen:
            chosen.append(before)
        chosen.append(index)
    return chosen


def _leant_on(candidates: Sequence[_Candidate], index: int) -> int | None:
    """The sentence just before, in the same paragraph, when this one makes no sense without it."""
    if index == 0 or not candidates[index].sentence.leans:
        return None
    this, before = candidates[index], candidates[index - 1]
    adjoining = this.passage == before.passage and this.sentence.block == before.sentence.block
    return index - 1 if adjoining and this.sentence.position == before.sentence.position + 1 else None


def _readable(candidates: Sequence[_Candidate], scores: Floats, chosen: Sequence[int]) -> list[int]:
    """The passage of the best sentence first; within a passage, in the order of its text."""
    best: dict[int, float] = {}
    for index in chosen:
        number = candidates[index].passage
        best[number] = max(best.get(number, -1.0), float(scores[index]))
    return sorted(chosen, key=lambda index: (-best[candidates[index].passage], candidates[index].passage, index))


def _cited(candidate: _Candidate) -> str:
    text = candidate.sentence.text
    end = re.search(r"[.!?…]+$", text)
    if end is None:  # it ends with a quote or a bracket
        return f"{text} [{candidate.passage}]"
    return f"{text[: end.start()]} [{candidate.passage}]{end[0]}"
