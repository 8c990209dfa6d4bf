"""Definitions of custom resources: each that a manifest needs is listed, and pinned by content."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.release import crds
from tools.release.versions import ReleaseError

ROOT = Path(__file__).parents[2]


def custom_resources() -> set[tuple[str, str]]:
    """Group and kind of all that manifests create, besides what Kubernetes itself defines."""
    found = set()
    for path in (ROOT / "k8s").rglob("*.yaml"):
        for document in yaml.load_all(path.read_text(), yaml.CSafeLoader):
            group, _, version = str(_of(document, "apiVersion")).rpartition("/")
            if version and "." in group and not group.endswith(".k8s.io"):
                found.add((group, str(_of(document, "kind"))))
    return found


def _of(document: Any, key: str) -> object:
    return document.get(key, "") if isinstance(document, dict) else ""


def test_every_custom_resource_of_a_manifest_has_its_definition_listed() -> None:
    files = {definition.file for definition in crds.definitions()}
    for group, kind in custom_resources():
        name = kind.lower()
        plural = f"{name[:-1]}ies" if name.endswith("y") else f"{name}s"
        assert files & {f"{group}.yaml", f"{group}_{plural}.yaml"}, f"{group}/{kind} is not in crds.txt"


def test_each_is_pinned_by_commit_and_content() -> None:
    listed = list(crds.definitions())
    assert listed
    assert len({definition.file for definition in listed}) == len(listed)
    for definition in listed:
        assert set(definition.ref) <= set("0123456789abcdef")
        assert len(definition.ref) >= 7
        assert len(bytes.fromhex(definition.sha256)) == 32
        assert definition.repository.count("/") == 1


def test_other_content_than_was_pinned_is_not_kept(tmp_path: Path) -> None:
    definition = next(crds.definitions())
    with pytest.raises(ReleaseError, match=r"crds\.txt wants"):
        crds.keep(definition, b"kind: CustomResourceDefinition", tmp_path / definition.file)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif("CRD_DIR" not in os.environ, reason="CRD_DIR names no folder of definitions")
def test_the_definitions_that_are_here_are_those_pinned() -> None:
    folder = Path(os.environ["CRD_DIR"])
    for definition in crds.definitions():
        assert hashlib.sha256((folder / definition.file).read_bytes()).hexdigest() == definition.sha256
