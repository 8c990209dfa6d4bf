"""Copies into a folder all that Python needs to run there, and nothing else: no shell, no package manager.

Run by the Python it copies, on a Debian where it is installed. `python3 root_of_base.py /root-of-image`
"""

import os
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from compile_modules import compile_all
from debian_files import bill_of_materials, copy, dated, shared_libraries

PACKAGE = f"python{sys.version_info.major}.{sys.version_info.minor}"
STDLIB = Path(sysconfig.get_path("stdlib"))
DYNAMIC = STDLIB / "lib-dynload"
USER = 65532

# Of the standard library: what is for developers, for terminals and desktops, for other systems, or belongs to files
# and protocols that no service has; and the slow twins of modules that are here in C. What a compression that nobody is
# asked for would need is set up by aiohttp where it is found.
UNUSED = {
    "__phello__", "_aix_support.py", "_android_support.py", "_apple_support.py", "_ios_support.py", "_osx_support.py",
    "_pydatetime.py", "_pydecimal.py", "_pyio.py", "_pyrepl", "antigravity.py", "bdb.py", "bz2.py", "cProfile.py",
    "compression/bz2", "compression/lzma", "compression/zstd", "concurrent/interpreters", "curses", "dbm", "doctest.py",
    "ensurepip", "ftplib.py", "html/parser.py", "idlelib", "imaplib.py", "lzma.py", "mailbox.py", "modulefinder.py",
    "optparse.py", "pdb.py", "pickletools.py", "plistlib.py", "poplib.py", "profile.py", "profiling", "pstats.py",
    "pyclbr.py", "pydoc.py", "pydoc_data", "shelve.py", "site-packages", "smtplib.py", "sqlite3", "tabnanny.py", "test",
    "this.py", "timeit.py", "tkinter", "trace.py", "turtle.py", "turtledemo", "unittest", "venv", "webbrowser.py",
    "wsgiref", "xml", "xmlrpc", "zipapp.py",
    *(f"encodings/{name}.py" for name in (
        "big5", "big5hkscs", "cp932", "cp949", "cp950", "euc_jis_2004", "euc_jisx0213", "euc_jp", "euc_kr", "gb18030",
        "gb2312", "gbk", "hz", "iso2022_jp", "iso2022_jp_1", "iso2022_jp_2", "iso2022_jp_2004", "iso2022_jp_3",
        "iso2022_jp_ext", "iso2022_kr", "johab", "mbcs", "oem", "shift_jis", "shift_jis_2004", "shift_jisx0213",
    )),
}  # fmt: skip
UNUSED_DYNAMIC = re.compile(
    # Multibyte codecs other than UTF-8 are loaded by name, by nothing here; nor is a running process examined.
    r"_bz2|_codecs_|_ctypes_test|_curses|_dbm|_gdbm|_hmac|_interp|_lsprof|_lzma|_multibytecodec|_remote_debugging"
    r"|_sqlite3|_test|_tkinter|_xxtest|readline|xx"
)

# What extension modules from wheels may be linked to, by the oldest manylinux in use. Source: PEP 599.
WHEELS_NEED = ("libdl.so.2", "libgcc_s.so.1", "libpthread.so.0", "librt.so.1", "libutil.so.1")

ZONES = Path("/usr/share/zoneinfo")
NO_ZONES = ("posix", "right", "leap-seconds.list", "leapseconds", "posixrules", "localtime", "tzdata.zi")
"""What time zones are made from, and each of them once more, counted otherwise."""

USERS = f"""\
root:x:0:0:root:/root:/sbin/nologin
nonroot:x:{USER}:{USER}:nonroot:/tmp:/sbin/nologin
"""
GROUPS = f"""\
root:x:0:
nonroot:x:{USER}:
"""
HOSTS_FIRST = "hosts: files dns\n"
RELEASE = {Path("/etc/debian_version"), Path("/etc/os-release")}
"""By which scanners tell that this is Debian, and which."""


def main(root: Path) -> None:
    interpreter = Path(os.path.realpath(sys.executable))
    files = {interpreter, *standard_library()}
    files |= shared_libraries([path for path in files if path.suffix == ".so" or path == interpreter])
    libc = next(path for path in files if path.name == "libc.so.6")
    files |= {libc.with_name(name) for name in WHEELS_NEED}
    for path in files | RELEASE:
        copy(path, root)
    links(root)
    (root / "usr/bin/python3").symlink_to(interpreter.name)
    certificates(root)
    time_zones(root)
    accounts(root)
    healthcheck(root)
    compile_all(root, STDLIB, keep_sources=False)
    packaged = files | RELEASE | {ZONES / "tzdata.zi", Path("/usr/sbin/update-ca-certificates")}
    bill_of_materials(root, packaged, base=Path("/nothing"))
    dated(root)


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
                certificate = Path("/usr/share/ca-certificates", line)
                copy(certificate, root)
                text = certificate.read_text()
                bundle.write(text)
                name = subprocess.run(
                    ["/usr/bin/openssl", "x509", "-noout", "-hash"],
                    input=text,
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout.strip()
                number = sum(1 for _ in folder.glob(f"{name}.*"))
                (folder / f"{name}.{number}").symlink_to(certificate)
    (root / "usr/lib/ssl").mkdir(parents=True)
    (root / "usr/lib/ssl/certs").symlink_to("/etc/ssl/certs")


def time_zones(root: Path) -> None:
    """All time zones under their names of today; one that is another's alias stays a link."""
    shutil.copytree(ZONES, root / ZONES.relative_to("/"), symlinks=True, ignore=shutil.ignore_patterns(*NO_ZONES))


def healthcheck(root: Path) -> None:
    """What HEALTHCHECK runs in the image of a service, compiled."""
    place = root / "usr/local/bin/healthcheck.pyc"
    place.parent.mkdir(parents=True)
    py_compile.compile(
        str(Path(__file__).with_name("healthcheck.py")),
        cfile=str(place),
        dfile="/usr/local/bin/healthcheck.py",
        doraise=True,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )


def accounts(root: Path) -> None:
    """Users and groups, where names of hosts are looked up, and a place for temporary files."""
    etc = root / "etc"
    (etc / "passwd").write_text(USERS)
    (etc / "group").write_text(GROUPS)
    (etc / "nsswitch.conf").write_text(HOSTS_FIRST)
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
