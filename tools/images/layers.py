"""An image's layers as a registry stores them: each by gzip -6, once, by the digest of what it holds."""

import gzip
import hashlib
import io
import json
import tarfile
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from handler_core.testing_images import Engine

LEVEL = 6
PACKAGES = "/dist-packages/"


@dataclass(frozen=True)
class Weight:
    """Bytes, as they are and compressed."""

    raw_bytes: int = 0
    gzip_bytes: int = 0

    def __add__(self, other: "Weight") -> "Weight":
        return Weight(self.raw_bytes + other.raw_bytes, self.gzip_bytes + other.gzip_bytes)


@dataclass(frozen=True)
class Layer:
    """One layer; `diff_id` is the digest of its content, by which a registry has it once for all images."""

    diff_id: str
    weight: Weight
    packages: dict[str, Weight]
    """What its files weigh, by package; compressed by package, so that the sum is a little off the layer's."""


@dataclass
class Scales:
    """Weighs images, and each layer once."""

    engine: Engine
    known: dict[str, Layer] = field(default_factory=dict)

    def weigh(self, image: str) -> list[Layer]:
        """The layers of an image, the lowest first."""
        with tempfile.TemporaryDirectory(prefix="image-") as folder:
            archive = Path(folder, "image.tar")
            self.engine.ask("save", "--output", str(archive), image)
            with tarfile.open(archive) as whole:
                [manifest] = json.load(_member(whole, "manifest.json"))
                return [self._layer(_member(whole, name).read()) for name in manifest["Layers"]]

    def _layer(self, content: bytes) -> Layer:
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        diff_id = f"sha256:{hashlib.sha256(content).hexdigest()}"
        if diff_id not in self.known:
            self.known[diff_id] = Layer(diff_id, _weight(content), _by_package(content))
        return self.known[diff_id]


def total(layers: list[Layer]) -> Weight:
    """What layers weigh together."""
    return sum((layer.weight for layer in layers), Weight())


def by_package(layers: list[Layer]) -> dict[str, Weight]:
    """What packages weigh in all layers, the heaviest first."""
    found: dict[str, Weight] = defaultdict(Weight)
    for layer in layers:
        for name, weight in layer.packages.items():
            found[name] += weight
    return dict(sorted(found.items(), key=lambda each: -each[1].gzip_bytes))


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    found = archive.extractfile(name)
    if found is None:
        raise ValueError(f"{name} is not in the image's archive")
    return found


def _weight(content: bytes) -> Weight:
    return Weight(len(content), len(gzip.compress(content, LEVEL)))


def _by_package(content: bytes) -> dict[str, Weight]:
    parts: dict[str, list[bytes]] = defaultdict(list)
    with tarfile.open(fileobj=io.BytesIO(content)) as layer:
        for member in layer:
            if member.isfile():
                path = "/" + member.name.removeprefix("./").lstrip("/")
                parts[_package(path)].append(_member(layer, member.name).read())
    return {name: _weight(b"".join(files)) for name, files in parts.items()}


def _package(path: str) -> str:
    """The package that a file belongs to: a distribution's, or a part of the base."""
    if PACKAGES in path:
        return path.partition(PACKAGES)[2].split("/")[0].split("-")[0].split(".")[0]
    if path.startswith("/usr/lib/python3"):
        return "Python's standard library"
    if path.startswith("/usr/bin/python"):
        return "Python's interpreter"
    if path.startswith("/usr/share/zoneinfo"):
        return "time zones"
    if path.startswith(("/etc/ssl", "/usr/share/ca-certificates")):
        return "certificates"
    return path.rpartition("/")[2] if ".so" in path else "licences, accounts and the like"
