"""What the pages show: overlays that build, patches that change something, commands for what there is."""

import os
import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.k8s import check, compositions, kustomize
from tools.k8s.compositions import COMPOSITIONS, K8S, ROOT
from tools.k8s.objects import Objects
from tools.k8s.policies import findings
from tools.k8s.scaling import SCALINGS

PAGES = [
    *sorted(K8S.rglob("README.md")),
    *(ROOT / "docs" / f"{page}.md" for page in ("deploy", "networks", "production")),
]
YAML_OF_PAGES = [
    pytest.param(page, textwrap.dedent(text), id=f"{page.relative_to(ROOT).with_suffix('')}-{number}")
    for page in PAGES
    for number, text in enumerate(re.findall(r"^ *```yaml\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL))
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
    _, _, text = (ROOT / "docs" / "production.md").read_text().partition("## Without pipelines\n")
    overlay = yaml.safe_load(re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[0])
    (checked,) = (each for each in COMPOSITIONS if each.name == "without-pipelines")
    assert {each.removeprefix("../../") for each in overlay["resources"]} == set(checked.resources)
    assert {each.removeprefix("../../components/") for each in overlay["components"]} == set(checked.components)


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
    for patch in yaml.safe_load(text)["patches"]:
        before, file = whole("overlays/nats" if patch["target"].get("name") == "nats" else "everything")
        shutil.copy(file, tmp_path)
        kustomization = {"resources": [file.name], "patches": [patch]}
        (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        after = kustomize.build_folder(command, tmp_path)
        changed = Objects(each for each in after if each not in before.all)
        assert changed.all
        assert list(check.against_schemas(changed, check.definitions_folder())) == []


def test_the_lag_is_shown_by_the_figures_that_it_is_scaled_by() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    [figures] = re.findall(r"handlers lag --lag-threshold (\d+) --max-replicas (\d+)", page)
    (chat,) = (each for each in SCALINGS if each.service == "chat_handler")
    assert figures == (str(chat.lag_threshold), str(chat.max_replicas))


def test_what_is_applied_is_there() -> None:
    named = {
        (page.relative_to(ROOT).as_posix(), folder)
        for page in PAGES
        for folder in re.findall(r"kubectl (?:apply|delete|diff) -k (k8s/[\w/-]+)", page.read_text())
        if folder != "k8s/overlays/mine"
    }
    assert [each for each in named if not (ROOT / each[1] / "kustomization.yaml").exists()] == []
    assert ("docs/production.md", "k8s/monitoring") in named


def test_kubectl_watches_one_kind_at_a_time() -> None:
    """With several it refuses."""
    for page in PAGES:
        assert not re.search(r"kubectl get \S+,\S+ .*(--watch|-w)\b", page.read_text()), page


def test_a_page_beside_manifests_fits_a_screen() -> None:
    long = [page for page in K8S.rglob("README.md") if page.parent != K8S and page.read_text().count("\n") > 45]
    assert long == []
