"""What leaves this tree: wheels to an index that was named, releases and the base's refresh to the forge."""

import asyncio
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.release import refresh
from tools.release.forge import Forge
from tools.release.versions import ReleaseError

from .conftest import REPOSITORY, ROOT, FakeForge, FakeIndex, make


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A folder with a wheel of nothing."""
    place = tmp_path / "nothing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(place, "w") as wheel:
        wheel.writestr("nothing-1.0.dist-info/METADATA", "Metadata-Version: 2.4\nName: nothing\nVersion: 1.0\n")
        wheel.writestr("nothing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("nothing-1.0.dist-info/RECORD", "")
    return tmp_path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A clone of a repository with the pins of the base."""
    origin, clone = tmp_path / "origin.git", tmp_path / "clone"
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", str(origin)], check=True)
    subprocess.run(["git", "clone", "--quiet", str(origin), str(clone)], check=True, stderr=subprocess.DEVNULL)
    (clone / "docker").mkdir()
    (clone / refresh.PINS).write_text("old\n")
    (clone / "other").write_text("old\n")
    refresh.git(clone, "add", ".")
    refresh.git(clone, *refresh.AUTHOR, "commit", "--quiet", "--message", "first")
    refresh.git(clone, "push", "--quiet", "origin", "HEAD:main")
    return clone


def no_forge() -> Forge:
    raise AssertionError("the forge was asked for nothing")


def of(fake: FakeForge) -> Callable[[], Forge]:
    return lambda: Forge(fake.url, REPOSITORY, "a-token")


async def test_wheels_are_built_of_every_package(tmp_path: Path, plain_environment: dict[str, str]) -> None:
    code, printed = await make(plain_environment, "wheels", f"WHEELS={tmp_path}/dist")
    assert code == 0, printed
    built = {path.name.partition("-")[0] for path in tmp_path.glob("dist/*.whl")}
    assert built == {path.parent.name for path in ROOT.glob("[ls]*/*/pyproject.toml")}


async def test_wheels_are_uploaded_with_the_users_password(
    index: FakeIndex, wheels: Path, plain_environment: dict[str, str]
) -> None:
    environment = {**plain_environment, "UV_PUBLISH_USERNAME": "me", "UV_PUBLISH_PASSWORD": "pass"}
    environment["UV_PUBLISH_CHECK_URL"] = ""  # as a workflow passes on a variable that is not set
    code, printed = await make(environment, "publish-wheels", f"WHEELS={wheels}", f"INDEX_URL={index.url}")
    assert code == 0, printed
    [wheel] = wheels.glob("*.whl")
    assert index.uploads == {wheel.name: wheel.read_bytes()}
    assert index.authorizations == {"Basic bWU6cGFzcw=="}
    assert "pass" not in printed.replace("password", "")


async def test_without_an_index_nothing_is_uploaded(wheels: Path, plain_environment: dict[str, str]) -> None:
    code, printed = await make(plain_environment, "publish-wheels", f"WHEELS={wheels}")
    assert code != 0
    assert "make publish-wheels INDEX_URL=" in printed


@pytest.mark.parametrize(
    ("prefix", "registry"),
    [
        ("registry.example.org/owner/", "registry.example.org"),
        ("registry:5000/owner/", "registry:5000"),
        ("localhost/owner/", "localhost"),
        ("owner/", "docker.io"),
    ],
)
async def test_a_prefix_that_names_no_registry_is_an_owner_on_dockers_own(
    prefix: str, registry: str, plain_environment: dict[str, str]
) -> None:
    environment = {**plain_environment, "REGISTRY_USER": "me", "REGISTRY_PASSWORD": "pass"}
    code, printed = await make(environment, "registry-login", "ENGINE=echo", f"IMAGE_PREFIX={prefix}")
    assert (code, printed) == (0, f"login --username me --password-stdin {registry}\n")


async def test_a_release_published_twice_has_the_second_notes_and_files_once(forge: FakeForge, tmp_path: Path) -> None:
    lists, report = tmp_path / "tts_module.spdx.json", tmp_path / "report.json"
    report.write_text("{}")
    for text, assets in {"first": [lists], "second": [lists, report]}.items():
        lists.write_text(text)
        said = await asyncio.to_thread(of(forge)().publish_release, "v1.0.0", text, assets)
        assert said == f"published http://forge/releases/1, {len(assets)} files"
    assert forge.releases["v1.0.0"]["body"] == "second"
    assert [asset for asset in forge.assets if asset[0]] == [
        ("tts_module.spdx.json", b"second"),
        ("report.json", b"{}"),
    ]


async def test_a_refused_call_says_what_the_forge_said(forge: FakeForge) -> None:
    with pytest.raises(ReleaseError, match=r"404 .*no such base"):
        await asyncio.to_thread(of(forge)().open_pull_request, "head", "elsewhere", "title", "body")


def test_a_missing_setting_of_the_forge_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_API_URL", "GITHUB_REPOSITORY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.delenv("GITEA_TOKEN", raising=False)
    with pytest.raises(ReleaseError, match="set GITEA_TOKEN"):
        Forge.from_environment()
    assert "a-token" not in repr(Forge("http://forge", REPOSITORY, "a-token"))


def test_an_unchanged_base_is_not_proposed(tree: Path) -> None:
    assert refresh.propose(tree, no_forge) == "Debian has nothing new for the base"


async def test_a_changed_base_is_pushed_alone_and_proposed_once(forge: FakeForge, tree: Path) -> None:
    (tree / refresh.PINS).write_text("new\n")
    (tree / "other").write_text("changed by a build\n")
    assert await asyncio.to_thread(refresh.propose, tree, of(forge)) == "opened http://forge/pulls/1"
    assert refresh.git(tree, "diff", "--name-only", "origin/main", "origin/base-refresh").split() == [refresh.PINS]
    assert forge.tokens == {"token a-token"}

    refresh.git(tree, "switch", "--quiet", "--discard-changes", "main")  # a week later, from main again
    (tree / refresh.PINS).write_text("newer\n")
    said = await asyncio.to_thread(refresh.propose, tree, of(forge))
    assert said == "the open pull request of base-refresh has the new commit"
    assert refresh.git(tree, "show", f"origin/base-refresh:{refresh.PINS}") == "newer\n"
    assert refresh.git(tree, "rev-list", "--count", "origin/main..origin/base-refresh") == "1\n"
    assert len(forge.pulls) == 1
