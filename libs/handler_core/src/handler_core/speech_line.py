"""What a voice is given: running text with no white space but single separators, whatever was taken out of it."""

# ruff: noqa: RUF001 - full-width punctuation is meant
PARAGRAPH = "\u2029"
"""Stands after a block: a paragraph, a heading, a list item, a row of a table."""
LINE = "\n"

_SEPARATORS = ("", " ", LINE)
_MARKS = frozenset(".!?…:,;。！？．、，；：।॥؟۔،؛-–—")
_CLOSING = frozenset(".!?…:,;)]}。！？．、，；：）」』】।॥؟۔،؛”’»%")
_QUOTES = "\"'”’»)]」』】）"
_WIDE = "\u2e80"
"""From here on, roughly, scripts whose marks are full width."""


class Line:
    """Collects text; between two of its words stands one space, one `LINE` or one `PARAGRAPH`.

    A separator is written together with what follows it, but for a `PARAGRAPH`, which is known to be one at once.
    """

    def __init__(self) -> None:
        self._out: list[str] = []
        self._last = self._last_two = PARAGRAPH
        self._separator = 0
        self._gap = False
        self._pause = False

    def take(self) -> str:
        """What was written since the last call."""
        out, self._out = "".join(self._out), []
        return out

    def write(self, text: str) -> None:
        """Add text; any white space in it becomes single spaces."""
        words = text.split()
        if not words:
            if text:
                self.space()
            return
        if text[0].isspace():
            self.space()
        self._separate(words[0][0])
        self._out.append(" ".join(words))
        self._last_two = (self._last + words[-1])[-2:]
        self._last = words[-1][-1]
        if text[-1].isspace():
            self.space()

    def space(self) -> None:
        self._separator = max(self._separator, 1)

    def line(self) -> None:
        """A line break that may be one for the eye only."""
        self._separator = 2

    def gap(self) -> None:
        """Something was left out here: no space stays before the punctuation that follows it."""
        self._gap = True

    def pause(self) -> None:
        """Something was left out that keeps two things apart: a comma takes its place between two words."""
        self._pause = True
        self.space()

    def paragraph(self) -> None:
        """A block ends here."""
        if self._last != PARAGRAPH:
            self._out.append(PARAGRAPH)
            self._last = PARAGRAPH
        self._clear()

    def stop(self) -> None:
        """A block ends here that needs no mark to be seen as one; a voice needs it."""
        if self._last != PARAGRAPH and not _MARKS.intersection(self._last_two.rstrip(_QUOTES)[-1:]):
            self._out.append("。" if self._last >= _WIDE else ".")
        self.paragraph()

    def _separate(self, following: str) -> None:
        if self._last != PARAGRAPH:
            if self._pause and self._last not in _MARKS and following not in _CLOSING:
                self._out.append(",")
            if not (self._gap and following in _CLOSING):
                self._out.append(_SEPARATORS[self._separator])
        self._clear()

    def _clear(self) -> None:
        self._separator = 0
        self._gap = self._pause = False
