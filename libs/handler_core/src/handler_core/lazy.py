"""Lazy imports: a module is loaded when something of it is first used, not where it is imported.

From Python 3.15 on, all imports at the top of a module are treated so, in this code and in what it builds on, but for
the packages that do something by being imported. Older versions import as always: the same code runs on both.
"""

import gc
import sys

if sys.version_info >= (3, 15):
    from types import LazyImportType as Promise
else:

    class Promise:
        """What stands for a name until its first use, where there is such a thing."""


EAGER = ("numpy", "nacl")
"""Packages whose modules set each other up when they are imported, or have a module and something in it by one name."""
GENERATED = "_pb2"
"""How the names of modules end that protoc generated; each finds what its messages consist of already registered."""
YOUNG = 100_000
"""New objects after which the garbage collector looks for those that nobody needs; Python's own 2,000 have it look
forty times, for a sixth of the start, at modules that stay. Once they are there, `lifecycle` sets what holds then."""


def switch_on() -> None:
    """From here on import lazily, where Python can; the first thing that a process does."""
    gc.set_threshold(YOUNG)
    if sys.version_info >= (3, 15):
        sys.set_lazy_imports_filter(may_wait)
        sys.set_lazy_imports("all")


def may_wait(importer: str, imported: str, names: tuple[str, ...] | None) -> bool:
    """Whether this import may be put off until its first use; what is there already costs less than its promise."""
    if importer.endswith(GENERATED) or importer.startswith(EAGER) or imported.startswith(EAGER):
        return False
    return not _there(sys.modules.get(imported), names or ())


def _there(module: object, names: tuple[str, ...]) -> bool:
    """Whether a module is loaded, and not barred, and has these names, none of them a promise of its own."""
    if module is None:
        return False
    has = getattr(module, "__dict__", {})  # anything may stand among the modules
    return all(name in has and not isinstance(has[name], Promise) for name in names)
