"""Text for speech: what a voice is given of an answer, and where a sentence ends while it is still being written."""

# ruff: noqa: RUF001 - full-width punctuation is meant

import string
import sys
from types import FrameType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from handler_core.speech import Sentences, pieces

MARKDOWN = [
    *("# ", "## Title\n", "**", "*", "__", "_", "~~", "~", "`", "``", "```", "```python\nx = 1\n```\n", "~~~\n", "- "),
    *(
        "* ",
        "1. ",
        "2) ",
        "12",
        "- [ ] ",
        "> ",
        "| a | b |\n",
        "|---|:-:|\n",
        "|",
        "---\n",
        "===\n",
        "\n",
        "\n\n",
        "\r\n",
    ),
    *(
        "[",
        "]",
        "(",
        ")",
        "[1]",
        "[1, 2]",
        "[^1]",
        "![",
        "[text](http://a.b/c_(d))",
        "](",
        "][",
        '"',
        "[1](http://a.b)",
    ),
    *(
        "http",
        "://",
        "https://example.com/a?b=c.",
        "www.",
        "www.x.org,",
        "<b>",
        "</b>",
        "<",
        ">",
        "<br>",
        "<!--",
        "-->",
    ),
    *(
        "<https://a.b/c>",
        "\\",
        "\\*",
        "👍",
        "👩🏽‍🚀",
        "1️⃣",
        "\u200d",
        "\ufe0f",
        "→",
        "e\u0301",
        "\u00a0",
        "\u2029",
        "\t",
    ),
    *(
        "Dr. ",
        "e.g. ",
        "J. S. ",
        "No. 5",
        "3. ",
        "...",
        "…",
        "?!",
        '."',
        "。",
        "！",
        "」",
        "３．１",
        "你好",
        "，",
        ", ",
        "; ",
    ),
    *("Hello there. ", "how are you? ", "A longer sentence of some words, with commas. ", "x" * 30, " ", ".", "a", "Z"),
]

markdown = st.lists(st.one_of(st.sampled_from(MARKDOWN), st.text(max_size=4)), max_size=25).map("".join)
plain = st.text(
    st.sampled_from(string.ascii_letters + string.digits + " \n.,;:!?'\"()$%&/=+" + "äßéñ你好世界。，！？…"),
    max_size=400,
)


def speakable(text: str) -> str:
    """All that is said of a text, in one piece."""
    return "".join(pieces(text, limit=1_000_000, minimum=1_000_000))


@st.composite
def partitions(draw: st.DrawFn, texts: st.SearchStrategy[str] = markdown) -> list[str]:
    """A text in pieces, cut anywhere."""
    text = draw(texts)
    if draw(st.booleans()):
        return list(text)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=20)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def fed(parts: list[str], **kwargs: int) -> list[str]:
    sentences = Sentences(**kwargs)
    return [*(sentence for part in parts for sentence in sentences.feed(part)), *sentences.close()]


def sayable(text: str) -> str:
    """Letters and digits."""
    return "".join(filter(str.isalnum, text))


@given(partitions(), st.integers(1, 60), st.integers(0, 30))
@example(["[1", "2]"], 20, 5)
@example(["a", ".", "\n", "\n", "b"], 20, 0)
@example(["a", "，", "bcdefg"], 4, 0)
def test_the_sentences_are_the_same_however_the_text_is_cut(parts: list[str], limit: int, minimum: int) -> None:
    assert fed(parts, limit=limit, minimum=minimum) == pieces("".join(parts), limit=limit, minimum=minimum)


@given(partitions(plain), st.integers(1, 80), st.integers(0, 30))
def test_nothing_of_a_plain_text_is_lost_and_nothing_added(parts: list[str], limit: int, minimum: int) -> None:
    said = sayable("".join(fed(parts, limit=limit, minimum=minimum)))
    assert said == sayable("".join(parts)) == sayable(speakable("".join(parts)))


@given(markdown, st.integers(1, 60), st.integers(0, 30))
def test_the_sentences_together_say_what_the_whole_text_says(text: str, limit: int, minimum: int) -> None:
    assert sayable("".join(pieces(text, limit=limit, minimum=minimum))) == sayable(speakable(text))


