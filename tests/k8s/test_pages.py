"""What the pages of k8s/ show: overlays that build, patches that change something."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.k8s import check, compositions, kustomize
from tools.k8s.compositions import COMPOSITIONS, K8S
from tools.k8s.objects import Objects
from tools.k8s.policies import findings

YAML_OF_PAGES = [
    pytest.param(page, text, id=f"{page.parent.relative_to(K8S)}-{number}")
    for page in sorted(K8S.rglob("README.md"))
    for number, text in enumerate(re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))
]


@pytest.mark.parametrize(
    ("page", "text"), [each for each in YAML_OF_PAGES if "kustomize.config" in str(each.values[1])]
)
def test_an_overlay_of_a_page_builds_and_keeps_to_policies(
    command: list[str], tmp_path: Path, page: Path, text: str
) -> None:
    (tmp_path / "endpoints.env").write_text("NATS_URL=nats://nats.nats.svc:4222\n")
    shown = text.replace("../../", f"{os.path.relpath(K8S, tmp_path.resolve())}/")
    (tmp_path / "kustomization.yaml").write_text(shown)
    assert findings(Objects(kustomize.build_folder(command, tmp_path))) == []


def test_the_overlay_without_pipelines_is_the_one_that_is_checked() -> None:
    page = (K8S / "overlays" / "prod" / "README.md").read_text()
    (shown,) = (yaml.safe_load(each) for each in re.findall(r"^```yaml\n(api.*?)^```", page, re.MULTILINE | re.DOTALL))
    (checked,) = (each for each in COMPOSITIONS if each.name == "without-pipelines")
    assert {each.removeprefix("../../") for each in shown["resources"]} == set(checked.resources)
    assert {each.removeprefix("../../components/") for each in shown["components"]} == set(checked.components)


@pytest.fixture(scope="module")
def whole(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Builds a composition, once; gives its objects and a file with them."""
    folder, done = tmp_path_factory.mktemp("whole"), dict[str, tuple[Objects, Path]]()

    def build(name: str) -> tuple[Objects, Path]:
        if name not in done:
            (composition,) = (each for each in COMPOSITIONS if each.name == name)
            objects, file = compositions.build(composition, command, folder), folder / f"{name.replace('/', '-')}.yaml"
            file.write_text(yaml.safe_dump_all(objects.all))
            done[name] = objects, file
        return done[name]

    return build


@pytest.mark.parametrize(("page", "text"), [each for each in YAML_OF_PAGES if "- target:" in str(each.values[1])])
def test_every_patch_of_a_page_changes_something_into_something_valid(
    command: list[str], whole: Any, tmp_path: Path, page: Path, text: str
) -> None:
    before, file = whole("overlays/nats" if page.parent.name == "nats" else "everything")
    shutil.copy(file, tmp_path)
    for patch in yaml.safe_load(text)["patches"]:
        kustomization = {"resources": [file.name], "patches": [patch]}
        (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        after = kustomize.build_folder(command, tmp_path)
        changed = Objects(each for each in after if each not in before.all)
        assert changed.all
        assert list(check.against_schemas(changed, check.definitions_folder())) == []
