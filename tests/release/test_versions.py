"""One version everywhere, and a changelog that knows it."""

import shutil
from pathlib import Path

import pytest

from tools.release import changelog, versions

ROOT = Path(__file__).parents[2]
CHANGELOG = """\
# Changelog

## Unreleased

## [1.2.0] - 2026-02-03

### Added

- Something.

## 1.1.0 - 2026-01-02

First.
"""


def test_every_package_and_service_has_the_same_version() -> None:
    found = dict(versions.versions(ROOT))
    assert {"pyproject.toml", "libs/handler_core/pyproject.toml", "services/chat_handler/pyproject.toml"} <= set(found)
    assert versions.version_of_tree(ROOT) == found["pyproject.toml"]


def test_a_package_of_another_version_is_named(tmp_path: Path) -> None:
    (tmp_path / "libs/late").mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "libs/late/pyproject.toml").write_text('[project]\nname = "late"\nversion = "0.0.9"\n')
    with pytest.raises(versions.ReleaseError, match=r"0\.0\.9 +libs/late/pyproject\.toml"):
        versions.version_of_tree(tmp_path)


@pytest.mark.parametrize("tag", ["1.2.0", "v1.2.1", "v1.2.0-rc1"])
def test_a_tag_of_another_version_is_refused(tag: str) -> None:
    versions.refuse_other_tag("v1.2.0", "1.2.0")
    with pytest.raises(versions.ReleaseError, match="the tag is"):
        versions.refuse_other_tag(tag, "1.2.0")


def test_production_s_overlay_names_the_images_of_this_version() -> None:
    versions.refuse_other_images(ROOT, versions.version_of_tree(ROOT))


@pytest.mark.parametrize("tag", ["1.2.0", "v1.1.0", "latest"])
def test_an_overlay_with_images_of_another_name_is_refused(tmp_path: Path, tag: str) -> None:
    overlay = tmp_path / versions.PRODUCTION
    overlay.parent.mkdir(parents=True)
    overlay.write_text(f"images:\n  - {{name: a, newTag: v1.2.0}}\n  - {{name: b, newTag: {tag}}}\n")
    with pytest.raises(versions.ReleaseError, match=f"newTag {tag}: the images are pushed as v1.2.0"):
        versions.refuse_other_images(tmp_path, "1.2.0")


def test_the_section_of_a_version_comes_without_heading_and_neighbours() -> None:
    assert changelog.section(CHANGELOG, "1.2.0") == "### Added\n\n- Something."
    assert changelog.section(CHANGELOG, "1.1.0") == "First."


@pytest.mark.parametrize("version", ["1.2", "1x2.0", "2.0.0"])
def test_a_version_without_section_is_refused(version: str) -> None:
    with pytest.raises(versions.ReleaseError, match=f"nothing of {version}"):
        changelog.section(CHANGELOG, version)


def test_an_empty_section_is_refused() -> None:
    with pytest.raises(versions.ReleaseError):
        changelog.section(CHANGELOG, "Unreleased")


def test_the_changelog_of_this_tree_is_read() -> None:
    assert "handler_core" in changelog.section((ROOT / "CHANGELOG.md").read_text(), "Unreleased")
