"""Answers are made of the right sentences, cited, in readable order."""

import re

from local_inference.engine import MiniLM
from local_inference.prompt import Turn
from local_inference.responder import NO_CONTEXT, NO_MATCH

LOOP = """\
## The message loop

Each handler runs in its own task. While a handler runs, the consumer tells the server every third of `ack_wait` that
the message is still in progress. So a slow handler's message is not redelivered to another worker.
"""
TIMEOUT = """\
| setting | default |
| --- | --- |
| `handler_timeout` | 300 s redelivered message slow handler. |

A handler that runs longer than `handler_timeout` is cancelled, and its message is redelivered after a delay.
"""
PASTA = "Boil the pasta for ten minutes in salted water. Serve it with tomatoes and a little cheese."
QUESTION = "How does the consumer keep a slow handler's message from being redelivered?"


def conversation(question: str, *passages: str) -> list[Turn]:
    numbered = "\n\n".join(f"[{number}] source{number}.md\n{text}" for number, text in enumerate(passages, 1))
    return [Turn("system", f"Answer from the passages.\n\n{numbered}"), Turn("user", question)]


async def test_relevant_sentences_are_quoted_with_their_markers(minilm: MiniLM) -> None:
    answer = await minilm.answer(conversation(QUESTION, PASTA, LOOP, TIMEOUT))
    assert "every third of `ack_wait` that the message is still in progress [2]." in answer
    assert "`handler_timeout` is cancelled, and its message is redelivered after a delay [3]." in answer
    assert "pasta" not in answer
    assert "|" not in answer
    assert "#" not in answer


async def test_every_sentence_carries_a_marker_and_passages_stay_together(minilm: MiniLM) -> None:
    answer = await minilm.answer(conversation(QUESTION, PASTA, LOOP, TIMEOUT))
    sentences = re.split(r"(?<=\.)\s", answer)
    markers = [re.findall(r"\[(\d)\]\.$", sentence) for sentence in sentences]
    assert markers == [["2"], ["2"], ["3"]]


async def test_a_sentence_that_leans_comes_with_the_one_before(minilm: MiniLM) -> None:
    answer = await minilm.answer(conversation("Is a slow handler's message redelivered to another worker?", LOOP))
    before = answer.index("While a handler runs")
    assert before < answer.index("So a slow handler's message")


async def test_overlapping_chunks_are_quoted_once(minilm: MiniLM) -> None:
    answer = await minilm.answer(conversation("How long is pasta boiled?", PASTA, PASTA))
    assert answer.count("Boil the pasta") == 1


async def test_without_passages_it_says_what_it_is(minilm: MiniLM) -> None:
    assert await minilm.answer([Turn("user", "What is the capital of France?")]) == NO_CONTEXT


async def test_passages_that_do_not_fit_are_not_quoted(minilm: MiniLM) -> None:
    assert await minilm.answer(conversation("What is the capital of France?", LOOP, PASTA)) == NO_MATCH


async def test_passages_without_a_sentence_are_no_match(minilm: MiniLM) -> None:
    assert await minilm.answer(conversation("What is it?", "| a | b |")) == NO_MATCH


async def test_very_long_contexts_are_narrowed_by_wording(minilm: MiniLM) -> None:
    filler = " ".join(f"Sentence number {number} speaks of nothing at all." for number in range(300))
    answer = await minilm.answer(conversation("How long is pasta boiled?", filler, PASTA))
    assert answer.startswith("Boil the pasta for ten minutes in salted water [2].")
