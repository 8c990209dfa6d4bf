"""What moves the runs: the clock, or whoever holds them in their states."""

import asyncio
import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

OUTCOME_ANNOTATION = "local-cluster/outcome"
SECONDS_ANNOTATION = "local-cluster/running-seconds"


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a run stays in its states, in seconds."""

    pending: float = 1.0
    running: float = 3.0


@dataclass(frozen=True, slots=True)
class Step:
    """What becomes of a run next, if nothing happens before."""

    after: float
    """Seconds from when the run came into its present state."""
    take: Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Hold:
    stops: bool


class Steered(ABC):
    """The runs of one engine, and when each goes on."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self._hold: _Hold | None = None
        self._holds: dict[str, _Hold | None] = {}
        self._entered: dict[str, tuple[str, float]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._awaited: list[tuple[str, str | None, asyncio.Future[dict[str, Any]]]] = []

    def hold(self, name: str | None = None, *, stops: bool = False) -> None:
        """From now on the clock does not move this run, or any run.

        Args:
            name: the run's; it need not exist yet.
            stops: it does not obey a request to stop either.
        """
        self._set_hold(name, _Hold(stops))

    def release(self, name: str | None = None) -> None:
        """Let the clock move this run, or all, again."""
        self._set_hold(name, None)

    @abstractmethod
    def advance(self, name: str, phase: str, message: str = "") -> None:
        """Put a run into a state now, held or not.

        Raises:
            KeyError: there is no such run.
        """

    async def until(self, name: str, phase: str | None = None) -> dict[str, Any]:
        """Wait until the run exists, or is in that state, or passes through it.

        Returns:
            a copy of the run as it was then.
        """
        present = self._find(name)
        if present is not None and _is(self._state(present), phase):
            return copy.deepcopy(dict(present))
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._awaited.append((name, phase, future))
        return await future

    @abstractmethod
    def _find(self, name: str) -> Mapping[str, Any] | None:
        """The run of that name."""

    @abstractmethod
    def _state(self, run: Mapping[str, Any]) -> str:
        """The run's state, as `until` and the clock know it."""

    @abstractmethod
    def _reconsider(self) -> None:
        """Look at every run, as what holds it may have changed."""

    @abstractmethod
    def _consider(self, key: str) -> None:
        """Look at one run, as its time may have come."""

    def _held(self, *names: str) -> bool:
        return self._hold_of(names) is not None

    def _obeys(self, *names: str) -> bool:
        hold = self._hold_of(names)
        return hold is None or not hold.stops

    def _hold_of(self, names: tuple[str, ...]) -> _Hold | None:
        return next((self._holds[name] for name in names if name in self._holds), self._hold)

    def _set_hold(self, name: str | None, hold: _Hold | None) -> None:
        if name is None:
            self._holds.clear()
            self._hold = hold
        else:
            self._holds[name] = hold
        self._reconsider()

    def _saw(self, run: Mapping[str, Any], *names: str) -> None:
        """Tell those who wait for this run in its present state."""
        state = self._state(run)
        for name, phase, future in list(self._awaited):
            if name in names and _is(state, phase) and not future.done():
                future.set_result(copy.deepcopy(dict(run)))
        self._awaited = [entry for entry in self._awaited if not entry[2].done()]

    def _schedule(self, key: str, state: str, step: Step | None) -> None:
        """Take the step when it is due, and never before the present call is over: every state is seen."""
        loop = asyncio.get_running_loop()
        known = self._entered.get(key)
        if known is None or known[0] != state:
            self._entered[key] = known = (state, loop.time())
        self._unschedule(key)
        if step is None:
            return
        due = known[1] + step.after
        if due > loop.time():
            self._timers[key] = loop.call_at(due, self._consider, key)
        else:
            self._timers[key] = loop.call_later(0, step.take)

    def _unschedule(self, key: str) -> None:
        if timer := self._timers.pop(key, None):
            timer.cancel()

    def _forget(self, key: str) -> None:
        self._unschedule(key)
        self._entered.pop(key, None)

    def _stop_clock(self) -> None:
        for key in list(self._timers):
            self._unschedule(key)


def outcome_of(
    outcomes: Mapping[str, str], parameters: Mapping[str, Any], annotations: Mapping[str, str]
) -> str | None:
    """The outcome that a run asks for, by its annotation or else its parameter `outcome`; None if it asks for none.

    Args:
        outcomes: the engine's own words, by the same in lower case.
    """
    wanted = annotations.get(OUTCOME_ANNOTATION) or parameters.get("outcome")
    return outcomes.get(wanted.lower()) if isinstance(wanted, str) else None


def seconds_of(default: float, parameters: Mapping[str, Any], annotations: Mapping[str, str]) -> float:
    """How long a run wants to run, by its annotation or else its parameter `running_seconds`; at most a day."""
    wanted = annotations.get(SECONDS_ANNOTATION) or parameters.get("running_seconds")
    try:
        seconds = float(wanted) if isinstance(wanted, int | float | str) else default
    except ValueError:
        return default
    return seconds if 0 <= seconds <= 86_400 else default


def _is(state: str, phase: str | None) -> bool:
    """A RayJob's state has two parts, of which the second need not be named."""
    return phase is None or phase in (state, state.partition("/")[0])
