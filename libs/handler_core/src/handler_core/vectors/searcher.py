"""What a search takes of Milvus's gRPC protocol; a handler does nothing else with it.

Beside pymilvus's client this takes a tenth of the time to import and a fraction of the memory, and no numpy.
"""

import asyncio
import base64
import json
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import grpc  # type: ignore[import-untyped]

from handler_core.vectors import milvus_search_pb2 as milvus
from handler_core.vectors.driver import Refused
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
    """One channel to Milvus, connected at the first call, and `broken` when Milvus could not be reached.

    A broken one closes itself after its last call: gRPC would let it fail for a while before it connects again.
    Every method raises `Refused`, or `grpc.RpcError` where no answer came within `timeout` seconds.

    Args:
        address: `host:port`.
        secure: by TLS.
        token: `user:password` or an API key.
    """

    def __init__(self, address: str, *, secure: bool, token: str | None) -> None:
        self.broken = False
        self._calls = 0
        self._metadata: tuple[tuple[str, str], ...] = ()
        if token:
            self._metadata = (("authorization", base64.b64encode(token.encode()).decode()),)
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
        request = milvus.DescribeCollectionRequest(collection_name=name)
        return await self._ask("DescribeCollection", request, milvus.DescribeCollectionResponse, timeout)

    async def load_collection(self, name: str, *, timeout: float) -> None:
        """Returns when the collection is in memory; the caller limits the time that this takes in all."""
        request = milvus.LoadCollectionRequest(collection_name=name)
        await self._ask("LoadCollection", request, milvus.Status, timeout)
        while not await self._loaded(name, timeout):  # noqa: ASYNC110 - it is Milvus that is waited for
            await asyncio.sleep(LOADING_INTERVAL)

    async def _loaded(self, name: str, timeout: float) -> bool:
        request = milvus.GetLoadingProgressRequest(collection_name=name)
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
        return list(_found(answer.results))

    async def _ask(self, method: str, request: Any, response: Any, timeout: float) -> Any:
        call = self._channel.unary_unary(
            SERVICE + method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        self._calls += 1
        try:
            answer = await call(request, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            self.broken |= error.code() is grpc.StatusCode.UNAVAILABLE
            raise
        finally:
            self._calls -= 1
            if self.broken and not self._calls:
                await self.close()
        status = getattr(answer, "status", answer)
        if status.code or status.error_code:
            raise Refused(status)
        return answer


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
        return json.loads(value)
    if kind == "array_data":
        return list(getattr(value, value.WhichOneof("data")).data)
    return value
