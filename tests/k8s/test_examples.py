"""The examples' templates keep to what overlays keep to, as far as it is theirs."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.k8s import check, examples
from tools.k8s.schemas import Definitions

DEFINITION = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
spec:
  group: argoproj.io
  names:
    kind: WorkflowTemplate
  versions:
  - name: v1alpha1
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, properties: {entrypoint: {type: string}}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for file in examples.FILES:
        shutil.copy(examples.FOLDER / file, tmp_path)
    return tmp_path


def change(folder: Path, old: str, new: str) -> None:
    for file in examples.FILES:
        text = (folder / file).read_text()
        (folder / file).write_text(text.replace(old, new))


def test_the_examples_keep_to_policies_and_to_what_definitions_there_are() -> None:
    assert list(examples.findings(check.definitions_folder())) == []


def test_every_image_of_them_is_looked_at(folder: Path) -> None:
    change(folder, "image: ", "image: x #")
    found = {(each.object, each.problem) for each in examples.findings(None, folder)}
    assert ("WorkflowTemplate document-ingestion", "x names no version") in found
    assert ("RayJob model-training.yaml", "x names no registry") in found
    assert len([*examples.findings(None, folder)]) == 2 * 9


def test_where_there_is_a_definition_it_counts(folder: Path, tmp_path: Path) -> None:
    definitions = tmp_path / "definitions"
    definitions.mkdir()
    (definitions / "any.yaml").write_text(f"---{DEFINITION}")
    wrong = [each for each in examples.findings(Definitions(definitions), folder) if "entrypoint" not in each.problem]
    assert {each.object.split()[0] for each in wrong} == {"WorkflowTemplate"}  # of RayJob there is none


def test_the_images_are_those_of_containers() -> None:
    manifest: dict[str, Any] = yaml.safe_load(
        "{kind: K, metadata: {name: n}, spec: {list: [{image: a}], image: {no: b}}}"
    )
    assert [(each.field, each.problem) for each in examples.images(manifest)] == [
        ("spec.list[0].image", "a names no version"),
        ("spec.list[0].image", "a names no registry"),
    ]
