"""Splits Markdown prose into sentences that can stand by themselves.

A chunk of a document begins and ends anywhere and holds headings, tables, lists and code. Only whole sentences of
running text are kept: what reads as a fragment when quoted alone is dropped.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_FENCE = re.compile(r"^\s*(?:```|~~~)(.*)$")
_HEADING = re.compile(r"^\s{0,3}#{1,6}(?:\s|$)")
_UNDERLINE = re.compile(r"^\s{0,3}(?:=+|-+)\s*$")
_ITEM = re.compile(r"^\s*(?:[-*+•]|\d{1,3}[.)])\s+")
_TABLE = re.compile(r"^\s*\||\|\s*$|(?:\s\|\s.*){2}")
_INDENTED_CODE = re.compile(r"^(?: {4}|\t)")

_IMAGE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
_LINK = re.compile(r"\[([^\]]+)\]\([^)]*\)")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>|<!--.*?-->")
_STRONG = re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1")
_EMPHASIS = re.compile(r"(?<![\w*])[*_](?=[^\s*_])(.+?)(?<=[^\s*_])[*_](?![\w*])")
# A marker of the passage's own would be taken for one of the answer's.
_MARKER = re.compile(r"\s*\[\d{1,3}\]")
_CODE_SPAN = re.compile(r"`[^`]*`")

_BOUNDARY = re.compile(r"[.!?…]+[\"'\u201d\u2019)\]]*\s+(?=[\"'\u201c\u2018(]?(?:[A-Z0-9`]|[^\W\d_a-z]))")
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|cf|vs|etc|approx|resp|incl|fig|sec|no|vol|mr|mrs|ms|dr|prof|st|inc|ltd|[A-Z]))\.$",
    re.IGNORECASE,
)
_LOWER_WORD = re.compile(r"[^\W\d_A-Z]+(?=[\s,;:]|$)")
_END = re.compile(r"[.!?…][\"'\u201d\u2019)`]*$")
_MIN_WORDS = 5
_MAX_WORDS = 70
_MIN_LETTERS = 0.6
# Words that lean on the sentence before.
_LEANING_WORDS = """
it its they their them this that these those he she his her such so then thus hence otherwise therefore but and or
however also instead both neither there here
"""
_LEANS = frozenset(_LEANING_WORDS.split())


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of a passage."""

    text: str
    block: int
    """The paragraph or list item it stands in, counted from 0 within its passage."""
    position: int
    """Its place within the passage."""
    leans: bool
    """It opens with a word such as *it* or *otherwise*, and reads well only after the sentence before it."""


def split_sentences(text: str) -> list[Sentence]:
    """The sentences of a passage that are fit to be quoted, in order."""
    sentences: list[Sentence] = []
    position = 0
    for block, (paragraph, is_opening) in enumerate(_blocks(text)):
        for index, part in enumerate(_split(_plain(paragraph))):
            position += 1
            # A list item may begin in lower case; quoted alone it is a sentence like any other.
            opens_low = index == 0 and is_opening and _LOWER_WORD.match(part)
            sentence = part[:1].upper() + part[1:] if opens_low else part
            if _is_whole(sentence):
                first_word = re.match(r"\w+", sentence)
                leans = index > 0 and first_word is not None and first_word[0].lower() in _LEANS
                sentences.append(Sentence(sentence, block, position, leans))
    return sentences


def _blocks(text: str) -> Iterator[tuple[str, bool]]:
    """Paragraphs and list items, hard line breaks undone.

    With each, whether it is known to begin where it does: the first paragraph of a chunk may have been cut.
    """
    lines: list[str] = []
    is_opening = False
    for line in [*_without_code(text), ""]:
        item = _ITEM.match(line)
        breaks = not line.strip() or _HEADING.match(line) or _TABLE.search(_CODE_SPAN.sub("", line))
        if _UNDERLINE.match(line):
            lines, is_opening = [], True  # what stood above is a heading, or the line is a rule
            continue
        if breaks or item:
            if lines:
                yield " ".join(lines), is_opening
            lines, is_opening = [], True
        if not breaks:
            lines.append(line[item.end() :].strip() if item else line.strip().removeprefix(">").strip())


def _without_code(text: str) -> list[str]:
    """The lines outside fenced and indented code, also where the text was cut within a fence."""
    lines = text.splitlines()
    fences = [(index, match[1].strip()) for index, line in enumerate(lines) if (match := _FENCE.match(line))]
    # An odd number of fences: a bare first one closes code that began before the text did.
    in_code = bool(fences) and len(fences) % 2 == 1 and not fences[0][1]
    at_fence = {index for index, _ in fences}
    kept: list[str] = []
    in_list = False
    for index, line in enumerate(lines):
        if index in at_fence:
            in_code = not in_code
            kept.append("")
            continue
        in_list = bool(_ITEM.match(line)) or (in_list and (not line.strip() or line[:1].isspace()))
        starts_block = index == 0 or not lines[index - 1].strip()
        is_code = in_code or (
            _INDENTED_CODE.match(line) and not in_list and (starts_block or (bool(kept) and kept[-1] == "\0"))
        )
        kept.append("\0" if is_code else line)
    return ["" if line == "\0" else line for line in kept]


def _plain(text: str) -> str:
    """Markdown's inline marks removed; code spans stay as they are written."""
    spans: list[str] = []

    def put_aside(match: re.Match[str]) -> str:
        spans.append(match[0])
        return f"`{len(spans) - 1}`"

    text = _CODE_SPAN.sub(put_aside, text)
    text = _TAG.sub("", _LINK.sub(r"\1", _IMAGE.sub("", text)))
    text = _EMPHASIS.sub(r"\1", _STRONG.sub(r"\2", text))
    text = _MARKER.sub("", text)
    text = re.sub(r"`(\d+)`", lambda match: spans[int(match[1])], text)
    return " ".join(text.split())


def _split(text: str) -> Iterator[str]:
    start = 0
    for boundary in _BOUNDARY.finditer(text):
        sentence = text[start : boundary.end()].strip()
        if _ABBREVIATION.search(sentence) or sentence.count("`") % 2 or sentence.count("(") > sentence.count(")"):
            continue
        yield sentence
        start = boundary.end()
    if text[start:].strip():
        yield text[start:].strip()


def _is_whole(sentence: str) -> bool:
    """Whether it begins and ends as a sentence does, and is words rather than signs."""
    words = sentence.split()
    prose = _CODE_SPAN.sub("", sentence)
    letters = sum(character.isalpha() for character in prose)
    return (
        _MIN_WORDS <= len(words) <= _MAX_WORDS
        and _END.search(sentence) is not None
        and not sentence.endswith("...")
        # In lower case, only a name such as nats-py opens a sentence.
        and not (sentence[:1].islower() and _LOWER_WORD.match(sentence))
        and sentence[:1] not in ")]}.,;:!?…\u2013\u2014-=/|&"
        and sentence.count("`") % 2 == 0
        and sentence.count("(") == sentence.count(")")
        and re.search(r"\[\d{1,3}\]", sentence) is None
        and letters >= _MIN_LETTERS * len(prose.replace(" ", ""))
        and len(prose.split()) >= _MIN_WORDS - 1
    )
