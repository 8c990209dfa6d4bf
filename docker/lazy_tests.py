"""A plugin for pytest that has imports be lazy from the start, as they are in the images: `pytest -p lazy_tests`."""

import sys

from handler_core import lazy

TOOLS = ("hypothesis", "_hypothesis", "pytest", "_pytest", "xdist", "execnet")
"""What only tests are made with; hypothesis counts what its modules have made while they are imported."""


def may_wait(importer: str, imported: str, names: tuple[str, ...] | None) -> bool:
    return lazy.may_wait(importer, imported, names) and not (importer.startswith(TOOLS) or imported.startswith(TOOLS))


lazy.switch_on()
if sys.version_info >= (3, 15):
    sys.set_lazy_imports_filter(may_wait)
