"""What is signed is what was tested: the same layers, started in the same way, on the base that is there."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tools.release import pushed
from tools.release.registry import RegistryError

from .fake_registry import FakeRegistry, configuration, serving

TESTED = configuration("base1", "base2", "own")
OTHER = configuration("arm1", "arm2", "own", architecture="arm64")


@pytest_asyncio.fixture
async def fake() -> AsyncIterator[FakeRegistry]:
    async with serving(FakeRegistry()) as running:
        running.push("o/base", "1", [configuration("base1", "base2")])
        yield running


@pytest.fixture
def listings(tmp_path: Path) -> Path:
    """What syft lists of the tested image, as far as it is read."""
    content = base64.b64encode(json.dumps(TESTED).encode()).decode()
    (tmp_path / "chat.syft.json").write_text(json.dumps({"source": {"metadata": {"config": content}}}))
    return tmp_path


async def verified(fake: FakeRegistry, listings: Path) -> list[pushed.Line]:
    chat, base = f"{fake.address}/o/chat:candidate", f"{fake.address}/o/base:1"
    return await asyncio.to_thread(lambda: list(pushed.verify([chat], [base], listings)))


async def test_an_index_is_verified_by_the_platform_that_was_tested_and_all_its_platforms_are_listed(
    fake: FakeRegistry, listings: Path
) -> None:
    own = configuration("base1", "base2", "own", Labels={"built": "by another engine"}, Cmd=[], StopSignal="")
    digest = fake.push("o/chat", "candidate", [own, OTHER], index=True)
    service, amd64, arm64, base = await verified(fake, listings)
    assert str(service) == f"service chat - {fake.address}/o/chat@{digest}"
    assert (amd64.kind, amd64.name, amd64.platform) == ("platform", "chat", "linux/amd64")
    assert (arm64.kind, arm64.name, arm64.platform) == ("platform", "chat", "linux/arm64")
    assert len({line.image for line in (service, amd64, arm64)}) == 3
    assert str(base).startswith(f"base base - {fake.address}/o/base@sha256:")


async def test_an_image_of_one_platform_is_its_own_list(fake: FakeRegistry, listings: Path) -> None:
    digest = fake.push("o/chat", "candidate", [TESTED])
    service, amd64, _ = await verified(fake, listings)
    assert service.image == amd64.image == f"{fake.address}/o/chat@{digest}"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (configuration("base1", "base2", "mine"), "is not what was tested\n  tested own\n  pushed mine"),
        (configuration("base1", "base2", "own", "more"), "is not what was tested\n  pushed more"),
        (configuration("base2", "base1", "own"), "is not what was tested"),
        (configuration("base1", "base2", "own", Env=["A=c"]), "Env: tested .*A=b.*, pushed .*A=c"),
        (configuration("base1", "base2", "own", User="0"), "User: tested None, pushed 0"),
        (OTHER, "has nothing for linux/amd64, which was tested"),
    ],
)
async def test_another_image_than_was_tested_is_refused(
    fake: FakeRegistry, listings: Path, other: dict[str, Any], said: str
) -> None:
    fake.push("o/chat", "candidate", [other])
    with pytest.raises(RegistryError, match=said):
        await verified(fake, listings)


async def test_a_base_that_no_tested_service_stands_on_is_refused(fake: FakeRegistry, listings: Path) -> None:
    fake.push("o/chat", "candidate", [TESTED])
    fake.push("o/base", "1", [configuration("base1", "last week's")])
    with pytest.raises(RegistryError, match="another one was there before"):
        await verified(fake, listings)


async def test_what_was_not_pushed_or_not_listed_is_named(fake: FakeRegistry, listings: Path) -> None:
    with pytest.raises(RegistryError, match="o/chat has nothing as candidate"):
        await verified(fake, listings)
    (listings / "chat.syft.json").unlink()
    with pytest.raises(RegistryError, match="first make sbom"):
        await verified(fake, listings)


async def test_the_verified_index_is_tagged_even_if_the_candidate_is_another_one_by_now(
    fake: FakeRegistry, listings: Path, tmp_path: Path
) -> None:
    digest = fake.push("o/chat", "candidate", [TESTED, OTHER], index=True)
    written = tmp_path / "verified"
    written.write_text("".join(f"{line}\n" for line in await verified(fake, listings)))
    fake.push("o/chat", "candidate", [OTHER])
    said = await asyncio.to_thread(lambda: list(pushed.promote(pushed.read(written), "v1")))
    assert said == [f"{fake.address}/o/chat:v1 is {digest}"]
    assert fake.manifests["o/chat", "v1"] == fake.manifests["o/chat", digest]
    assert ("o/base", "v1") not in fake.manifests
