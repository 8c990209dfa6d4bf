"""The Kubernetes API as a client meets it."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from io import BytesIO
from typing import Any

import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer

from local_cluster.access import Access
from local_cluster.kubernetes_api import add_kubernetes
from local_cluster.status import StatusError
from local_cluster.store import RAY_JOBS, WORKFLOWS, Store

Client = TestClient[Any, Any]
Serve = Callable[..., Awaitable[Client]]

WORKFLOWS_PATH = "/apis/argoproj.io/v1alpha1/namespaces/argo/workflows"
RAY_PATH = "/apis/ray.io/v1/namespaces/ray/rayjobs"
MERGE = {"Content-Type": "application/merge-patch+json"}


def workflow(name: str = "a", **metadata: Any) -> dict[str, Any]:
    about = {"name": name, **metadata}
    return {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": about, "spec": {"entrypoint": "main"}}


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def serve(store: Store) -> AsyncIterator[Serve]:
    clients: list[Client] = []

    async def start(access: Access | None = None, **settings: Any) -> Client:
        app = web.Application()
        add_kubernetes(app, store, access or Access(), **settings)
        clients.append(TestClient(TestServer(app)))
        await clients[-1].start_server()
        return clients[-1]

    yield start
    for client in clients:
        await client.close()


async def refusal(response: ClientResponse) -> dict[str, Any]:
    """The Status of a response, which says itself what it is."""
    body: dict[str, Any] = await response.json()
    assert (body["kind"], body["apiVersion"], body["status"]) == ("Status", "v1", "Failure")
    assert body["code"] == response.status
    return body


class Lines:
    """The events of a watch."""

    def __init__(self, response: ClientResponse) -> None:
        assert response.status == 200
        assert response.headers["Content-Type"] == "application/json"
        assert response.headers["Transfer-Encoding"] == "chunked"
        self._response = response

    async def next(self) -> dict[str, Any]:
        line = await self._response.content.readline()
        assert line.endswith(b"\n")
        event: dict[str, Any] = json.loads(line)
        assert set(event) == {"type", "object"}
        return event

    async def told(self) -> tuple[str, str]:
        event = await self.next()
        return event["type"], event["object"]["metadata"]["name"]

    async def end(self) -> bytes:
        return await self._response.content.read()


async def watch(client: Client, path: str = WORKFLOWS_PATH, **query: Any) -> Lines:
    return Lines(await client.get(path, params={"watch": "true", **query}))


async def test_an_object_is_created_read_replaced_patched_and_deleted(serve: Serve) -> None:
    client = await serve()
    created = await client.post(WORKFLOWS_PATH, json=workflow())
    assert (created.status, created.headers["Content-Type"]) == (201, "application/json")
    made = await created.json()
    assert await (await client.get(f"{WORKFLOWS_PATH}/a")).json() == made
    replaced = await client.put(f"{WORKFLOWS_PATH}/a", json=made | {"spec": {"suspend": True}})
    assert (await replaced.json())["spec"] == {"suspend": True}
    patched = await client.patch(
        f"{WORKFLOWS_PATH}/a", json={"spec": {"suspend": None, "shutdown": "Stop"}}, headers=MERGE
    )
    assert (await patched.json())["spec"] == {"shutdown": "Stop"}
    gone = await (await client.delete(f"{WORKFLOWS_PATH}/a")).json()
    assert (gone["kind"], gone["status"], gone["details"]["uid"]) == ("Status", "Success", made["metadata"]["uid"])
    missing = await refusal(await client.get(f"{WORKFLOWS_PATH}/a"))
    assert (missing["code"], missing["reason"]) == (404, "NotFound")
    assert missing["message"] == 'workflows.argoproj.io "a" not found'
    assert missing["details"] == {"name": "a", "group": "argoproj.io", "kind": "workflows"}


async def test_a_status_is_written_on_its_own_only_where_there_is_a_subresource(serve: Serve) -> None:
    client = await serve()
    job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "a"}, "spec": {}, "status": {"x": 1}}
    made = await (await client.post(RAY_PATH, json=job)).json()
    assert "status" not in made
    body = made | {"spec": {"suspend": True}, "status": {"jobStatus": "RUNNING"}}
    put = await (await client.put(f"{RAY_PATH}/a/status", json=body)).json()
    assert (put["spec"], put["status"]) == ({}, {"jobStatus": "RUNNING"})
    patch = {"status": {"jobStatus": "FAILED"}}
    patched = await (await client.patch(f"{RAY_PATH}/a/status", json=patch, headers=MERGE)).json()
    assert patched["status"] == {"jobStatus": "FAILED"}
    await client.post(WORKFLOWS_PATH, json=workflow())
    assert (await refusal(await client.get(f"{WORKFLOWS_PATH}/a/status")))["reason"] == "NotFound"


@pytest.mark.parametrize(
    ("method", "path", "code", "reason"),
    [
        ("GET", "/apis/argoproj.io/v1alpha1/namespaces/argo/sensors", 404, "NotFound"),
        ("GET", "/apis/argoproj.io/v2/workflows", 404, "NotFound"),
        ("DELETE", WORKFLOWS_PATH, 405, "MethodNotAllowed"),
        ("POST", "/apis/argoproj.io/v1alpha1/workflows", 405, "MethodNotAllowed"),
        ("POST", f"{WORKFLOWS_PATH}/a", 405, "MethodNotAllowed"),
        ("DELETE", f"{RAY_PATH}/a/status", 405, "MethodNotAllowed"),
        ("DELETE", f"{WORKFLOWS_PATH}/a", 404, "NotFound"),
        ("GET", f"{WORKFLOWS_PATH}?limit=many", 400, "BadRequest"),
        ("GET", f"{WORKFLOWS_PATH}?continue=!", 400, "BadRequest"),
        ("GET", f"{WORKFLOWS_PATH}?labelSelector=a%20is%20b", 400, "BadRequest"),
        ("GET", f"{WORKFLOWS_PATH}?resourceVersionMatch=Exact", 400, "BadRequest"),
        ("GET", f"{WORKFLOWS_PATH}?watch=true&resourceVersion=x", 400, "BadRequest"),
        ("GET", f"{WORKFLOWS_PATH}?watch=true&resourceVersion=9999999999999999", 504, "Timeout"),
    ],
)
async def test_a_request_that_makes_no_sense_is_refused(
    serve: Serve, method: str, path: str, code: int, reason: str
) -> None:
    body = await refusal(await (await serve()).request(method, path))
    assert (body["code"], body["reason"]) == (code, reason)


@pytest.mark.parametrize(
    ("method", "type", "data", "code"),
    [
        ("POST", "application/json", b"{", 400),
        ("POST", "application/json", b"[]", 400),
        ("POST", "application/json", json.dumps(workflow("B")).encode(), 422),
        ("POST", "text/plain", b"{}", 415),
        ("PATCH", "application/json", b"{}", 415),
        ("PATCH", "application/strategic-merge-patch+json", b"{}", 415),
        ("PATCH", "application/merge-patch+json", b"[]", 400),
        ("PUT", "application/json", json.dumps(workflow("b")).encode(), 400),
        ("PUT", "application/json", json.dumps(workflow("a", resourceVersion="1")).encode(), 409),
    ],
)
async def test_a_body_that_cannot_be_taken_is_refused(
    serve: Serve, store: Store, method: str, type: str, data: bytes, code: int
) -> None:
    store.create(WORKFLOWS, "argo", workflow())
    client = await serve()
    path = WORKFLOWS_PATH if method == "POST" else f"{WORKFLOWS_PATH}/a"
    response = await client.request(method, path, data=data, headers={"Content-Type": type})
    assert (await refusal(response))["code"] == code
    assert len(store.objects(WORKFLOWS)) == 1


async def test_a_body_that_is_too_large_is_refused(serve: Serve) -> None:
    response = await (await serve()).post(WORKFLOWS_PATH, data=BytesIO(b" " * 3145729))
    assert (await refusal(response))["reason"] == "RequestEntityTooLarge"


async def test_a_deletion_may_insist_on_the_object_it_means(serve: Serve, store: Store) -> None:
    store.create(WORKFLOWS, "argo", workflow())
    client = await serve()
    options = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": "another"}}
    assert (await refusal(await client.delete(f"{WORKFLOWS_PATH}/a", json=options)))["reason"] == "Conflict"
    assert (await client.delete(f"{WORKFLOWS_PATH}/a", json=options | {"preconditions": None})).status == 200


async def test_a_token_is_demanded_of_every_path_and_may_be_exchanged(serve: Serve) -> None:
    access = Access(tokens={"old"})
    client = await serve(access)
    for path in (WORKFLOWS_PATH, "/version", "/apis/unknown"):
        assert (await refusal(await client.get(path)))["reason"] == "Unauthorized"
    bearer = {"Authorization": "Bearer old"}
    assert (await client.get(WORKFLOWS_PATH, headers=bearer)).status == 200
    access.tokens = {"new"}
    assert (await client.get(WORKFLOWS_PATH, headers=bearer)).status == 401


@pytest.mark.parametrize(
    ("verb", "method", "path"),
    [
        ("list", "GET", WORKFLOWS_PATH),
        ("watch", "GET", f"{WORKFLOWS_PATH}?watch=1"),
        ("create", "POST", WORKFLOWS_PATH),
        ("patch", "PATCH", f"{WORKFLOWS_PATH}/a"),
    ],
)
async def test_a_verb_that_is_not_permitted_is_named(serve: Serve, verb: str, method: str, path: str) -> None:
    client = await serve(Access(forbidden={verb}))
    body = await refusal(await client.request(method, path))
    assert (body["code"], body["reason"]) == (403, "Forbidden")
    assert f'cannot {verb} resource "workflows" in API group "argoproj.io" in the namespace "argo"' in body["message"]


async def test_a_list_is_of_one_moment_page_by_page(serve: Serve, store: Store) -> None:
    for name in "cabde":
        store.create(WORKFLOWS, "argo", workflow(name))
    client, began = await serve(), store.version
    query, names, left = {"limit": "2"}, [], []
    while True:
        body = await (await client.get(WORKFLOWS_PATH, params=query)).json()
        assert (body["kind"], body["apiVersion"]) == ("WorkflowList", "argoproj.io/v1alpha1")
        assert body["metadata"]["resourceVersion"] == str(began)
        names += [item["metadata"]["name"] for item in body["items"]]
        left.append(body["metadata"].get("remainingItemCount"))
        if not (token := body["metadata"]["continue"]):
            break
        query["continue"] = token
        if len(names) == 2:
            store.delete(WORKFLOWS, "argo", "d")
            store.create(WORKFLOWS, "argo", workflow("f"))
    assert (names, left) == (list("abcde"), [3, 1, None])


async def test_a_list_of_a_selection_does_not_tell_how_many_are_left(serve: Serve, store: Store) -> None:
    for name in "abc":
        store.create(WORKFLOWS, "argo", workflow(name, labels={"app": "x"}))
    store.create(WORKFLOWS, "other", workflow("d", labels={"app": "x"}))
    client = await serve()
    query = {"limit": "1", "labelSelector": "app=x"}
    metadata = (await (await client.get(WORKFLOWS_PATH, params=query)).json())["metadata"]
    assert metadata["continue"]
    assert "remainingItemCount" not in metadata
    everywhere = await (await client.get("/apis/argoproj.io/v1alpha1/workflows?labelSelector=app")).json()
    assert [item["metadata"]["name"] for item in everywhere["items"]] == list("abcd")
    one = await (await client.get(WORKFLOWS_PATH, params={"fieldSelector": "metadata.name=b"})).json()
    assert [item["metadata"]["name"] for item in one["items"]] == ["b"]


async def test_a_continued_list_that_is_forgotten_is_told_how_to_go_on(serve: Serve, store: Store) -> None:
    for name in "abc":
        store.create(WORKFLOWS, "argo", workflow(name))
    client = await serve()
    token = (await (await client.get(f"{WORKFLOWS_PATH}?limit=1")).json())["metadata"]["continue"]
    store.create(WORKFLOWS, "argo", workflow("d"))
    store.compact()
    body = await refusal(await client.get(WORKFLOWS_PATH, params={"limit": "1", "continue": token}))
    assert (body["code"], body["reason"]) == (410, "Expired")
    query = {"limit": "5", "continue": body["metadata"]["continue"]}
    rest = await (await client.get(WORKFLOWS_PATH, params=query)).json()
    assert [item["metadata"]["name"] for item in rest["items"]] == list("bcd")


async def test_a_list_may_be_of_an_earlier_version(serve: Serve, store: Store) -> None:
    before = store.version
    store.create(WORKFLOWS, "argo", workflow())
    client = await serve()
    exact = {"resourceVersion": str(before), "resourceVersionMatch": "Exact"}
    assert (await (await client.get(WORKFLOWS_PATH, params=exact)).json())["items"] == []
    newer = {"resourceVersion": str(before)}
    assert len((await (await client.get(WORKFLOWS_PATH, params=newer)).json())["items"]) == 1
    future = await refusal(await client.get(WORKFLOWS_PATH, params={"resourceVersion": str(store.version + 1)}))
    assert (future["code"], future["details"]["retryAfterSeconds"]) == (504, 1)


async def test_a_watch_tells_what_follows_a_list(serve: Serve, store: Store) -> None:
    store.create(WORKFLOWS, "argo", workflow())
    client = await serve()
    version = (await (await client.get(WORKFLOWS_PATH)).json())["metadata"]["resourceVersion"]
    store.merge_patch(WORKFLOWS, "argo", "a", {"status": {"phase": "Running"}})
    lines = await watch(client, resourceVersion=version)
    modified = await lines.next()
    assert (modified["type"], modified["object"]["status"]) == ("MODIFIED", {"phase": "Running"})
    store.create(WORKFLOWS, "other", workflow("elsewhere"))
    store.create(RAY_JOBS, "argo", {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "other-kind"}})
    store.create(WORKFLOWS, "argo", workflow("b"))
    assert await lines.told() == ("ADDED", "b")
    store.delete(WORKFLOWS, "argo", "a")
    deleted = await lines.next()
    assert (deleted["type"], deleted["object"]["metadata"]["resourceVersion"]) == ("DELETED", str(store.version))


@pytest.mark.parametrize("query", [{}, {"resourceVersion": "0"}])
async def test_a_watch_from_no_version_begins_with_what_there_is(
    serve: Serve, store: Store, query: dict[str, str]
) -> None:
    store.create(WORKFLOWS, "argo", workflow("b"))
    store.create(WORKFLOWS, "argo", workflow("a"))
    lines = await watch(await serve(), **query)
    assert [await lines.told(), await lines.told()] == [("ADDED", "a"), ("ADDED", "b")]
    store.delete(WORKFLOWS, "argo", "b")
    assert await lines.told() == ("DELETED", "b")


async def test_to_a_selective_watch_objects_come_and_go_with_their_labels(serve: Serve, store: Store) -> None:
    lines = await watch(await serve(), "/apis/argoproj.io/v1alpha1/workflows", labelSelector="app=x")
    store.create(WORKFLOWS, "argo", workflow("a"))
    store.merge_patch(WORKFLOWS, "argo", "a", {"metadata": {"labels": {"app": "x"}}})
    assert await lines.told() == ("ADDED", "a")
    store.merge_patch(WORKFLOWS, "argo", "a", {"metadata": {"labels": {"app": "y"}}, "spec": {"new": 1}})
    deleted = await lines.next()
    assert deleted["type"] == "DELETED"
    assert deleted["object"]["metadata"]["labels"] == {"app": "x"}
    assert deleted["object"]["metadata"]["resourceVersion"] == str(store.version)


async def test_bookmarks_tell_versions_of_which_the_watch_has_seen_everything(serve: Serve, store: Store) -> None:
    lines = await watch(await serve(bookmark_interval=0.01), resourceVersion=store.version, allowWatchBookmarks="true")
    bookmark = await lines.next()
    about = {"kind": "Workflow", "apiVersion": "argoproj.io/v1alpha1"}
    assert bookmark == {"type": "BOOKMARK", "object": {**about, "metadata": {"resourceVersion": str(store.version)}}}
    store.create(WORKFLOWS, "elsewhere", workflow())
    while bookmark["object"]["metadata"]["resourceVersion"] != str(store.version):
        bookmark = await lines.next()
        assert bookmark["type"] == "BOOKMARK"


async def test_a_watch_ends_when_its_time_is_up_with_a_bookmark_if_it_takes_them(serve: Serve, store: Store) -> None:
    client = await serve()
    plain = await watch(client, resourceVersion=store.version, timeoutSeconds=1)
    marked = await watch(client, resourceVersion=store.version, timeoutSeconds=1, allowWatchBookmarks="true")
    assert await plain.end() == b""
    assert json.loads(await marked.end())["type"] == "BOOKMARK"


async def test_a_watch_from_a_forgotten_version_is_refused(serve: Serve, store: Store) -> None:
    version = str(store.version)
    store.create(WORKFLOWS, "argo", workflow())
    store.compact()
    query = {"watch": "true", "resourceVersion": version}
    body = await refusal(await (await serve()).get(WORKFLOWS_PATH, params=query))
    assert (body["code"], body["reason"]) == (410, "Expired")
    lines = await watch(await serve(expired_as_status=False), resourceVersion=version)
    event = await lines.next()
    assert (event["type"], event["object"]["kind"], event["object"]["code"]) == ("ERROR", "Status", 410)
    assert await lines.end() == b""


async def test_an_open_watch_may_end_with_an_error(serve: Serve, store: Store) -> None:
    client = await serve()
    lines = await watch(client)
    store.create(WORKFLOWS, "argo", workflow())
    assert await lines.told() == ("ADDED", "a")
    store.compact(watches=True)
    event = await lines.next()
    assert (event["type"], event["object"]["code"], event["object"]["reason"]) == ("ERROR", 410, "Expired")
    assert await lines.end() == b""
    lines = await watch(client, resourceVersion=store.version)
    store.interrupt(StatusError(500, "InternalError", "etcd event received with PrevKv=nil"))
    assert (await lines.next())["object"]["code"] == 500


async def test_the_server_tells_its_version_and_that_it_is_ready(serve: Serve) -> None:
    client = await serve()
    assert (await (await client.get("/version")).json())["major"] == "1"
    assert await (await client.get("/readyz")).text() == "ok"
