"""Where a turn's time went."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from handler_core.contract.answer import Stage
from handler_core.errors import HandlerError


class Timings:
    """Milliseconds by stage, as they appear in a response's `timings`.

    >>> timings = Timings()
    >>> with timings.stage("embed"):
    ...     pass
    >>> list(timings.as_dict())
    ['embed_ms', 'total_ms']
    """

    __slots__ = ("_ms", "_stages", "_started")

    def __init__(self) -> None:
        self._ms: dict[str, float] = {}
        self._stages: list[tuple[str, float, float]] = []
        self._started = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block as `{name}_ms` (added up when entered again) and name the stage in errors that leave it."""
        started = time.perf_counter()
        try:
            yield
        except HandlerError as error:
            if error.stage is None:
                error.stage = name
            raise
        finally:
            self.record(name, time.perf_counter() - started)

    def record(self, name: str, seconds: float) -> None:
        """Add `seconds` to `{name}_ms`, which end now."""
        key = f"{name}_ms"
        self._ms[key] = self._ms.get(key, 0.0) + seconds * 1000
        self._stages.append((name, time.perf_counter() - self._started - seconds, seconds))

    def as_dict(self) -> dict[str, float]:
        """The stages so far, and `total_ms` since this object was made plus any recorded `queue_ms`."""
        total = (time.perf_counter() - self._started) * 1000 + self._ms.get("queue_ms", 0.0)
        return {**{name: round(ms, 3) for name, ms in self._ms.items()}, "total_ms": round(total, 3)}

    def stages(self) -> list[Stage]:
        """Each stage with its start, in milliseconds from the begin of `queue`, or of this object where none is
        recorded; in the order they ended."""
        queued = self._ms.get("queue_ms", 0.0)
        return [
            Stage(name=name, start_ms=round(max(0.0, queued + start * 1000), 3), ms=round(seconds * 1000, 3))
            for name, start, seconds in self._stages
        ]
