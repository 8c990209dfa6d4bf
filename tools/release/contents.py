"""What files an image has, whichever engine built it: two engines write the same files as different layers."""

import hashlib
import json
import tarfile
from pathlib import Path
from typing import IO


def digest(archive: Path) -> str:
    """SHA-256 over all files of an image saved as docker's archive: names, modes, owners, contents; no times."""
    files: dict[str, tuple[object, ...]] = {}
    with tarfile.open(archive) as whole:
        [manifest] = json.load(_member(whole, "manifest.json"))
        for name in manifest["Layers"]:
            with tarfile.open(fileobj=_member(whole, name)) as layer:
                for member in layer:
                    path = _path(member.name)
                    if member.islnk():
                        files[path] = files[_path(member.linkname)]
                    elif not member.isdir():  # some engines list folders again in each layer
                        content = hashlib.sha256(_member(layer, member).read() if member.isfile() else b"").hexdigest()
                        owner = (member.uid, member.gid)
                        files[path] = (member.type.decode(), member.mode, owner, member.linkname, content)
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _path(name: str) -> str:
    return name.removeprefix("./").lstrip("/")


def _member(archive: tarfile.TarFile, name: str | tarfile.TarInfo) -> IO[bytes]:
    found = archive.extractfile(name)
    if found is None:
        raise ValueError(f"{name} is not in {archive.name!r}")
    return found
