"""How much a worker takes on, and for how long."""

import random
from dataclasses import dataclass

RETRY_AFTER_MAX = 3600.0
"""Seconds; an upstream that asks for more is tried again all the same."""


@dataclass(frozen=True)
class Limits:
    """How much a worker takes on, and for how long."""

    max_in_flight: int = 64
    """Handlers running at once."""
    max_per_user: int = 0
    """Turns of one user at once, in this worker; 0 for no limit. Turns that name no user are not limited."""
    prefetch: int = 0
    """Messages buffered beyond those; 0 for slow work, large for light work."""
    handler_timeout: float = 300.0
    """Seconds after which a handler is taken to hang: it is cancelled and its message retried."""
    hands_over: bool = False
    """Whether a worker that stops cancels its handlers and hands their messages back at once, because another worker
    goes on where they broke off; otherwise they are finished first."""
    max_deliveries: int = 10
    """Attempts; a message that arrives once more is dead-lettered before its handler runs."""
    retry_base: float = 1.0
    """Seconds; the delay before attempt n + 1 is drawn from the upper half of `retry_base` * 2 ** (n - 1)."""
    retry_max: float = 60.0
    """Seconds; the longest delay."""
    expires: float = 30.0
    """Seconds that one pull request stays at the server."""
    idle_heartbeat: float = 5.0
    """Seconds; after twice this without a sign of life from the server, messages are pulled anew."""

    def retry_delay(self, attempt: int, retry_after: float | None = None) -> float:
        """Seconds until a failed message comes back: exponential with jitter, no less than the upstream asked for
        (`RETRY_AFTER_MAX` at most)."""
        spread = 1 + random.random()
        return max(self._half_ceiling(attempt) * spread, min(retry_after or 0.0, RETRY_AFTER_MAX))

    def soonest_retry(self, attempt: int, retry_after: float | None = None) -> float:
        """Seconds that `retry_delay` takes at least."""
        return max(self._half_ceiling(attempt), min(retry_after or 0.0, RETRY_AFTER_MAX))

    def _half_ceiling(self, attempt: int) -> float:
        return min(self.retry_max, self.retry_base * 2.0 ** min(attempt - 1, 30)) / 2
