"""Lazy imports: a module is loaded when something of it is first used, not where it is imported.

From Python 3.15 on, all imports at the top of a module are treated so, in this code and in what it builds on, but for
the packages that do something by being imported. Older versions import as always: the same code runs on both.
"""

import sys

EAGER = ("google.", "numpy", "pymilvus.grpc_gen")
"""Packages whose modules register themselves, or set each other up, when they are imported."""


def switch_on() -> None:
    """From here on import lazily, where Python can; the first thing that a process does."""
    if sys.version_info >= (3, 15):
        sys.set_lazy_imports_filter(may_wait)
        sys.set_lazy_imports("all")


def may_wait(importer: str, imported: str, names: tuple[str, ...] | None) -> bool:
    """Whether this import may be put off until its first use."""
    return not (imported.startswith(EAGER) or importer.startswith(EAGER))
