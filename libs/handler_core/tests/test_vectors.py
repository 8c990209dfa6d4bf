"""The vector store against a real Milvus Lite server: what it stores and finds, and how each failure is told."""

import asyncio
import itertools
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from handler_core.deadline import Deadline
from handler_core.errors import DeadlineExceeded, DownstreamUnavailable, Internal, InvalidRequest, NotFound
from handler_core.testing_milvus import milvus_lite_server
from handler_core.vectors import Hit, Row, VectorStore
from handler_core.vectors import store as store_module

SOON = 30.0
_names = (f"vectors_{n}" for n in itertools.count())


@pytest.fixture
async def collection(store: VectorStore) -> str:
    name = next(_names)
    await store.ensure_collection(name, 2)
    return name


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def row(name: str, *, vector: list[float], source: str = "a.md", **metadata: Any) -> Row:
    return Row(name, f"text of {name}", source, f"hash of {name}", metadata, vector)


async def test_a_search_finds_the_nearest_rows_first_with_what_was_stored(store: VectorStore, collection: str) -> None:
    await store.upsert(
        collection,
        [row("far", vector=[0.0, 1.0]), row("near", vector=[2.0, 0.0], title="T", n=3), row("mid", vector=[1.0, 1.0])],
    )

    hits = await store.search(collection, [1.0, 0.0], top_k=2, deadline=Deadline.after(SOON))

    metadata = {"source": "a.md", "title": "T", "n": 3}
    assert hits[0] == Hit(id="near", text="text of near", score=pytest.approx(1.0), metadata=metadata)
    assert [hit.id for hit in hits] == ["near", "mid"]


async def test_a_filter_narrows_a_search(store: VectorStore, collection: str) -> None:
    await store.upsert(collection, [row("old", vector=[1.0, 0.0], year=2001), row("new", vector=[0.0, 1.0], year=2024)])

    hits = await store.search(
        collection, [1.0, 0.0], top_k=5, filter={"year": {"gte": 2020}}, deadline=Deadline.after(SOON)
    )

    assert [hit.id for hit in hits] == ["new"]


async def test_an_empty_collection_gives_no_hits(store: VectorStore, collection: str) -> None:
    assert await store.search(collection, [1.0, 0.0], top_k=5, deadline=Deadline.after(SOON)) == []
    assert await store.count(collection) == 0
    assert await store.sources(collection) == {}


async def test_rows_are_replaced_by_id_listed_by_source_and_deleted(store: VectorStore, collection: str) -> None:
    odd = 'it\'s "b\\c".md'
    await store.upsert(collection, [row("1", vector=[1.0, 0.0]), row("2", vector=[1.0, 0.0])])
    await store.upsert(collection, [row("2", vector=[0.0, 1.0]), row("3", vector=[0.0, 1.0], source=odd)])

    assert await store.count(collection) == 3
    assert await store.sources(collection) == {"a.md": 2, odd: 1}
    assert await store.hashes(collection, "a.md") == {"1": "hash of 1", "2": "hash of 2"}
    assert await store.hashes(collection, odd) == {"3": "hash of 3"}

    await store.delete(collection, ["1", "3", "unknown"])
    assert await store.sources(collection) == {"a.md": 1}


async def test_an_id_cannot_break_out_of_a_deletion(store: VectorStore, collection: str) -> None:
    trap = "'] or id != ['"
    await store.upsert(collection, [row("1", vector=[1.0, 0.0]), row(trap, vector=[1.0, 0.0])])

    await store.delete(collection, [trap, '"] or id != ["'])

    assert await store.hashes(collection, "a.md") == {"1": "hash of 1"}


async def test_more_rows_than_a_page_are_all_listed(
    store: VectorStore, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "PAGE", 3)
    monkeypatch.setattr(store_module, "DELETE_BATCH", 3)
    ids = [f"id {n}" for n in range(10)]
    await store.upsert(collection, [row(name, vector=[1.0, 0.0]) for name in ids])
    await store.upsert(collection, [row("other", vector=[1.0, 0.0], source="b.md")])

    assert sorted(await store.hashes(collection, "a.md")) == ids
    assert await store.sources(collection) == {"a.md": 10, "b.md": 1}
    await store.delete(collection, ids)
    assert await store.count(collection) == 1


async def test_ensuring_a_collection_again_keeps_what_it_holds(store: VectorStore, collection: str) -> None:
    await store.upsert(collection, [row("1", vector=[1.0, 0.0])])
    await store.ensure_collection(collection, 2)
    assert await store.count(collection) == 1


