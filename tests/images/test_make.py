"""What docker/images.mk passes on to engines and tests: nothing is built, nor run."""

import os
import subprocess
from pathlib import Path

import pytest

RULES = Path(__file__).parents[2] / "docker/images.mk"
TOLD = {"base.name", "created", "description", "revision", "source", "version"}
"""Labels that differ from build to build."""


def make(folder: Path, *arguments: str) -> str:
    """What `make` would do in a folder."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}
    return subprocess.run(
        ["make", "-n", "-f", RULES, "BASE_VERSION=1", "BASE_INPUTS=", *arguments],
        cwd=folder,
        env=kept,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.mark.parametrize(
    ("remote", "source"),
    [
        ("git@forge.example:owner/name.git", "https://forge.example/owner/name"),
        ("ssh://git@forge.example:2222/owner/name.git", "https://forge.example/owner/name"),
        ("https://user:secret@forge.example/owner/name.git/", "https://forge.example/owner/name"),
        ("http://forge.lan:3000/owner/name", "http://forge.lan:3000/owner/name"),
        ("/srv/git/name.git", ""),
        (None, ""),
    ],
)
def test_the_sources_are_where_git_has_them_from_as_a_browser_asks(
    tmp_path: Path, remote: str | None, source: str
) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    if remote:
        subprocess.run(["git", "-C", tmp_path, "remote", "add", "origin", remote], check=True)
    said = make(tmp_path, "base-images", "ENGINE=docker")
    assert f'--label org.opencontainers.image.source="{source}" ' in said
    assert "secret" not in said


def test_labels_are_given_to_the_engine_as_they_are_to_the_dockerfile(tmp_path: Path) -> None:
    said = make(tmp_path, "images", "ENGINE=podman", "VERSION=v9.9.9")
    assert "--pull=missing" in said
    assert '--build-arg VERSION="v9.9.9" --label org.opencontainers.image.version="v9.9.9"' in said
    for label in TOLD:
        assert f"--label org.opencontainers.image.{label}=" in said


@pytest.mark.parametrize(("engine", "runs"), [("docker", "docker"), ("podman", "podman"), ("buildah", "podman")])
@pytest.mark.parametrize("target", ["image-test", "image-report"])
def test_the_engine_that_is_named_runs_what_is_tested(tmp_path: Path, target: str, engine: str, runs: str) -> None:
    assert f'CONTAINER_ENGINE="${{CONTAINER_ENGINE:-{runs}}}"' in make(tmp_path, target, f"ENGINE={engine}")


def test_with_no_engine_named_tests_take_one_that_works(tmp_path: Path) -> None:
    assert "CONTAINER_ENGINE" not in make(tmp_path, "image-test")
