"""The catalogue: which pipelines there are, read from a file and read again whenever that changes.

An edit that is wrong changes nothing but `problem`: what was in force stays so.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from handler_core.contract.pipeline import PipelineInfo
from handler_core.errors import NotFound, Transient
from handler_core.telemetry import Metrics
from pipeline_bridge.definitions import Pipeline, pipelines
from pipeline_bridge.yaml_file import Document, Unreadable, read

log = structlog.get_logger("pipeline_bridge.catalogue")

_ATTEMPTS: Final = 3
"""Files that change while they are read are read again so often; then at the next look."""

Version = tuple[int, ...] | None
"""Differs when a file does; None when there is none."""


@dataclass
class _Reading:
    """What became of reading the files once."""

    versions: dict[Path, Version] = field(default_factory=dict)
    """Of every file that counts, from before it was read."""
    pipelines: dict[str, Pipeline] | None = None
    problem: str = ""
    again: bool = False
    """A file is there and cannot be read, which may pass without a trace in its version."""

    def is_old(self) -> bool:
        return any(_version(path) != version for path, version in self.versions.items())


class Catalogue:
    """The pipelines of a file.

    Args:
        path: a YAML file; manifests that it names stand beside it. Links are followed, so that a mounted ConfigMap,
            which Kubernetes changes by turning a link, is one.
        namespaces: by engine, for pipelines that name none.
        poll_interval: seconds between two looks at the files.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        namespaces: Mapping[str, str],
        metrics: Metrics | None = None,
        poll_interval: float = 1.0,
    ) -> None:
        self.problem = "the catalogue has not been read yet"
        """Why the newest edit is not in force, with the line and the key; empty when it is."""
        self._path = Path(path)
        self._namespaces = namespaces
        self._poll_interval = poll_interval
        self._reading: _Reading | None = None
        self._pipelines: dict[str, Pipeline] | None = None
        metrics = metrics or Metrics()
        metrics.gauge(
            "handler_catalogue_broken", "Whether the newest edit is not in force.", lambda: bool(self.problem) + 0
        )
        metrics.gauge("handler_catalogue_pipelines", "Pipelines in force.", lambda: len(self._pipelines or ()))

    @property
    def loaded(self) -> bool:
        """Whether there has been a catalogue without fault."""
        return self._pipelines is not None

    async def load(self) -> None:
        """Read the files if they have changed; what is wrong with them is told by `problem` and in the log."""
        before = self._reading
        reading = await asyncio.to_thread(self._read_if_changed, before)  # YAML takes its time, and disks do
        if reading is None:
            return
        self._reading = reading
        if reading.pipelines is None:
            if before is None or (before.versions, before.problem) != (reading.versions, reading.problem):
                log.error("catalogue_broken", problem=reading.problem, in_force=len(self._pipelines or ()))
        else:
            self._enforce(reading.pipelines)
        self.problem = reading.problem

    async def watch(self) -> None:
        """Look for changes until cancelled."""
        while True:
            await asyncio.sleep(self._poll_interval)
            await self.load()

    def names(self, user: str | None) -> list[str]:
        """What the user may trigger, sorted."""
        return sorted(name for name, pipeline in (self._pipelines or {}).items() if pipeline.allows(user))

    def pipelines(self, user: str | None) -> list[PipelineInfo]:
        """What the user may trigger, sorted by name."""
        return [self.find(name, user).info for name in self.names(user)]

    def find(self, name: str, user: str | None) -> Pipeline:
        """A pipeline by its name.

        Raises:
            NotFound: there is none that this user may trigger.
            Transient: there has been no catalogue without fault yet.
        """
        if self._pipelines is None:
            raise Transient("there is no catalogue of pipelines yet", stage="catalogue")
        pipeline = self._pipelines.get(name)
        if pipeline is None or not pipeline.allows(user):
            raise NotFound(f"pipeline: there is no {name!r}", stage="catalogue")
        return pipeline

    def _enforce(self, now: dict[str, Pipeline]) -> None:
        before = self._pipelines
        self._pipelines = now
        if before is None:
            log.info("catalogue_loaded", path=str(self._path), pipelines=sorted(now))
            return
        changes = {
            "added": sorted(now.keys() - before.keys()),
            "removed": sorted(before.keys() - now.keys()),
            "changed": sorted(name for name in now.keys() & before.keys() if now[name] != before[name]),
        }
        if self.problem or any(changes.values()):
            log.info("catalogue_in_force", mended=bool(self.problem), **changes)

    # -- in a thread

    def _read_if_changed(self, before: _Reading | None) -> _Reading | None:
        if before is not None and not before.again and not before.is_old():
            return None
        reading = self._read()
        for _ in range(_ATTEMPTS - 1):
            if not reading.is_old():
                break
            reading = self._read()  # else it may be half of one edit and half of another
        return reading

    def _read(self) -> _Reading:
        reading = _Reading()

        def document(path: Path) -> Document:
            version = reading.versions.setdefault(path, _version(path))
            try:
                return read(path)
            except OSError as error:
                reading.again |= version is not None
                raise Unreadable(f"{path.name}: {error.strerror or error}") from None

        try:
            catalogue = document(self._path)
            reading.pipelines = pipelines(catalogue, self._namespaces, lambda name: document(self._path.parent / name))
        except Unreadable as error:
            reading.problem = str(error)
        return reading


def _version(path: Path) -> Version:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
