"""Objects, their versions, and what is remembered of their changes."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from local_cluster.selection import labels, selecting
from local_cluster.status import StatusError
from local_cluster.store import RAY_JOBS, WORKFLOWS, Event, Object, Resource, Store, merged


def workflow(name: str = "a", **metadata: Any) -> dict[str, Any]:
    about = {"name": name, **metadata}
    return {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": about, "spec": {"entrypoint": "main"}}


def ray_job(name: str = "a") -> dict[str, Any]:
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": name}, "spec": {"suspend": False}}


def told(events: list[Event]) -> list[tuple[str, str]]:
    return [(event.type, event.object["metadata"]["name"]) for event in events]


def version(of: Object) -> int:
    return int(of["metadata"]["resourceVersion"])


def test_what_is_created_has_an_identity_and_the_latest_version() -> None:
    store = Store(clock=lambda: 86400)
    first, second = store.create(WORKFLOWS, "argo", workflow("a")), store.create(WORKFLOWS, "argo", workflow("b"))
    metadata = first["metadata"]
    assert (metadata["namespace"], metadata["generation"]) == ("argo", 1)
    assert metadata["creationTimestamp"] == "1970-01-02T00:00:00Z"
    assert metadata["uid"] != second["metadata"]["uid"]
    assert version(first) + 1 == version(second) == store.version
    assert store.get(WORKFLOWS, "argo", "a") == first


def test_a_name_is_made_where_only_its_beginning_is_given() -> None:
    body = workflow()
    body["metadata"] = {"generateName": "nightly-"}
    assert Store().create(WORKFLOWS, "argo", body)["metadata"]["name"].startswith("nightly-")


def test_a_name_is_taken_in_its_namespace_only() -> None:
    store = Store()
    store.create(WORKFLOWS, "argo", workflow())
    store.create(WORKFLOWS, "other", workflow())
    with pytest.raises(StatusError) as refused:
        store.create(WORKFLOWS, "argo", workflow())
    assert (refused.value.code, refused.value.reason) == (409, "AlreadyExists")
    assert refused.value.message == 'workflows.argoproj.io "a" already exists'
    assert refused.value.details == {"name": "a", "group": "argoproj.io", "kind": "workflows"}


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        ({"kind": "RayJob"}, 400, "Workflow"),
        ({"kind": None}, 400, "Kind"),
        ({"apiVersion": "argoproj.io/v1"}, 400, "argoproj.io/v1alpha1"),
        ({"metadata": {"name": "a", "namespace": "other"}}, 400, "namespace"),
        ({"metadata": {"name": 5}}, 400, "name"),
        ({"metadata": {"name": "a", "labels": {"x": 1}}}, 400, "labels"),
        ({"metadata": {"name": "a", "resourceVersion": "7"}}, 500, "resourceVersion"),
        ({"metadata": {}}, 422, "metadata.name"),
        ({"metadata": {"name": "Upper_Case"}}, 422, "metadata.name"),
        ({"metadata": {"name": "a" * 254}}, 422, "metadata.name"),
        ({"metadata": {"name": "a", "labels": {"x": "-"}}}, 422, "metadata.labels"),
        ({"metadata": {"name": "a", "labels": {"x/y/z": "v"}}}, 422, "metadata.labels"),
        ({"metadata": {"name": "a", "labels": {"x": "v" * 64}}}, 422, "metadata.labels"),
        ({"metadata": {"name": "a", "annotations": {"_x": "v"}}}, 422, "metadata.annotations"),
        ({"metadata": {"name": "a", "annotations": {"x": "v" * 262144}}}, 422, "metadata.annotations"),
        ({"spec": "v" * 1572864}, 500, "etcdserver: request is too large"),
    ],
)
def test_an_object_that_is_not_allowed_is_refused_and_not_kept(change: dict[str, Any], code: int, named: str) -> None:
    store = Store()
    with pytest.raises(StatusError, match=named) as refused:
        store.create(WORKFLOWS, "argo", workflow() | change)
    assert refused.value.code == code
    assert store.objects(WORKFLOWS) == []


def test_nothing_is_created_in_a_namespace_that_does_not_exist() -> None:
    with pytest.raises(StatusError, match='namespaces "nowhere" not found'):
        Store(namespaces={"argo"}).create(WORKFLOWS, "nowhere", workflow())


def test_a_body_that_is_changed_afterwards_changes_nothing_in_the_store() -> None:
    store, body = Store(), workflow()
    store.create(WORKFLOWS, "argo", body)
    body["spec"]["entrypoint"] = "other"
    assert store.get(WORKFLOWS, "argo", "a")["spec"] == {"entrypoint": "main"}


def test_an_object_replaces_only_the_version_it_was_made_of() -> None:
    store = Store()
    old = store.create(WORKFLOWS, "argo", workflow())
    new = store.replace(WORKFLOWS, "argo", "a", {**old, "spec": {"entrypoint": "new"}})
    assert (new["spec"], new["metadata"]["generation"]) == ({"entrypoint": "new"}, 2)
    with pytest.raises(StatusError, match="please apply your changes to the latest version") as refused:
        store.replace(WORKFLOWS, "argo", "a", {**old, "spec": {}})
    assert (refused.value.code, refused.value.reason) == (409, "Conflict")
    with pytest.raises(StatusError, match="must be specified for an update") as refused:
        store.replace(WORKFLOWS, "argo", "a", workflow())
    assert refused.value.code == 422
    assert store.get(WORKFLOWS, "argo", "a") == new


def test_a_merge_patch_sets_merges_and_removes() -> None:
    target = {"a": {"b": 1, "c": [1, 2]}, "d": 4}
    assert merged(target, {"a": {"b": None, "c": [3], "e": {"f": None, "g": 5}}, "d": {"h": 6}}) == {
        "a": {"c": [3], "e": {"g": 5}},
        "d": {"h": 6},
    }
    assert target == {"a": {"b": 1, "c": [1, 2]}, "d": 4}


def test_a_patch_may_insist_on_a_version_and_never_changes_an_identity() -> None:
    store = Store()
    old = store.create(WORKFLOWS, "argo", workflow())
    new = store.merge_patch(WORKFLOWS, "argo", "a", {"metadata": {"creationTimestamp": None, "labels": {"x": "y"}}})
    assert new["metadata"]["creationTimestamp"] == old["metadata"]["creationTimestamp"]
    assert new["metadata"]["generation"] == 1  # labels are no change of what is wanted
    for metadata in ({"resourceVersion": old["metadata"]["resourceVersion"]}, {"uid": "another"}):
        with pytest.raises(StatusError) as refused:
            store.merge_patch(WORKFLOWS, "argo", "a", {"metadata": metadata})
        assert refused.value.reason == "Conflict"
    with pytest.raises(StatusError, match="does not match the name on the URL"):
        store.merge_patch(WORKFLOWS, "argo", "a", {"metadata": {"name": "b"}})
    with pytest.raises(StatusError, match='"b" not found'):
        store.merge_patch(WORKFLOWS, "argo", "b", {})


def test_a_change_of_nothing_makes_no_version_and_no_event() -> None:
    store = Store()
    made = store.create(RAY_JOBS, "ray", ray_job())
    store.merge_patch(RAY_JOBS, "ray", "a", {"spec": {"suspend": False}})
    store.replace(RAY_JOBS, "ray", "a", made)
    assert store.version == version(made)


def test_with_a_status_subresource_neither_side_writes_the_other() -> None:
    store = Store()
    store.create(RAY_JOBS, "ray", ray_job() | {"status": {"jobStatus": "SUCCEEDED"}})
    made = store.merge_patch(RAY_JOBS, "ray", "a", {"status": {"jobStatus": "FAILED"}})
    assert "status" not in made
    patch = {"spec": {"suspend": True}, "status": {"jobStatus": "RUNNING"}}
    made = store.merge_patch(RAY_JOBS, "ray", "a", patch, status=True)
    assert (made["spec"], made["status"]) == ({"suspend": False}, {"jobStatus": "RUNNING"})
    assert made["metadata"]["generation"] == 1
    made = store.update_status(RAY_JOBS, "ray", "a", {"jobStatus": "SUCCEEDED"})
    made = store.merge_patch(RAY_JOBS, "ray", "a", {"spec": {"suspend": True}})
    assert (made["status"], made["metadata"]["generation"]) == ({"jobStatus": "SUCCEEDED"}, 2)


def test_without_a_status_subresource_the_status_is_a_part_like_any_other() -> None:
    store = Store()
    store.create(WORKFLOWS, "argo", workflow() | {"status": {"phase": "Pending"}})
    store.merge_patch(WORKFLOWS, "argo", "a", {"status": {"phase": "Running"}})
    assert store.update_status(WORKFLOWS, "argo", "a", {"phase": "Failed"})["metadata"]["generation"] == 3


def test_only_what_is_meant_is_deleted() -> None:
    store = Store()
    made = store.create(WORKFLOWS, "argo", workflow())
    with pytest.raises(StatusError, match="UID in precondition"):
        store.delete(WORKFLOWS, "argo", "a", uid="another")
    with pytest.raises(StatusError, match="ResourceVersion in precondition"):
        store.delete(WORKFLOWS, "argo", "a", version="1")
    assert store.delete(WORKFLOWS, "argo", "a", uid=made["metadata"]["uid"]) == made
    with pytest.raises(StatusError) as refused:
        store.delete(WORKFLOWS, "argo", "a")
    assert refused.value.code == 404


def test_objects_are_told_as_they_were_at_any_version_that_is_remembered() -> None:
    store = Store()
    moments: dict[int, list[Object]] = {store.version: []}
    acts: list[Callable[[], Object]] = [
        lambda: store.create(WORKFLOWS, "argo", workflow("b")),
        lambda: store.create(WORKFLOWS, "argo", workflow("a")),
        lambda: store.merge_patch(WORKFLOWS, "argo", "b", {"spec": {"x": 1}}),
        lambda: store.create(RAY_JOBS, "ray", ray_job()),
        lambda: store.delete(WORKFLOWS, "argo", "b"),
        lambda: store.create(WORKFLOWS, "argo", workflow("b")),
    ]
    for act in acts:
        act()
        moments[store.version] = store.objects(WORKFLOWS)
    assert [item["metadata"]["name"] for item in store.objects(WORKFLOWS, "argo")] == ["a", "b"]
    assert store.objects(WORKFLOWS, "other") == []
    for moment, found in moments.items():
        assert store.objects(WORKFLOWS, version=moment) == found
    with pytest.raises(StatusError) as refused:
        store.objects(WORKFLOWS, version=store.version + 1)
    assert (refused.value.code, refused.value.details["causes"][0]["reason"]) == (504, "ResourceVersionTooLarge")


async def test_a_watch_waits_for_changes_and_gives_each_once() -> None:
    store = Store()
    watch = store.watch(WORKFLOWS, store.version)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(watch.next())
        await asyncio.sleep(0)
        assert not waiting.done()
        store.create(RAY_JOBS, "ray", ray_job())
        store.create(WORKFLOWS, "argo", workflow())
    assert told(waiting.result()) == [("ADDED", "a")]
    store.merge_patch(WORKFLOWS, "argo", "a", {"spec": {"x": 1}})
    store.delete(WORKFLOWS, "argo", "a")
    modified, deleted = await watch.next()
    assert told([modified, deleted]) == [("MODIFIED", "a"), ("DELETED", "a")]
    assert deleted.previous == modified.object
    assert version(deleted.object) == deleted.version == store.version


async def test_a_watch_to_which_nothing_happens_knows_the_latest_version() -> None:
    store = Store()
    watch = store.watch(WORKFLOWS, store.version)
    store.create(RAY_JOBS, "ray", ray_job())
    assert await watch.next(0) == []
    assert watch.version == store.version


async def test_history_is_bounded_and_a_watch_that_falls_behind_it_is_told() -> None:
    store = Store(history=2)
    since = store.version
    slow, quick = store.watch(WORKFLOWS, since), store.watch(WORKFLOWS, since)
    for number in range(5):
        store.create(WORKFLOWS, "argo", workflow(f"w{number}"))
        assert told(await quick.next()) == [("ADDED", f"w{number}")]
    with pytest.raises(StatusError, match="too old resource version") as refused:
        await slow.next()
    assert (refused.value.code, refused.value.reason) == (410, "Expired")
    assert len(await store.watch(WORKFLOWS, store.version - 2).next()) == 2
    with pytest.raises(StatusError):
        store.watch(WORKFLOWS, since)


async def test_compaction_forgets_what_was_and_leaves_watches_that_missed_nothing() -> None:
    store = Store()
    store.create(WORKFLOWS, "argo", workflow("a"))
    behind, current = store.watch(WORKFLOWS, store.version - 1), store.watch(WORKFLOWS, store.version)
    store.create(RAY_JOBS, "ray", ray_job())
    store.compact()
    with pytest.raises(StatusError):
        store.objects(WORKFLOWS, version=store.version - 1)
    with pytest.raises(StatusError):
        await behind.next()
    store.create(WORKFLOWS, "argo", workflow("b"))
    assert told(await current.next()) == [("ADDED", "b")]
    store.compact(watches=True)
    with pytest.raises(StatusError) as ended:
        await current.next()
    assert ended.value.code == 410
    assert await store.watch(WORKFLOWS, store.version).next(0) == []


async def test_an_interruption_ends_the_watches_that_wait() -> None:
    store = Store()
    watch = store.watch(WORKFLOWS, store.version)

    async def ended() -> None:
        with pytest.raises(StatusError, match="etcd is gone"):
            await watch.next()

    async with asyncio.TaskGroup() as group:
        group.create_task(ended())
        await asyncio.sleep(0)
        store.interrupt(StatusError(500, "InternalError", "etcd is gone"))


def test_after_a_restart_no_version_of_before_is_known() -> None:
    before, after = Store(clock=lambda: 1000), Store(clock=lambda: 1001)
    before.create(WORKFLOWS, "argo", workflow())
    with pytest.raises(StatusError) as refused:
        after.watch(WORKFLOWS, before.version)
    assert refused.value.code == 410


def test_a_store_knows_the_resources_it_is_given() -> None:
    things = Resource("example.com", "v1", "things", "Thing")
    made = Store([things]).create(
        things, "x", {"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "a"}}
    )
    assert made["metadata"]["name"] == "a"


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        ("", "abc"),
        ("app=x", "a"),
        ("app==x", "a"),
        ("app!=x", "bc"),
        ("app in (x, y)", "ab"),
        ("app notin (x,y)", "c"),
        ("example.com/app", "b"),
        ("!example.com/app", "ac"),
        ("size>4,size<6", "a"),
        ("app in (x,y),app!=y", "a"),
        ("app=", ""),
    ],
)
def test_labels_select(selector: str, selected: str) -> None:
    found = {"a": {"app": "x", "size": "5"}, "b": {"app": "y", "example.com/app": "", "size": "big"}, "c": {}}
    selects = labels(selector)
    assert "".join(name for name in found if selects(found[name])) == selected


@pytest.mark.parametrize(("label", "field"), [("a=b=c", ""), ("a in", ""), (",", ""), ("", "spec.x=1"), ("", "name")])
def test_a_selector_that_cannot_be_read_is_refused(label: str, field: str) -> None:
    with pytest.raises(StatusError) as refused:
        selecting(label, field)
    assert refused.value.code == 400


def test_fields_select_by_name_and_namespace() -> None:
    found = {"metadata": {"name": "a", "namespace": "argo"}}
    assert selecting("", "metadata.name=a,metadata.namespace!=other")(found)
    assert not selecting("", "metadata.name!=a")(found)
