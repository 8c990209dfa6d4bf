"""The whole simulation: a NATS server, an upstream, the workers, the load, and those who scale, kill and look on."""

import asyncio
import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from handler_core import streams
from handler_core.config import NatsSettings
from handler_core.connection import Connection, connect
from handler_core.jetstream import Api
from handler_core.testing import until
from handlers_cli.monitor import Monitor, new_session
from handlers_cli.session import Unreachable
from tools.k8s.scaling import SCALINGS, SYNC_PERIOD, Scaling
from tools.scale_sim.autoscaler import Hpa, Keda
from tools.scale_sim.load import Load, Phase
from tools.scale_sim.pods import Deployment, PodEvent, clock_from_now
from tools.scale_sim.processes import Nats, nats_server, upstream
from tools.scale_sim.truth import Counts, Truth, count, read

SERVICE = "chat_handler"
DECLARED_SLOTS = 32
"""`MAX_IN_FLIGHT` of the service unless set otherwise, for which the declared threshold is meant."""
CONNECT_TIMEOUT = 10.0
SAMPLE_PERIOD = 0.2
PROGRESS_PERIOD = 2.0


@dataclass(frozen=True)
class Plan:
    """What to simulate."""

    phases: tuple[Phase, ...]
    pace: float = 20.0
    """By how much KEDA's and the HPA's periods are shortened; workers, turns and load are real, and keep their time."""
    max_replicas: int = 6
    slots: int = 4
    """`MAX_IN_FLIGHT` of a worker; the declared threshold is scaled down in proportion."""
    answer_seconds: tuple[float, float] = (0.5, 2.0)
    kills: int = 1
    """Workers that are killed in the middle of the first burst."""
    scale_to_zero: bool = False
    settle: float = 20.0
    """Seconds after the load in which the last answers may come."""
    seed: int = 1

    @property
    def scaling(self) -> Scaling:
        """What is declared for the service, for workers of `slots` and this machine."""
        declared = next(scaling for scaling in SCALINGS if scaling.service == SERVICE)
        least = 0 if self.scale_to_zero else max(1, min(declared.min_replicas, self.max_replicas))
        return dataclasses.replace(
            declared,
            lag_threshold=max(declared.activation_lag + 1, declared.lag_threshold * self.slots // DECLARED_SLOTS),
            min_replicas=least,
            max_replicas=self.max_replicas,
            fallback_replicas=max(1, least),
        )


@dataclass(frozen=True)
class Sample:
    """What there was at a moment."""

    time: float
    phase: str
    waiting: int
    in_progress: int
    desired: int
    current: int
    ready: int
    published: int
    answered: int

    @property
    def lag(self) -> int:
        return self.waiting + self.in_progress


@dataclass
class Run:
    """What came of a simulation."""

    plan: Plan
    asked: dict[str, float] = field(default_factory=dict)
    begins: list[float] = field(default_factory=list)
    """When each phase began; fewer than there are if the run was interrupted."""
    samples: list[Sample] = field(default_factory=list)
    pods: list[PodEvent] = field(default_factory=list)
    truth: Truth = field(default_factory=Truth)
    counts: Counts = field(default_factory=Counts)
    interrupted: bool = False
    elapsed: float = 0.0


class Interrupted(Exception):
    """Somebody wants it to stop."""


class Simulation:
    """One run; `go` may be called once.

    Args:
        stop: set to break off; what was counted so far is still given.
        logs: the folder for the logs of all processes.
    """

    def __init__(self, plan: Plan, stop: asyncio.Event, logs: Path) -> None:
        self.run = Run(plan)
        self._plan = plan
        self._stop = stop
        self._logs = logs
        self._scaling = plan.scaling
        self._clock: Callable[[], float] = clock_from_now()

    async def go(self) -> Run:
        """Simulate.

        Raises:
            SimulationError: a process did not start, or workers end by themselves.
            AssertionError: no worker became ready, or none could be killed in the middle of a turn.
            JetStreamError, HandlerError: the server refused, or does not answer.
        """
        with tempfile.TemporaryDirectory(prefix="scale-sim-", ignore_cleanup_errors=True) as folder:
            async with (
                nats_server(Path(folder)) as nats,
                upstream(self._logs, self._plan.answer_seconds) as models,
                _connected(nats) as nc,
                new_session() as session,
            ):
                await streams.apply(Api(nc))
                self._monitor = Monitor(session, nats.monitor, "$G")
                environment = {
                    "NATS_URL": nats.url,
                    "LLM_URL": models,
                    "MAX_IN_FLIGHT": str(self._plan.slots),
                    "SERVE_ENDPOINTS": str(not self._plan.scale_to_zero).lower(),
                }
                with Deployment(SERVICE, environment, self._logs, self._now) as deployment:
                    await self._act(nc, deployment)
        return self.run

    def _now(self) -> float:
        return self._clock()

    async def _act(self, nc: Connection, deployment: Deployment) -> None:
        load = Load(nc, self._plan.phases, self._now, seed=self._plan.seed)
        run, deployment.replicas = self.run, self._scaling.min_replicas
        run.asked, run.begins, run.pods = load.asked, load.begins, deployment.events
        async with load.listening():
            try:
                await self._play(load, deployment)
            except* Interrupted:
                run.interrupted = True
                deployment.kill_all()
            run.elapsed = self._now()
            run.truth = await read(nc)
            run.counts = count(run.asked, run.truth, load.seen)

    async def _play(self, load: Load, deployment: Deployment) -> None:
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(self._until_stopped())
            pods = tasks.create_task(deployment.run())
            await self._ready(deployment)
            self._clock = clock_from_now()
            beside = [self._keda(deployment), self._hpa(deployment), self._look_on(load, deployment)]
            running = [tasks.create_task(work) for work in (*beside, self._lose_pods(deployment))]
            await load.run()
            with contextlib.suppress(TimeoutError, AssertionError):  # the counts will tell what is missing
                async with asyncio.timeout(self._plan.settle):
                    await load.all_answered()
                    await self._queue_empty()
            for task in (*running, pods):
                task.cancel()
            await asyncio.wait((*running, pods))
            await deployment.end()
            watch.cancel()

    async def _until_stopped(self) -> None:
        await self._stop.wait()
        raise Interrupted

    async def _ready(self, deployment: Deployment) -> None:
        """The replicas that there are before anything happens."""
        await until(lambda: deployment.ready >= self._scaling.min_replicas, "the first worker is ready")

    async def _queue_empty(self) -> None:
        async def empty() -> bool:
            return await self._lag() == 0

        await until(empty, "the queue is empty", timeout=self._plan.settle)

    # -- those who scale

    async def _lag(self) -> int | None:
        """Messages waiting and in progress, as KEDA reads them; None while it could not."""
        lag = await self._monitor.lags([self._scaling.consumer])
        return None if lag[0].error else lag[0].lag

    async def _scale(self, deployment: Deployment, period: float, decide: Callable[[float, int, int], int]) -> None:
        """Decide every `period` of the cluster's seconds, of which `pace` are one of ours."""
        while True:
            with contextlib.suppress(Unreachable):
                if (lag := await self._lag()) is not None:
                    deployment.replicas = decide(self._now() * self._plan.pace, deployment.replicas, lag)
            await asyncio.sleep(period / self._plan.pace)

    async def _keda(self, deployment: Deployment) -> None:
        await self._scale(deployment, self._scaling.polling_interval, Keda(self._scaling, last_active=0.0).decide)

    async def _hpa(self, deployment: Deployment) -> None:
        await self._scale(deployment, SYNC_PERIOD, Hpa(self._scaling).decide)

    # -- those who disturb and look on

    async def _lose_pods(self, deployment: Deployment) -> None:
        """Kill workers at even distances in the first burst, each as soon as it is in the middle of a turn."""
        number = next((n for n, phase in enumerate(self._plan.phases) if phase.burst), None)
        if number is None:
            return
        begin = sum(phase.seconds for phase in self._plan.phases[:number])
        for kill in range(1, self._plan.kills + 1):
            due = begin + self._plan.phases[number].seconds * kill / (self._plan.kills + 1)
            await asyncio.sleep(due - self._now())
            await until(deployment.lose_one, "a worker is in the middle of a turn, to be killed")

    async def _look_on(self, load: Load, deployment: Deployment) -> None:
        told = -PROGRESS_PERIOD
        while True:
            with contextlib.suppress(Unreachable):
                [lag] = await self._monitor.lags([self._scaling.consumer])
                sample = Sample(
                    self._now(), load.phase, lag.waiting, lag.in_progress, deployment.replicas,
                    len(deployment.current), deployment.ready, len(load.asked), load.answered,
                )  # fmt: skip
                self.run.samples.append(sample)
                if sample.time - told >= PROGRESS_PERIOD:
                    told = sample.time
                    _progress(sample)
            await asyncio.sleep(SAMPLE_PERIOD)


@contextlib.asynccontextmanager
async def _connected(nats: Nats) -> AsyncIterator[Connection]:
    async with asyncio.timeout(CONNECT_TIMEOUT):
        nc = await connect(NatsSettings(nats_url=nats.url), "scale-sim")
    try:
        yield nc
    finally:
        await nc.close()


def _progress(sample: Sample) -> None:
    print(
        f"{sample.time:6.1f} s  {sample.phase:<12}  lag {sample.lag:3} ({sample.waiting} waiting)"
        f"  replicas {sample.desired} desired, {sample.ready} ready  answered {sample.answered}/{sample.published}",
        file=sys.stderr,
        flush=True,
    )
