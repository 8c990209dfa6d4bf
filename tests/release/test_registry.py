"""A registry is asked as who one is logged in as, and is not believed what can't be."""

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tools.release import registry
from tools.release.registry import RegistryError, Repository

from .fake_registry import LOGIN, FakeRegistry, configuration, serving

ROOT = Path(__file__).parents[2]


@pytest_asyncio.fixture
async def fake() -> AsyncIterator[FakeRegistry]:
    async with serving(FakeRegistry()) as running:
        running.push("o/base", "1", [configuration("l1")])
        yield running


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DOCKER_CONFIG", "XDG_RUNTIME_DIR", "REGISTRY_AUTH_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "nobody"))


def log_in(place: Path, address: str, login: str = LOGIN) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps({"auths": {address: {"auth": base64.b64encode(login.encode()).decode()}}}))


@pytest.mark.parametrize(
    ("image", "repository", "reference"),
    [
        ("registry.example.org/owner/chat:v1", "registry.example.org/owner/chat", "v1"),
        ("registry:5000/owner/chat", "registry:5000/owner/chat", "latest"),
        ("registry:5000/owner/chat@sha256:0a", "registry:5000/owner/chat", "sha256:0a"),
        ("registry.example.org/owner/chat:v1@sha256:0a", "registry.example.org/owner/chat", "sha256:0a"),
        ("localhost/owner/chat:v1", "localhost/owner/chat", "v1"),
        ("owner/chat:v1", "docker.io/owner/chat", "v1"),
    ],
)
def test_an_image_s_name_says_where_it_is(image: str, repository: str, reference: str) -> None:
    found, tag = Repository.of(image)
    assert (str(found), tag) == (repository, reference)


async def test_what_is_there_is_told_from_what_is_not(fake: FakeRegistry) -> None:
    images = [f"{fake.address}/o/base:1", f"{fake.address}/o/base:2", f"{fake.address}/o/base-ml:1"]
    assert await asyncio.to_thread(registry.there, images) == images[:1]


async def test_a_registry_out_of_order_has_not_said_that_nothing_is_there(fake: FakeRegistry) -> None:
    fake.fails = 503
    with pytest.raises(RegistryError, match="503 out of order"):
        await asyncio.to_thread(registry.there, [f"{fake.address}/o/base:1"])


@pytest.mark.parametrize("scheme", ["Basic", "Bearer"])
@pytest.mark.parametrize("setting", ["REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_RUNTIME_DIR"])
async def test_who_is_logged_in_is_known_to_docker_podman_and_buildah(
    fake: FakeRegistry, scheme: str, setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.wants = scheme
    place = {"REGISTRY_AUTH_FILE": "", "DOCKER_CONFIG": "config.json", "XDG_RUNTIME_DIR": "containers/auth.json"}[
        setting
    ]
    log_in(tmp_path / "login" / place if place else tmp_path / "login", fake.address)
    monkeypatch.setenv(setting, str(tmp_path / "login"))
    repository, manifest = await asyncio.to_thread(registry.find, f"{fake.address}/o/base:1")
    await asyncio.to_thread(repository.tag, manifest, "2")
    assert fake.manifests["o/base", "2"] == fake.manifests["o/base", "1"]
    wanted = ["repository:o/base:pull", "repository:o/base:push"]
    assert fake.asked_for == (wanted if scheme == "Bearer" else [])


async def test_a_login_that_another_program_keeps_is_asked_of_it(
    fake: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.wants = "Basic"
    helper = tmp_path / "docker-credential-safe"
    helper.write_text(
        f'#!/bin/sh\n[ "$1 $(cat)" = "get {fake.address}" ] && echo \'{{"Username": "me", "Secret": "pass"}}\'\n'
    )
    helper.chmod(0o755)
    (tmp_path / "config.json").write_text('{"credsStore": "safe"}')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert await asyncio.to_thread(registry.there, [f"{fake.address}/o/base:1"])


@pytest.mark.parametrize(("scheme", "said"), [("Basic", "wants a login"), ("Bearer", "gives no token for o/base")])
async def test_without_a_login_it_is_said_that_one_is_wanted(fake: FakeRegistry, scheme: str, said: str) -> None:
    fake.wants = scheme
    with pytest.raises(RegistryError, match=said):
        await asyncio.to_thread(registry.there, [f"{fake.address}/o/base:1"])


async def test_a_wrong_password_is_refused_once(
    fake: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.wants = "Basic"
    log_in(tmp_path / "login", fake.address, "me:wrong")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "login"))
    with pytest.raises(RegistryError, match="401"):
        await asyncio.to_thread(registry.there, [f"{fake.address}/o/base:1"])


async def test_other_content_than_a_digest_s_is_refused(fake: FakeRegistry) -> None:
    fake.lies = True
    digest = fake.push("o/base", "1", [configuration("l1")])
    with pytest.raises(RegistryError, match=f"asked for {digest}"):
        await asyncio.to_thread(registry.find, f"{fake.address}/o/base@{digest}")


async def test_a_password_is_not_sent_to_where_a_registry_keeps_its_blobs(
    fake: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.wants, fake.elsewhere = "Basic", True
    log_in(tmp_path / "login", fake.address)
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "login"))
    repository, manifest = await asyncio.to_thread(registry.find, f"{fake.address}/o/base:1")
    found = await asyncio.to_thread(repository.configuration, manifest)
    assert found == configuration("l1")
    assert fake.authorized_elsewhere == [None]


async def test_the_command_line_says_what_is_there_and_for_which_platforms(fake: FakeRegistry) -> None:
    both = [configuration("l1"), configuration("l2", architecture="arm64", variant="v8")]
    fake.push("o/chat", "v1", both, index=True)

    async def said(*arguments: str) -> tuple[str, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tools.release.registry", *arguments,
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        return out.decode(), err.decode()

    chat = f"{fake.address}/o/chat:v1"
    assert await said("there", f"{fake.address}/o/nothing:1", chat) == (f"{chat}\n", "")
    assert await said("platforms", chat) == ("linux/amd64 linux/arm64\n", "")
    assert await said("platforms", f"{fake.address}/o/base:1") == ("linux/amd64\n", "")
    assert await said("platforms", f"{chat}2") == ("", f"make: {fake.address}/o/chat has nothing as v12\n")
