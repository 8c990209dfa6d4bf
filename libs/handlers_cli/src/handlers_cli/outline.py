"""What readers of files make: blocks of text, in sections under their headings."""

import re
from dataclasses import dataclass
from typing import Literal

MAX_HEADING = 200
"""Characters of a heading that are kept."""

Kind = Literal["prose", "code", "table"]


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph, a list, a block of code or a table: text that belongs together."""

    text: str
    line: int
    """Where it starts in the file (in a PDF: on the page), from 1."""
    kind: Kind = "prose"


@dataclass(frozen=True, slots=True)
class Section:
    """What stands under one heading, down to the next."""

    headings: tuple[str, ...]
    """The path to it, outermost first; empty before the first heading."""
    blocks: tuple[Block, ...]
    page: int | None = None
    """The page of a PDF, from 1."""


class Outline:
    """Collects headings and blocks in their order, and makes sections of them."""

    def __init__(self) -> None:
        self.title = ""
        self._path: list[tuple[int, str]] = []
        self._line = 1
        self._blocks: list[Block] = []
        self._sections: list[tuple[tuple[str, ...], list[Block], int]] = []

    def heading(self, level: int, text: str, line: int) -> None:
        text = " ".join(text.split())[:MAX_HEADING]
        if not text:
            return
        self._close()
        self._path = [*((above, name) for above, name in self._path if above < level), (level, text)]
        self._line = line
        self.title = self.title or text

    def block(self, text: str, line: int, kind: Kind = "prose") -> None:
        if text.strip():
            self._blocks.append(Block(text.rstrip(), line, kind))

    def sections(self) -> tuple[Section, ...]:
        """All so far. A heading with nothing below it, not even another heading, is its own text."""
        self._close()
        made = []
        for number, (headings, blocks, line) in enumerate(self._sections, 1):
            below = number < len(self._sections) and self._sections[number][0][: len(headings)] == headings
            if blocks or not below:
                made.append(Section(headings, tuple(blocks) or (Block(headings[-1], line),)))
        return tuple(made)

    def _close(self) -> None:
        if self._blocks or self._path:
            self._sections.append((tuple(name for _, name in self._path), self._blocks, self._line))
        self._blocks = []

    def paragraphs(self, text: str) -> None:
        """Add a block for each part of `text` between empty lines."""
        line = 1
        for part in re.split(r"(\n[ \t]*(?:\n[ \t]*)+)", text):
            stripped = part.lstrip("\n")
            self.block(stripped, line + len(part) - len(stripped))
            line += part.count("\n")
