"""Searching over a fake Milvus on the same wire: answers and refusals of its versions that Milvus Lite never gives."""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest

from handler_core.deadline import Deadline
from handler_core.errors import DownstreamUnavailable, NotFound
from handler_core.vectors import Hit, VectorStore, searcher
from handler_core.vectors import milvus_search_pb2 as milvus

SOON = 30.0
VARCHAR, ARRAY, JSON, FLOAT_VECTOR = 21, 22, 23, 101
REQUESTS = {
    "GetVersion": milvus.GetVersionRequest,
    "DescribeCollection": milvus.DescribeCollectionRequest,
    "LoadCollection": milvus.LoadCollectionRequest,
    "GetLoadingProgress": milvus.GetLoadingProgressRequest,
    "Search": milvus.SearchRequest,
}
Reply = Callable[[Any, Any], Awaitable[Any]]


class FakeMilvus:
    """A Milvus whose collections have the fields `id`, `text`, `tags`, `metadata` and a vector of two dimensions."""

    def __init__(self) -> None:
        self.uri = ""
        self.seen: list[tuple[str, Any, dict[str, str]]] = []
        """Method, request and metadata of every call."""
        self.replies: dict[str, Reply] = {"DescribeCollection": self._describe}

    def answers(self, method: str, answer: Any) -> None:
        """Give this message, or these bytes, to every call of `method`."""

        async def reply(request: Any, context: Any) -> Any:
            return answer

        self.replies[method] = reply

    def handler(self, method: str) -> Any:
        async def handle(request: Any, context: Any) -> Any:
            self.seen.append((method, request, dict(context.invocation_metadata())))
            return await self.replies[method](request, context)

        return grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=REQUESTS[method].FromString,
            response_serializer=lambda answer: answer if isinstance(answer, bytes) else answer.SerializeToString(),
        )

    async def _describe(self, request: Any, context: Any) -> Any:
        field = milvus.FieldSchema
        dim = milvus.KeyValuePair(key="dim", value="2")
        fields = [
            field(name="id", is_primary_key=True, data_type=VARCHAR),
            field(name="text", data_type=VARCHAR),
            field(name="tags", data_type=ARRAY),
            field(name="metadata", data_type=JSON),
            field(name="vector", data_type=FLOAT_VECTOR, type_params=[dim]),
        ]
        schema = milvus.CollectionSchema(fields=fields)
        return milvus.DescribeCollectionResponse(collection_name=request.collection_name, schema=schema)


