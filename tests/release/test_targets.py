"""Targets that push, verify and sign: a base that is there stays, and what is signed is what was verified."""

import base64
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from .conftest import ROOT, make
from .fake_registry import FakeRegistry, configuration, serving

DOCKER = """#!/bin/sh
case "$1 $2" in
"buildx inspect") [ "$3" = a-builder ];;
"buildx bake") echo "$BUILDX_BUILDER: $*"; echo "as $PUSHED_AS, on [$BASES_THERE], push=$PUSH";;
*) echo "$*";;
esac
"""


@dataclass
class Signing:
    """Targets on a fake registry, with a cosign and a syft that print what they are told."""

    registry: FakeRegistry
    folder: Path
    environment: dict[str, str]

    async def make(self, target: str, *variables: str) -> tuple[int, list[str]]:
        names = (f"IMAGE_PREFIX={self.registry.address}/o/", "IMAGES=tts_module", "BASES=base", "BASE_VERSION=3.15-x")
        tags = ("VERSION=v1", "PUSHED_AS=candidate-v1")
        places = (f"SBOM={self.folder}/sbom", f"PUSHED={self.folder}/pushed")
        tools = (f"COSIGN={self.folder}/cosign", f"SYFT={self.folder}/syft")
        code, printed = await make(self.environment, target, *names, *tags, *places, *tools, *variables)
        return code, printed.replace(f"{self.registry.address}/o/", "").splitlines()


@pytest_asyncio.fixture
async def signing(tmp_path: Path, plain_environment: dict[str, str]) -> AsyncIterator[Signing]:
    for tool in ("cosign", "syft"):
        (tmp_path / tool).write_text(f'#!/bin/sh\necho "{tool} $*"\n')
        (tmp_path / tool).chmod(0o755)
    (tmp_path / "sbom").mkdir()
    tested = configuration("base", "own")
    content = base64.b64encode(json.dumps(tested).encode()).decode()
    (tmp_path / "sbom/tts_module.syft.json").write_text(json.dumps({"source": {"metadata": {"config": content}}}))
    async with serving(FakeRegistry()) as registry:
        both = [tested, configuration("arm base", "arm own", architecture="arm64")]
        registry.push("o/tts_module", "candidate-v1", both, index=True)
        registry.push("o/base", "3.15-x", [configuration("base")])
        yield Signing(registry, tmp_path, plain_environment)


async def test_what_was_verified_is_signed_by_digest_and_each_platform_has_its_list_attested(signing: Signing) -> None:
    attest = f"cosign attest --yes --key a.key --more --type spdxjson --predicate {signing.folder}/sbom"
    digests = [line.partition("@")[2] for line in await verify(signing)]
    code, printed = await signing.make("sign", "COSIGN_KEY=a.key", "COSIGN_OPTIONS=--more")
    assert (code, printed) == (0, [
        f"cosign sign --yes --key a.key --more --recursive tts_module@{digests[0]}",
        f"{attest}/tts_module-linux-amd64.spdx.json tts_module@{digests[1]}",
        f"{attest}/tts_module-linux-arm64.spdx.json tts_module@{digests[2]}",
        f"cosign sign --yes --key a.key --more --recursive base@{digests[3]}",
    ])  # fmt: skip
    assert await signing.make("promote") == (0, [f"tts_module:v1 is {digests[0]}"])


async def verify(signing: Signing) -> list[str]:
    """What `make verify-pushed` wrote down; it lists each platform's image from the registry."""
    code, printed = await signing.make("verify-pushed")
    assert code == 0, printed
    written = (signing.folder / "pushed").read_text().replace(f"{signing.registry.address}/o/", "").splitlines()
    assert [line.split()[:3] for line in written] == [
        ["service", "tts_module", "-"],
        ["platform", "tts_module", "linux/amd64"],
        ["platform", "tts_module", "linux/arm64"],
        ["base", "base", "-"],
    ]
    listed = [line.split() for line in printed if line.startswith("syft scan")]
    assert [words[3:6] for words in listed] == [
        [f"registry:{line.split()[3]}", "--platform", line.split()[2]] for line in written[1:3]
    ]
    return written


