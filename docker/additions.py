"""Prints of a lock what an image does not have yet: what a service adds to its base.

    python3 additions.py /root-of-base locks/chat_handler.txt > additions.txt

Ends with an error where the base has another version of a package than the lock names; then both are locked anew.
"""

import importlib.metadata
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)")


def main(base: Path, lock: Path) -> None:
    places = [str(path) for path in base.glob("usr/local/lib/python*/dist-packages")]
    there = {normal(found.name): found.version for found in importlib.metadata.distributions(path=places)}
    for line in additions(lock, there):
        print(line)


def additions(lock: Path, there: dict[str, str]) -> Iterator[str]:
    """The lines of `lock` about packages that are not `there`."""
    wanted = False
    for line in lock.read_text().splitlines():
        if pinned := PINNED.match(line):
            name, version = normal(pinned[1]), pinned[2]
            if there.get(name, version) != version:
                raise SystemExit(f"{lock.name} has {name} {version}, its base {there[name]}: run `make lock`")
            wanted = name not in there
        if wanted:
            yield line


def normal(name: str) -> str:
    """One spelling of a package's name. Source: PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
