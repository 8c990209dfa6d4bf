"""What a session's client is to be told soon, and which of its mistakes it knows of already."""

import time
from collections import deque
from typing import Any

MAX_NOTICES = 32
"""Errors that wait to be told, and different mistakes that are told within `SAME_ERROR_AFTER`."""
SAME_ERROR_AFTER = 5.0
"""Seconds after which the same mistake of a client is told again."""


class Notices:
    """Events in the order in which they are to be published; a client that makes more mistakes than can be told is
    told the first ones, and costs no more than that."""

    def __init__(self) -> None:
        self._events: deque[dict[str, Any]] = deque()
        self._mistakes: dict[str, float] = {}

    def __bool__(self) -> bool:
        return bool(self._events)

    def add(self, event: dict[str, Any]) -> None:
        """Have an event told."""
        if len(self._events) < MAX_NOTICES or event["type"] != "error":
            self._events.append(event)

    def pop(self) -> dict[str, Any]:
        """The next to tell."""
        return self._events.popleft()

    def worth_telling(self, mistake: str) -> bool:
        """Whether to tell of a mistake: it has not been told lately, and neither have too many others."""
        known, now = self._mistakes, time.monotonic()
        at = known.get(mistake)
        if at is not None and now - at < SAME_ERROR_AFTER:
            return False
        if len(known) >= MAX_NOTICES:
            self._mistakes = known = {text: at for text, at in known.items() if now - at < SAME_ERROR_AFTER}
            if len(known) >= MAX_NOTICES:
                return False
        known[mistake] = now
        return True
