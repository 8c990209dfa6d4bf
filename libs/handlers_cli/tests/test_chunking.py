"""Chunks: nothing is lost, none is too large, none crosses a heading, and the same text gives the same ones."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from handlers_cli.chunking import Chunk, approximate_tokens, chunk_document, tokenizer_counter
from handlers_cli.documents import Document, read_markdown
from handlers_cli.outline import Block, Section

words = st.text(alphabet="abcdefgäß漢!.?-*_`|# ", min_size=1, max_size=12) | st.text(min_size=1, max_size=40)
sentences = st.lists(words, min_size=1, max_size=12).map(lambda parts: " ".join(parts) + ".")
paragraphs = st.lists(sentences, min_size=1, max_size=6).map(" ".join)
fenced = st.lists(words, max_size=12).map(lambda lines: "\n".join(["```", *lines, "```"]))
tables = st.lists(words, min_size=1, max_size=12).map(lambda cells: "\n".join(f"| {cell} | x |" for cell in cells))
headings = st.tuples(st.integers(1, 4), words).map(lambda pair: "#" * pair[0] + " " + pair[1])
long_words = st.integers(100, 3000).map(lambda length: "x" * length)
markdown = st.lists(paragraphs | fenced | tables | headings | long_words | st.text(), max_size=10).map(
    lambda parts: "\n\n".join(parts).replace("\x00", "")
)


def squashed(text: str) -> str:
    return re.sub(r"\s+", "", text)


def document(text: str) -> Document:
    title, sections = read_markdown(text.encode())
    return Document("a.md", title or "a", sections)


def by_section(whole: Document, chunks: list[Chunk], counts: list[int]) -> list[tuple[Section, list[Chunk]]]:
    remaining = iter(chunks)
    return [(section, [next(remaining) for _ in range(n)]) for section, n in zip(whole.sections, counts, strict=True)]


@settings(deadline=None, max_examples=200)
@given(text=markdown, size=st.integers(8, 120), share=st.integers(0, 5))
def test_every_text_is_in_a_chunk_of_its_own_section_and_none_is_too_large(text: str, size: int, share: int) -> None:
    whole, overlap = document(text), size * share // 10
    chunks = chunk_document(whole, size=size, overlap=overlap)

    assert chunks == chunk_document(whole, size=size, overlap=overlap)
    assert [chunk.ordinal for chunk in chunks] == list(range(len(chunks)))
    assert all(approximate_tokens(chunk.text) <= size for chunk in chunks)
    counts = [
        len(chunk_document(Document("a.md", "a", (section,)), size=size, overlap=overlap)) for section in whole.sections
    ]
    assert sum(counts) == len(chunks)
    for section, own in by_section(whole, chunks, counts):
        content = squashed("".join(block.text for block in section.blocks))
        covered = 0
        for chunk in own:
            assert chunk.headings == section.headings
            piece = squashed(chunk.text)
            start = content.rfind(piece, 0, covered + len(piece))
            assert start >= 0, "a chunk leaves a gap, or holds what is not in its section"
            covered = max(covered, start + len(piece))
        assert covered == len(content)
        repeated = sum(approximate_tokens(chunk.text) for chunk in own) - sum(
            approximate_tokens(block.text) for block in section.blocks
        )
        cuts_in_words = 3 * len(own)  # a run of letters that is cut may count for one more
        assert repeated <= overlap * max(0, len(own) - 1) + cuts_in_words


def test_whole_blocks_stay_together_while_they_fit() -> None:
    blocks = tuple(Block(f"{name} {name} {name}.", n) for n, name in enumerate("abcde", 1))
    chunks = chunk_document(Document("s", "t", (Section((), blocks),)), size=8, overlap=0)
    assert [chunk.text for chunk in chunks] == ["a a a.\n\nb b b.", "c c c.\n\nd d d.", "e e e."]


def test_code_and_tables_are_cut_between_lines_only() -> None:
    lines = [f"| {n} | {n} |" for n in range(1, 9)]
    chunks = chunk_document(
        Document("s", "t", (Section((), (Block("\n".join(lines), 5, "table"),)),)), size=10, overlap=0
    )
    assert [chunk.text.split("\n") for chunk in chunks] == [lines[n : n + 2] for n in range(0, 8, 2)]
    assert [chunk.start_line for chunk in chunks] == [5, 7, 9, 11]


def test_indentation_of_code_is_kept() -> None:
    text = "```\n    one(1)\n        two(2)\n    three(3)\n```"
    chunks = chunk_document(document(text), size=8, overlap=0)
    assert "\n".join(chunk.text for chunk in chunks) == text


def test_a_chunk_starts_with_the_last_sentences_of_the_one_before() -> None:
    text = "One two three. Four five six. Seven eight nine. Ten eleven twelve."
    chunks = chunk_document(document(text), size=12, overlap=6)
    assert [chunk.text for chunk in chunks] == [
        "One two three. Four five six.",
        "Four five six. Seven eight nine.",
        "Seven eight nine. Ten eleven twelve.",
    ]


def test_no_text_is_repeated_across_a_heading() -> None:
    chunks = chunk_document(document("# A\nOne. Two. Three.\n# B\nFour."), size=8, overlap=4)
    assert [chunk.text for chunk in chunks] == ["One. Two. Three.", "Four."]


def test_a_chunk_tells_where_it_stands() -> None:
    chunks = chunk_document(document("# Guide\n\n## Part\n\nText here.\n\n## Other\nMore."), size=50, overlap=10)
    assert chunks[1].metadata == {
        "source": "a.md",
        "title": "Guide",
        "headings": ["Guide", "Other"],
        "ordinal": 1,
        "start_line": 8,
    }
    assert chunks[0].embedded == "Guide > Part\n\nText here."
    page = chunk_document(Document("a.pdf", "A", (Section((), (Block("x", 1),), page=3),)))[0]
    assert page.metadata["page"] == 3
    assert page.embedded == "A\n\nx"


def test_a_document_without_text_has_no_chunks() -> None:
    assert chunk_document(Document("s", "t", ())) == []
    assert chunk_document(Document("s", "t", (Section((), (Block(" \n", 1),)),))) == []


@pytest.mark.parametrize(("size", "overlap"), [(7, 0), (100, 51), (100, -1)])
def test_sizes_that_cannot_work_are_refused(size: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="overlap of at most its half"):
        chunk_document(Document("s", "t", ()), size=size, overlap=overlap)


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small byte-pair tokenizer, whose tokens depend on what stands before them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["the same text, again and again the same text.\n\n| a | b |\n"] * 4, trainer)
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(file))
    return file


@settings(deadline=None, max_examples=50)
@given(text=markdown, size=st.integers(16, 120))
def test_no_chunk_has_more_tokens_than_asked_by_a_real_tokenizer(tokenizer_file: Path, text: str, size: int) -> None:
    count = tokenizer_counter(tokenizer_file)
    whole = document(text)
    chunks = chunk_document(whole, size=size, overlap=size // 4, count=count)
    assert all(count(chunk.text) <= size for chunk in chunks)
    kept = {char for chunk in chunks for char in squashed(chunk.text)}
    assert kept == {char for section in whole.sections for block in section.blocks for char in squashed(block.text)}


def test_a_word_without_end_is_cut_though_a_tokenizer_takes_it_for_one(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "t.json"))
    chunks = chunk_document(document("x" * 10_000), size=20, overlap=0, count=tokenizer_counter(tmp_path / "t.json"))
    assert max(len(chunk.text) for chunk in chunks) < 340
    assert "".join(chunk.text for chunk in chunks) == "x" * 10_000
