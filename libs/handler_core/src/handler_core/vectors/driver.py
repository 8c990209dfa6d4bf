"""pymilvus, imported for what is used of it: its asyncio client."""

import contextlib
import importlib
import importlib.util
import logging
import sys
import types
from collections.abc import Iterator
from typing import Any

MISSING = "the vector store needs gRPC and protobuf: install handler-core[search]"
MISSING_PYMILVUS = "filling a collection needs pymilvus: install handler-core[vectors]"


class Refused(Exception):
    """Milvus answered a call of `Searcher` with an error."""

    def __init__(self, status: Any) -> None:
        super().__init__(status.reason)
        self.code: int = status.code
        self.compatible_code: int = status.error_code
        self.message: str = status.reason


class Undecodable(Exception):
    """Milvus answered a call of `Searcher` with something that makes no sense."""


def require() -> None:
    """Raise ImportError unless what a search needs is installed, without importing it."""
    if any(importlib.util.find_spec(name) is None for name in ("grpc", "google.protobuf")):
        raise ImportError(MISSING)


def load() -> Any:
    """The module `pymilvus`; slow (most of a second), so call it in a thread.

    Raises:
        ImportError: it is not installed.
    """
    try:
        with _without_pandas():
            driver = importlib.import_module("pymilvus")
    except ModuleNotFoundError as error:
        raise ImportError(MISSING_PYMILVUS) from error
    # They log every error before it is raised, with a traceback, even one that is then dealt with.
    for name in ("pymilvus.decorators", "pymilvus.client.connection_manager"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return driver


def errors() -> tuple[type[Exception], ...]:
    """What the clients raise; looked up when something is raised, so after they were imported."""
    grpc = importlib.import_module("grpc")
    # UsageError: the connection was closed between two calls of one method.
    own = (Refused, Undecodable, grpc.RpcError, grpc.aio.UsageError)
    if "pymilvus" not in sys.modules:
        return own
    return (*own, importlib.import_module("pymilvus.exceptions").MilvusException)


class _StandIn(types.ModuleType):
    """A module whose every public name is an empty class: enough for an import and an `isinstance`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return type(name, (), {})


@contextlib.contextmanager
def _without_pandas() -> Iterator[None]:
    """Keep pymilvus from importing pandas, half of its import time and memory, where nobody else has.

    Only its older, blocking interface takes data frames; the asyncio client never sees one.
    """
    names = ("pandas", "pandas.api", "pandas.api.types")
    if "pandas" in sys.modules or "pymilvus" in sys.modules:
        yield
        return
    sys.modules.update({name: _StandIn(name) for name in names})
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)
