"""The store itself: search for the handlers, and what ingestion needs to keep a collection up to date."""

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from handler_core.contract.chat import FilterTerm
from handler_core.deadline import Deadline
from handler_core.errors import DownstreamUnavailable, HandlerError, Internal, NotFound
from handler_core.filters import quote
from handler_core.tracing import Value, span
from handler_core.vectors.connection import SETUP_TIMEOUT, Connection
from handler_core.vectors.layout import Hit, Layout, Row, read_layout

PAGE = 4096
"""Rows a query asks for at a time; Milvus gives 16,384 at most."""
DELETE_BATCH = 512

_OWN_FIELDS = {"id", "text", "source", "content_hash", "metadata", "vector"}


class VectorStore:
    """Collections of one Milvus server, over one connection that is made at the first use and made again when lost.

    Every method raises `NotFound` for an unknown collection, `DeadlineExceeded` when its `deadline` passes, and
    `DownstreamUnavailable` when Milvus cannot be reached, does not answer in time, has too much to do or answers
    nonsense, or (not retryable) refuses a call.

    Args:
        uri: `http://user:password@host:19530/database`, all but the host optional; `https` for TLS. As with pymilvus,
            percent signs stand for themselves.
        token: `user:password` or an API key, before those in `uri`.
        timeout: seconds for one call, less when the deadline is nearer.
        text_field: the field that holds the passage, in collections not made by `ensure_collection`.
        observe: metrics hook, called once a search as `observe("milvus", seconds, outcome)`; outcomes are `ok`,
            `canceled` and the types of the wire's errors.
    """

    def __init__(
        self,
        uri: str,
        *,
        token: str | None = None,
        timeout: float = 10.0,
        text_field: str = "text",
        observe: Callable[[str, float, str], None] | None = None,
    ) -> None:
        self._observe = observe
        self._connection = Connection(uri, token=token, timeout=timeout)
        self._call = self._connection.call
        self._text_field = text_field
        self._layouts: dict[str, Layout] = {}

    @property
    def address(self) -> str:
        """The server's `host:port`, for messages."""
        return self._connection.address

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def connect(self, *, deadline: Deadline | None = None) -> None:
        """Import gRPC and ask the server for its version: before the first use, or to check that it is there."""
        await self._call("get_server_version", deadline=deadline)

    async def close(self) -> None:
        """Close the connection; a later call opens a new one."""
        await self._connection.close()

    async def search(
        self,
        collection: str,
        vector: Sequence[float],
        *,
        top_k: int,
        filter: Mapping[str, FilterTerm] | None = None,
        deadline: Deadline,
    ) -> list[Hit]:
        """The `top_k` passages nearest to `vector` that satisfy `filter`, the nearest first.

        In a collection not made here, a hit's `metadata` holds the other scalar and dynamic fields, and the filter
        applies to its JSON field `metadata`, or else to its dynamic fields.

        Raises:
            InvalidRequest: a filter that cannot be expressed, or a collection that has nothing to filter by.
            Internal: the collection holds vectors of another dimension, or no text.
        """
        with self._observed(), span(f"search {collection}", "client", self._attributes(collection, top_k)):
            return await self._search(collection, vector, top_k, filter, deadline)

    async def _search(
        self,
        collection: str,
        vector: Sequence[float],
        top_k: int,
        filter: Mapping[str, FilterTerm] | None,
        deadline: Deadline,
    ) -> list[Hit]:
        try:
            layout = await self._layout(collection, deadline)
            if layout.dimension != len(vector):  # perhaps it was made anew since
                layout = await self._layout(collection, deadline, afresh=True)
                layout.check_dimension(len(vector))
            found = await self._call(
                "search",
                collection,
                vector=vector,
                anns_field=layout.vector_field,
                limit=top_k,
                filter=layout.condition(filter),
                output_fields=layout.output_fields,
                deadline=deadline,
            )
        except HandlerError:
            self._layouts.pop(collection, None)
            raise
        return [layout.hit(one) for one in found]

    def _attributes(self, collection: str, top_k: int) -> dict[str, Value]:
        host, _, port = self.address.rpartition(":")
        return {
            "db.system.name": "milvus",
            "db.operation.name": "search",
            "db.collection.name": collection,
            "db.query.limit": top_k,
            "server.address": host,
            "server.port": int(port),
        }

    @contextmanager
    def _observed(self) -> Iterator[None]:
        started, outcome = time.perf_counter(), "canceled"
        try:
            yield
            outcome = "ok"
        except HandlerError as error:
            outcome = error.type.value
            raise
        finally:
            if self._observe is not None:
                self._observe("milvus", time.perf_counter() - started, outcome)

    async def ensure_collection(self, name: str, dimension: int, *, deadline: Deadline | None = None) -> None:
        """Make the collection and its index (cosine) and load it, or what of that is missing.

        Raises:
            Internal: it exists with another dimension, or without the fields that `upsert` fills.
        """
        try:
            layout = await self._layout(name, deadline, afresh=True)
        except NotFound:
            await self._create(name, dimension, deadline)
        else:
            layout.check_dimension(dimension)
            if missing := sorted(_OWN_FIELDS - layout.names):
                raise Internal(f"collection {name} was not made for documents: it lacks {', '.join(missing)}")
        await self.load(name, deadline=deadline)

    async def load(self, name: str, *, deadline: Deadline | None = None) -> None:
        """Load the collection, and before that make its index if `ensure_collection` was interrupted there."""
        if not await self._call("list_indexes", name, deadline=deadline):
            await self._index(name, deadline)
        await self._call("load_collection", name, deadline=deadline, at_most=SETUP_TIMEOUT)

    async def upsert(self, collection: str, rows: Sequence[Row], *, deadline: Deadline | None = None) -> None:
        """Store `rows`, each in place of the one with its id. They go in one message: some hundreds at a time."""
        if rows:
            await self._call("upsert", collection, data=[row.as_dict() for row in rows], deadline=deadline)

    async def delete(self, collection: str, ids: Sequence[str], *, deadline: Deadline | None = None) -> None:
        """Remove the rows with these ids; unknown ones are no error."""
        for start in range(0, len(ids), DELETE_BATCH):
            # Not pymilvus's `ids=`, which writes them into an expression without escaping.
            quoted = ", ".join(quote(row_id) for row_id in ids[start : start + DELETE_BATCH])
            await self._call("delete", collection, filter=f"id in [{quoted}]", deadline=deadline)

    async def hashes(self, collection: str, source: str, *, deadline: Deadline | None = None) -> dict[str, str]:
        """The `content_hash` of every row of `source`, by id."""
        rows = self._rows(collection, ["id", "content_hash"], f"source == {quote(source)}", deadline)
        return {row["id"]: row["content_hash"] async for row in rows}

    async def sources(self, collection: str, *, deadline: Deadline | None = None) -> dict[str, int]:
        """How many rows each source has, by its name. Reads the id and source of every row."""
        rows = self._rows(collection, ["id", "source"], "", deadline)
        return dict(Counter([row["source"] async for row in rows]))

    async def count(self, collection: str, *, deadline: Deadline | None = None) -> int:
        """How many rows the collection has."""
        counted = await self._call(
            "query", collection, output_fields=["count(*)"], consistency_level="Strong", deadline=deadline
        )
        return int(counted[0]["count(*)"])

    async def drop(self, collection: str, *, deadline: Deadline | None = None) -> None:
        """Remove the collection with all that it holds."""
        self._layouts.pop(collection, None)
        await self._call("drop_collection", collection, deadline=deadline)

    async def _rows(
        self, collection: str, fields: list[str], condition: str, deadline: Deadline | None
    ) -> AsyncIterator[dict[str, Any]]:
        """All rows that meet `condition`, paged by id as pymilvus's iterator does, of which it has none for asyncio."""
        page = condition
        while rows := await self._call(
            "query",
            collection,
            filter=page,
            output_fields=fields,
            limit=PAGE,
            iterator="True",
            reduce_stop_for_best=True,
            consistency_level="Strong",
            deadline=deadline,
        ):
            for row in rows:
                yield row
            after = f"id > {quote(max(row['id'] for row in rows))}"
            page = f"{condition} and {after}" if condition else after

    async def _create(self, name: str, dimension: int, deadline: Deadline | None) -> None:
        pymilvus = await self._connection.driver()
        schema = pymilvus.AsyncMilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        varchar = pymilvus.DataType.VARCHAR
        schema.add_field("id", varchar, is_primary=True, max_length=128)
        schema.add_field("text", varchar, max_length=65_535)
        schema.add_field("source", varchar, max_length=4096)
        schema.add_field("content_hash", varchar, max_length=128)
        schema.add_field("metadata", pymilvus.DataType.JSON)
        schema.add_field("vector", pymilvus.DataType.FLOAT_VECTOR, dim=dimension)
        await self._call("create_collection", name, schema=schema, deadline=deadline, at_most=SETUP_TIMEOUT)

    async def _index(self, name: str, deadline: Deadline | None) -> None:
        pymilvus = await self._connection.driver()
        index = pymilvus.AsyncMilvusClient.prepare_index_params()
        index.add_index("vector", index_type="AUTOINDEX", metric_type="COSINE")
        try:
            await self._call("create_index", name, index_params=index, deadline=deadline, at_most=SETUP_TIMEOUT)
        except DownstreamUnavailable:
            # Milvus Lite makes the index, but lacks the call by which pymilvus then waits for it.
            if not await self._call("list_indexes", name, deadline=deadline):
                raise

    async def _layout(self, collection: str, deadline: Deadline | None, *, afresh: bool = False) -> Layout:
        layout = None if afresh else self._layouts.get(collection)
        if layout is None:
            described = await self._call("describe_collection", collection, deadline=deadline)
            layout = self._layouts[collection] = read_layout(described, self._text_field)
        return layout
