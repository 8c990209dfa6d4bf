"""Text for speech: what a voice reads of an answer, sentence by sentence while it is still being written.

>>> sentences = Sentences()
>>> sentences.feed("It costs **$29.99** in Berlin [1]. Or"), sentences.feed(" less."), sentences.close()
(['It costs $29.99 in Berlin.'], [], ['Or less.'])
"""

# ruff: noqa: RUF001 - full-width punctuation is meant
import re
import unicodedata

from handler_core.speech_line import LINE, PARAGRAPH
from handler_core.speech_markdown import PlainText

MINIMUM = 20
"""Characters: a voice needs some to find its tone, and each sentence costs a request."""
LIMIT = 250
"""Characters: what XTTS speaks of English in one go."""

_CLOSING = "\"'”’»)\\]}」』】）"
_SENTENCE_END = re.compile(
    rf"(?:(?P<narrow>[.!?…।॥؟۔]{{1,8}})|(?P<wide>[。！？．]{{1,8}}))[{_CLOSING}]{{0,8}}|[{LINE}{PARAGRAPH}]"
)
_WEAK_END = re.compile(rf"[.!?…।॥؟۔][{_CLOSING}]{{0,8}}(?=\s)")
_SOFT_MARK = re.compile(r"[,;:،؛](?=\s)|[，、；：]|(?=\n)")
_SPACE = re.compile(r"(?=\s)")
_BEFORE_WORD = re.compile(r"[\s(\[{\"'“‘«„]")
_FIRST_CJK = "\u2e80"

_ABBREVIATION = re.compile(
    r"[dm]r|mrs|m[sx]|prof|sra?|srta|dra|st|mt|vs|cf|approx|ca|dept|gen|col|lt|sgt|capt|rev|hon|gov|sen|rep|mme|mlle|"
    r"hr|fr|bzw|ggf|inkl|evtl|e\.g|i\.e|z\.b|d\.h|u\.a|o\.ä|p\.ej|uds?",
    re.IGNORECASE,
)
_BEFORE_NUMBER = re.compile(
    "nos?|nr|figs?|vol|pp?|ch|sec|eq|art|núm|jan|feb|aug|sept|oct|nov|dec",
    re.IGNORECASE,
)
_LONGEST_ABBREVIATION = 12
_LONGEST_CLUSTER = 16


def pieces(text: str, *, limit: int, minimum: int = MINIMUM) -> list[str]:
    """The sentences of a text that is complete; see `Sentences`."""
    sentences = Sentences(minimum=minimum, limit=limit)
    return sentences.feed(text) + sentences.close()


