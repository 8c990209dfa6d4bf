"""A subscription in a queue group that is left and taken again without waiting, whatever the connection does meanwhile.

It leans on nats-py 2.16's private parts, as `connection` does. One subscription id serves for good: the server forgets
it with UNSUB and knows it again with SUB, and acts on both in the order in which they were sent.
"""

import contextlib

import nats.errors
from nats.aio.subscription import Subscription

from handler_core.connection import Connection
from handler_core.parser import Sink


class QueueGroup:
    """This process's place in a subject's queue group.

    Args:
        subject: may hold wildcards.
        queue: the group's name; each message goes to one of its members.
        sink: called for each message, also for one that was on its way when the group was left.
    """

    def __init__(self, nc: Connection, subject: str, queue: str, sink: Sink) -> None:
        self._nc = nc
        nc._sid += 1
        self._subscription = Subscription(nc, nc._sid, subject, queue=queue)
        self._sid = nc._sid
        self._unsubscribe = b"UNSUB %d\r\n" % self._sid
        self._subscribe = b"SUB %b %b %d\r\n" % (subject.encode(), queue.encode(), self._sid)
        nc._ps.sinks[self._sid] = sink
        nc.on_reconnect.append(self._assert)

    @property
    def joined(self) -> bool:
        """Whether messages are asked for."""
        return self._sid in self._nc._subs

    def join(self) -> None:
        """Ask for messages; while disconnected, from the reconnect on."""
        if not self.joined:
            self._nc._subs[self._sid] = self._subscription  # which a reconnect replays
            self._assert()

    def leave(self) -> None:
        """Ask for no more; those that the server has sent already still come."""
        if self.joined:
            del self._nc._subs[self._sid]
            self._assert()

    def close(self) -> None:
        """Leave for good: nothing comes any more, not even what is on its way."""
        self.leave()
        self._nc._ps.sinks.pop(self._sid, None)
        self._nc.on_reconnect.remove(self._assert)

    def _assert(self) -> None:
        # Also after each reconnect, which may have been under way when it was left or joined, and which sends what had
        # waited from before: whatever that was, the server's last word is this. It ignores what it knows already.
        if self._nc.is_connected:
            with contextlib.suppress(nats.errors.ConnectionClosedError):
                self._nc._write(self._subscribe if self.joined else self._unsubscribe)
