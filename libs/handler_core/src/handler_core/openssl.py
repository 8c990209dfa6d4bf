"""OpenSSL, held only by a process that may have something to encrypt.

asyncio, aiohttp and hashlib load it if it is there, whether or not it is used: 7 MiB of a process of 45, and a tenth of
its start. All of them also work where Python was built without it, which is what `leave_out` makes them see.
"""

import sys
from typing import cast

OPENSSL = ("ssl", "_hashlib")
"""Python's modules that are linked to it; hashlib has its own code for every hash that Python guarantees."""


def leave_out() -> None:
    """From here on `import ssl` fails; to be called before anything is imported that would have it.

    Nothing happens where it has been imported, as it has wherever imports are not lazy.
    """
    if not any(name in sys.modules for name in OPENSSL):
        # Python's own way to say that a module is not to be had. Source: Python reference, "The module cache".
        cast("dict[str, object]", sys.modules).update(dict.fromkeys(OPENSSL))


def left_out() -> bool:
    """Whether it was left out."""
    return "ssl" in sys.modules and cast("dict[str, object]", sys.modules)["ssl"] is None
