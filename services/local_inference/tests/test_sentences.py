"""Markdown chunks become whole sentences, and nothing else."""

import pytest

from local_inference.sentences import split_sentences


def texts(markdown: str) -> list[str]:
    return [sentence.text for sentence in split_sentences(markdown)]


def test_headings_tables_and_code_are_left_out() -> None:
    markdown = """\
# How the loop works.

The loop pulls messages from the stream.

Underlined heading with several words.
--------------------------------------

| setting | what it does for you. |
| --- | --- |
| `ack_wait` | is how long a message may take. |

```python
print("This is a sentence in code.")
```

    This indented block is code as well.

Each message is acknowledged once it is done.
"""
    assert texts(markdown) == [
        "The loop pulls messages from the stream.",
        "Each message is acknowledged once it is done.",
    ]


def test_hard_wrapped_lines_and_list_items_are_joined() -> None:
    markdown = """\
- the server waits ten seconds for an
  acknowledgement before it tries again.
- `max_in_flight` bounds how many handlers
  run at once.
1. Numbered items are read in the same way.
"""
    assert texts(markdown) == [
        "The server waits ten seconds for an acknowledgement before it tries again.",
        "`max_in_flight` bounds how many handlers run at once.",
        "Numbered items are read in the same way.",
    ]


def test_what_the_chunk_cut_off_at_either_end_is_dropped() -> None:
    markdown = "was cut off by the chunker here. This sentence is whole and stays. This one breaks off in the"
    assert texts(markdown) == ["This sentence is whole and stays."]


def test_code_that_began_before_the_chunk_is_dropped() -> None:
    markdown = 'message = "Some words that are code."\n```\n\nProse goes on after the block of code.'
    assert texts(markdown) == ["Prose goes on after the block of code."]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Use it e.g. for short texts only. It then costs nothing at all.", 2),
        ("Version 3.11 is the oldest that works here. Dr. Smith said so to us all.", 2),
        ("It calls `a.b. C` when the message is done. Then it goes on as before.", 2),
        ("Does it work with several workers? Yes, it works with any number!", 2),
    ],
)
def test_sentence_ends_are_told_from_other_full_stops(text: str, expected: int) -> None:
    assert len(texts(text)) == expected


@pytest.mark.parametrize(
    "fragment",
    [
        "Too short.",
        "The following settings can be changed by the user:",
        "Sentence with (an unclosed bracket in its midst.",
        "1234 5678 9012 3456 7890 1234.",
        "See `x[1]` for the way it is indexed.",
        "and so it goes on from the line before.",
    ],
)
def test_fragments_are_dropped(fragment: str) -> None:
    assert texts(fragment) == []


def test_a_lower_case_name_may_open_a_paragraph() -> None:
    assert texts("nats-py's `fetch` is not used by the consumer.") == ["nats-py's `fetch` is not used by the consumer."]


def test_inline_marks_are_removed_and_code_spans_kept() -> None:
    markdown = "The **consumer** sends *progress* for `max_*_size` and [the docs](http://x/y) say so [3]."
    assert texts(markdown) == ["The consumer sends progress for `max_*_size` and the docs say so."]


def test_a_sentence_that_leans_on_the_one_before_is_marked() -> None:
    sentences = split_sentences("The worker sends a heartbeat. It does so every third of the wait.")
    assert [sentence.leans for sentence in sentences] == [False, True]
    assert sentences[0].block == sentences[1].block