@given(partitions(), st.integers(1, 60), st.integers(0, 30))
def test_every_sentence_can_be_said_in_one_go(parts: list[str], limit: int, minimum: int) -> None:
    for sentence in fed(parts, limit=limit, minimum=minimum):
        assert 1 <= len(sentence) <= limit
        assert any(map(str.isalnum, sentence))
        assert sentence == " ".join(sentence.split())
        sentence.encode()


@given(partitions(plain), st.integers(20, 80))
def test_only_the_last_sentence_is_short(parts: list[str], limit: int) -> None:
    assert all(len(sentence) >= 20 for sentence in fed(parts, limit=limit, minimum=20)[:-1])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# Title\n\nHello", "Title. Hello"),
        ("## Why?\nBecause", "Why? Because"),
        ("Heading\n=======\nText", "Heading Text"),
        ("**bold** *it* __b__ _i_ ~~gone~~ ***both***", "bold it b i gone both"),
        ("**Note:** un**believ**able, 这是**重点**内容", "Note: unbelievable, 这是重点内容"),
        ("2*3 is 2 * 3, about ~6", "2*3 is 2 * 3, about ~6"),
        ("- one\n- two\n  * three!\n+ four", "one. two. three! four."),
        ('- he said "yes."\n- (he did)\n- 你好', 'he said "yes." (he did). 你好。'),
        ("- [ ] open\n- [x] done", "open. done."),
        ("1. Apples\n2) Pears", "1. Apples. 2. Pears."),
        ("| Name | Age |\n|:---|---:|\n| Bob | 5 |\n| | 7 |\n", "Name, Age. Bob, 5. 7."),
        ("a | b", "a, b"),
        ("> quoted\n> > twice", "quoted twice"),
        ("above\n\n---\n* * *\nbelow", "above below"),
        ("see [the docs](https://a.b/c_(d) 'title').", "see the docs."),
        ("see [the docs][1] and [it][ref].", "see the docs and it."),
        ("as ![a chart](chart.png) shows", "as shows"),
        ("see https://www.example.com/a_(b)?c=d. Or (www.x.org/y).", "see example.com. Or (x.org)."),
        ("see <https://example.com:8080/a>, mail <me@x.org>", "see example.com, mail me@x.org"),
        ("访问https://example.com/a查看", "访问example.com查看"),
        ("http is a word, so is https and www", "http is a word, so is https and www"),
        ("as shown [1]. And [2, 3][4], really[5]!", "as shown. And, really!"),
        ("linked [1](https://a.b) and noted[^2]. Great![3] More", "linked and noted. Great! More"),
        ("[sic] (as is)", "sic (as is)"),
        ("set `max_deliveries` in `config.yaml`, call `run()`", "set max deliveries in config.yaml, call run"),
        ("use `x = y[0]`, or `make demo --verbose`.", "use, or make demo verbose."),
        ("a stray ` backtick", "a stray backtick"),
        ("snake_case and __init__", "snake case and init"),
        ("so:\n```python\nprint('no. never')\n```\nDone.", "so: Done."),
        ("so:\n````md\n```\nno\n```\n````\nDone.", "so: Done."),
        ("so:\n~~~\nno\n~~~\nDone.", "so: Done."),
        ("1. First:\n   ```\n   no\n   ```\n2. Second", "1. First: 2. Second."),
        ("never closed: ```python\nx = 1", "never closed:"),
        ("Great 👍🏽! Hi👋there 👨‍👩‍👧‍👦.", "Great! Hi there."),
        ("1️⃣ of ©️ ❤️ and 🇩🇪", "1 of © and"),
        ("ශ්‍රී ලංකා", "ශ්‍රී ලංකා"),
        ("File → Open", "File, Open"),
        ("<p>One</p><p>two<br/>lines</p> <b>wo</b>rd <!-- no -->", "One two lines word"),
        ("<table><tr><td>a</td><td>b</td></tr></table>", "a, b"),
        ("1 < 2 and x<y, I <3 it", "1 < 2 and x<y, I <3 it"),
        (r"5 \* 3 = 15 \[sic\] C:\path snake\_case", r"5 * 3 = 15 [sic] C:\path snake case"),
        ("It is $29.99, -5 °C, 3.14, 50% and #1 (e.g. 1,000).", "It is $29.99, -5 °C, 3.14, 50% and #1 (e.g. 1,000)."),
        ("soft\u00adhyphen, zero\u200bwidth, \x00 and \ud800", "softhyphen, zerowidth, and"),
        (" \t white\r\nspace\u3000 \n", "white space"),
        ("👍", ""),
        ("...", ""),
        ("", ""),
    ],
)
def test_a_voice_reads_the_words_and_not_the_marks(text: str, said: str) -> None:
    assert speakable(text) == said


