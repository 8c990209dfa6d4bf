"""How much time is left, handed down from the request to every upstream call."""

import math
import time

from handler_core.errors import DeadlineExceeded


class Deadline:
    """A moment on the monotonic clock; `Deadline.never()` has none.

    >>> Deadline.after(60).timeout(at_most=5.0)
    5.0
    """

    __slots__ = ("at",)

    def __init__(self, at: float) -> None:
        self.at = at

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        """A deadline that many seconds from now; one already over when negative."""
        return cls(time.monotonic() + seconds)

    @classmethod
    def never(cls) -> "Deadline":
        return cls(math.inf)

    def remaining(self) -> float:
        """Seconds left: negative when it is over, `inf` when there is no deadline."""
        return self.at - time.monotonic()

    @property
    def expired(self) -> bool:
        return self.remaining() <= 0

    def timeout(self, at_most: float) -> float:
        """The time limit for one call: what is left, and no more than `at_most` seconds.

        Raises:
            DeadlineExceeded: nothing is left.
        """
        remaining = self.remaining()
        if remaining <= 0:
            raise DeadlineExceeded("the deadline passed before the answer was ready")
        return min(remaining, at_most)
