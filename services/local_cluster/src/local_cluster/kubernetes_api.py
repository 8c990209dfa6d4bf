"""The Kubernetes API over HTTP: the objects of the store, listed, watched and changed."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from local_cluster import status
from local_cluster.access import Access
from local_cluster.fault import is_watch
from local_cluster.pages import page
from local_cluster.resources import Resource
from local_cluster.status import StatusError
from local_cluster.store import Store
from local_cluster.watching import Watching

_BODY_LIMIT = 3 * 1024 * 1024
_MERGE_PATCH = "application/merge-patch+json"
_ITEM_VERBS = {"GET": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def add_kubernetes(
    app: web.Application,
    store: Store,
    access: Access,
    *,
    bookmark_interval: float = 60.0,
    expired_as_status: bool = True,
) -> None:
    """Serve the Kubernetes API; the application is to be run with `handler_cancellation=True`.

    Args:
        bookmark_interval: seconds between the bookmarks of a watch that asks for them.
        expired_as_status: a watch from a forgotten version is answered with HTTP 410; or else with 200 and an ERROR
            event, as today's servers do.
    """
    served: list[tuple[str, Answer]] = []
    for resource in store.resources:
        of = _Resource(store, resource, access, bookmark_interval, expired_as_status)
        base = f"/apis/{resource.api_version}"
        named = f"{base}/namespaces/{{namespace}}/{resource.plural}"
        served += [(f"{base}/{resource.plural}", of.everywhere), (named, of.collection), (named + "/{name}", of.item)]
        if resource.status_subresource:
            served.append((named + "/{name}/status", of.status))
    served += [("/version", _version), ("/readyz", _ready), ("/livez", _ready), ("/apis/{tail:.*}", _unknown)]
    for path, answer in served:
        app.router.add_route("*", path, _guarded(access, answer))


def _guarded(access: Access, answer: Answer) -> Answer:
    """Refuse whom nobody knows, and tell refusals as `Status` objects."""

    async def guarded(request: web.Request) -> web.StreamResponse:
        try:
            if not access.knows(request):
                raise status.unauthorized()
            return await answer(request)
        except StatusError as error:
            headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
            return _json(error.body(), status=error.code, headers=headers)

    return guarded


@dataclass(frozen=True, slots=True)
class _Resource:
    """The paths of one resource."""

    store: Store
    resource: Resource
    access: Access
    bookmark_interval: float
    expired_as_status: bool

    async def everywhere(self, request: web.Request) -> web.StreamResponse:
        """The objects of all namespaces."""
        if request.method != "GET":
            raise status.not_allowed()
        return await self._read_many(request, None)

    async def collection(self, request: web.Request) -> web.StreamResponse:
        """The objects of a namespace."""
        namespace = request.match_info["namespace"]
        if request.method == "GET":
            return await self._read_many(request, namespace)
        if request.method != "POST":
            raise status.not_allowed()
        self._permit("create", namespace)
        body = await _read(request, "application/json")
        return _json(self.store.create(self.resource, namespace, body), status=201)

    async def item(self, request: web.Request) -> web.StreamResponse:
        """One object."""
        if request.method == "DELETE":
            return await self._delete(request)
        return await self._read_or_write(request, of_status=False)

    async def status(self, request: web.Request) -> web.StreamResponse:
        """One object, to write its status."""
        return await self._read_or_write(request, of_status=True)

    async def _read_many(self, request: web.Request, namespace: str | None) -> web.StreamResponse:
        watch = is_watch(request)
        self._permit("watch" if watch else "list", namespace)
        if not watch:
            return _json(page(request.query, self.store, self.resource, namespace))
        watching = Watching(request.query, self.store, self.resource, namespace, self.bookmark_interval)
        return await watching.serve(request, expired_as_status=self.expired_as_status)

    async def _read_or_write(self, request: web.Request, *, of_status: bool) -> web.StreamResponse:
        namespace, name = self._permitted_item(request)
        match request.method:
            case "GET":
                return _json(self.store.get(self.resource, namespace, name))
            case "PUT":
                body = await _read(request, "application/json")
                return _json(self.store.replace(self.resource, namespace, name, body, status=of_status))
            case "PATCH":
                patch = await _read(request, _MERGE_PATCH)
                return _json(self.store.merge_patch(self.resource, namespace, name, patch, status=of_status))
        raise status.not_allowed()

    async def _delete(self, request: web.Request) -> web.StreamResponse:
        namespace, name = self._permitted_item(request)
        wanted = (await _read(request, "application/json", empty=True)).get("preconditions") or {}
        gone = self.store.delete(
            self.resource, namespace, name, uid=wanted.get("uid"), version=wanted.get("resourceVersion")
        )
        details = {"name": name, "group": self.resource.group, "kind": self.resource.plural}
        success = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
        return _json(success | {"details": details | {"uid": gone["metadata"]["uid"]}})

    def _permitted_item(self, request: web.Request) -> tuple[str, str]:
        namespace, name = request.match_info["namespace"], request.match_info["name"]
        if (verb := _ITEM_VERBS.get(request.method)) is None:
            raise status.not_allowed()
        self._permit(verb, namespace, name)
        return namespace, name

    def _permit(self, verb: str, namespace: str | None, name: str = "") -> None:
        if verb in self.access.forbidden:
            raise status.forbidden(self.resource, verb, namespace, name)


async def _read(request: web.Request, accepted: str, *, empty: bool = False) -> dict[str, Any]:
    """The JSON object that a request carries.

    Raises:
        StatusError: 400, 413, 415.
    """
    try:
        data = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise _too_large() from None
    if len(data) > _BODY_LIMIT:
        raise _too_large()
    if empty and not data:
        return {}
    # Only a patch must say what it is: the server takes any other body without a type for JSON.
    if request.content_type != accepted and (accepted == _MERGE_PATCH or "Content-Type" in request.headers):
        raise status.unknown_media_type(accepted)
    try:
        body = json.loads(data)
    except ValueError as error:
        raise status.bad_request(f"the object provided is unrecognized: json: {error}") from None
    if not isinstance(body, dict):
        raise status.bad_request("the object provided is unrecognized: it is not a JSON object")
    return body


def _too_large() -> StatusError:
    return StatusError(413, "RequestEntityTooLarge", f"Request entity too large: limit is {_BODY_LIMIT}")


async def _version(request: web.Request) -> web.StreamResponse:
    return _json({"major": "1", "minor": "34", "gitVersion": "v1.34.0+local-cluster", "platform": "linux/amd64"})


async def _ready(request: web.Request) -> web.StreamResponse:
    return web.Response(text="ok")


async def _unknown(request: web.Request) -> web.StreamResponse:
    raise status.no_such_resource()


def _json(body: Any, **response: Any) -> web.Response:
    return web.Response(body=json.dumps(body).encode() + b"\n", content_type="application/json", **response)