class Sentences:
    """Cuts streamed text into sentences as a voice reads them.

    Dropped are Markdown's marks, code blocks, images, citation markers, HTML tags and emoji. A link is read as its
    text and a bare address as its host; inline code is read where it is words (`max_deliveries` as two), else dropped.
    A heading, an item or a row of a table that ends without a mark gets a full stop, and cells are joined by commas.

    A sentence ends at `. ! ? …` before white space, at their full-width forms, and at a line break. One more
    character shows that the end is none: before lower case, and after abbreviations, initials and ordinals, the
    sentence goes on. The end of a paragraph, heading, list item or row needs no such look. One that is too long is cut
    at a comma or the like, else at a space. The sentences are the same however the text was cut into pieces.

    Args:
        minimum: characters; a shorter sentence is joined to the next, and only the last may be shorter.
        limit: characters; none is longer.
        first_minimum: instead of `minimum` for the first sentence, which somebody waits for.
    """

    def __init__(self, *, minimum: int = MINIMUM, limit: int = LIMIT, first_minimum: int | None = None) -> None:
        if limit < 1:
            raise ValueError(f"limit: {limit} leaves no room for a sentence")
        self._plain = PlainText()
        self._limit = limit
        self._later_minimum = max(1, min(minimum, limit))
        self._minimum = self._later_minimum if first_minimum is None else max(1, min(first_minimum, limit))
        self._text = ""
        self._start = 0  # of the sentence
        self._seen = 0  # up to here there is no end of it
        self._final = False

    def feed(self, piece: str) -> list[str]:
        """Add a piece; returns the sentences that are complete now."""
        return self._cut(self._plain.feed(piece))

    def close(self) -> list[str]:
        """No more text: returns the sentences that are left."""
        self._final = True
        return self._cut(self._plain.close())

    def _cut(self, plain: str) -> list[str]:
        if not plain and not self._final:
            return []
        self._text += plain
        sentences = []
        while (end := self._end()) is not None:
            if sentence := _said(self._text[self._start : end]):
                sentences.append(sentence)
                self._minimum = self._later_minimum
            self._start = self._seen = end + self._text[end : end + 1].isspace()
        self._text = self._text[self._start :]
        self._seen -= self._start
        self._start = 0
        return sentences

    def _end(self) -> int | None:
        """Where the sentence ends; None while that is open, or when nothing is left."""
        text, start = self._text, self._start
        stop = start + self._limit
        for mark in _SENTENCE_END.finditer(text, self._seen):
            is_break = mark[0] in {LINE, PARAGRAPH}
            end = mark.start() if is_break else mark.end()
            if end > stop:
                break
            ends = self._breaks(mark) if is_break else self._ends(mark)
            if ends is None:
                self._seen = mark.start()
                return None
            if ends and end - start >= self._minimum:
                return end
            self._seen = mark.end()
        else:
            self._seen = len(text)
        if len(text) > stop:
            return self._cut_short(start, stop)
        return len(text) if self._final and len(text) > start else None

    def _breaks(self, mark: re.Match[str]) -> bool | None:
        """Whether a line break is more than a wrapped line."""
        if mark[0] == PARAGRAPH:
            return True
        return not self._text[mark.end()].islower() if mark.end() < len(self._text) else None

    def _ends(self, mark: re.Match[str]) -> bool | None:
        """Whether marks end a sentence; None when what follows decides and is not there yet."""
        following = self._text[mark.end() : mark.end() + 2]
        if not following:
            return True if self._final else None
        if mark["wide"]:
            return not (mark["wide"] == "．" and following[0].isdigit())
        if not following[0].isspace():
            return following[0] >= _FIRST_CJK and mark["narrow"][-1] in "!?"
        if following[0] == PARAGRAPH:
            return True
        return not (following[1:].islower() or (mark[0] == "." and self._abbreviates(mark.start(), following[1:])))

    def _abbreviates(self, at: int, following: str) -> bool:
        """Whether the full stop at `at` belongs to its word: an abbreviation, an initial, an ordinal, a number of a
        list."""
        word = _BEFORE_WORD.split(self._text[max(self._start, at - _LONGEST_ABBREVIATION) : at])[-1]
        if word.isdecimal():
            return len(word) <= 2
        if word[-1:].isupper() and (len(word) == 1 or word[-2] in ".-"):
            return True
        if _ABBREVIATION.fullmatch(word):
            return True
        return following.isdigit() and _BEFORE_NUMBER.fullmatch(word) is not None

    def _cut_short(self, start: int, stop: int) -> int:
        """Where to cut a sentence that does not end before `stop`: as late as can be, in the best kind of place."""
        for kind in (_WEAK_END, _SOFT_MARK, _SPACE):
            ends = [
                mark.end()
                for mark in kind.finditer(self._text, start + self._minimum - 1, stop + 1)
                if start + self._minimum <= mark.end() <= stop
                and not (
                    mark[0] == "." and self._abbreviates(mark.start(), self._text[mark.end() + 1 : mark.end() + 2])
                )
            ]
            if ends:
                return ends[-1]
        for end in range(stop, max(start, stop - _LONGEST_CLUSTER), -1):
            if not _extends(self._text[end]) and self._text[end - 1] != "\u200d":
                return end
        return stop


def _extends(character: str) -> bool:
    """Whether a character is drawn on the one before it."""
    return character == "\u200d" or unicodedata.category(character).startswith("M")


def _said(text: str) -> str:
    """The text in one line; empty where it is marks alone, of which a voice makes a noise."""
    said = " ".join(text.split())
    return said if any(map(str.isalnum, said)) else ""