async def test_another_dimension_is_told_with_both_numbers(store: VectorStore, collection: str) -> None:
    with pytest.raises(Internal, match=f"{collection} holds vectors of 2 dimensions, but the embedding has 3"):
        await store.ensure_collection(collection, 3)
    with pytest.raises(Internal, match="another embedding model"):
        await store.search(collection, [1.0, 0.0, 0.0], top_k=1, deadline=Deadline.after(SOON))


async def test_a_collection_made_anew_with_another_dimension_is_noticed(milvus_uri: str, collection: str) -> None:
    async with VectorStore(milvus_uri) as long_running, VectorStore(milvus_uri) as other:
        await long_running.search(collection, [1.0, 0.0], top_k=1, deadline=Deadline.after(SOON))
        await other.drop(collection)
        await other.ensure_collection(collection, 3)
        await other.upsert(collection, [row("1", vector=[1.0, 0.0, 0.0])])

        hits = await long_running.search(collection, [1.0, 0.0, 0.0], top_k=1, deadline=Deadline.after(SOON))

    assert [hit.id for hit in hits] == ["1"]


async def test_an_unknown_collection_is_not_found(store: VectorStore) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        await store.search("nowhere", [1.0], top_k=1, deadline=Deadline.after(SOON))
    with pytest.raises(NotFound):
        await store.upsert("nowhere", [row("1", vector=[1.0])])
    with pytest.raises(NotFound):
        await store.sources("nowhere")


async def test_a_dropped_collection_is_not_found_by_one_who_knew_it(milvus_uri: str, collection: str) -> None:
    async with VectorStore(milvus_uri) as reader, VectorStore(milvus_uri) as other:
        await reader.search(collection, [1.0, 0.0], top_k=1, deadline=Deadline.after(SOON))
        await other.drop(collection)
        with pytest.raises(NotFound):
            await reader.search(collection, [1.0, 0.0], top_k=1, deadline=Deadline.after(SOON))


async def test_no_server_is_unavailable_at_once_and_may_be_tried_again() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: refuses
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with VectorStore(f"http://user:secret@{address}", timeout=SOON) as store:
            with pytest.raises(DownstreamUnavailable, match=address) as refused:
                await store.search("any", [1.0], top_k=1, deadline=Deadline.after(SOON))
    assert refused.value.retryable
    assert "secret" not in refused.value.message


async def test_a_server_that_does_not_answer_is_unavailable_after_the_timeout(silent: str) -> None:
    async with VectorStore(silent, timeout=0.1) as store:
        with pytest.raises(DownstreamUnavailable) as unanswered:
            await store.search("any", [1.0], top_k=1, deadline=Deadline.after(SOON))
    assert unanswered.value.retryable


async def test_a_deadline_that_passes_while_waiting_is_exceeded(silent: str) -> None:
    async with VectorStore(silent) as store:
        with pytest.raises(DeadlineExceeded):
            await store.search("any", [1.0], top_k=1, deadline=Deadline.after(0.1))


async def test_a_deadline_already_over_makes_no_call() -> None:
    async with VectorStore("http://127.0.0.1:1") as store:
        with pytest.raises(DeadlineExceeded):
            await store.search("any", [1.0], top_k=1, deadline=Deadline.after(-1))


async def test_a_search_can_be_canceled(silent: str) -> None:
    async with VectorStore(silent, timeout=SOON) as store:
        search = asyncio.create_task(store.search("any", [1.0], top_k=1, deadline=Deadline.after(SOON)))
        await asyncio.wait([search], timeout=0.1)
        search.cancel()
        with pytest.raises(asyncio.CancelledError):
            await search


async def test_first_uses_at_the_same_time_share_one_connection(milvus_uri: str, collection: str) -> None:
    async with VectorStore(milvus_uri) as store, asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(store.search(collection, [1.0, 0.0], top_k=1, deadline=Deadline.after(SOON)))


async def test_a_closed_store_connects_again(store: VectorStore, collection: str) -> None:
    await store.close()
    await store.close()
    assert await store.count(collection) == 0


async def test_it_carries_on_when_the_server_was_restarted(tmp_path: Path) -> None:
    with milvus_lite_server(tmp_path) as uri:
        store = VectorStore(uri)
        await store.ensure_collection("docs", 2)
        await store.upsert("docs", [row("1", vector=[1.0, 0.0])])
    async with store:
        with pytest.raises(DownstreamUnavailable) as down:
            await store.search("docs", [1.0, 0.0], top_k=1, deadline=Deadline.after(SOON))
        assert down.value.retryable
        with milvus_lite_server(tmp_path, port=int(uri.rpartition(":")[2])):
            hits = await store.search("docs", [1.0, 0.0], top_k=1, deadline=Deadline.after(SOON))
    assert [hit.id for hit in hits] == ["1"]


