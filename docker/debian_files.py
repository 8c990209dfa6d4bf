"""Files of Debian packages, copied into a folder that becomes a layer of an image; and what tells of the packages:
their licences, and their state as scanners read it."""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

KNOWN = Path("/var/lib/dpkg/info")
STATES = Path("var/lib/dpkg/status.d")
LICENCES = Path("/usr/share/doc")
SHARED_LICENCES = Path("/usr/share/common-licenses")
"""The texts that packages' own files only refer to."""


def copy(path: Path, root: Path) -> None:
    """Copy a file to the same place under `root`, and with it the symbolic links by which `path` leads there; of a
    folder, itself only."""
    path = Path(os.path.realpath(path.parent)) / path.name
    place = root / path.relative_to("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() and path.suffix != ".py":  # a module is compiled by each of its names
        if not place.is_symlink():
            place.symlink_to(path.readlink())
        copy(path.parent / path.readlink(), root)
    elif path.is_dir():
        place.mkdir(exist_ok=True)
    else:
        shutil.copy2(path, place)


def shared_libraries(binaries: Iterable[Path]) -> set[Path]:
    """What `binaries` are linked to, the loader included, by the names under which they are looked for."""
    listed = subprocess.run(["/usr/bin/ldd", *map(str, binaries)], check=True, capture_output=True, text=True).stdout
    if absent := re.search(r"(\S+) => not found", listed):
        raise SystemExit(f"{absent[1]} is needed and not installed")
    return {Path(found) for found in re.findall(r"(/\S+) \(0x", listed)}


def bill_of_materials(root: Path, files: Iterable[Path], base: Path) -> None:
    """The Debian packages that `files` came from: their licences, and their state as scanners of images read it.

    As in distroless images: a file a package in `status.d`, and the checksums of those of its files that are in `root`
    or in `base`, on which it is laid. So it comes last, when the files are as they stay.
    """
    states = root / STATES
    states.mkdir(parents=True, exist_ok=True)
    packages = set(owners_of(files))
    for package in sorted(packages | set(owners_of(licences(packages, root, base)))):
        name = package.partition(":")[0]
        state = subprocess.run(["/usr/bin/dpkg", "-s", package], check=True, capture_output=True, text=True).stdout
        (states / name).write_text(state)
        (states / f"{name}.md5sums").write_text("".join(checksums(package, (root, base))))


def licences(packages: Iterable[str], root: Path, base: Path) -> set[Path]:
    """Copy what each of `packages` says of its licences, and the texts that it refers to, unless `base` has them; gives
    what was copied, some of it other packages'."""
    wanted = set()
    for package in packages:
        folder = LICENCES / package.partition(":")[0]
        text = folder / "copyright"
        if not text.exists():
            raise SystemExit(f"{package} is here without its licence, {text}, which has to come along")
        copy(folder, root)
        names = re.findall(rf"{SHARED_LICENCES}/([\w.-]*\w)", text.read_text())
        wanted |= {text.resolve(), *(SHARED_LICENCES / name for name in names if (SHARED_LICENCES / name).exists())}
    missing = {text for text in wanted if not (base / text.relative_to("/")).exists()}
    for text in missing:
        copy(text, root)
    return missing


def checksums(package: str, roots: Iterable[Path]) -> Iterator[str]:
    """The lines of `package`'s checksums that hold for a file in one of `roots`."""
    name = package.partition(":")[0]
    listed = next((path for path in (KNOWN / f"{package}.md5sums", KNOWN / f"{name}.md5sums") if path.exists()), None)
    for line in listed.read_text().splitlines(keepends=True) if listed else []:
        checksum, path = line.rstrip("\n").split(maxsplit=1)
        # Some say lib/… for what is in usr/lib since /usr was merged.
        places = [root / above / path for root in roots for above in ("", "usr")]
        if any(place.is_file() and hashlib.md5(place.read_bytes()).hexdigest() == checksum for place in places):
            yield line


def owners_of(files: Iterable[Path]) -> Iterator[str]:
    """The packages that installed `files`."""
    # dpkg knows some of them by the path before /usr was merged, so ask by both.
    asked = {str(path) for path in files}
    asked |= {os.path.realpath(path) for path in asked}
    asked |= {path.removeprefix("/usr") for path in asked}
    if not asked:
        return
    found = subprocess.run(["/usr/bin/dpkg", "-S", *sorted(asked)], check=False, capture_output=True, text=True).stdout
    for line in found.splitlines():
        if not line.startswith("diversion "):
            yield from (owner.strip() for owner in line.rpartition(": ")[0].split(","))


def dated(root: Path) -> None:
    """Give all of a layer one time, so that what is in it alone decides its digest."""
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    for path in [*root.rglob("*"), root]:
        os.utime(path, (epoch, epoch), follow_symlinks=False)
