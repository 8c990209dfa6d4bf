"""A Deployment of local processes: as many workers as it is told, each started, probed, stopped and replaced."""

import asyncio
import math
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from handler_core.testing import free_port
from handler_core.testing_workers import Worker
from tools.scale_sim.processes import SimulationError, end_of, kill, launch

TERMINATION_GRACE = 35.0
"""Seconds from SIGTERM to SIGKILL, as the manifests have it: the handlers' drain limit and ten more."""
MAX_CRASHES = 3
"""Workers that may end unasked before the simulation gives up."""
_TICK = 0.05

Happening = Literal["started", "ready", "stopped", "killed", "ended", "crashed"]


@dataclass(frozen=True)
class PodEvent:
    """Something that happened to a pod."""

    time: float
    pod: int
    what: Happening
    running_turns: int = 0
    """When it was stopped or killed: the turns that it was answering."""


@dataclass
class Pod:
    """One worker."""

    number: int
    worker: Worker
    log: Path
    started: float
    ready: float | None = None
    stopped: float | None = None
    killed: bool = False


@dataclass
class Deployment:
    """Keeps `replicas` workers, as a Deployment's controllers do. On leaving it every process has ended.

    Args:
        module: the service's package.
        environment: added to each worker's.
        logs: the folder that gets a log of each.
        clock: seconds since the simulation began.
    """

    module: str
    environment: Mapping[str, str]
    logs: Path
    clock: Callable[[], float]
    replicas: int = 0
    """How many are wanted; whoever scales sets it."""
    events: list[PodEvent] = field(default_factory=list)
    pods: list[Pod] = field(default_factory=list)
    """Those whose process has not ended."""

    def __enter__(self) -> "Deployment":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_all()

    def kill_all(self) -> None:
        for pod in self.pods:
            kill(pod.worker.process)
        self.pods.clear()

    @property
    def current(self) -> list[Pod]:
        """Those that count as replicas: not stopped, ready or not."""
        return [pod for pod in self.pods if pod.stopped is None]

    @property
    def ready(self) -> int:
        return sum(pod.ready is not None for pod in self.current)

    def count(self, what: Happening) -> int:
        return sum(event.what == what for event in self.events)

    async def run(self) -> None:
        """Bring what there is to what is wanted, for ever.

        Raises:
            SimulationError: workers end by themselves, time and again.
        """
        while True:
            await self._look()
            current = self.current
            if len(current) < self.replicas:
                self._start()
            elif len(current) > self.replicas:
                await self._stop(self._surplus(current))
            else:
                await asyncio.sleep(_TICK)

    async def end(self) -> None:
        """Stop all, and wait until the last has ended."""
        self.replicas = 0
        while self.pods:
            await self._look()
            for pod in self.current:
                await self._stop(pod)
            await asyncio.sleep(_TICK)

    async def lose_one(self) -> bool:
        """Kill the ready worker that answers most turns, as the loss of its node would; whether there was one."""
        ready = [pod for pod in self.current if pod.ready is not None]
        turns = [(await self._turns(pod), -pod.number, pod) for pod in ready]
        if not turns or max(turns)[0] == 0:
            return False
        running, _, pod = max(turns)
        pod.killed = True
        pod.worker.process.send_signal(signal.SIGKILL)
        self._note(pod, "killed", running)
        return True

    # -- one pod

    def _start(self) -> None:
        number, port = self.count("started") + 1, free_port()
        log = self.logs / f"{self.module}-{number}.log"
        own = {"LOG_FORMAT": "json", "HEALTH_HOST": "127.0.0.1", "HEALTH_PORT": str(port)}
        process = launch([sys.executable, "-m", self.module], log, {**own, **self.environment})
        pod = Pod(number, Worker(process, port), log, self.clock())
        self.pods.append(pod)
        self._note(pod, "started")

    @staticmethod
    def _surplus(current: list[Pod]) -> Pod:
        """Which goes first, of those that a ReplicaSet would rank last: one that is not ready, then the youngest."""
        return max(current, key=lambda pod: (pod.ready is None, pod.ready or math.inf, pod.number))

    async def _stop(self, pod: Pod) -> None:
        turns = await self._turns(pod)
        pod.stopped = self.clock()
        pod.worker.process.terminate()
        self._note(pod, "stopped", turns)

    async def _turns(self, pod: Pod) -> int:
        return await pod.worker.metric("handler_in_flight") if pod.ready is not None else 0

    async def _look(self) -> None:
        """Take note of who is ready by now, and of who has ended."""
        for pod in list(self.pods):
            code = pod.worker.process.poll()
            if code is not None:
                self.pods.remove(pod)
                self._ended(pod, code)
            elif pod.ready is None and await pod.worker.ready():
                pod.ready = self.clock()
                self._note(pod, "ready")
            elif pod.stopped is not None and self.clock() - pod.stopped > TERMINATION_GRACE:
                pod.worker.process.kill()

    def _ended(self, pod: Pod, code: int) -> None:
        if pod.killed:
            return
        # One that is stopped before it can be ready may not have reached the point from which it ends in order.
        early = pod.ready is None and code == -signal.SIGTERM
        if pod.stopped is not None and (code == 0 or early):
            self._note(pod, "ended")
            return
        self._note(pod, "crashed")
        if self.count("crashed") >= MAX_CRASHES:
            raise SimulationError(f"{self.module} ends by itself, with {code}:\n{end_of(pod.log)}")

    def _note(self, pod: Pod, what: Happening, running_turns: int = 0) -> None:
        self.events.append(PodEvent(self.clock(), pod.number, what, running_turns))


def clock_from_now() -> Callable[[], float]:
    """A clock that says 0 now."""
    began = time.monotonic()
    return lambda: time.monotonic() - began