async def test_a_collection_left_without_its_index_is_completed(
    store: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = next(_names)

    async def killed(*_: Any) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(store, "_index", killed)
        with pytest.raises(asyncio.CancelledError):
            await store.ensure_collection(name, 2)
    assert not await store._call("list_indexes", name, deadline=None)

    await store.load(name)

    assert await store._call("list_indexes", name, deadline=None)


async def foreign(uri: str, name: str, rows: list[dict[str, Any]], *, dynamic: bool, text: str = "body") -> None:
    """A collection as another program might make it: integer ids, fields of its own."""
    from pymilvus import AsyncMilvusClient, DataType

    schema = AsyncMilvusClient.create_schema(enable_dynamic_field=dynamic)
    schema.add_field("pk", DataType.INT64, is_primary=True)
    schema.add_field(text, DataType.VARCHAR, max_length=100)
    schema.add_field("year", DataType.INT32)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=2)
    client = AsyncMilvusClient(uri=uri, timeout=SOON)
    await client.create_collection(name, schema=schema, timeout=SOON)
    await client.upsert(name, rows, timeout=SOON)
    await client.close()


async def test_other_fields_of_a_collection_not_made_here_are_metadata(milvus_uri: str) -> None:
    name = next(_names)
    await foreign(milvus_uri, name, [{"pk": 7, "body": "b", "year": 1999, "embedding": [1, 0]}], dynamic=False)
    async with VectorStore(milvus_uri, text_field="body") as store:
        hits = await store.search(name, [1.0, 0.0], top_k=1, deadline=Deadline.after(SOON))
        with pytest.raises(InvalidRequest, match="has no metadata"):
            await store.search(name, [1.0, 0.0], top_k=1, filter={"year": 1999}, deadline=Deadline.after(SOON))
        with pytest.raises(Internal, match="was not made for documents: it lacks content_hash, id, metadata"):
            await store.ensure_collection(name, 2)
    assert hits == [Hit(id="7", text="b", score=pytest.approx(1.0), metadata={"year": 1999})]


async def test_dynamic_fields_are_metadata_and_can_be_filtered(milvus_uri: str) -> None:
    name = next(_names)
    rows = [{"pk": n, "body": "b", "year": n, "embedding": [1, 0], "tag": tag} for n, tag in enumerate(['a"', "b"])]
    await foreign(milvus_uri, name, rows, dynamic=True)
    async with VectorStore(milvus_uri, text_field="body") as store:
        hits = await store.search(name, [1.0, 0.0], top_k=5, filter={"tag": 'a"'}, deadline=Deadline.after(SOON))
    assert [(hit.id, hit.metadata) for hit in hits] == [("0", {"year": 0, "tag": 'a"'})]


async def test_a_collection_without_the_text_field_says_so(milvus_uri: str) -> None:
    name = next(_names)
    await foreign(milvus_uri, name, [], dynamic=False)
    async with VectorStore(milvus_uri) as store:
        with pytest.raises(Internal, match=f"{name} has no field text"):
            await store.search(name, [1.0, 0.0], top_k=1, deadline=Deadline.after(SOON))


async def test_what_milvus_refuses_is_not_tried_again(store: VectorStore, collection: str) -> None:
    await store.hashes(collection, "a.md")
    call = store._call("search", collection, vector=[1.0, 0.0], anns_field="text", limit=1, filter="", output_fields=[],
                       deadline=None)  # fmt: skip
    with pytest.raises(DownstreamUnavailable) as refused:
        await call
    assert not refused.value.retryable


async def test_an_error_of_milvus_is_not_logged_by_its_driver(
    store: VectorStore, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(NotFound):
        await store.count("nowhere")
    assert not caplog.records


def test_importing_the_store_imports_no_driver() -> None:
    code = "import sys, handler_core.vectors; sys.exit(any(m in sys.modules for m in ('pymilvus', 'grpc', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "LOCK").mkdir()
    with pytest.raises(RuntimeError, match="Is a directory"), milvus_lite_server(tmp_path):
        pass


def test_the_driver_is_loaded_without_pandas_and_leaves_it_to_others() -> None:
    code = (
        "import sys; from handler_core.vectors import driver; driver.load()\n"
        "assert not [name for name in sys.modules if name.startswith('pandas')]\n"
        "import pandas; assert pandas.DataFrame({'a': [1]}).shape == (1, 1)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
