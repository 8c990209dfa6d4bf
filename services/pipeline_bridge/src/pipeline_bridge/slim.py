"""kubernetes-asyncio's loaders of kubeconfig files and service accounts, without the rest of it.

Importing the library loads a thousand modules, of models and of every API group: a second and more, and some seventy
megabytes, for custom resources that no model describes. Its client alone still brings what Python 2 needed, and dates,
mail and pools of threads. So the package is put in place without running its `__init__`, and for the client stand the
two names of it that the loaders import.
"""

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any, NoReturn

_LIBRARY = "kubernetes_asyncio"


def loaders() -> Any:
    """The library's module `config`: `load_incluster_config`, `load_kube_config`. Both fill the configuration that they
    are given; as it is, where something has imported the library before."""
    if _LIBRARY not in sys.modules:
        spec = importlib.util.find_spec(_LIBRARY)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {_LIBRARY!r}: install kubernetes-asyncio", name=_LIBRARY)
        library = sys.modules[_LIBRARY] = importlib.util.module_from_spec(spec)
        client: Any = ModuleType(f"{_LIBRARY}.client")
        client.ApiClient = client.Configuration = _LeftOut
        library.client = sys.modules[client.__name__] = client  # type: ignore[attr-defined]
    # By name, as a lazy import would look for it in a package whose `__init__` would have set it.
    return importlib.import_module(f"{_LIBRARY}.config")


class _LeftOut:
    """What the loaders would make if they were given no configuration."""

    def __init__(self, *_: object, **__: object) -> NoReturn:
        raise RuntimeError("left out of kubernetes-asyncio here (pipeline_bridge.slim)")