async def test_an_image_that_changed_after_it_was_verified_is_not_signed(signing: Signing) -> None:
    await verify(signing)
    signing.registry.push("o/tts_module", "candidate-v1", [configuration("base", "own")])
    code, printed = await signing.make("sign", "COSIGN_KEY=a.key")
    assert code != 0
    assert "other images than make verify-pushed saw" in printed[0]
    assert not [line for line in printed if line.startswith("cosign")]


async def test_another_image_than_was_tested_is_neither_listed_nor_signed(signing: Signing) -> None:
    await verify(signing)
    signing.registry.push("o/tts_module", "candidate-v1", [configuration("base", "another")])
    code, printed = await signing.make("verify-pushed")
    assert code != 0
    assert printed[0].endswith("is not what was tested")
    code, printed = await signing.make("sign", "COSIGN_KEY=a.key")
    assert code != 0
    assert printed[0] == "make: first make verify-pushed"


@pytest.mark.parametrize("target", ["signing-check", "sign"])
async def test_without_a_key_nothing_is_signed_unless_keyless_is_asked_for(signing: Signing, target: str) -> None:
    await verify(signing)
    for nothing in ("COSIGN_KEYLESS=", "COSIGN_KEYLESS=false"):
        code, printed = await signing.make(target, nothing)
        assert code != 0
        assert printed[0].startswith("make: sign with what?")
    code, printed = await signing.make(target, "COSIGN_KEYLESS=true")
    assert code == 0
    assert [line for line in printed if "--key" in line] == []


async def test_a_key_is_tried_before_anything_is_built(signing: Signing) -> None:
    assert await signing.make("signing-check", "COSIGN_KEY=a.key") == (0, [])
    (signing.folder / "cosign").write_text('#!/bin/sh\n[ "$*" = "public-key --key a.key" ] && exit 1\n')
    code, _ = await signing.make("signing-check", "COSIGN_KEY=a.key")
    assert code != 0


@pytest.fixture
def docker(signing: Signing) -> None:
    """A docker that prints what it is told, and has one builder."""
    (signing.folder / "docker").write_text(DOCKER)
    (signing.folder / "docker").chmod(0o755)
    signing.environment["PATH"] = f"{signing.folder}:{signing.environment['PATH']}"


@pytest.mark.usefixtures("docker")
async def test_a_base_that_the_registry_has_is_baked_upon_and_not_pushed_again(signing: Signing) -> None:
    bases = ("BASES=base base-ml", "BUILDX_BUILDER=a-builder", "BAKE_ARGS=--progress plain")
    code, printed = await signing.make("bake", "PUSH=true", *bases)
    assert (code, printed[1:]) == (0, [
        "a-builder: buildx bake -f docker/docker-bake.hcl --progress plain",
        "as candidate-v1, on [base:3.15-x], push=true",
    ])  # fmt: skip
    assert (await signing.make("bake", *bases))[1][1:] == ["as candidate-v1, on [], push=false"]
    signing.registry.fails = 503
    code, printed = await signing.make("bake", "PUSH=true", *bases)
    assert code != 0
    assert "503" in printed[0]


@pytest.mark.usefixtures("docker")
async def test_build_arguments_are_baked_too_and_other_options_refused(signing: Signing) -> None:
    builder = "BUILDX_BUILDER=a-builder"
    code, printed = await signing.make("bake", builder, "BUILD_ARGS=--build-arg A=b --build-arg=C=d=e")
    assert code == 0
    assert printed[0].endswith("docker-bake.hcl --set *.args.A=b --set *.args.C=d=e")
    for other in ("--volume /a:/b", "--build-arg A", "--pull=always"):
        code, printed = await signing.make("bake", builder, f"BUILD_ARGS=--build-arg A=b {other}")
        assert code != 0
        assert printed[0].startswith("make: of BUILD_ARGS bake takes --build-arg only")


