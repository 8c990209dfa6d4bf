"""Transcripts of an utterance that still goes on.

Each pass transcribes all that there is so far, and what it makes of the end may change with the next one: what two
passes in a row agree on is published (local agreement, Liu et al. 2020, "Low-Latency Sequence-to-Sequence Speech
Recognition and Translation by Partial Hypothesis Selection").
"""

from dataclasses import dataclass, field


class Agreement:
    """What may be shown of one utterance, pass by pass; it only ever gets longer, and its words stay.

    >>> agreement = Agreement()
    >>> agreement.update("Turn on the light")
    ''
    >>> agreement.update("turn on the lights in the")
    'turn on the'
    >>> agreement.update("Turn on the lights, in the kitchen.")
    'Turn on the lights, in the'
    """

    def __init__(self) -> None:
        self.published = ""
        """What `update` gave last."""
        self._words: list[str] = []
        self._previous: list[str] = []

    def update(self, text: str) -> str:
        """The whole words on which this pass and the one before agree, whatever their case and punctuation.

        They are written as this pass has them; where it contradicts what has been published, that stays.
        """
        words = text.split()
        keys = [_key(word) for word in words]
        agreed = 0
        for ours, theirs in zip(keys, self._previous, strict=False):
            if ours != theirs:
                break
            agreed += 1
        self._previous = keys
        if agreed >= len(self._words) and keys[: len(self._words)] == self._words:
            self._words = keys[:agreed]
            self.published = " ".join(words[:agreed])
        return self.published


def _key(word: str) -> str:
    """What two spellings of a word have in common; the word itself where it is all punctuation."""
    return "".join(filter(str.isalnum, word)).casefold() or word


class Schedule:
    """When to transcribe one utterance again: after so much new audio, one pass at a time."""

    def __init__(self, interval_ms: int = 1000) -> None:
        self._interval_ms = interval_ms
        self._next_ms = float(interval_ms)
        self._in_flight = False

    def due(self, open_ms: float) -> bool:
        """Whether to start a pass now, at so much audio of the utterance; True is said once, until `done`."""
        if self._in_flight or open_ms < self._next_ms:
            return False
        self._in_flight = True
        self._next_ms = open_ms + self._interval_ms
        return True

    def done(self) -> None:
        """The pass came back, or failed: the next may start."""
        self._in_flight = False


@dataclass(frozen=True, eq=False)
class Open:
    """The utterance that is being spoken."""

    number: int
    start_ms: float
    schedule: Schedule
    agreement: Agreement = field(default_factory=Agreement)
