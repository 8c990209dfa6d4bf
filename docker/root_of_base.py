"""Copies into a folder all that Python needs to run there, and nothing else: no shell, no package manager.

Run by the Python it copies, on a Debian where it is installed. `python3 root_of_base.py /root-of-image`
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

PACKAGE = f"python{sys.version_info.major}.{sys.version_info.minor}"
STDLIB = Path(sysconfig.get_path("stdlib"))
DYNAMIC = STDLIB / "lib-dynload"
USER = 65532

# Of the standard library: what is for developers, for terminals and desktops, or belongs to files that no service has.
# A compression that nobody is asked for would be set up by aiohttp.
UNUSED = {
    "__phello__", "_pyrepl", "antigravity.py", "cProfile.py", "compression/zstd", "curses", "dbm", "doctest.py",
    "ensurepip", "idlelib", "mailbox.py", "pdb.py", "pickletools.py", "profile.py", "profiling", "pydoc.py",
    "pydoc_data", "site-packages", "sqlite3", "test", "this.py", "tkinter", "turtle.py", "turtledemo", "venv",
    "wsgiref", "xmlrpc",
}  # fmt: skip
UNUSED_DYNAMIC = re.compile(
    # Multibyte codecs other than UTF-8 are loaded by name, by nothing here; nor is a running process examined.
    r"_codecs_|_ctypes_test|_curses|_dbm|_gdbm|_lsprof|_remote_debugging|_sqlite3|_test|_tkinter|_xxtest|readline|xx"
)

# What extension modules from wheels may be linked to, by the oldest manylinux in use. Source: PEP 599.
WHEELS_NEED = ("libdl.so.2", "libgcc_s.so.1", "libpthread.so.0", "librt.so.1", "libutil.so.1")

USERS = f"""\
root:x:0:0:root:/root:/sbin/nologin
nonroot:x:{USER}:{USER}:nonroot:/tmp:/sbin/nologin
"""
GROUPS = f"""\
root:x:0:
nonroot:x:{USER}:
"""
HOSTS_FIRST = "hosts: files dns\n"


def main(root: Path) -> None:
    interpreter = Path(os.path.realpath(sys.executable))
    files = {interpreter, *standard_library()}
    files |= shared_libraries([path for path in files if path.suffix == ".so" or path == interpreter])
    libc = next(path for path in files if path.name == "libc.so.6")
    files |= {libc.with_name(name) for name in WHEELS_NEED}
    for path in files:
        copy(path, root)
    links(root)
    (root / "usr/bin/python3").symlink_to(interpreter.name)
    certificates(root)
    accounts(root)
    bill_of_materials(root, files)


def standard_library() -> Iterator[Path]:
    """The modules that are kept; those byte-compiled are made afresh later."""
    for path in STDLIB.rglob("*"):
        inside = path.relative_to(STDLIB)
        if UNUSED & {inside.parts[0], "/".join(inside.parts[:2])} or "__pycache__" in inside.parts:
            continue
        if inside.parts[0].startswith("config-"):
            continue
        if path.parent == DYNAMIC and UNUSED_DYNAMIC.match(path.name):
            continue
        if path.is_file() and path.suffix in {".py", ".so"}:
            yield path


def shared_libraries(binaries: list[Path]) -> set[Path]:
    """What `binaries` are linked to, the loader included, by the names under which they are looked for."""
    listed = subprocess.run(["/usr/bin/ldd", *map(str, binaries)], check=True, capture_output=True, text=True).stdout
    return {Path(found) for found in re.findall(r"(/\S+) \(0x", listed)}


def copy(path: Path, root: Path) -> None:
    """Copy a file to the same place under `root`; one behind a symbolic link comes under the name of the link."""
    place = root / os.path.relpath(Path(os.path.realpath(path.parent)) / path.name, "/")
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, place)


def links(root: Path) -> None:
    """The links by which `/lib64/ld-linux…` and the like are found, as on the Debian that was copied from."""
    for name in ("bin", "lib", "lib64"):
        if Path("/", name).is_symlink() and (root / "usr" / name).exists():
            (root / name).symlink_to(f"usr/{name}")


def certificates(root: Path) -> None:
    """Mozilla's certificates, as Debian packages them: each under the hash by which OpenSSL looks for the one it needs,
    which spares every process reading them all; and all in one file, which gRPC and requests want."""
    listed = Path("/etc/ca-certificates.conf").read_text().splitlines()
    folder = root / "etc/ssl/certs"
    folder.mkdir(parents=True)
    with (folder / "ca-certificates.crt").open("w") as bundle:
        for line in listed:
            if line.startswith("mozilla/"):
                text = Path("/usr/share/ca-certificates", line).read_text()
                bundle.write(text)
                name = subprocess.run(
                    ["/usr/bin/openssl", "x509", "-noout", "-hash"],
                    input=text,
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout.strip()
                number = sum(1 for _ in folder.glob(f"{name}.*"))
                (folder / f"{name}.{number}").write_text(text)
    (root / "usr/lib/ssl").mkdir(parents=True)
    (root / "usr/lib/ssl/certs").symlink_to("/etc/ssl/certs")


def accounts(root: Path) -> None:
    """Users and groups, where names of hosts are looked up, and a place for temporary files."""
    etc = root / "etc"
    (etc / "passwd").write_text(USERS)
    (etc / "group").write_text(GROUPS)
    (etc / "nsswitch.conf").write_text(HOSTS_FIRST)
    shutil.copy("/etc/os-release", etc / "os-release")
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)


def bill_of_materials(root: Path, files: set[Path]) -> None:
    """The Debian packages that the files came from: their licences, and their state as scanners of images read it."""
    owners = set(owners_of(files)) | {"ca-certificates"}
    states = root / "var/lib/dpkg/status.d"
    states.mkdir(parents=True)
    for package in sorted(owners):
        name = package.partition(":")[0]
        state = subprocess.run(["/usr/bin/dpkg", "-s", package], check=True, capture_output=True, text=True).stdout
        (states / name).write_text(state)
        licence = Path("/usr/share/doc", name, "copyright")
        if licence.exists():
            copy(licence, root)


def owners_of(files: set[Path]) -> Iterator[str]:
    """The packages that installed `files`."""
    # dpkg knows some of them by the path before /usr was merged, so ask by both.
    asked = {str(path) for path in files} | {os.path.realpath(path) for path in files}
    asked |= {path.removeprefix("/usr") for path in asked}
    found = subprocess.run(["/usr/bin/dpkg", "-S", *sorted(asked)], check=False, capture_output=True, text=True).stdout
    for line in found.splitlines():
        if not line.startswith("diversion "):
            yield from (owner.strip() for owner in line.rpartition(": ")[0].split(","))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
