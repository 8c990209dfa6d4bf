"""Markdown as an outline of headings and blocks."""

import re
from collections.abc import Iterable

from handlers_cli.outline import MAX_HEADING, Kind, Outline

_ATX = re.compile(r" {0,3}(#{1,6})(?=[ \t]|$)")
_SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_FENCE = re.compile(r"[ \t]*(`{3,}(?=[^`]*$)|~{3,})")


def fill_from_markdown(outline: Outline, text: str) -> None:
    """Headings of both kinds, fenced code and tables; a title in the front matter comes before the first heading."""
    lines = text.split("\n")
    start = _front_matter(lines, outline)
    _Lines(outline).read(enumerate(lines[start:], start + 1))


def _front_matter(lines: list[str], outline: Outline) -> int:
    """Take the title from the YAML between two lines of dashes at the start; how many lines that is."""
    if lines[0].rstrip() != "---":
        return 0
    end = next((number for number, line in enumerate(lines[1:200], 1) if line.rstrip() in {"---", "..."}), 0)
    for line in lines[1:end]:
        if found := re.match(r"title:\s*(.+)", line):
            outline.title = found[1].strip().strip("\"'")[:MAX_HEADING]
    return end + 1 if end else 0


class _Lines:
    """Reads line by line; `_lines` is the paragraph, table or code that is not yet over."""

    def __init__(self, outline: Outline) -> None:
        self._outline = outline
        self._lines: list[str] = []
        self._start = 1
        self._kind: Kind = "prose"
        self._fence = ""

    def read(self, lines: Iterable[tuple[int, str]]) -> None:
        for number, line in lines:
            if self._fence:
                self._code(number, line)
            elif fence := _FENCE.match(line):
                self._flush()
                self._fence = fence[1]
                self._add(number, line, "code")
            elif heading := _ATX.match(line):
                self._flush()
                self._outline.heading(len(heading[1]), _without_closing(line[heading.end() :]), number)
            elif self._lines and self._kind == "prose" and (underline := _SETEXT.match(line)):
                text, self._lines = " ".join(self._lines), []
                self._outline.heading(1 if underline[1][0] == "=" else 2, text, self._start)
            elif line.strip():
                self._add(number, line, "table" if line.lstrip().startswith("|") else "prose")
            else:
                self._flush()
        self._flush()

    def _code(self, number: int, line: str) -> None:
        self._add(number, line, "code")
        end = line.strip()
        if len(end) >= len(self._fence) and not end.strip(self._fence[0]):
            self._fence = ""
            self._flush()

    def _add(self, number: int, line: str, kind: Kind) -> None:
        if self._lines and kind != self._kind:
            self._flush()
        if not self._lines:
            self._start, self._kind = number, kind
        self._lines.append(line)

    def _flush(self) -> None:
        if self._lines:
            self._outline.block("\n".join(self._lines), self._start, self._kind)
        self._lines = []


def _without_closing(heading: str) -> str:
    """`Heading ##` without its closing marks, which need a space before them."""
    text = heading.strip()
    bare = text.rstrip("#")
    return bare.rstrip() if bare != bare.rstrip() or not bare else text
