"""Kubeflow Pipelines: a run is found by its display name, and looked at every few seconds."""

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import structlog

from handler_core.clients.failures import UpstreamError
from handler_core.contract.pipeline import RunStatus
from handler_core.errors import HandlerError
from handler_core.limits import Limits
from pipeline_bridge.api import Api
from pipeline_bridge.attempts import passing
from pipeline_bridge.engine import Changes, Followed, Observed, Run
from pipeline_bridge.kubeflow_api import PAGE, KubeflowApi, Object
from pipeline_bridge.states import of_run

log = structlog.get_logger("pipeline_bridge.kubeflow")

_FEW: Final = 10
"""Up to this many runs are asked for one by one; more of them by lists."""


class Kubeflow:
    """Runs on Kubeflow Pipelines; `Run.reference` is `{"pipeline": …, "version": …, "experiment": …}`, ids or names.

    Args:
        poll_interval: seconds between two looks at the runs that are followed.
        settle: seconds between creating a run and looking for others of its name. Creation times are whole seconds:
            past this one, whatever another bridge creates is younger, and all agree on which run stays.
    """

    def __init__(self, api: Api, *, poll_interval: float = 5.0, settle: float = 1.0) -> None:
        self._api = KubeflowApi(api)
        self._name = api.name
        self._poll_interval = poll_interval
        self._settle = settle
        self._backoff = Limits(retry_base=poll_interval, retry_max=max(60.0, poll_interval))
        self._places: dict[str, Followed] = {}
        self._fresh: dict[str, set[str]] = {}
        self._arrived = asyncio.Event()
        self._stopping: set[str] = set()

    async def submit(self, run: Run) -> Observed:
        """Start the run, or find the one that an earlier attempt started.

        Of several of one name the oldest stays, and the others are terminated.

        Raises:
            NotFound: there is no such pipeline, version or experiment.
            InvalidRequest: a parameter cannot be handed on.
            UpstreamError: as the server says. After one that is retryable there may be a run: the next call finds it.
        """
        if found := await self._api.named(run):
            return await self._only(run, found)
        created = await self._api.create(run)
        await asyncio.sleep(self._settle)
        try:
            return await self._only(run, await self._api.named(run) or [created])
        except UpstreamError as error:  # whatever is refused here, the run was not
            raise passing(error) from None

    async def describe(self, run: Run, run_id: str = "") -> Observed | None:
        """The run as it is now; None when there is none. Of several of one name the oldest stays, as with `submit`."""
        if not run_id:
            found = await self._api.named(run)
            return await self._only(run, found) if found else None
        return await self._get(run.namespace, run_id)

    @contextmanager
    def follow(self, run: Run, run_id: str) -> Iterator[Changes]:
        """Every change of the run's state, the present one first."""
        place = self._places.setdefault(run.namespace, Followed())
        try:
            with place.following(run_id) as changes:
                self._fresh.setdefault(run.namespace, set()).add(run_id)
                self._arrived.set()
                yield changes
        finally:
            self._forget(run.namespace, run_id)

    async def cancel(self, run: Run, run_id: str, reason: str) -> None:
        """Terminate the run, unless it has ended, is gone, or is being stopped."""
        await self._terminate(run.namespace, run_id)

    async def stop_others(self, run: Run, run_id: str, reason: str) -> None:
        """Terminate the runs of the request's name, but for the one that is known."""
        others = [each for each in await self._api.named(run) if each["run_id"] != run_id]
        await self._terminate_all(run, others, run_id)

    async def serve(self) -> None:
        """Look at what is followed, again and again until cancelled: new ones at once, all at each interval."""
        failures = 0
        due = time.monotonic() + self._poll_interval
        while True:
            fresh = await self._wait(due)
            if time.monotonic() >= due:
                due = time.monotonic() + self._poll_interval
                fresh = {namespace: set(place) for namespace, place in self._places.items()}
            try:
                await self._look(fresh)
                failures = 0
            except HandlerError as error:
                failures += 1
                delay = self._backoff.retry_delay(failures, error.retry_after)
                log.warning("kubeflow_poll_failed", error=error.message, failures=failures, delay=round(delay, 3))
                await asyncio.sleep(delay)
                due = time.monotonic()

    async def _only(self, run: Run, found: Sequence[Object]) -> Observed:
        """The oldest of a request's runs, once the others are on their way to their end."""
        kept, *others = found
        await self._terminate_all(run, others, kept["run_id"])
        return of_run(kept)

    async def _terminate_all(self, run: Run, others: Iterable[Object], kept: str) -> None:
        for other in others:
            if not _ending(of_run(other)):
                log.warning("kubeflow_run_repeated", kept=kept, terminated=other["run_id"])
                await self._terminate(run.namespace, other["run_id"])

    async def _terminate(self, namespace: str, run_id: str) -> None:
        now = await self._get(namespace, run_id)
        if now is None or _ending(now):
            return
        self._stopping.add(run_id)
        try:
            await self._api.terminate(run_id)
        except UpstreamError as error:
            if error.retryable:
                raise
            self._stopping.discard(run_id)
            if (now := await self._get(namespace, run_id)) is not None and not _ending(now):
                raise  # nor has it ended meanwhile, for which it is refused as well
        finally:
            self._forget(namespace, run_id)

    async def _wait(self, due: float) -> dict[str, set[str]]:
        """What has come to be followed, or nothing when all is due; it is never due while nothing is followed."""
        left = max(0.0, due - time.monotonic()) if any(len(place) for place in self._places.values()) else None
        try:
            async with asyncio.timeout(left):
                await self._arrived.wait()
        except TimeoutError:
            pass
        self._arrived.clear()
        fresh, self._fresh = self._fresh, {}
        return fresh

    async def _look(self, runs: dict[str, set[str]]) -> None:
        """Look at runs by namespace; all are tried, whichever fail.

        Raises:
            HandlerError: the failure that asks for the longest wait.
        """
        failed: list[HandlerError] = []
        for namespace, run_ids in runs.items():
            wanted = sorted(run_ids.intersection(self._places.get(namespace, ())))
            try:
                missing = await self._look_in_lists(namespace, wanted) if len(wanted) > _FEW else wanted
                for few in _batches(missing, _FEW):
                    await self._look_at_each(namespace, few)
            except HandlerError as error:
                failed.append(error)
        if failed:
            raise max(failed, key=lambda error: error.retry_after or 0.0)

    async def _look_in_lists(self, namespace: str, run_ids: Sequence[str]) -> list[str]:
        """Look at many with few calls; returns those that no list showed."""
        shown: set[str] = set()
        for some in _batches(run_ids, PAGE):
            try:
                found = await self._api.all_of(some, namespace)
            except UpstreamError as error:
                if error.status != 400:
                    raise
                break  # it knows no such lists
            shown.update(self._tell(namespace, run).run_id for run in found)
        return [run_id for run_id in run_ids if run_id not in shown]

    async def _look_at_each(self, namespace: str, run_ids: Iterable[str]) -> None:
        failed: list[HandlerError] = []

        async def look(run_id: str) -> None:
            try:
                if await self._get(namespace, run_id) is None:
                    self._places[namespace].gone(run_id, f"{self._name}: there is no run {run_id} any more")
            except HandlerError as error:
                failed.append(error)

        async with asyncio.TaskGroup() as tasks:
            for run_id in run_ids:
                tasks.create_task(look(run_id))
        if failed:
            raise max(failed, key=lambda error: error.retry_after or 0.0)

    async def _get(self, namespace: str, run_id: str) -> Observed | None:
        """One run, told to its followers; None where there is none."""
        try:
            run = await self._api.get(run_id)
        except UpstreamError as error:
            if error.status != 404:
                raise
            # A proxy that lost its way says this of every path; a list that works says it of the run.
            if (found := await self._api.listed(run_id, namespace)) is None:
                return None
            run = found
        return self._tell(namespace, run)

    def _tell(self, namespace: str, run: Object) -> Observed:
        observed = of_run(run)
        if (place := self._places.get(namespace)) is None or observed.run_id not in place:
            return observed
        if observed.raw == "CANCELING":
            self._stopping.add(observed.run_id)
        elif observed.raw == "FAILED" and observed.run_id in self._stopping:
            # Servers over Argo end like this what they were told to terminate.
            observed = replace(observed, status=RunStatus.CANCELED)
        place.push(observed)
        return observed

    def _forget(self, namespace: str, run_id: str) -> None:
        if run_id not in self._places.get(namespace, ()):
            self._stopping.discard(run_id)


def _ending(observed: Observed) -> bool:
    return observed.status.final or observed.raw == "CANCELING"


def _batches(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
