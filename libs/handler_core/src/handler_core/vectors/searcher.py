"""What a search takes of Milvus's gRPC protocol; a handler does nothing else with it.

Beside pymilvus's client this takes a tenth of the time to import and a fraction of the memory, and no numpy.
"""

import asyncio
import base64
import contextlib
import json
from array import array
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import grpc  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from handler_core.vectors import milvus_search_pb2 as milvus
from handler_core.vectors.driver import Refused, Undecodable
from handler_core.vectors.layout import Found

SERVICE = "/milvus.proto.milvus.MilvusService/"
# Of Milvus's enumerations DslType and PlaceholderType:
EXPRESSION = 1
FLOAT_VECTOR = 101
EVENTUALLY = 1
"""The timestamp that a search has to see, where the collection's own consistency does not ask for more."""
LOADING_INTERVAL = 0.1
"""Seconds between two looks at whether a collection has been loaded."""
OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Connecting again then starts at once, not after the growing pause that gRPC's channels share.
    ("grpc.use_local_subchannel_pool", 1),
]


class Searcher:
    """One channel to Milvus, connected at the first call, and `broken` when it is closed or could not reach Milvus.

    A broken one closes itself after its last call: gRPC would let it fail for a while before it connects again.
    Every method raises `Refused` or `Undecodable`, `grpc.RpcError` where no answer came within `timeout` seconds, and
    `grpc.aio.UsageError` after `close`.

    Args:
        address: `host:port`.
        secure: by TLS.
        token: `user:password` or an API key; none when empty.
        database: the default one when empty.
    """

    def __init__(self, address: str, *, secure: bool, token: str = "", database: str = "") -> None:
        self.broken = False
        self._calls = 0
        self._database = database
        self._metadata: list[tuple[str, str]] = []
        if token:
            self._metadata.append(("authorization", base64.b64encode(token.encode()).decode()))
        # Named here too, where Milvus looks when it checks privileges; gRPC takes no other characters.
        if database and database.isascii() and database.isprintable():
            self._metadata.append(("dbname", database))
        if secure:
            self._channel = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(), OPTIONS)
        else:
            self._channel = grpc.aio.insecure_channel(address, OPTIONS)

    async def close(self) -> None:
        await self._channel.close()

    async def get_server_version(self, *, timeout: float) -> str:
        answer = await self._ask("GetVersion", milvus.GetVersionRequest(), milvus.GetVersionResponse, timeout)
        return str(answer.version)

    async def describe_collection(self, name: str, *, timeout: float) -> Any:
        """The message `DescribeCollectionResponse`."""
        request = milvus.DescribeCollectionRequest(db_name=self._database, collection_name=name)
        return await self._ask("DescribeCollection", request, milvus.DescribeCollectionResponse, timeout)

    async def load_collection(self, name: str, *, timeout: float) -> None:
        """Returns when the collection is in memory; the caller limits the time that this takes in all."""
        request = milvus.LoadCollectionRequest(db_name=self._database, collection_name=name)
        async with self._in_use():  # also between two looks
            await self._ask("LoadCollection", request, milvus.Status, timeout)
            while not await self._loaded(name, timeout):  # noqa: ASYNC110 - it is Milvus that is waited for
                await asyncio.sleep(LOADING_INTERVAL)

    async def _loaded(self, name: str, timeout: float) -> bool:
        request = milvus.GetLoadingProgressRequest(db_name=self._database, collection_name=name)
        answer = await self._ask("GetLoadingProgress", request, milvus.GetLoadingProgressResponse, timeout)
        return bool(answer.progress >= 100)

    async def search(
        self,
        collection: str,
        *,
        vector: Sequence[float],
        anns_field: str,
        limit: int,
        filter: str,
        output_fields: Sequence[str],
        timeout: float,
    ) -> list[Found]:
        """The `limit` rows nearest to `vector`, the nearest first."""
        parameters = {"topk": limit, "anns_field": anns_field, "round_decimal": -1, "params": "{}"}
        pair = milvus.KeyValuePair
        request = milvus.SearchRequest(
            db_name=self._database,
            collection_name=collection,
            dsl=filter,
            dsl_type=EXPRESSION,
            placeholder_group=_placeholders(vector),
            nq=1,
            output_fields=output_fields,
            search_params=[pair(key=key, value=str(value)) for key, value in parameters.items()],
            guarantee_timestamp=EVENTUALLY,
            use_default_consistency=True,
        )
        answer = await self._ask("Search", request, milvus.SearchResults, timeout)
        with _decoding("Search"):
            return list(_found(answer.results))

    @contextlib.asynccontextmanager
    async def _in_use(self) -> AsyncIterator[None]:
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            if self.broken and not self._calls:
                await self.close()

    async def _ask(self, method: str, request: Any, response: Any, timeout: float) -> Any:
        # Without a deserializer: gRPC would log its failure and go on with None.
        call = self._channel.unary_unary(SERVICE + method, request_serializer=type(request).SerializeToString)
        async with self._in_use():
            try:
                data = await call(request, timeout=timeout, metadata=self._metadata)
            except grpc.RpcError as error:
                self.broken |= error.code() is grpc.StatusCode.UNAVAILABLE
                raise
            except grpc.aio.UsageError:
                self.broken = True
                raise
        with _decoding(method):
            answer = response.FromString(data)
        status = getattr(answer, "status", answer)
        if status.code or status.error_code:
            raise Refused(status)
        return answer


@contextlib.contextmanager
def _decoding(method: str) -> Iterator[None]:
    """What code that trusts an answer raises when it should not have, as `Undecodable`."""
    try:
        yield
    except (DecodeError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise Undecodable(f"the answer to {method} cannot be decoded ({type(error).__name__})") from error


def _placeholders(vector: Sequence[float]) -> bytes:
    value = milvus.PlaceholderValue(tag="$0", type=FLOAT_VECTOR, values=[array("f", vector).tobytes()])
    return bytes(milvus.PlaceholderGroup(placeholders=[value]).SerializeToString())


def _found(results: Any) -> Iterator[Found]:
    """The rows of a message `SearchResultData`, which holds them by column."""
    keys = getattr(results.ids, results.ids.WhichOneof("id_field") or "str_id").data
    columns = [(column.field_name, column.is_dynamic, list(_values(column))) for column in results.fields_data]
    for number, (key, score) in enumerate(zip(keys, results.scores, strict=True)):
        fields: dict[str, Any] = {}
        for name, dynamic, values in columns:
            if dynamic:
                fields.update(values[number] or {})
            else:
                fields[name] = values[number]
        yield Found(key, score, fields)


def _values(column: Any) -> Iterator[Any]:
    """The values of a message `FieldData` of scalars, None where a row has none."""
    kind = column.scalars.WhichOneof("data")
    data = getattr(column.scalars, kind).data if kind else ()
    valid = column.valid_data or [True] * len(data)
    # Some versions of Milvus leave out the values of rows that have none, others fill them in.
    filled = len(data) == len(valid)
    values = iter(data)
    for there in valid:
        value = next(values) if there or filled else None
        yield _plain(value, kind) if there else None


def _plain(value: Any, kind: str | None) -> Any:
    if kind == "json_data":
        return json.loads(value) if value else None
    if kind == "array_data":
        of = value.WhichOneof("data")  # none when the array is empty
        return list(getattr(value, of).data) if of else []
    return value