@pytest.mark.parametrize(
    "text",
    [
        "It costs $29.99 in all of the shops.",
        "The number 3.14 in version v1.2 of example.com is wrong.",
        "Ask Dr. Smith or Prof. Jones, e.g. Python people, vs. Mrs. Miller.",
        "See No. 5, Fig. 3 and vol. 2 of the series by J. S. Bach of the U.S. Army.",
        "Am 3. Oktober, d.h. Freitag, spricht Hr. Maier.",
        "It was late, approx. nine, etc. and so on... and on.",
        "“Really?” he asked.",
        "A line that was\nwrapped by its writer.",
        "全角３．１４です",
    ],
)
def test_a_mark_inside_a_sentence_does_not_end_it(text: str) -> None:
    assert pieces(text, limit=250, minimum=1) == [text.replace("\n", " ")]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One! Two? Three… Four. Five", ["One!", "Two?", "Three…", "Four.", "Five"]),
        ("He said “no.” Then (so it was.) He left.", ["He said “no.”", "Then (so it was.)", "He left."]),
        ("What?! No... Yes", ["What?!", "No...", "Yes"]),
        ("你好！「真的吗？」是的。再见", ["你好！", "「真的吗？」", "是的。", "再见"]),
        ("你好!再见?", ["你好!", "再见?"]),
        ("कैसे हो। ठीक। هل هذا؟ نعم", ["कैसे हो।", "ठीक।", "هل هذا؟", "نعم"]),
        ("First line\nSecond line", ["First line", "Second line"]),
        ("# Title\n- one\n- two\n\nlast", ["Title.", "one.", "two.", "last"]),
        ("No. It is not 100. Ask U", ["No.", "It is not 100.", "Ask U"]),
        ("**Bold.** Then *more.* End", ["Bold.", "Then more.", "End"]),
        ("Cited. [1] Then[2]. End", ["Cited.", "Then.", "End"]),
    ],
)
def test_sentences_end_at_marks_and_lines(text: str, sentences: list[str]) -> None:
    assert pieces(text, limit=250, minimum=1) == sentences


def test_a_short_sentence_is_joined_to_the_next() -> None:
    assert pieces("Yes. It is. I am quite sure of it. So", limit=250) == ["Yes. It is. I am quite sure of it.", "So"]


def test_the_first_sentence_may_be_shorter() -> None:
    text = "Of course. Yes. That is how it is done. Good."
    assert fed([text], first_minimum=10) == ["Of course.", "Yes. That is how it is done.", "Good."]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("one two, three four five six", ["one two,", "three four five six"]),
        ("i said so. it is, so there", ["i said so.", "it is, so there"]),
        ("by dr. who and others", ["by dr. who and", "others"]),
        ("12345678 12345678 12345678", ["12345678 12345678", "12345678"]),
        ("1234567890123456789012345", ["12345678901234567890", "12345"]),
        ("一二三四五六，七八九十一二三四五六七八九十", ["一二三四五六，", "七八九十一二三四五六七八九十"]),
        ("e" * 19 + "e\u0301\u0302 x", ["e" * 19, "e\u0301\u0302 x"]),
        ("exactly twenty chars Then", ["exactly twenty chars", "Then"]),
    ],
)
def test_a_long_sentence_is_cut_at_the_best_place(text: str, sentences: list[str]) -> None:
    assert pieces(text, limit=20, minimum=5) == sentences


def test_a_sentence_comes_as_soon_as_the_next_begins() -> None:
    sentences = Sentences()
    assert sentences.feed("This is the first sentence.") == []
    assert sentences.feed(" ") == []
    assert sentences.feed("A") == ["This is the first sentence."]
    assert sentences.close() == ["A"]


