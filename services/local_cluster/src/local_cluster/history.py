"""What changed of one resource, as far back as it is remembered, and places in it from which watches go on."""

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from local_cluster.status import StatusError, too_old

Object = Mapping[str, Any]
"""A resource as it stands in the store. It is shared: never change it, but make another."""


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one object."""

    type: Literal["ADDED", "MODIFIED", "DELETED"]
    version: int
    object: Object
    """As it is from then on; where it was deleted, as it was last, with the version of the deletion."""
    previous: Object | None
    """As it was before; None where it was added."""


class History:
    """The latest changes of one resource.

    Args:
        size: how many changes are remembered at least; twice as many at most.
        version: of the store when this begins.
    """

    def __init__(self, size: int, version: int) -> None:
        self._size = size
        self._events: list[Event] = []
        self._dropped = version
        """The latest change that is no longer remembered; an open watch that has seen it misses nothing."""
        self.forgotten = version
        """Nothing begins from before this version any more."""
        self.news = asyncio.Event()
        """Set when something happens, and another one is put in its place."""
        self.interruptions = 0
        self.interruption: StatusError | None = None
        """What ended the watches that were open when it was last said."""

    def append(self, event: Event) -> None:
        """Remember a change, and wake the watches."""
        self._events.append(event)
        if len(self._events) > 2 * self._size:
            self._forget(self._events[-self._size - 1].version)
        self._wake()

    def since(self, version: int) -> list[Event]:
        """What changed after a version.

        Raises:
            StatusError: 410 if that is not remembered.
        """
        if version < self._dropped:
            raise too_old(version, self.forgotten)
        return self._events[self._after(version) :]

    def compact(self, version: int) -> None:
        """Forget everything up to the store's present version."""
        self._forget(version)

    def interrupt(self, error: StatusError) -> None:
        """End the watches that are open now."""
        self.interruptions += 1
        self.interruption = error
        self._wake()

    def _forget(self, version: int) -> None:
        if count := self._after(version):
            self._dropped = self._events[count - 1].version
            del self._events[:count]
        self.forgotten = version

    def _after(self, version: int) -> int:
        return bisect_right(self._events, version, key=lambda event: event.version)

    def _wake(self) -> None:
        news, self.news = self.news, asyncio.Event()
        news.set()


class Watch:
    """A place in a resource's history. It holds no changes itself, so that a slow watcher costs no memory: it falls
    behind until what it needs is forgotten.

    Args:
        since: the version whose changes are known.
        present: tells the store's version.
    """

    def __init__(self, history: History, since: int, present: Callable[[], int]) -> None:
        self._history = history
        self._present = present
        self._interruptions = history.interruptions
        self.version = since
        """Every change up to this one was given out."""

    async def next(self, timeout: float | None = None) -> list[Event]:
        """The changes that come next, as soon as there are any.

        Args:
            timeout: seconds after which there may be none; None waits for ever.

        Raises:
            StatusError: 410 if they were forgotten, or what the watches were interrupted with.
        """
        try:
            async with asyncio.timeout(timeout):
                while not (events := self._look()):
                    await self._history.news.wait()
        except TimeoutError:
            events = self._look()
        return events

    def _look(self) -> list[Event]:
        history = self._history
        if history.interruption is not None and history.interruptions != self._interruptions:
            raise history.interruption
        events = history.since(self.version)
        self.version = events[-1].version if events else self._present()
        return events
