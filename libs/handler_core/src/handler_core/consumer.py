"""The loop under every handler: pulling on one side, workers on the other, and how both begin and end.

Guarantees: a message is acknowledged after its handler returned, is kept from redelivery by in-progress while it runs
or waits here, and is either acknowledged, handed back or dead-lettered; never forgotten. When the process dies, the
server redelivers after `ack_wait`.
"""

import asyncio
import contextlib

from handler_core.connection import Connection
from handler_core.limits import Limits
from handler_core.pull import Puller
from handler_core.streams import Consumer
from handler_core.telemetry import Metrics
from handler_core.workers import Counts, Process, Refuse, Workers


class PullConsumer:
    """Pulls from one declared consumer and runs its processor; see the module's text.

    Args:
        nc: a connection; the consumer adds itself to its `on_reconnect`.
        config: the declaration, which the server's consumer has to match.
        process: called for each message.
        refuse: called before a message is dead-lettered.
        limits: concurrency, timeouts and retries.
        metrics: where to count.
    """

    def __init__(
        self,
        nc: Connection,
        config: Consumer,
        process: Process,
        limits: Limits | None = None,
        *,
        refuse: Refuse | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.config = config
        self.limits = limits or Limits()
        metrics = metrics or Metrics()
        labels = {"stream": config.stream, "consumer": config.name}
        restarts = ("handler_pull_restarts_total", "Times that pulling was set up anew.")
        self._nc = nc
        self._workers = Workers(
            nc,
            self.name,
            process,
            self.limits,
            Counts(metrics, config.stream, config.name),
            refuse=refuse,
            broke=self.stop,
        )
        self._puller = Puller(
            nc,
            config,
            self.limits,
            free=self._workers.room,
            receive=self._workers.accept,
            restarts=metrics.counter(*restarts, **labels),
        )
        self._workers.freed = self._puller.pull
        metrics.gauge("handler_in_flight", "Handlers running.", lambda: self.in_flight, **labels)
        metrics.gauge("handler_buffered", "Messages waiting in this worker.", lambda: self.buffered, **labels)

    @property
    def name(self) -> str:
        return f"{self.config.stream}/{self.config.name}"

    @property
    def bound(self) -> bool:
        """Whether the server's consumer exists and fits, and messages are being pulled."""
        return self._puller.bound

    @property
    def problem(self) -> str:
        """Why it is not bound, or in what the server's consumer differs; empty when all is well."""
        return self._puller.problem

    @property
    def in_flight(self) -> int:
        """Handlers running now."""
        return len(self._workers.running)

    @property
    def buffered(self) -> int:
        """Messages received whose handler has not started."""
        return len(self._workers.buffer)

    async def run(self) -> None:
        """Pull and process until `stop` is called, then finish what runs; cancel it to end at once."""
        self._nc.on_reconnect.append(self._reconnected)
        try:
            async with asyncio.TaskGroup() as tasks:
                self._workers.start(tasks)
                keepers = [tasks.create_task(self._keep_alive()), tasks.create_task(self._workers.watch_handlers())]
                try:
                    await self._puller.run()
                    await self._workers.finish()
                finally:
                    self.stop()  # when cancelled: before the workers are, so that no more work is begun
                for task in keepers:
                    task.cancel()
        finally:
            self._nc.on_reconnect.remove(self._reconnected)
            await self._puller.close()

    def stop(self) -> None:
        """Pull no more; buffered messages go back, running handlers finish, then `run` returns."""
        self._puller.stop()
        self._workers.stop()

    def _reconnected(self) -> None:
        self._workers.report_progress()
        self._puller.restart("reconnected")

    async def _keep_alive(self) -> None:
        """Report progress every third of `ack_wait`."""
        changed = self._puller.ack_wait_changed
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), self._puller.ack_wait / 3)
            changed.clear()
            self._workers.report_progress()
