"""Citation markers in text that arrives in pieces."""

import re
from collections.abc import Sequence

from handler_core.contract.chat import Citation, Source

_MARKER = re.compile(r"\[(\d{1,3}(?:\s?,\s?\d{1,3})*)\]")
# What may still become a marker when the next piece comes.
_UNFINISHED = re.compile(r"\[(?:\d{1,3}(?:\s?,\s?\d{1,3})*(?:\s?,?\s?)?)?$")
_LONGEST = 64


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

    A number with no source behind it, such as an index in a line of code, is left alone.
    """
    found: dict[int, Citation] = {}
    for marker in _MARKER.finditer(text):
        for number in marker[1].split(","):
            index = int(number)
            if 1 <= index <= len(sources) and index not in found:
                found[index] = Citation(index=index, source_id=sources[index - 1].id, start=marker.start())
    return list(found.values())
