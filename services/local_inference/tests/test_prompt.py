"""Passages and the question are found wherever a prompt puts them."""

from local_inference.prompt import Turn, read_prompt

PASSAGES = "[1] loop.md\nFirst text.\n\n[2] Second text stands alone.\n\n[3] dlq.md\nThird text."


def test_passages_in_the_system_message_and_the_question_last() -> None:
    turns = [
        Turn("system", f"Answer from these.\n\n{PASSAGES}"),
        Turn("user", "Earlier?"),
        Turn("assistant", "[1] says so."),
        Turn("user", "What now?"),
    ]
    prompt = read_prompt(turns)
    assert prompt.question == "What now?"
    assert [(passage.number, passage.title, passage.text.strip()) for passage in prompt.passages] == [
        (1, "loop.md", "First text."),
        (2, "", "Second text stands alone."),
        (3, "dlq.md", "Third text."),
    ]


def test_passages_and_labelled_question_in_one_message() -> None:
    prompt = read_prompt([Turn("user", f"<context>\n{PASSAGES}\n</context>\n\nQuestion: What now?")])
    assert prompt.question == "What now?"
    assert prompt.passages[-1].text == "Third text."


def test_the_last_paragraph_is_the_question_where_nothing_marks_it() -> None:
    prompt = read_prompt([Turn("user", f"{PASSAGES}\n\n---\nWhat now?")])
    assert prompt.question == "What now?"
    assert prompt.passages[-1].text.strip() == "Third text."


def test_a_numbered_reference_within_a_passage_does_not_begin_another() -> None:
    prompt = read_prompt([Turn("system", "[1] a\nText.\n[7] A reference.\n[2] b\nMore."), Turn("user", "Q?")])
    assert [passage.title for passage in prompt.passages] == ["a", "b"]
    assert "[7] A reference." in prompt.passages[0].text


def test_a_prompt_without_passages_has_only_a_question() -> None:
    prompt = read_prompt([Turn("system", "Be kind."), Turn("user", "Hello there")])
    assert (prompt.question, prompt.passages) == ("Hello there", [])