@pytest.mark.parametrize("following", ["\n\n", "\n- ", "\n# Title", "\n```", " ```", "\n| a "])
def test_a_sentence_before_a_new_block_does_not_wait(following: str) -> None:
    sentences = Sentences()
    assert sentences.feed("The code for this is here:" + following + "and so on") == ["The code for this is here:"]


def test_an_open_code_block_says_nothing_however_long() -> None:
    sentences = Sentences()
    assert sentences.feed("```\n") == []
    assert all(sentences.feed("This is no sentence. Nor is this one.\n") == [] for _ in range(100))
    assert sentences.feed("```\nThis is the end of it. So\n\n") == ["This is the end of it."]
    assert sentences.close() == ["So"]


@pytest.mark.parametrize(
    ("parts", "sentences"),
    [
        (["as said [1", "2] here."], ["as said here."]),
        (["**bo", "ld** text"], ["bold text"]),
        (["*", "*bold*", "* text"], ["bold text"]),
        (["see [the ", "docs](htt", "p://a.b/c", ") there"], ["see the docs there"]),
        (["!", "[alt](a", ".png) seen"], ["seen"]),
        (["``", "`python\nx\n`", "``\nDone"], ["Done"]),
        (["call `max_", "deliveries` it"], ["call max deliveries it"]),
        (["at htt", "ps://exam", "ple.com/a", " now"], ["at example.com now"]),
        (["👨", "\u200d", "👩 hi"], ["hi"]),
        (["|-", "--|-", "--|\n| a", " | b |"], ["a, b."]),
    ],
)
def test_a_mark_in_two_pieces_does_not_leak(parts: list[str], sentences: list[str]) -> None:
    assert fed(parts) == sentences


@pytest.mark.parametrize(
    "stray", ["[", "[text](http://a.b", "`", "``", "![alt", "<b", "<!--", "**", "_", "[1, 2", "](", "\\"]
)
def test_a_mark_that_is_never_closed_costs_no_words(stray: str) -> None:
    words = "one two three four five six seven eight nine ten. " * 12
    sentences = Sentences()
    early = sentences.feed(f"Before {stray} {words}")
    assert "six" in "".join(early), "a stray mark holds everything back"
    assert sayable("".join([*early, *sentences.close()])).endswith(sayable(words))


def test_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match="limit"):
        Sentences(limit=0)


def steps_of(parts: list[str]) -> int:
    """Lines of Python run for a text: what work there is besides that inside of bounded searches."""
    steps = 0

    def count(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal steps
        if not frame.f_code.co_filename.endswith(("speech.py", "speech_markdown.py", "speech_line.py")):
            return None
        steps += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        fed(parts)
    finally:
        sys.settrace(before)
    return steps


LINEAR = [
    "word. Word, ",
    "[",
    "[1, ",
    "`",
    "`a",
    "**",
    "_a",
    "](",
    "![a",
    "<b ",
    "http://",
    "~",
    "\\",
    "|",
    "-",
    "#",
    "\n",
    "。",
    ".",
]


@pytest.mark.parametrize("unit", [*LINEAR, "1", "x", "(", "👍", "```", "a\n", "- a\n"])
def test_twice_the_text_is_twice_the_work(unit: str) -> None:
    once, twice = steps_of(list(unit * 400)), steps_of(list(unit * 800))
    assert twice <= 2.2 * once
    once, twice = steps_of([unit * 400]), steps_of([unit * 800])
    assert twice <= 2.2 * once + 200


@pytest.mark.parametrize("unit", LINEAR)
def test_every_character_is_looked_at_a_bounded_number_of_times(unit: str) -> None:
    # With work that grows with the text so far, these would take minutes and run into the suite's time limit.
    pieces(unit * (50_000 // len(unit)), limit=250)


def test_sentences_keep_no_more_than_is_open() -> None:
    sentences = Sentences()
    for _ in range(2000):
        sentences.feed("Some words of a sentence, and so on. [1] `code` ")
    held = max(len(value) for value in vars(sentences).values() if isinstance(value, str))
    assert held < 1000
    assert len(sentences.close()) == 1
