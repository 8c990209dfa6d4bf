"""What the controllers of a cluster have in common: they see each change of their objects, and move them on in time."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import structlog

from local_cluster.status import StatusError
from local_cluster.steering import Pace, Steered, Step
from local_cluster.store import Object, Resource, Store

_GONE = 410
_log = structlog.get_logger("local_cluster")


class Controller(Steered):
    """Takes the objects of one resource through their states."""

    def __init__(self, store: Store, resource: Resource, pace: Pace) -> None:
        super().__init__(pace)
        self._store = store
        self._resource = resource
        self._places: dict[str, tuple[str, str]] = {}

    async def serve(self) -> None:
        """Move the objects until cancelled."""
        try:
            while True:
                watch = self._store.watch(self._resource, self._store.version)
                self._relist()
                try:
                    while True:
                        for event in await watch.next():
                            self._changed(event.object, deleted=event.type == "DELETED")
                except StatusError as error:
                    if error.code != _GONE:
                        raise
        finally:
            self._stop_clock()

    def advance(self, name: str, phase: str, message: str = "") -> None:
        """Put an object into a state now, held or not.

        Raises:
            KeyError: there is no such object.
            ValueError: there is no such state.
        """
        if (found := self._find(name)) is None:
            raise KeyError(name)
        self._enter(found, phase, message)

    @abstractmethod
    def _next(self, found: Object) -> Step | None:
        """What becomes of an object by itself."""

    @abstractmethod
    def _enter(self, found: Object, phase: str, message: str = "") -> None:
        """Give an object another state."""

    def _step(self, found: Object, after: float, phase: str, message: str = "") -> Step:
        return Step(after, self._unless_changed(found, lambda present: self._enter(present, phase, message)))

    def _deletion(self, found: Object, after: float) -> Step:
        metadata = found["metadata"]
        return Step(
            after,
            self._unless_changed(
                found, lambda _: self._store.delete(self._resource, metadata["namespace"], metadata["name"])
            ),
        )

    def _unless_changed(self, found: Object, act: Callable[[Object], object]) -> Callable[[], None]:
        """The store may be ahead of the events that have been looked at."""

        def take() -> None:
            present = self._object(found["metadata"]["uid"])
            if present is not None and self._state(present) == self._state(found):
                act(present)

        return take

    def _find(self, name: str) -> Object | None:
        named = (found for found in self._store.objects(self._resource) if found["metadata"]["name"] == name)
        return next(named, None)

    def _object(self, uid: str) -> Object | None:
        try:
            found = self._store.get(self._resource, *self._places[uid])
        except (KeyError, StatusError):
            return None
        return found if found["metadata"]["uid"] == uid else None

    def _consider(self, key: str) -> None:
        if (found := self._object(key)) is None:
            return
        step = None
        try:
            step = self._next(found)
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # one bad object is not everybody's
            where = {key: found["metadata"][key] for key in ("namespace", "name")}
            _log.warning(
                "an object makes no sense and is left as it is", kind=found["kind"], **where, error=repr(error)
            )
        self._schedule(key, self._state(found), step)

    def _reconsider(self) -> None:
        for uid in list(self._places):
            self._consider(uid)

    def _relist(self) -> None:
        present = self._store.objects(self._resource)
        for uid in set(self._places) - {found["metadata"]["uid"] for found in present}:
            self._drop(uid)
        for found in present:
            self._changed(found)

    def _changed(self, found: Object, *, deleted: bool = False) -> None:
        metadata = found["metadata"]
        if deleted:
            self._drop(metadata["uid"])
            return
        self._places[metadata["uid"]] = (metadata["namespace"], metadata["name"])
        self._saw(found, metadata["name"])
        self._consider(metadata["uid"])

    def _drop(self, uid: str) -> None:
        self._places.pop(uid, None)
        self._forget(uid)


def annotations_of(found: Object) -> Mapping[str, str]:
    """An object's annotations."""
    annotations: Mapping[str, str] = found["metadata"].get("annotations") or {}
    return annotations


def spec_of(found: Object) -> Mapping[str, Any]:
    """What is wanted of an object."""
    spec: Mapping[str, Any] = found.get("spec") or {}
    return spec


def status_of(found: Object) -> Mapping[str, Any]:
    """What has become of an object; empty at first."""
    status = found.get("status")
    return status if isinstance(status, Mapping) else {}


def now() -> str:
    """The time as the cluster writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
