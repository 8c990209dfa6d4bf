"""Citation markers in text that arrives in pieces."""

import re
from collections.abc import Sequence

from handler_core.contract.chat import Citation, Source

_NUMBERS = r"\d{1,3}(?:\s?,\s?\d{1,3}){0,19}"
_LONGEST = 128
"""Characters; no marker is longer."""
# Code comes first, so that the index in `items[1]` is taken for no marker.
_CODE_OR_MARKER = re.compile(rf"```.*?(?:```|\Z)|`[^`\n]*`|\[({_NUMBERS})\]", re.DOTALL)
_SPACED_MARKER = re.compile(rf"```.*?(?:```|\Z)|`[^`\n]*`|[ \t]?\[({_NUMBERS})\]", re.DOTALL)
# What may still become a marker when the next piece comes.
_UNFINISHED = re.compile(rf"\[(?:{_NUMBERS}(?:\s?,\s?|\s)?)?\Z")


class CitedText:
    """Collects streamed text, holding a marker back until it is whole.

    >>> text = CitedText()
    >>> text.feed("as shown [1"), text.feed("2]."), text.close()
    ('as shown ', '[12].', '')
    """

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._held = ""

    def feed(self, piece: str) -> str:
        """Add a piece; returns what may be shown now, in which no marker is cut."""
        text = self._held + piece
        unfinished = _UNFINISHED.search(text, max(0, len(text) - _LONGEST))
        cut = unfinished.start() if unfinished else len(text)
        self._held = text[cut:]
        self._parts.append(text[:cut])
        return text[:cut]

    def close(self) -> str:
        """No more text: returns what was held back."""
        rest, self._held = self._held, ""
        self._parts.append(rest)
        return rest

    @property
    def text(self) -> str:
        """Everything returned so far."""
        return "".join(self._parts)


def citations(text: str, sources: Sequence[Source]) -> list[Citation]:
    """The markers `[n]` (or `[n, m]`) that name one of the sources, each source once, in order of appearance.

    A number with no source behind it is left alone, and so is what stands in Markdown's code, between backticks.
    """
    found: dict[int, Citation] = {}
    for match in _CODE_OR_MARKER.finditer(text):
        for number in match[1].split(",") if match[1] else ():
            index = int(number)
            if 1 <= index <= len(sources) and index not in found:
                found[index] = Citation(index=index, source_id=sources[index - 1].id, start=match.start())
    return list(found.values())


def without_markers(text: str) -> str:
    """The text without its markers and the space before each, for where no sources stand beside it; what stands in
    Markdown's code is left alone."""
    return _SPACED_MARKER.sub(lambda match: match[0] if match[1] is None else "", text)
