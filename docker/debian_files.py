"""Files of Debian packages: copied into a folder that becomes a layer of an image, the packages' states beside them."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

KNOWN = Path("/var/lib/dpkg/info")
STATES = Path("var/lib/dpkg/status.d")


def copy(path: Path, root: Path) -> None:
    """Copy a file to the same place under `root`; one behind a symbolic link comes under the name of the link."""
    place = root / os.path.relpath(Path(os.path.realpath(path.parent)) / path.name, "/")
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, place)


def shared_libraries(binaries: Iterable[Path]) -> set[Path]:
    """What `binaries` are linked to, the loader included, by the names under which they are looked for."""
    listed = subprocess.run(["/usr/bin/ldd", *map(str, binaries)], check=True, capture_output=True, text=True).stdout
    if absent := re.search(r"(\S+) => not found", listed):
        raise SystemExit(f"{absent[1]} is needed and not installed")
    return {Path(found) for found in re.findall(r"(/\S+) \(0x", listed)}


def bill_of_materials(root: Path, files: set[Path]) -> None:
    """The Debian packages that `files` came from: their licences, and their state as scanners of images read it.

    As in distroless images: a file a package in `status.d`, and the checksums of those of its files that are here.
    """
    states = root / STATES
    states.mkdir(parents=True, exist_ok=True)
    for package in sorted(set(owners_of(files))):
        name = package.partition(":")[0]
        state = subprocess.run(["/usr/bin/dpkg", "-s", package], check=True, capture_output=True, text=True).stdout
        (states / name).write_text(state)
        licence = Path("/usr/share/doc", name, "copyright")
        if licence.exists():
            copy(licence, root)
        (states / f"{name}.md5sums").write_text("".join(checksums(package, root)))


def checksums(package: str, root: Path) -> Iterator[str]:
    """The lines of `package`'s checksums that are about files in `root`, as they are there."""
    name = package.partition(":")[0]
    listed = next((path for path in (KNOWN / f"{package}.md5sums", KNOWN / f"{name}.md5sums") if path.exists()), None)
    for line in listed.read_text().splitlines(keepends=True) if listed else []:
        if (root / line.split(maxsplit=1)[1].rstrip("\n")).exists():
            yield line


def owners_of(files: set[Path]) -> Iterator[str]:
    """The packages that installed `files`."""
    # dpkg knows some of them by the path before /usr was merged, so ask by both.
    asked = {str(path) for path in files} | {os.path.realpath(path) for path in files}
    asked |= {path.removeprefix("/usr") for path in asked}
    found = subprocess.run(["/usr/bin/dpkg", "-S", *sorted(asked)], check=False, capture_output=True, text=True).stdout
    for line in found.splitlines():
        if not line.startswith("diversion "):
            yield from (owner.strip() for owner in line.rpartition(": ")[0].split(","))


def dated(root: Path) -> None:
    """Give all of a layer one time, so that what is in it alone decides its digest."""
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    for path in [*root.rglob("*"), root]:
        os.utime(path, (epoch, epoch), follow_symlinks=False)
