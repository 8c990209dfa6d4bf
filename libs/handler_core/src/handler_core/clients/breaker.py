"""A circuit breaker: after many failures in a row an upstream is left alone for a while."""

import time
from collections.abc import Callable


class CircuitBreaker:
    """Counts failures in a row and, past a threshold, says how long not to call.

    Closed, every call passes. After `failures` failures with no success between them it opens: no call passes for
    `cool_down` seconds, then one does as a probe, and one more each `cool_down` until a call succeeds, which closes it.
    A probe needs no book-keeping that way: one that is canceled or hangs for minutes blocks nothing.

    Args:
        failures: how many in a row open it; 10 by default.
        cool_down: seconds between probes; 5 by default.
        clock: monotonic seconds; for tests.
    """

    __slots__ = ("_clock", "_failed", "_opened_until", "cool_down", "failures", "last_failure")

    def __init__(
        self, failures: int = 10, cool_down: float = 5.0, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.failures = failures
        self.cool_down = cool_down
        self.last_failure = ""
        self._clock = clock
        self._failed = 0
        self._opened_until: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether calls are held back at the moment, apart from probes."""
        return self._opened_until is not None

    def acquire(self) -> float:
        """Ask to make a call: 0 when it may be made, else the seconds until the next probe."""
        if self._opened_until is None:
            return 0.0
        now = self._clock()
        if now < self._opened_until:
            return self._opened_until - now
        self._opened_until = now + self.cool_down
        return 0.0

    def succeeded(self) -> None:
        self._failed = 0
        self._opened_until = None

    def failed(self, message: str) -> None:
        self._failed += 1
        self.last_failure = message
        if self._failed >= self.failures:
            self._opened_until = self._clock() + self.cool_down
