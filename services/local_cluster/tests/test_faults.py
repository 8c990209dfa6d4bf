"""Faults as a client meets them, and what is counted."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import (
    ClientConnectionError,
    ClientPayloadError,
    ClientResponse,
    ClientSession,
    ServerDisconnectedError,
    web,
)
from aiohttp.test_utils import TestClient, TestServer
from pydantic import ValidationError

from handler_core.testing import until
from local_cluster.access import Access
from local_cluster.control import add_control
from local_cluster.fault import GARBAGE
from local_cluster.faults import Faults
from local_cluster.kubernetes_api import add_kubernetes
from local_cluster.store import WORKFLOWS, Store
from local_cluster.testing import running

Client = TestClient[Any, Any]

COLLECTION = "/apis/argoproj.io/v1alpha1/namespaces/{namespace}/workflows"
PATH = COLLECTION.format(namespace="argo")
ITEM = f"{COLLECTION}/{{name}}"


def workflow(name: str = "a") -> dict[str, Any]:
    return {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": {"name": name}, "spec": {}}


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
async def client(store: Store, faults: Faults) -> AsyncIterator[Client]:
    app = web.Application(middlewares=[faults.middleware])
    add_kubernetes(app, store, Access())
    add_control(app, store, faults)
    async with TestClient(TestServer(app)) as client:
        yield client


async def watch(client: Client, **query: Any) -> ClientResponse:
    return await client.get(PATH, params={"watch": "true", **query})


async def still_silent(reading: "asyncio.Task[bytes]", client: Client) -> None:
    """That nothing comes, by the time that another request was answered; ends the reading."""
    assert (await client.get("/version")).status == 200
    assert not reading.done()
    reading.cancel()


async def test_a_fault_befalls_the_requests_it_is_for_as_often_as_it_says(client: Client, faults: Faults) -> None:
    faults.add(status=503, skip=1, times=2, match={"method": "get", "path": "/workflows$", "watch": False})
    assert (await client.post(PATH, json=workflow())).status == 201
    assert (await client.get(f"{PATH}/a")).status == 200
    assert [(await client.get(PATH)).status for _ in range(4)] == [200, 503, 503, 200]


async def test_the_first_of_several_faults_comes_first(client: Client, faults: Faults) -> None:
    faults.add(status=500)
    faults.add(status=503, times=None)
    assert [(await client.get(PATH)).status for _ in range(3)] == [500, 503, 503]
    faults.clear()
    assert (await client.get(PATH)).status == 200


async def test_a_refusal_is_a_status_and_tells_when_to_come_again(client: Client, faults: Faults) -> None:
    faults.add(status=429, retry_after=7, message="slow down")
    response = await client.get(PATH)
    assert (response.status, response.headers["Retry-After"]) == (429, "7")
    body = await response.json()
    assert (body["kind"], body["reason"], body["message"]) == ("Status", "TooManyRequests", "slow down")
    assert body["details"]["retryAfterSeconds"] == 7


async def test_a_refusal_has_the_form_of_the_api_it_is_injected_into(client: Client, faults: Faults) -> None:
    faults.answers(
        "/apis/argoproj.io/", lambda status, message, after: {"error": message, "code": status, "after": after}
    )
    faults.add(status=500, times=2)
    assert await (await client.get(PATH)).json() == {"error": "injected fault", "code": 500, "after": None}
    assert (await (await client.get("/version")).json())["kind"] == "Status"


async def test_a_connection_is_reset_before_anything_is_done(client: Client, faults: Faults, store: Store) -> None:
    faults.add(reset=True)
    with pytest.raises(ClientConnectionError):
        await client.post(PATH, json=workflow())
    assert store.objects(WORKFLOWS) == []


async def test_an_answer_is_lost_although_the_request_was_carried_out(
    client: Client, faults: Faults, store: Store
) -> None:
    faults.add(drop_response=True, match={"method": "POST"})
    with pytest.raises(ServerDisconnectedError):
        await client.post(PATH, json=workflow())
    assert len(store.objects(WORKFLOWS)) == 1


async def test_an_answer_never_comes(client: Client, faults: Faults, store: Store) -> None:
    faults.add(stall=True, match={"method": "POST"})
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(client.post(PATH, json=workflow()))
        await faults.until(f"POST {COLLECTION}")
        assert (await client.get("/version")).status == 200
        assert not asking.done()
        asking.cancel()
    assert store.objects(WORKFLOWS) == []


@pytest.mark.parametrize("path", [PATH, "/apis/v2beta1/runs"])
async def test_a_late_request_is_carried_out_although_its_client_has_left(path: str) -> None:
    async with running(hold=True) as cluster, ClientSession(cluster.url) as session:
        reference = {"pipeline_id": cluster.kubeflow.pipeline_id("rag-query")}
        cluster.faults.add(late=True, match={"method": "POST"})
        body = workflow() if path == PATH else {"display_name": "a", "pipeline_version_reference": reference}
        asking = asyncio.ensure_future(session.post(path, json=body))
        await until(lambda: cluster.faults.late, "the request has come")
        asking.cancel()
        await until(lambda: not cluster.faults.open.total(), "nobody waits for it")
        assert len(cluster.store.objects(WORKFLOWS)) + cluster.kubeflow.created == 0
        cluster.faults.land()
        await until(lambda: not cluster.faults.late, "it was carried out")
        assert len(cluster.store.objects(WORKFLOWS)) + cluster.kubeflow.created == 1


async def test_a_late_request_is_answered_once_it_has_landed(client: Client, faults: Faults) -> None:
    faults.add(late=True, match={"method": "POST"})
    asking = asyncio.ensure_future(client.post(PATH, json=workflow()))
    await until(lambda: faults.late, "the request has come")
    assert await (await client.post("/control/land")).json() == {"landed": 1}
    assert (await asking).status == 201


async def test_a_cluster_that_ends_gives_up_what_is_late() -> None:
    async with running() as cluster, ClientSession(cluster.url) as session:
        cluster.faults.add(late=True)
        asking = asyncio.ensure_future(session.get("/version"))
        await until(lambda: cluster.faults.late, "the request has come")
        await cluster.stop()
        with pytest.raises(ClientConnectionError):
            await asking
    assert cluster.faults.late == 0


async def test_nonsense_comes_in_place_of_an_answer(client: Client, faults: Faults, store: Store) -> None:
    faults.add(garbage=True, times=2)
    response = await client.get(PATH)
    assert (response.status, response.content_type, await response.read()) == (200, "application/json", GARBAGE)
    store.create(WORKFLOWS, "argo", workflow())
    response = await watch(client)
    assert await response.content.readline() == GARBAGE
    assert json.loads(await response.content.readline())["type"] == "ADDED"


async def test_a_body_is_cut(client: Client, faults: Faults) -> None:
    faults.add(cut_after=10)
    response = await client.get(PATH)
    assert await response.content.readexactly(10) == b'{"apiVersi'
    with pytest.raises(ClientPayloadError):
        await response.read()


@pytest.mark.parametrize("reset", [False, True])
async def test_a_watch_is_cut_within_a_line(client: Client, faults: Faults, store: Store, reset: bool) -> None:
    faults.add(cut_after=20, reset=reset, match={"watch": True})
    response = await watch(client)
    store.create(WORKFLOWS, "argo", workflow())
    assert await response.content.readexactly(20) == b'{"type":"ADDED","obj'
    with pytest.raises((ClientPayloadError, ClientConnectionError)):
        await response.content.readany()


async def test_a_watch_goes_silent_within_a_line(client: Client, faults: Faults, store: Store) -> None:
    faults.add(cut_after=20, stall=True, match={"watch": True})
    response = await watch(client)
    store.create(WORKFLOWS, "argo", workflow())
    await response.content.readexactly(20)
    async with asyncio.TaskGroup() as group:
        await still_silent(group.create_task(response.content.readany()), client)


async def test_a_watch_turns_to_nonsense_within_a_line(client: Client, faults: Faults, store: Store) -> None:
    faults.add(cut_after=20, garbage=True)
    response = await watch(client)
    store.create(WORKFLOWS, "argo", workflow())
    assert (await response.content.readline())[20:] == GARBAGE
    with pytest.raises(ClientPayloadError):
        await response.content.readany()


async def test_a_body_comes_in_small_pieces(client: Client, faults: Faults) -> None:
    whole = await (await client.get(PATH)).read()
    faults.add(piece_delay=0.001, piece_size=50)
    response = await client.get(PATH)
    pieces = [piece async for piece, _ in response.content.iter_chunks()]
    assert (b"".join(pieces), response.content_length) == (whole, len(whole))
    assert len(pieces) > 1


async def test_a_delay_comes_before_everything_else(client: Client, faults: Faults, store: Store) -> None:
    faults.add(delay=3600, match={"method": "POST"})
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(client.post(PATH, json=workflow()))
        await faults.until(f"POST {COLLECTION}")
        assert (await client.get("/version")).status == 200
        assert not asking.done()
        asking.cancel()
    faults.add(delay=0.001, status=503)
    assert (await client.get(PATH)).status == 503


async def test_open_watches_go_silent_and_new_ones_do_not(client: Client, faults: Faults, store: Store) -> None:
    silent = await watch(client, timeoutSeconds=1)
    faults.silence()
    heard = await watch(client, timeoutSeconds=1)
    store.create(WORKFLOWS, "argo", workflow())
    assert json.loads(await heard.content.readline())["type"] == "ADDED"
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(silent.content.readany())
        assert await heard.read() == b""  # whose time was up
        await still_silent(reading, client)


async def test_a_restart_ends_watches_and_what_is_held_up(client: Client, faults: Faults, store: Store) -> None:
    response = await watch(client)
    faults.add(stall=True, match={"method": "POST"})

    async def held_up() -> None:
        with pytest.raises(ClientConnectionError):
            await client.post(PATH, json=workflow())

    async with asyncio.TaskGroup() as group:
        group.create_task(held_up())
        await faults.until(f"POST {COLLECTION}")
        faults.restart()
    with pytest.raises((ClientPayloadError, ClientConnectionError)):
        await response.read()
    assert (await client.get(PATH)).status == 200
    assert faults.open.total() == 0


async def test_while_the_server_is_down_every_connection_is_reset(client: Client, faults: Faults) -> None:
    faults.restart(down=3600)
    for _ in range(2):
        with pytest.raises(ClientConnectionError):
            await client.get(PATH)
    faults.restart()
    assert (await client.get(PATH)).status == 200


async def test_requests_are_counted_by_method_and_route(client: Client, faults: Faults) -> None:
    await client.post(PATH, json=workflow())
    await client.get(f"{PATH}/a")
    await client.get(f"{PATH}/b")
    await watch(client)
    counted = {f"POST {COLLECTION}": 1, f"GET {ITEM}": 2, f"WATCH {COLLECTION}": 1}
    assert faults.calls == counted
    shown = await (await client.get("/control/calls")).json()
    assert shown == {"calls": counted, "open": {f"WATCH {COLLECTION}": 1}}


async def test_faults_are_set_shown_and_cleared_over_http(client: Client) -> None:
    one = {"match": {"method": "GET", "path": "workflows$"}, "times": 2, "status": 503}
    assert await (await client.post("/control/faults", json=one)).json() == [one]
    both = await (await client.post("/control/faults", json=[{"reset": True}])).json()
    assert both == [one, {"reset": True}]
    assert (await client.get(PATH)).status == 503
    assert (await (await client.get("/control/faults")).json())[0] == {"match": one["match"], "status": 503}
    assert await (await client.delete("/control/faults")).json() == []
    assert (await client.get(PATH)).status == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("faults", {"statuss": 503}),
        ("faults", {"status": 200}),
        ("faults", {"match": {"path": "("}}),
        ("faults", "x"),
        ("compact", {"all": True}),
        ("restart", {"down": -1}),
    ],
)
async def test_a_wrong_order_is_refused(client: Client, faults: Faults, path: str, body: object) -> None:
    response = await client.post(f"/control/{path}", json=body)
    assert response.status == 400
    assert (await response.json())["problems"]
    assert faults.armed() == []


def test_a_wrong_fault_is_an_error() -> None:
    with pytest.raises(ValidationError):
        Faults().add(stalled=True)


async def test_compaction_restart_and_silence_are_ordered_over_http(
    client: Client, store: Store, faults: Faults
) -> None:
    lines = await watch(client)
    assert await (await client.post("/control/compact")).json() == {"version": store.version}
    assert (await client.post("/control/compact", json={"watches": True})).status == 200
    assert json.loads(await lines.content.readline())["object"]["code"] == 410
    await lines.read()
    lines = await watch(client)
    assert await (await client.post("/control/silence")).json() == {"silenced": 1}
    assert (await client.post("/control/restart")).status == 200
    with pytest.raises((ClientPayloadError, ClientConnectionError)):
        await lines.read()


async def test_shutting_down_waits_for_no_watch(store: Store, faults: Faults) -> None:
    app = web.Application(middlewares=[faults.middleware])
    add_kubernetes(app, store, Access())
    add_control(app, store, faults)
    server = TestServer(app)
    async with TestClient(server) as client:
        response = await watch(client)
        await server.close()
        with pytest.raises((ClientPayloadError, ClientConnectionError)):
            await response.read()
