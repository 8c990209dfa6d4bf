"""Turns installed packages into a layer of an image: what no service needs removed, the rest byte-compiled.

    python3 root_of_service.py [--keep-sources] /installed /layer [module]

With `module`, the layer's `/service` starts it.
"""

import argparse
import fnmatch
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from compile_modules import compile_all

PACKAGES = Path("/usr/local/lib", f"python{sys.version_info.major}.{sys.version_info.minor}", "dist-packages")
"""Where Debian's Python looks for packages that are not Debian's."""
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")

# For developers, and what was needed to build or install a package.
UNUSED = (
    "*.c", "*.cpp", "*.h", "*.hpp", "*.pxd", "*.pxi", "*.pyi", "*.pyx", "*.proto", "*.hash", "__pycache__", "bin",
    "include", "test", "tests", "testing", "INSTALLER", "RECORD", "REQUESTED", "WHEEL", "direct_url.json",
    "top_level.txt",
)  # fmt: skip
# By package, what serves a use of it that no handler makes. Each is guarded by tests/images, which runs the rest.
UNUSED_BY_PACKAGE = (
    "handler_core/testing*.py",  # it needs servers that no image has
    "grpc/_cython/_credentials", "certifi/cacert.pem",  # certificates: the base has them
    "pydantic/v1", "pydantic/mypy.py", "pydantic/_internal/_dataclasses_v1*",
    "google/cloud", "google/logging", "google/longrunning", "google/gapic", "google/api", "google/type",
    "google/protobuf/compiler",
    # All but the loaders of configurations, and what the rest is built on.
    "kubernetes_asyncio/client", "kubernetes_asyncio/dynamic", "kubernetes_asyncio/leaderelection",
    "kubernetes_asyncio/stream", "kubernetes_asyncio/utils", "kubernetes_asyncio/watch", "kubernetes_asyncio/*.md",
    "kubernetes_asyncio/*/*_test.py", "dateutil", "six.py", "tzdata",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep-sources", action="store_true")
    parser.add_argument("installed", type=Path)
    parser.add_argument("layer", type=Path)
    parser.add_argument("module", nargs="?")
    arguments = parser.parse_args()
    place = arguments.layer / PACKAGES.relative_to("/")
    shutil.copytree(arguments.installed, place)
    for path in list(unused(place)):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if (place / "certifi").exists():
        (place / "certifi/cacert.pem").symlink_to(CERTIFICATES)
    strip(place)
    for library in missing_libraries(place):
        copy = arguments.layer / library.relative_to("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, copy)
    compile_all(arguments.layer, PACKAGES, keep_sources=arguments.keep_sources)
    if arguments.module:
        (arguments.layer / "service").symlink_to(PACKAGES / arguments.module / "__main__.py")


def unused(place: Path) -> Iterator[Path]:
    """What is removed; of a folder, itself only."""
    for pattern in UNUSED_BY_PACKAGE:
        yield from place.glob(pattern)
    for path in place.rglob("*"):
        if any(fnmatch.fnmatchcase(path.name, pattern) for pattern in UNUSED):
            yield path


def strip(place: Path) -> None:
    """Drop symbols that only a debugger reads."""
    modules = [str(path) for path in place.rglob("*.so")]
    if modules:
        subprocess.run(["/usr/bin/strip", "--strip-unneeded", *modules], check=True)


def missing_libraries(place: Path) -> set[Path]:
    """C++'s library, where an extension module is linked to it; what else wheels may need is in the base."""
    needed: set[Path] = set()
    for module in place.rglob("*.so"):
        listed = subprocess.run(["/usr/bin/ldd", str(module)], check=True, capture_output=True, text=True).stdout
        if absent := re.search(r"(\S+) => not found", listed):
            raise SystemExit(f"{module.name} needs {absent[1]}, which is not in Debian's base")
        needed |= {Path(found) for found in re.findall(r"(/\S*/libstdc\+\+\.so\.6) \(0x", listed)}
    return needed


if __name__ == "__main__":
    main()
