"""One connection to Milvus, with time limits, and errors in the library's own terms."""

import asyncio
import importlib
from typing import Any
from urllib.parse import urlsplit

from handler_core.deadline import Deadline
from handler_core.errors import DeadlineExceeded, DownstreamUnavailable, HandlerError, NotFound
from handler_core.vectors import driver

SETUP_TIMEOUT = 60.0
"""Seconds for making, indexing or loading a collection."""

# Codes of Milvus's replies. The old ones, of the enumeration ErrorCode, are the only ones before 2.3; later versions
# send them beside the new ones, in which the same numbers mean other things (4: too many requests).
_COLLECTION_NOT_FOUND = 100
_COLLECTION_NOT_FOUND_OLD = 4
_NOT_LOADED = 101
_REFUSED = {800, 802, 1100, 1101, 1102, 1400, 1401}  # no such database, a wrong argument, no permission
_REFUSED_OLD = {3, 5, 6}  # no permission, a wrong argument, and that of Milvus Lite
_REFUSED_BY_GRPC = {"UNAUTHENTICATED", "PERMISSION_DENIED"}
_SEARCHING = {"get_server_version", "describe_collection", "load_collection", "search"}
_REFUSED_BY_PYMILVUS = {"ParamError", "DataNotMatchException", "ConnectionConfigException"}


class _NotLoaded(DownstreamUnavailable):
    """The collection is stored but not in memory, as after a restart of Milvus Lite."""


class Connection:
    """Calls the methods of `Searcher`, and those it lacks of pymilvus's asyncio client, which only ingestion needs.

    Both are made at the first call and made again after `close`.

    Args:
        uri: `http://user:password@host:19530/database`, all but the host optional; `https` for TLS. As with pymilvus,
            percent signs stand for themselves.
        token: `user:password` or an API key, before those in `uri`.
        timeout: seconds for one call, connecting included; less when the deadline is nearer.
    """

    def __init__(self, uri: str, *, token: str | None, timeout: float) -> None:
        parts = urlsplit(uri)
        self._secure = parts.scheme == "https"
        self.address = f"{parts.hostname}:{parts.port or (443 if self._secure else 19530)}"
        written = ":".join(filter(None, (parts.username, parts.password))) if parts.username else ""
        self._token = token or written
        self._database = parts.path.strip("/").partition("/")[0]
        self._timeout = timeout
        self._driver: Any = None
        self._client: Any = None
        self._searcher: Any = None
        self._connecting = asyncio.Lock()

    async def driver(self) -> Any:
        """The module `pymilvus`.

        Raises:
            ImportError: it is not installed.
        """
        if self._driver is None:
            self._driver = await asyncio.to_thread(driver.load)
        return self._driver

    async def close(self) -> None:
        open_ones = [one for one in (self._client, self._searcher) if one is not None]
        self._client = self._searcher = None
        for one in open_ones:
            await one.close()

    async def call(
        self,
        method: str,
        *arguments: Any,
        deadline: Deadline | None,
        at_most: float | None = None,
        **options: Any,
    ) -> Any:
        """Await `method` of the client; a collection (its first argument) that is not in memory is loaded first.

        Args:
            at_most: seconds, in place of the connection's `timeout`.

        Raises:
            NotFound, DownstreamUnavailable, DeadlineExceeded: as `VectorStore` says.
        """
        deadline = deadline or Deadline.never()
        at_most = at_most or self._timeout
        try:
            return await self._attempt(method, *arguments, deadline=deadline, at_most=at_most, **options)
        except _NotLoaded:
            await self._attempt("load_collection", arguments[0], deadline=deadline, at_most=SETUP_TIMEOUT)
            return await self._attempt(method, *arguments, deadline=deadline, at_most=at_most, **options)

    async def _attempt(self, method: str, *arguments: Any, deadline: Deadline, at_most: float, **options: Any) -> Any:
        timeout = deadline.timeout(at_most)
        failure: HandlerError
        cause: Exception
        try:
            async with asyncio.timeout(timeout):  # pymilvus's own limit leaves out connecting again
                client = await self._connected(method)
                return await getattr(client, method)(*arguments, timeout=timeout, **options)
        except TimeoutError as error:
            failure = DownstreamUnavailable(f"Milvus at {self.address} did not answer within {timeout:.3g} s")
            cause = error
        except driver.errors() as error:
            failure, cause = self._failure(error), error
        if deadline.expired:
            raise DeadlineExceeded("the deadline passed before the vector store answered") from cause
        raise failure from cause

    async def _connected(self, method: str) -> Any:
        """The client that has `method`."""
        async with self._connecting:
            if method in _SEARCHING:
                if self._searcher is None or self._searcher.broken:
                    # gRPC is slow to import.
                    searcher = await asyncio.to_thread(importlib.import_module, "handler_core.vectors.searcher")
                    self._searcher = searcher.Searcher(
                        self.address, secure=self._secure, token=self._token, database=self._database
                    )
                return self._searcher
            if self._client is None:
                pymilvus = await self.driver()
                client = pymilvus.AsyncMilvusClient(
                    # Not the URI as given: pymilvus repeats it in errors, password and all.
                    uri=f"{'https' if self._secure else 'http'}://{self.address}",
                    token=self._token,
                    db_name=self._database,
                    timeout=self._timeout,
                    dedicated=True,  # one shared through pymilvus's registry would outlive `close`
                    grpc_options={"grpc.use_local_subchannel_pool": 1},  # as in `searcher`
                )
                self._client = await client.__aenter__()
            return self._client

    def _failure(self, error: Exception) -> HandlerError:
        code = getattr(error, "code", None)
        if callable(code):  # an error of gRPC itself, whose text is long and holds internals
            name = code().name
            return DownstreamUnavailable(
                f"Milvus at {self.address} failed: {name}", retryable=name not in _REFUSED_BY_GRPC
            )
        message = str(getattr(error, "message", error)).strip().partition("\n")[0][:300]
        old = getattr(error, "compatible_code", None)
        if code == _COLLECTION_NOT_FOUND or (not code and old == _COLLECTION_NOT_FOUND_OLD):
            return NotFound(f"no such collection in Milvus: {message}")
        if code == _NOT_LOADED:
            return _NotLoaded(message)
        refused = code in _REFUSED or old in _REFUSED_OLD or type(error).__name__ in _REFUSED_BY_PYMILVUS
        return DownstreamUnavailable(f"Milvus at {self.address}: {message}", retryable=not refused)
