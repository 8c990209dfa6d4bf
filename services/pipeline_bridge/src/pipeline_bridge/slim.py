"""kubernetes-asyncio without its model files.

Importing the library loads a thousand modules, of models and of every API group: a second and more, and some seventy
megabytes, for custom resources that no model describes. What is of use here is small: the API client with its
connection, the configuration, and the loaders of kubeconfig files and service accounts. So its packages are put in
place without running their `__init__`, with the names in them that those few modules expect.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

_PACKAGES = ("kubernetes_asyncio", "kubernetes_asyncio.client")


class Kubernetes(NamedTuple):
    """What is used of the library."""

    ApiClient: Any
    Configuration: Any
    config: Any
    """Its module of loaders: `load_incluster_config`, `load_kube_config`."""


def load() -> Kubernetes:
    """The library; as it is, where something has imported it before."""
    if "kubernetes_asyncio" not in sys.modules:
        for name in _PACKAGES:
            _put(name)
        client = sys.modules["kubernetes_asyncio.client"]
        # Looked into for the class of an answer, of which there is none here; its files need not be there at all.
        client.models = sys.modules[f"{client.__name__}.models"] = ModuleType(f"{client.__name__}.models")  # type: ignore[attr-defined]
        with _left_out():
            for module, name in (("configuration", "Configuration"), ("api_client", "ApiClient")):
                setattr(client, name, getattr(importlib.import_module(f"{client.__name__}.{module}"), name))
    # By name, as a lazy import would look for it in a package whose `__init__` would have set it.
    config = importlib.import_module("kubernetes_asyncio.config")
    client = importlib.import_module("kubernetes_asyncio.client")
    return Kubernetes(client.ApiClient, client.Configuration, config)


def _put(name: str) -> None:
    """Make a package importable from, without running it."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {name!r}: install kubernetes-asyncio", name=name)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    parent, _, leaf = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], leaf, module)


@contextmanager
def _left_out() -> Iterator[None]:
    """Keep out what the client imports for calls in threads, Basic authorization and dates in models: 90 ms together.

    Only for the block, and only what is not loaded yet: others that import it get the real one.
    """
    unused = {"multiprocessing.pool": "ThreadPool", "dateutil.parser": "parse", "urllib3": "util"}
    names = [name for name in unused if name not in sys.modules]
    for name in names:
        sys.modules[name] = ModuleType(name)
        setattr(sys.modules[name], unused[name], _not_here)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def _not_here(*_: object, **__: object) -> NoReturn:
    raise RuntimeError("left out of kubernetes-asyncio here (pipeline_bridge.slim)")
