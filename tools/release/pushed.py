"""What a registry has, held against what was tested: before a signature says that they are the same."""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from tools.release import registry
from tools.release.registry import Document, RegistryError, Repository

SETTINGS = ("Entrypoint", "Cmd", "Env", "User", "WorkingDir", "StopSignal")
"""What an image is started with."""
SERVICE, PLATFORM, BASE = "service", "platform", "base"


@dataclass(frozen=True)
class Image:
    """One platform's image: its layers, by the digests of what they hold, and what it is started with."""

    platform: str
    layers: tuple[str, ...]
    settings: dict[str, Any]

    @classmethod
    def of(cls, configuration: dict[str, Any]) -> Self:
        given = configuration.get("config", {})
        return cls(
            registry.platform(configuration),
            tuple(configuration["rootfs"]["diff_ids"]),
            {name: given[name] for name in SETTINGS if given.get(name)},
        )


class Line(NamedTuple):
    """What is to be signed (`service`, `base`) or has a list of contents to be attested (`platform`)."""

    kind: str
    name: str
    platform: str
    image: str

    def __str__(self) -> str:
        return " ".join(self)


def verify(services: list[str], bases: list[str], listings: Path) -> Iterator[Line]:
    """What is to be signed, by digest.

    Args:
        services: images that were pushed; each has to be, for the platform that was tested, the one that was tested.
        bases: images that were pushed; on each, some service has to stand.
        listings: the folder of syft's lists of the images that were tested, `<service>.syft.json`.

    Raises:
        RegistryError: an image is missing, or is another one than was tested.
    """
    tested = {image: Image.of(_tested(listings / f"{_name(image)}.syft.json")) for image in services}
    for image, own in tested.items():
        repository, manifest = registry.find(image)
        images = dict(repository.images(manifest))
        _compare(image, own, repository, images)
        yield Line(SERVICE, _name(image), "-", f"{repository}@{manifest.digest}")
        for platform, one in images.items():
            yield Line(PLATFORM, _name(image), platform, f"{repository}@{one.digest}")
    for image in bases:
        repository, manifest = registry.find(image)
        images = dict(repository.images(manifest))
        if not any(_stands_on(own, repository, images) for own in tested.values()):
            raise RegistryError(
                f"{image} is not what the tested images stand on: another one was there before. "
                "make base-refresh gives the base a new name"
            )
        yield Line(BASE, _name(image), "-", f"{repository}@{manifest.digest}")


def read(file: Path) -> list[Line]:
    """What `verify` found, as it was written down."""
    return [Line(*line.split()) for line in file.read_text(encoding="utf-8").splitlines()]


def promote(lines: list[Line], tag: str) -> Iterator[str]:
    """Let `tag` stand for the services that were verified; answers which."""
    for line in lines:
        if line.kind == SERVICE:
            repository, manifest = registry.find(line.image)
            repository.tag(manifest, tag)
            yield f"{repository}:{tag} is {manifest.digest}"


def _tested(listing: Path) -> dict[str, Any]:
    if not listing.is_file():
        raise RegistryError(f"there is no {listing}: first make sbom")
    source = json.loads(listing.read_text(encoding="utf-8"))["source"]
    found: dict[str, Any] = json.loads(base64.b64decode(source["metadata"]["config"]))
    return found


def _compare(image: str, tested: Image, repository: Repository, images: dict[str, Document]) -> None:
    if tested.platform not in images:
        raise RegistryError(f"{image} has nothing for {tested.platform}, which was tested")
    pushed = Image.of(repository.configuration(images[tested.platform]))
    if pushed != tested:
        raise RegistryError(
            f"{image} for {tested.platform} is not what was tested"
            + "".join(f"\n  tested {layer}" for layer in tested.layers if layer not in pushed.layers)
            + "".join(f"\n  pushed {layer}" for layer in pushed.layers if layer not in tested.layers)
            + "".join(
                f"\n  {name}: tested {tested.settings.get(name)}, pushed {pushed.settings.get(name)}"
                for name in SETTINGS
                if tested.settings.get(name) != pushed.settings.get(name)
            )
        )


def _stands_on(service: Image, repository: Repository, images: dict[str, Document]) -> bool:
    if service.platform not in images:
        return False
    layers = Image.of(repository.configuration(images[service.platform])).layers
    return service.layers[: len(layers)] == layers


def _name(image: str) -> str:
    return Repository.of(image)[0].name.rpartition("/")[2]
