"""Documents cut into chunks of a bounded number of tokens, the unit that is embedded, found and cited.

A chunk never crosses a heading. Within a section whole blocks (paragraphs, tables, code) are put together while they
fit; one too large for a chunk is cut between sentences or lines, and only where those are too long anywhere else. A
chunk starts with the last sentences or lines of the one before it, up to `overlap` tokens, within a section.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from handlers_cli.documents import Document
from handlers_cli.outline import Block, Section

SIZE = 200
OVERLAP = 40
MIN_SIZE = 8

Counter = Callable[[str], int]
"""How many tokens a text has."""

_CHARACTERS_PER_TOKEN = 16
_TOKEN = re.compile(r"[A-Za-z0-9]{1,4}|[^\sA-Za-z0-9]")
_SENTENCE_END = re.compile(
    r"(?<=[.!?…])[\"'”’)\]*_]*\s+|(?<=[。！？])"  # noqa: RUF001 - punctuation of other scripts
    r"|\n(?=[ \t]*(?:[-*+•]|\d+[.)])[ \t])"  # the next item of a list
)
_LINE_END = re.compile(r"\n")
_SPACE = re.compile(r"\s")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage of a document, with where it stands."""

    text: str
    source: str
    title: str
    headings: tuple[str, ...]
    ordinal: int
    """Its place in the document, from 0."""
    start_line: int
    page: int | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        """What is stored beside the text: all fields but it, `page` only of a PDF."""
        page = {} if self.page is None else {"page": self.page}
        return {
            "source": self.source,
            "title": self.title,
            "headings": list(self.headings),
            "ordinal": self.ordinal,
            "start_line": self.start_line,
            **page,
        }

    @property
    def embedded(self) -> str:
        """The text to embed: below its title and headings, without which a passage is often found by nothing."""
        path = self.headings if self.title in self.headings[:1] else (self.title, *self.headings)
        return f"{' > '.join(path)}\n\n{self.text}"


def approximate_tokens(text: str) -> int:
    """A guess that needs no model: a token for every four letters or digits of a run, and one for any other character.

    Counts English about a third too high and so never overfills a chunk; scripts other than Latin by the character.
    """
    return len(_TOKEN.findall(text))


def tokenizer_counter(path: Path) -> Counter:
    """Counts with a `tokenizer.json`, without special tokens.

    A token counts for 16 characters at most: a WordPiece tokenizer takes any word it does not know for a single one.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(text: str) -> int:
        return max(len(tokenizer.encode(text, add_special_tokens=False).ids), len(text) // _CHARACTERS_PER_TOKEN)

    return count


def chunk_document(
    document: Document, *, size: int = SIZE, overlap: int = OVERLAP, count: Counter = approximate_tokens
) -> list[Chunk]:
    """Cut `document` into chunks of at most `size` tokens; the same document always into the same ones.

    Args:
        overlap: how many tokens, at most, a chunk repeats of the one before it.
        count: `approximate_tokens`, or what `tokenizer_counter` gives.

    Raises:
        ValueError: a size under 8, or an overlap that is no smaller than half of it.
    """
    if size < MIN_SIZE or not 0 <= overlap <= size // 2:
        raise ValueError(f"a size of at least {MIN_SIZE} and an overlap of at most its half, not {size} and {overlap}")
    cutter = _Cutter(size, overlap, count)
    return [
        Chunk(text, document.source, document.title, section.headings, ordinal, line, section.page)
        for ordinal, (section, text, line) in enumerate(
            (section, text, line) for section in document.sections for text, line in cutter.cut(section)
        )
    ]


@dataclass(frozen=True, slots=True)
class _Span:
    """A sentence, a line or less of a block; chunks are made of spans."""

    block: Block
    start: int
    end: int
    tokens: int


@dataclass(frozen=True, slots=True)
class _Cutter:
    size: int
    overlap: int
    count: Counter

    def cut(self, section: Section) -> Iterator[tuple[str, int]]:
        """The texts of the section's chunks, and the lines they start on."""
        current: list[_Span] = []
        for group in self._groups(section):
            if current and not _fit([*current, *group], self.size):
                yield from self._checked(current)
                current = self._tail(current)
                while current and not _fit([*current, *group], self.size):
                    del current[0]
            current += group
        yield from self._checked(current)

    def _groups(self, section: Section) -> Iterator[list[_Span]]:
        """What is to stay together: a block's spans if they fit a chunk, else each span for itself."""
        for block in section.blocks:
            spans = list(self._spans(block))
            if _fit(spans, self.size):
                yield spans
            else:
                yield from ([span] for span in spans)

    def _spans(self, block: Block) -> Iterator[_Span]:
        start = 0
        for border in (_SENTENCE_END if block.kind == "prose" else _LINE_END).finditer(block.text):
            yield from self._small(block, start, border.end())
            start = border.end()
        yield from self._small(block, start, len(block.text))

    def _small(self, block: Block, start: int, end: int) -> Iterator[_Span]:
        """The span, or if it is too large its halves, cut at a space if there is one near the middle."""
        text = block.text[start:end]
        if not text.strip():
            return
        tokens = self.count(text)
        if tokens <= self.size or len(text) == 1:
            yield _Span(block, start, end, tokens)
            return
        middle = (start + end) // 2
        space = _SPACE.search(block.text, middle, (middle + end) // 2)
        cut = space.end() if space and space.end() < end else middle
        yield from self._small(block, start, cut)
        yield from self._small(block, cut, end)

    def _tail(self, spans: list[_Span]) -> list[_Span]:
        tail: list[_Span] = []
        for span in reversed(spans):
            if not _fit([span, *tail], self.overlap):
                break
            tail.insert(0, span)
        return tail

    def _checked(self, spans: list[_Span]) -> Iterator[tuple[str, int]]:
        """The chunk, halved in the rare case that a tokenizer makes more tokens of the whole than of its parts."""
        if not spans:
            return
        text = _text(spans)
        if len(spans) > 1 and self.count(text) > self.size:
            middle = len(spans) // 2
            yield from self._checked(spans[:middle])
            yield from self._checked(spans[middle:])
        else:
            block, start = spans[0].block, spans[0].start
            start += len(block.text[start:]) - len(block.text[start:].lstrip())
            yield text, block.line + block.text.count("\n", 0, start)


def _fit(spans: list[_Span], size: int) -> bool:
    return sum(span.tokens for span in spans) <= size


def _text(spans: list[_Span]) -> str:
    """As it stands in the document, with an empty line between blocks."""
    blocks = [list(group) for _, group in groupby(spans, key=lambda span: id(span.block))]
    return "\n\n".join(group[0].block.text[group[0].start : group[-1].end].strip("\n").rstrip() for group in blocks)
