"""One version for all that is released: every pyproject file, and what services say of themselves in NATS."""

import dataclasses
import tomllib
from collections.abc import Iterator
from pathlib import Path

import yaml

from handler_core.service import Service

PRODUCTION = "k8s/overlays/prod/kustomization.yaml"


class ReleaseError(Exception):
    """Why something can't be released, and what to do about it."""


def version_of_tree(root: Path) -> str:
    """The version that all of the tree has.

    Raises:
        ReleaseError: not all have the same.
    """
    found = dict(versions(root))
    if len(set(found.values())) != 1:
        listed = "".join(f"\n  {version}  {place}" for place, version in sorted(found.items()))
        raise ReleaseError(f"one version is released, these differ:{listed}")
    return next(iter(found.values()))


def versions(root: Path) -> Iterator[tuple[str, str]]:
    """Where a version is stated, and which."""
    for pattern in ("pyproject.toml", "libs/*/pyproject.toml", "services/*/pyproject.toml"):
        for path in sorted(root.glob(pattern)):
            yield str(path.relative_to(root)), tomllib.loads(path.read_text(encoding="utf-8"))["project"]["version"]
    [default] = [field.default for field in dataclasses.fields(Service) if field.name == "version"]
    yield "handler_core.service.Service.version", str(default)


def refuse_other_images(root: Path, version: str) -> None:
    """Fail when production's overlay names images of another tag than they are pushed with: `v1.2.3` of `1.2.3`."""
    images = yaml.safe_load((root / PRODUCTION).read_text(encoding="utf-8"))["images"]
    if other := sorted({str(image.get("newTag")) for image in images} - {f"v{version}"}):
        raise ReleaseError(f"{PRODUCTION} has newTag {', '.join(other)}: the images are pushed as v{version}")


def refuse_other_tag(tag: str, version: str) -> None:
    """Fail when there is a `tag`, and it is not that of `version`: `v1.2.3` of `1.2.3`."""
    if tag and tag != f"v{version}":
        raise ReleaseError(f"the tag is {tag}, but the tree's version {version}: set it in all pyproject files first")
