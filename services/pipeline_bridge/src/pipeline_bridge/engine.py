"""What a pipeline engine is to the bridge: it submits a run, tells each change of its state, and stops it."""

import asyncio
import base64
import hashlib
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from handler_core.contract.base import Message
from handler_core.contract.pipeline import RunStatus

EngineName = Literal["argo", "kubeflow", "rayjob"]

MANAGED_BY = "app.kubernetes.io/managed-by"
"""Label of every resource made here; what is watched is selected by it."""
MANAGER = "pipeline-bridge"
PIPELINE_LABEL = "slim-handlers.dev/pipeline"
REQUEST_ANNOTATION = "slim-handlers.dev/request-id"
"""Annotation: a request id may have characters that a label must not begin or end with."""
TRACE_ANNOTATION = "slim-handlers.dev/traceparent"
CANCEL_ANNOTATION = "slim-handlers.dev/canceled"
"""Annotation of a run that is being stopped; its value says why."""


class Run(Message):
    """A run as it was decided on, stored before it is submitted: a later attempt does the same, whatever the catalogue
    says by then."""

    request_id: str
    pipeline: str
    engine: EngineName
    namespace: str = ""
    name: str
    """Of the resource; in Kubeflow the display name. It follows from the request id (`run_name`)."""
    reference: dict[str, Any]
    """What is run, in the engine's own terms; made by the catalogue."""
    parameters: dict[str, Any]
    """Validated, defaults filled in."""
    timeout: float
    """Seconds, from when the engine has taken the run."""
    user_id: str | None = None
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class Observed:
    """What an engine says of a run at one moment."""

    run_id: str
    status: RunStatus
    raw: str
    """The engine's own state."""
    message: str = ""


class RunGone(Exception):
    """The engine has no such run (any more), and nothing tells how it ended."""


class Engine(Protocol):
    """One engine, for all its runs.

    Failures are `HandlerError`s: retryable where the same call may succeed later, final where the engine refuses the
    run or the request itself.
    """

    async def submit(self, run: Run) -> Observed:
        """Create the run, or find the one that an earlier attempt created: there are never two of one request."""

    async def describe(self, run: Run, run_id: str = "") -> Observed | None:
        """The run as it is now, found by its name where its id is not known; None when there is none."""

    def follow(self, run: Run, run_id: str) -> AbstractContextManager["Changes"]:
        """Every change of the run's state from now on, the present one first; whatever disturbs the connection is
        mended below."""

    async def cancel(self, run: Run, run_id: str, reason: str) -> None:
        """Have the run stopped; one that has ended, or is gone, is left as it is. May be repeated."""

    async def stop_others(self, run: Run, run_id: str, reason: str) -> None:
        """Have whatever runs of the request there are besides this one stopped, all of them where it is empty.

        A submission that was cut off may take effect after another attempt has looked for its run."""

    async def serve(self) -> None:
        """Observe what is followed until cancelled."""


class Changes:
    """What is observed of one run, in order, each change once."""

    def __init__(self) -> None:
        self._waiting: deque[Observed | RunGone] = deque()
        self._last: Observed | None = None
        self._arrived = asyncio.Event()

    def push(self, observed: Observed) -> None:
        """Take in what was observed; nothing happens if that is known."""
        if observed != self._last:
            self._last = observed
            self._waiting.append(observed)
            self._arrived.set()

    def gone(self, why: str) -> None:
        """There is nothing more to observe."""
        self._waiting.append(RunGone(why))
        self._arrived.set()

    async def next(self) -> Observed:
        """The next change, once there is one.

        Raises:
            RunGone: there will be none.
        """
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        if isinstance(found := self._waiting[0], RunGone):
            raise found
        self._waiting.popleft()
        return found


class Followed:
    """The runs of one place that are followed, by the engine's name for each."""

    def __init__(self) -> None:
        self._changes: dict[str, list[Changes]] = {}
        self.any = asyncio.Event()
        """Set while there are some."""

    def __len__(self) -> int:
        return len(self._changes)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._changes

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._changes))

    def push(self, observed: Observed) -> None:
        """Tell whoever follows this run."""
        for changes in self._changes.get(observed.run_id, ()):
            changes.push(observed)

    def gone(self, run_id: str, why: str) -> None:
        """Tell whoever follows this run that there is no more to come."""
        for changes in self._changes.get(run_id, ()):
            changes.gone(why)

    @contextmanager
    def following(self, run_id: str) -> Iterator[Changes]:
        """The run's changes while the block lasts."""
        changes = Changes()
        self._changes.setdefault(run_id, []).append(changes)
        self.any.set()
        try:
            yield changes
        finally:
            followers = self._changes[run_id]
            followers.remove(changes)
            if not followers:
                del self._changes[run_id]
            if not self._changes:
                self.any.clear()


NAME_LENGTH = 47
"""What KubeRay allows a RayJob; it makes longer names of it."""


def run_name(pipeline: str, request_id: str) -> str:
    """The name of a request's run: the same for the same request, another for any other one.

    A DNS label (RFC 1035) of at most 47 characters: as much of the pipeline's name as fits, then 80 bits of the
    request id's SHA-256 in lower-case Base32. `pipeline` begins with a letter and has only a-z, 0-9 and `-`.
    """
    digest = base64.b32encode(hashlib.sha256(request_id.encode()).digest()[:10]).decode().lower()
    return f"{pipeline[: NAME_LENGTH - len(digest) - 1].rstrip('-')}-{digest}"