@pytest.fixture
async def fake() -> AsyncIterator[FakeMilvus]:
    fake = FakeMilvus()
    server = grpc.aio.server()
    methods = {method: fake.handler(method) for method in REQUESTS}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(searcher.SERVICE.strip("/"), methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    fake.uri = f"http://127.0.0.1:{port}"
    yield fake
    await server.stop(None)


@pytest.fixture
async def store(fake: FakeMilvus) -> AsyncIterator[VectorStore]:
    async with VectorStore(fake.uri) as opened:
        yield opened


def found(*, tags: Any = None, metadata: bytes = b"{}") -> Any:
    """One row, `a`; `tags` is the message of an array."""
    results = milvus.SearchResultData(scores=[0.5])
    results.ids.str_id.data.append("a")
    results.fields_data.add(field_name="text").scalars.string_data.data.append("hi")
    results.fields_data.add(field_name="tags").scalars.array_data.data.append(tags or milvus.Scalars())
    results.fields_data.add(field_name="metadata").scalars.json_data.data.append(metadata)
    return milvus.SearchResults(results=results)


async def search(store: VectorStore, collection: str = "docs") -> list[Hit]:
    return await store.search(collection, [1.0, 0.0], top_k=3, deadline=Deadline.after(SOON))


async def test_an_array_is_metadata(fake: FakeMilvus, store: VectorStore) -> None:
    fake.answers("Search", found(tags=milvus.Scalars(string_data=milvus.Strings(data=["x", "y"]))))
    assert (await search(store))[0].metadata == {"tags": ["x", "y"]}


async def test_an_empty_array_and_an_empty_json_cell_are_no_error(fake: FakeMilvus, store: VectorStore) -> None:
    fake.answers("Search", found(metadata=b""))
    assert await search(store) == [Hit(id="a", text="hi", score=0.5, metadata={"tags": []})]


@pytest.mark.parametrize(
    "answer",
    [
        b"\xff\xff no message",
        found(metadata=b"{"),
        found(metadata=b"\xff"),
        milvus.SearchResults(results=milvus.SearchResultData(scores=[0.5])),
        milvus.SearchResults(
            results=milvus.SearchResultData(
                scores=[0.5],
                ids=milvus.Keys(str_id=milvus.Strings(data=["a"])),
                fields_data=[milvus.FieldData(field_name="text")],
            )
        ),
    ],
    ids=["no message", "no JSON", "no UTF-8", "scores without keys", "a column without values"],
)
async def test_an_answer_that_makes_no_sense_is_told_and_may_be_tried_again(
    fake: FakeMilvus, store: VectorStore, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    fake.answers("Search", answer)
    with pytest.raises(DownstreamUnavailable, match="the answer to Search cannot be decoded") as nonsense:
        await search(store)
    assert nonsense.value.retryable
    assert store.address in nonsense.value.message
    assert not caplog.records


@pytest.mark.parametrize(
    "status",
    [
        milvus.Status(code=1, error_code=56, reason="service not ready"),
        milvus.Status(code=2, error_code=1, reason="service unavailable"),
        milvus.Status(code=4, error_code=1, reason="request limit exceeded"),
        milvus.Status(code=6, error_code=1, reason="cross cluster routing"),
        milvus.Status(code=8, error_code=49, reason="rate limit exceeded"),
        milvus.Status(code=103, error_code=1, reason="collection not fully loaded"),
        milvus.Status(error_code=49, reason="rate limit"),
    ],
    ids=lambda status: status.reason,
)
async def test_a_milvus_that_is_busy_or_not_ready_may_be_tried_again(
    fake: FakeMilvus, store: VectorStore, status: Any
) -> None:
    fake.answers("Search", milvus.SearchResults(status=status))
    with pytest.raises(DownstreamUnavailable, match=status.reason) as failed:
        await search(store)
    assert failed.value.retryable


@pytest.mark.parametrize(
    "status",
    [
        milvus.Status(code=800, error_code=1, reason="database not found"),
        milvus.Status(code=1100, error_code=5, reason="invalid parameter"),
        milvus.Status(code=1102, error_code=1, reason="parameter too large"),
        milvus.Status(code=1401, error_code=1, reason="privilege not permitted"),
        milvus.Status(error_code=3, reason="permission denied"),
        milvus.Status(error_code=5, reason="illegal argument"),
        milvus.Status(code=6, error_code=6, reason="illegal argument, as Milvus Lite says it"),
    ],
    ids=lambda status: status.reason,
)
async def test_what_milvus_refuses_is_not_tried_again(fake: FakeMilvus, store: VectorStore, status: Any) -> None:
    fake.answers("Search", milvus.SearchResults(status=status))
    with pytest.raises(DownstreamUnavailable, match=status.reason) as refused:
        await search(store)
    assert not refused.value.retryable


@pytest.mark.parametrize(
    "status",
    [
        milvus.Status(code=100, error_code=4, reason="collection not found"),
        milvus.Status(code=100, error_code=1, reason="collection not found"),
        milvus.Status(error_code=4, reason="collection not found"),
    ],
    ids=["both codes", "the new code", "the old code"],
)
async def test_a_missing_collection_is_not_found_by_the_code_of_any_version(
    fake: FakeMilvus, store: VectorStore, status: Any
) -> None:
    fake.answers("DescribeCollection", milvus.DescribeCollectionResponse(status=status))
    with pytest.raises(NotFound, match="no such collection"):
        await search(store)


@pytest.mark.parametrize(
    ("code", "retryable"), [("UNAUTHENTICATED", False), ("PERMISSION_DENIED", False), ("RESOURCE_EXHAUSTED", True)]
)
async def test_wrong_credentials_are_not_tried_again(
    fake: FakeMilvus, store: VectorStore, code: str, retryable: bool
) -> None:
    async def refuse(request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode[code], "auth check failure")

    fake.replies["Search"] = refuse
    with pytest.raises(DownstreamUnavailable, match=code) as refused:
        await search(store)
    assert refused.value.retryable is retryable


def loaded_at_the_second_search(fake: FakeMilvus) -> None:
    async def reply(request: Any, context: Any) -> Any:
        before = [method for method, *_ in fake.seen].count("Search") > 1
        return found() if before else milvus.SearchResults(status=milvus.Status(code=101, reason="not loaded"))

    fake.replies["Search"] = reply
    fake.answers("LoadCollection", milvus.Status())
    fake.answers("GetLoadingProgress", milvus.GetLoadingProgressResponse(progress=100))


@pytest.mark.parametrize(
    ("before", "path", "token", "authorization", "database"),
    [
        ("", "", None, None, ""),
        ("root:pa%40ss@", "/mydb", None, "root:pa%40ss", "mydb"),
        ("api-key@", "/mydb/more", None, "api-key", "mydb"),
        ("root:secret@", "/", "given:token", "given:token", ""),
        ("", "", "given:token", "given:token", ""),
    ],
    ids=["none", "both", "a key alone", "a token counts first", "a token alone"],
)
async def test_credentials_and_database_of_the_uri_go_with_every_call_as_pymilvus_sends_them(
    fake: FakeMilvus, before: str, path: str, token: str | None, authorization: str | None, database: str
) -> None:
    loaded_at_the_second_search(fake)
    fake.answers("GetVersion", milvus.GetVersionResponse(version="v2.6.0"))
    async with VectorStore(fake.uri.replace("://", f"://{before}") + path, token=token) as store:
        await store.connect()
        assert await search(store)

    assert {method for method, *_ in fake.seen} == set(REQUESTS)
    for method, request, metadata in fake.seen:
        expected = None if authorization is None else base64.b64encode(authorization.encode()).decode()
        assert metadata.get("authorization") == expected
        assert metadata.get("dbname", "") == database
        if method != "GetVersion":
            assert request.db_name == database


async def test_a_database_that_no_header_can_carry_is_for_milvus_to_refuse(fake: FakeMilvus) -> None:
    status = milvus.Status(code=802, error_code=1, reason="invalid database name")
    fake.answers("DescribeCollection", milvus.DescribeCollectionResponse(status=status))
    async with VectorStore(f"{fake.uri}/données") as store:
        with pytest.raises(DownstreamUnavailable, match="invalid database name") as refused:
            await search(store)
    assert not refused.value.retryable
    assert fake.seen[0][1].db_name == "données"


async def test_ingestion_uses_the_same_credentials_and_database(
    fake: FakeMilvus, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    class Client:
        def __init__(self, **options: Any) -> None:
            given.update(options)

        async def __aenter__(self) -> "Client":
            return self

        async def drop_collection(self, name: str, *, timeout: float) -> None: ...

        async def close(self) -> None: ...

    monkeypatch.setattr("pymilvus.AsyncMilvusClient", Client)
    async with VectorStore(fake.uri.replace("://", "://root:secret@") + "/mydb") as store:
        await store.drop("docs")

    # Not in the URI, which pymilvus repeats in its errors.
    assert (given["uri"], given["token"], given["db_name"]) == (fake.uri, "root:secret", "mydb")


async def test_credentials_are_in_no_error_and_in_no_address(fake: FakeMilvus) -> None:
    fake.answers("Search", milvus.SearchResults(status=milvus.Status(code=2, reason="service unavailable")))
    async with VectorStore(fake.uri.replace("://", "://root:secret@") + "/my.db") as store:
        with pytest.raises(DownstreamUnavailable) as by_search:
            await search(store)
        with pytest.raises(DownstreamUnavailable) as by_pymilvus:
            await store.drop("docs")  # of a service that the fake does not have
        shown = [by_search.value.message, by_pymilvus.value.message, store.address, repr(store)]
    assert not [text for text in shown if "secret" in text]


async def test_loading_goes_on_when_another_call_loses_the_connection(
    fake: FakeMilvus, store: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searcher, "LOADING_INTERVAL", 0.02)
    looked, lost = asyncio.Event(), asyncio.Event()

    async def reply(request: Any, context: Any) -> Any:
        if request.collection_name == "lost":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        if lost.is_set():
            return found()
        return milvus.SearchResults(status=milvus.Status(code=101, reason="collection not loaded"))

    async def progress(request: Any, context: Any) -> Any:
        looked.set()
        return milvus.GetLoadingProgressResponse(progress=100 if lost.is_set() else 10)

    fake.replies |= {"Search": reply, "GetLoadingProgress": progress}
    fake.answers("LoadCollection", milvus.Status())
    async with asyncio.TaskGroup() as group:
        loading = group.create_task(search(store))
        await looked.wait()
        with pytest.raises(DownstreamUnavailable, match="UNAVAILABLE"):
            await search(store, "lost")
        lost.set()
    assert [hit.id for hit in loading.result()] == ["a"]


async def test_a_connection_closed_under_a_call_is_lost_and_made_again(fake: FakeMilvus, store: VectorStore) -> None:
    fake.answers("Search", found())
    await search(store)
    await store._connection._searcher.close()

    with pytest.raises(DownstreamUnavailable, match=r"[Cc]losed") as closed:
        await search(store)

    assert closed.value.retryable
    assert [hit.id for hit in await search(store)] == ["a"]


def test_messages_have_the_numbers_and_types_that_pymilvus_has() -> None:
    from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

    theirs = {
        name: {field.number: field for field in message.fields}
        for module in (common_pb2, schema_pb2, milvus_pb2)
        for name, message in module.DESCRIPTOR.message_types_by_name.items()
    }
    kinds = {"Scalars": "ScalarField", "Arrays": "ArrayArray", "Keys": "IDs", "Blobs": "JSONArray", "Ints": "IntArray"}
    kinds |= {name: f"{name[:-1]}Array" for name in ("Bools", "Longs", "Floats", "Doubles", "Strings")}
    enumeration, number = 14, 5  # as types of fields: an enumeration is a plain number here
    for name, message in milvus.DESCRIPTOR.message_types_by_name.items():
        for field in message.fields:
            same = theirs[kinds.get(name, name)][field.number]
            kind = number if same.type == enumeration else same.type
            assert (name, field.name, field.type) == (name, same.name, kind)
