"""Lazy imports: a module is loaded when something of it is first used, not where it is imported.

From Python 3.15 on, all imports at the top of a module are treated so, in this code and in what it builds on, but for
the packages that do something by being imported. Older versions import as always: the same code runs on both.
"""

import gc
import sys

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
    """Whether this import may be put off until its first use."""
    return not (importer.endswith(GENERATED) or importer.startswith(EAGER) or imported.startswith(EAGER))
