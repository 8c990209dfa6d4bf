"""Turns installed packages into a layer of an image: what no service needs removed, the rest byte-compiled.

    python3 root_of_packages.py [--keep-sources] [--keep-annotations] [--base /root-of-base] /installed /layer [module]

With `module`, the layer's `/service` starts it.
"""

import argparse
import fnmatch
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from compile_modules import compile_all
from debian_files import bill_of_materials, copy, dated, shared_libraries

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
    "google/protobuf/compiler", "google/protobuf/internal/*_benchmark.py",
    "charset_normalizer/*.so",  # for requests, which guesses with it what encoding an answer is in: here, JSON's
    # All but the loaders of configurations, and what the rest is built on.
    "kubernetes_asyncio/client", "kubernetes_asyncio/dynamic", "kubernetes_asyncio/leaderelection",
    "kubernetes_asyncio/stream", "kubernetes_asyncio/utils", "kubernetes_asyncio/watch", "kubernetes_asyncio/*.md",
    "kubernetes_asyncio/*/*_test.py", "*.md", "dateutil", "six.py", "tzdata",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep-sources", action="store_true")
    parser.add_argument("--keep-annotations", action="store_true")
    parser.add_argument(
        "--base", type=Path, default=Path("/nothing"), help="the image that the layer is laid on, unpacked"
    )
    parser.add_argument("installed", type=Path)
    parser.add_argument("layer", type=Path)
    parser.add_argument("module", nargs="?")
    arguments = parser.parse_args()
    layer: Path = arguments.layer
    place = layer / PACKAGES.relative_to("/")
    if arguments.installed.exists():  # a service may add nothing to its base
        shutil.copytree(arguments.installed, place)
    place.mkdir(parents=True, exist_ok=True)
    for path in list(unused(place)):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if (place / "certifi").exists():
        (place / "certifi/cacert.pem").symlink_to(CERTIFICATES)
    for description in place.glob("*.dist-info/METADATA"):
        head, _, _ = description.read_bytes().partition(b"\n\n")
        description.write_bytes(head + b"\n\n")  # what scanners read, without the page for people
    strip(place)
    if libraries := missing_libraries(place, arguments.base):
        for library in libraries:
            copy(library, layer)
        bill_of_materials(layer, libraries, arguments.base)
    compile_all(layer, PACKAGES, keep_sources=arguments.keep_sources, keep_annotations=arguments.keep_annotations)
    if arguments.module:
        (layer / "service").symlink_to(PACKAGES / arguments.module / "__main__.py")
    dated(layer)


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


def missing_libraries(place: Path, base: Path) -> set[Path]:
    """What extension modules are linked to and `base` has not, nor do they bring it along; C++'s library as a rule."""
    modules = sorted(place.rglob("*.so*"))
    needed = shared_libraries(modules) if modules else set()
    return {
        path
        for path in needed
        if not path.is_relative_to(place) and not (base / path.resolve().relative_to("/")).exists()
        and not (base / path.relative_to("/")).exists()
    }  # fmt: skip


if __name__ == "__main__":
    main()
