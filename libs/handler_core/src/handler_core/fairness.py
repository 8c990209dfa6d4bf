"""Fairness: one user's many turns leave room for everybody else's."""

import contextlib
import time
from collections.abc import Iterator

from handler_core.errors import Busy, Refused

WAITING = 4
"""Turns of a user that may wait for each that may run."""
WAITING_IN_ALL = 64
"""Turns of all users together that may wait: each takes room of the consumer's `max_ack_pending`."""
RETRY_AFTER = 1.0
"""Seconds until room is likely."""
RETRY_MAX = 5.0
"""Seconds; a turn that waits for room comes back this often at least."""
SPARED = 3
"""Deliveries that waiting leaves to what comes after it: a turn may still fail, and be tried again."""
SWEEP_EVERY = 60.0


class _User:
    __slots__ = ("running", "waiting")

    def __init__(self) -> None:
        self.running = 0
        self.waiting: dict[str, float] = {}
        """Until when each turn that was put off is expected back, by its message's identity."""


class Fairness:
    """Counts the turns of each user in this worker.

    A turn past the limit goes back to its queue for a while, but only so many of a user: a message that waits there
    still takes room of the consumer's `max_ack_pending`, which all users share. Any further one is refused.
    """

    def __init__(self) -> None:
        self._users: dict[str, _User] = {}
        self._swept = time.monotonic()

    @contextlib.contextmanager
    def turn(self, user: str | None, limit: int, identity: str, wait: float | None) -> Iterator[None]:
        """Count a turn for the length of a block.

        Args:
            limit: turns of a user at once; 0 for no limit.
            identity: the message's.
            wait: seconds after which it would come back at the latest; None for one that cannot wait.

        Raises:
            Busy: the user has `limit` turns running, and this one may wait.
            Refused: it may not.
        """
        if user is None or not limit:
            yield
            return
        now = time.monotonic()
        if now - self._swept > SWEEP_EVERY:
            self._sweep(now)
        state = self._users.setdefault(user, _User())
        state.waiting = {name: until for name, until in state.waiting.items() if until > now and name != identity}
        if state.running >= limit:
            text = f"{limit} turns of this user are being answered"
            if wait is None or len(state.waiting) >= WAITING * limit or self._waiting(now) >= WAITING_IN_ALL:
                raise Refused(text, retry_after=RETRY_AFTER)
            state.waiting[identity] = now + wait
            raise Busy(text, retry_after=RETRY_AFTER)
        state.running += 1
        try:
            yield
        finally:
            state.running -= 1
            if not state.running and not state.waiting:
                self._users.pop(user, None)

    def _waiting(self, now: float) -> int:
        """Turns of all users that wait."""
        return sum(until > now for state in self._users.values() for until in state.waiting.values())

    def _sweep(self, now: float) -> None:
        """Forget users whose waiting turns have come back elsewhere."""
        self._swept = now
        for user, state in list(self._users.items()):
            if not state.running and all(until <= now for until in state.waiting.values()):
                del self._users[user]
