"""The objects of a cluster, their versions, and the history of their changes."""

import json
import random
import time
import uuid
from collections.abc import Callable, Container, Iterable, Mapping
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any, Literal

from local_cluster.history import Event, History, Object, Watch
from local_cluster.resources import RAY_JOBS, RESOURCES, WORKFLOW_TEMPLATES, WORKFLOWS, Resource
from local_cluster.status import (
    StatusError,
    already_exists,
    conflict,
    from_the_future,
    invalid,
    not_found,
    too_old,
)
from local_cluster.validation import check_metadata, check_shape

__all__ = ["RAY_JOBS", "RESOURCES", "WORKFLOWS", "WORKFLOW_TEMPLATES", "Event", "Object", "Resource", "Store", "Watch"]


_KEPT = ("uid", "creationTimestamp", "generation", "namespace", "name")
"""Metadata that a client may send back, and never changes."""
_SIZE_LIMIT = 1536 * 1024
"""Bytes of JSON that etcd takes."""
_SUFFIX = "bcdfghjklmnpqrstvwxz2456789"

Key = tuple[str, str]
"""Namespace and name."""


class Store:
    """Every object of the cluster, in memory. All methods act at once, and none waits.

    Args:
        resources: what there may be objects of.
        history: how many changes of each resource are remembered at least.
        namespaces: those that exist; None: any.
        clock: seconds since 1970. The first version is made of it too, so that after a restart none seen before is
            known.
    """

    def __init__(
        self,
        resources: Iterable[Resource] = RESOURCES,
        *,
        history: int = 4096,
        namespaces: Container[str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.resources = tuple(resources)
        self.version = int(clock() * 1000)
        """Of the latest change of any object."""
        self.namespaces = namespaces
        self._clock = clock
        self._objects: dict[Resource, dict[Key, Object]] = {resource: {} for resource in self.resources}
        self._histories = {resource: History(history, self.version) for resource in self.resources}

    def create(self, resource: Resource, namespace: str, body: Object) -> Object:
        """Store a new object; returns it with its metadata filled in.

        Raises:
            StatusError: 400, 404 (namespace), 409 (the name is taken), 422.
        """
        made = deepcopy(dict(body))
        check_shape(resource.api_version, resource.kind, namespace, "", made)
        metadata = made["metadata"] = dict(made.get("metadata") or {})
        if metadata.get("resourceVersion"):
            raise StatusError(500, "InternalError", "resourceVersion should not be set on objects to be created")
        if not metadata.get("name") and (prefix := metadata.get("generateName")):
            metadata["name"] = prefix + "".join(random.choices(_SUFFIX, k=5))
        check_metadata(resource, made)
        name = metadata["name"]
        if self.namespaces is not None and namespace not in self.namespaces:
            raise StatusError(
                404, "NotFound", f'namespaces "{namespace}" not found', {"name": namespace, "kind": "namespaces"}
            )
        if (namespace, name) in self._objects[resource]:
            raise already_exists(resource, name)
        if resource.status_subresource:
            made.pop("status", None)
        created = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata |= {"namespace": namespace, "uid": str(uuid.uuid4()), "creationTimestamp": created, "generation": 1}
        return self._put(resource, "ADDED", made, None)

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        """One object.

        Raises:
            StatusError: 404.
        """
        if (found := self._objects[resource].get((namespace, name))) is None:
            raise not_found(resource, name)
        return found

    def objects(self, resource: Resource, namespace: str | None = None, *, version: int | None = None) -> list[Object]:
        """All objects of a resource, by namespace and name.

        Args:
            namespace: None: those of all.
            version: as they were then; None: as they are.

        Raises:
            StatusError: 410 for a version that is forgotten, 504 for one that is to come.
        """
        found = self._objects[resource]
        if version is not None and version != self.version:
            found = self._as_of(resource, version)
        return [found[key] for key in sorted(found) if namespace is None or key[0] == namespace]

    def replace(self, resource: Resource, namespace: str, name: str, body: Object, *, status: bool = False) -> Object:
        """Put a changed object in the place of the version that it was made of.

        Args:
            status: change nothing but `status`, as the subresource does.

        Raises:
            StatusError: 400, 404, 409 (it has changed since), 422.
        """
        made = deepcopy(dict(body))
        check_shape(resource.api_version, resource.kind, namespace, name, made)
        present = self.get(resource, namespace, name)
        if not made["metadata"].get("resourceVersion"):
            problem = "Invalid value: 0x0: must be specified for an update"
            raise invalid(resource, name, "metadata.resourceVersion", problem)
        return self._change(resource, present, made, status=status)

    def merge_patch(
        self, resource: Resource, namespace: str, name: str, patch: Object, *, status: bool = False
    ) -> Object:
        """Change an object by a JSON merge patch (RFC 7386).

        Args:
            status: change nothing but `status`, as the subresource does.

        Raises:
            StatusError: 400, 404, 409 (the patch names another version), 422.
        """
        present = self.get(resource, namespace, name)
        made = merged(present, patch)
        check_shape(resource.api_version, resource.kind, namespace, name, made)
        return self._change(resource, present, made, status=status)

    def update_status(self, resource: Resource, namespace: str, name: str, status: Object) -> Object:
        """Set an object's whole status, as its controller does.

        Raises:
            StatusError: 404.
        """
        present = self.get(resource, namespace, name)
        made = deepcopy({**present, "status": dict(status)})
        return self._change(resource, present, made, status=resource.status_subresource)

    def delete(
        self, resource: Resource, namespace: str, name: str, *, uid: str | None = None, version: str | None = None
    ) -> Object:
        """Delete an object; returns it as it was last.

        Args:
            uid: which it must have.
            version: which it must have.

        Raises:
            StatusError: 404, 409.
        """
        present = self.get(resource, namespace, name)
        for what, wanted, found in (
            ("UID", uid, present["metadata"]["uid"]),
            ("ResourceVersion", version, present["metadata"]["resourceVersion"]),
        ):
            if wanted is not None and wanted != found:
                problem = f"Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"
                raise conflict(resource, name, problem)
        self._put(resource, "DELETED", present, present)
        return present

    def watch(self, resource: Resource, since: int) -> Watch:
        """The changes that come after a version.

        Raises:
            StatusError: 410 if that is forgotten, 504 for one that is to come.
        """
        self._check(resource, since)
        return Watch(self._histories[resource], since, lambda: self.version)

    def compact(self, *, watches: bool = False) -> None:
        """Forget all history: a watch or a continued list from an older version is refused with 410.

        Args:
            watches: end those that are open too, although they missed nothing.
        """
        for history in self._histories.values():
            history.compact(self.version)
        if watches:
            self.interrupt(too_old(self.version, self.version))

    def interrupt(self, error: StatusError) -> None:
        """End every open watch with an error."""
        for history in self._histories.values():
            history.interrupt(error)

    def _check(self, resource: Resource, version: int) -> None:
        forgotten = self._histories[resource].forgotten
        if version < forgotten:
            raise too_old(version, forgotten)
        if version > self.version:
            raise from_the_future(version, self.version)

    def _as_of(self, resource: Resource, version: int) -> dict[Key, Object]:
        self._check(resource, version)
        found = dict(self._objects[resource])
        for event in reversed(self._histories[resource].since(version)):
            if event.previous is None:
                del found[key_of(event.object)]
            else:
                found[key_of(event.previous)] = event.previous
        return found

    def _change(self, resource: Resource, present: Object, made: dict[str, Any], *, status: bool) -> Object:
        """Store what an object was made into, unless that is what it is."""
        was, metadata = present["metadata"], made["metadata"]
        name = was["name"]
        if (version := metadata.get("resourceVersion")) and version != was["resourceVersion"]:
            raise conflict(resource, name)
        if (uid := metadata.get("uid")) and uid != was["uid"]:
            problem = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {was['uid']}"
            raise conflict(resource, name, problem)
        made["metadata"] = metadata | {key: was[key] for key in (*_KEPT, "resourceVersion")}
        if status:
            made = {**present, "status": made.get("status")}
        elif resource.status_subresource:
            made["status"] = present.get("status")
        made = {key: value for key, value in made.items() if value is not None}
        if made == present:
            return present
        check_metadata(resource, made)
        free = {"metadata", "status"} if resource.status_subresource else {"metadata"}
        if any(made.get(key) != present.get(key) for key in {*made, *present} - free):
            made["metadata"]["generation"] = was["generation"] + 1
        return self._put(resource, "MODIFIED", made, present)

    def _put(
        self,
        resource: Resource,
        type: Literal["ADDED", "MODIFIED", "DELETED"],
        made: Object,
        previous: Object | None,
    ) -> Object:
        """Give a change its version, and tell the watches."""
        if type != "DELETED" and len(json.dumps(made)) > _SIZE_LIMIT:
            raise StatusError(500, "InternalError", "etcdserver: request is too large")
        self.version += 1
        stored = at_version(made, self.version)
        if type == "DELETED":
            del self._objects[resource][key_of(stored)]
        else:
            self._objects[resource][key_of(stored)] = stored
        self._histories[resource].append(Event(type, self.version, stored, previous))
        return stored


def key_of(found: Object) -> Key:
    """What an object is found by: its namespace and name."""
    return found["metadata"]["namespace"], found["metadata"]["name"]


def at_version(found: Object, version: int) -> Object:
    """The same object, said to be of another version."""
    return {**found, "metadata": {**found["metadata"], "resourceVersion": str(version)}}


def merged(target: Any, patch: Any) -> Any:
    """What a JSON merge patch (RFC 7386) makes of a value, which stays as it is."""
    if not isinstance(patch, Mapping):
        return deepcopy(patch)
    result = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result
