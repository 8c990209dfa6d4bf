"""Two images have the same files, or they have not: whoever built them, and whenever."""

import gzip
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tools.release import contents

Entry = tuple[str, bytes]
LAYERS: list[list[Entry]] = [[("usr/a", b"one"), ("usr/b", b"two")], [("usr/c", b"three")]]


def member(name: str, time: int = 0, **more: object) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.mtime = time
    for key, value in more.items():
        setattr(found, key, value)
    return found


def layer(entries: Sequence[Entry], packed: bool, time: int, folders: bool) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        if folders:
            tar.addfile(member("./usr/", time, type=tarfile.DIRTYPE))
        for name, text in entries:
            tar.addfile(member(name, time, size=len(text)), io.BytesIO(text))
    return gzip.compress(content.getvalue()) if packed else content.getvalue()


def saved(
    place: Path, layers: Sequence[Sequence[Entry]], packed: bool = False, time: int = 0, folders: bool = False
) -> Path:
    """An archive as an engine saves it."""
    with tarfile.open(place, "w") as tar:
        for number, entries in enumerate(layers):
            content = layer(entries, packed, time, folders)
            tar.addfile(member(f"{number}.tar", size=len(content)), io.BytesIO(content))
        manifest = json.dumps([{"Layers": [f"{number}.tar" for number in range(len(layers))]}]).encode()
        tar.addfile(member("manifest.json", size=len(manifest)), io.BytesIO(manifest))
    return place


def test_times_folders_and_how_layers_are_packed_make_no_difference(tmp_path: Path) -> None:
    one = saved(tmp_path / "one", LAYERS)
    other = saved(tmp_path / "other", LAYERS, packed=True, time=1_000_000, folders=True)
    assert contents.digest(one) == contents.digest(other)


def test_a_later_layer_s_file_is_the_one_that_counts(tmp_path: Path) -> None:
    twice = saved(
        tmp_path / "twice", [[("usr/a", b"before"), ("usr/b", b"two")], [("usr/c", b"three"), ("usr/a", b"one")]]
    )
    assert contents.digest(twice) == contents.digest(saved(tmp_path / "once", LAYERS))


@pytest.mark.parametrize("changed", [("usr/c", b"four"), ("usr/d", b"three")])
def test_another_file_makes_a_difference(tmp_path: Path, changed: Entry) -> None:
    one, other = saved(tmp_path / "one", LAYERS), saved(tmp_path / "other", [LAYERS[0], [changed]])
    assert contents.digest(one) != contents.digest(other)


def test_a_hard_link_is_the_file_that_it_is_another_name_of(tmp_path: Path) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        tar.addfile(member("usr/a", size=3), io.BytesIO(b"one"))
        tar.addfile(member("usr/b", type=tarfile.LNKTYPE, linkname="usr/a"))
    linked = tmp_path / "linked"
    with tarfile.open(linked, "w") as tar:
        tar.addfile(member("0.tar", size=len(content.getvalue())), io.BytesIO(content.getvalue()))
        manifest = b'[{"Layers": ["0.tar"]}]'
        tar.addfile(member("manifest.json", size=len(manifest)), io.BytesIO(manifest))
    assert contents.digest(linked) == contents.digest(saved(tmp_path / "two", [[("usr/a", b"one"), ("usr/b", b"one")]]))