@pytest.mark.usefixtures("docker")
async def test_bake_has_a_builder_of_its_own_and_says_how_to_make_it(signing: Signing) -> None:
    code, printed = await signing.make("bake")
    assert code != 0
    assert printed[0] == "make: first docker buildx create --name slim-handlers --driver docker-container"


async def test_a_base_that_the_registry_has_is_not_pushed_with_the_images(signing: Signing) -> None:
    code, printed = await signing.make("push-images", "ENGINE=echo", "BASES=base base-ml")
    assert (code, printed) == (0, [
        "✓ base:3.15-x is there already, and stays",
        "→ base-ml:3.15-x",
        "push base-ml:3.15-x",
        "→ tts_module:candidate-v1",
        "tag tts_module:v1 tts_module:candidate-v1",
        "push tts_module:candidate-v1",
    ])  # fmt: skip


async def test_what_was_pushed_becomes_what_is_tested(signing: Signing) -> None:
    assert await signing.make("pull-images", "ENGINE=echo") == (0, [
        "→ base:3.15-x",
        "pull base:3.15-x",
        "→ tts_module",
        "pull tts_module:candidate-v1",
        "tag tts_module:candidate-v1 tts_module:v1",
    ])  # fmt: skip


async def test_every_list_is_scanned_and_the_last_release_for_every_platform(signing: Signing) -> None:
    grype = signing.folder / "grype"
    grype.write_text('#!/bin/sh\n[ "$2" = db ] || echo "$5 $6 $7"\ncase "$*" in *arm64*) exit 1;; esac\n')
    grype.chmod(0o755)
    (signing.folder / "sbom/tts_module-linux-amd64.syft.json").touch()
    tools = (f"GRYPE={grype}", f"SCAN={signing.folder}/scan")
    sbom = f"sbom:{signing.folder}/sbom"
    assert await signing.make("scan", *tools) == (0, [
        "→ tts_module",
        f"{sbom}/tts_module.syft.json --output table",
        "→ tts_module-linux-amd64",
        f"{sbom}/tts_module-linux-amd64.syft.json --output table",
    ])  # fmt: skip
    code, printed = await signing.make("scan-released", "RELEASED=candidate-v1", *tools)
    assert code != 0
    assert printed[:4] == [
        "→ tts_module-linux-amd64",
        "registry:tts_module:candidate-v1 --platform linux/amd64",
        "→ tts_module-linux-arm64",
        "registry:tts_module:candidate-v1 --platform linux/arm64",
    ]
    assert await signing.make("scan-released", "RELEASED=", *tools) == (0, ["nothing is released yet"])


async def test_a_tool_that_was_kept_is_built_again_only_for_other_pins(signing: Signing) -> None:
    tools = signing.folder / "tools"
    tools.mkdir()
    pins = [(ROOT / "tools/release/go/syft" / name).read_bytes() for name in ("go.mod", "go.sum")]
    (tools / "syft").write_text("#!/bin/sh\n")
    (tools / "syft").chmod(0o755)
    (tools / "syft.pins").write_bytes(b"".join(pins))
    os.utime(tools / "syft", (0, 0))  # older than what was checked out
    (signing.folder / "go").write_text('#!/bin/sh\n[ "$1" = list ] && echo v1.2.3 || echo "built with $*"\n')
    (signing.folder / "go").chmod(0o755)
    signing.environment["PATH"] = f"{signing.folder}:{signing.environment['PATH']}"
    assert await make(signing.environment, f"{tools}/syft", f"TOOLS={tools}") == (0, "")
    assert (tools / "syft").stat().st_mtime > 0
    (tools / "syft.pins").write_text("others")
    os.utime(tools / "syft", (0, 0))
    code, printed = await make(signing.environment, f"{tools}/syft", f"TOOLS={tools}")
    assert code == 0
    assert "main.version=v1.2.3" in printed
    assert (tools / "syft.pins").read_bytes() == b"".join(pins)
