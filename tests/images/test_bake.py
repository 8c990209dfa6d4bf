"""What `docker buildx bake` would build is what `make images` builds: the same files, targets and arguments."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
BAKE = (ROOT / "docker/docker-bake.hcl").read_text()
DOCKERFILES = {
    "docker/base.Dockerfile": ("of-base", "builder", "base", "base-ml"),
    "docker/service.Dockerfile": ("service", "handlers", "local_inference"),
}
"""The targets that are built from each; those that others inherit from, first."""
HANDLERS = dict(re.findall(r'\{ name = "(\w+)", description = "(.*)" \}', BAKE))


def target(name: str) -> str:
    """A target's lines."""
    return str(re.findall(rf'^target "{name}" {{\n(.*?)^}}', BAKE, re.DOTALL | re.MULTILINE)[0])


def arguments(lines: str) -> set[str]:
    """The names of the build arguments that a target sets."""
    return {
        name for block in re.findall(r"args = {\n(.*?)}\n", lines, re.DOTALL) for name in re.findall(r"(\w+) +=", block)
    }


def test_every_argument_and_target_is_one_of_its_dockerfile() -> None:
    for file, names in DOCKERFILES.items():
        text = (ROOT / file).read_text()
        known = set(re.findall(r"^ARG (\w+)", text, re.MULTILINE))
        stages = set(re.findall(r"^FROM .* AS ([\w-]+)$", text, re.MULTILINE))
        assert f'dockerfile = "{file}"' in target(names[0])
        for name in ("image", *names):
            assert arguments(target(name)) <= known, name
            assert set(re.findall(r'^ +target += "(.*)"', target(name), re.MULTILINE)) <= stages, name


def test_a_context_of_another_target_is_named_by_an_argument() -> None:
    for name in ("handlers", "local_inference"):
        contexts = dict(re.findall(r'([\w-]+) += .*"target:([\w-]+)"', target(name)))
        assert {'BUILDER  = "builder"', 'BASE        = "base-image"'} <= {
            line.strip() for line in (target("service") + target(name)).splitlines()
        }
        assert set(contexts) == {"builder", "base-image"}
        assert all(target(other) for other in contexts.values())


def test_a_base_that_the_registry_has_is_built_upon_and_not_built_again() -> None:
    [default] = re.findall(r'^group "default" {\n(.*?)^}', BAKE, re.DOTALL | re.MULTILINE)
    for base, variable, service in (
        ("base", "BASE_IMAGE", "handlers"),
        ("base-ml", "BASE_ML_IMAGE", "local_inference"),
    ):
        there = f'contains(split(" ", BASES_THERE), {variable})'
        assert f'{there} ? [] : ["{base}"]' in default
        assert f'base-image = {there} ? "docker-image://${{{variable}}}" : "target:{base}"' in target(service)
        assert f"BASE_NAME   = {variable}\n" in target(service)
        assert f"tags     = [{variable}]\n" in target(base)
        assert f'variable "{variable}" {{ default = "${{IMAGE_PREFIX}}{base}:${{BASE_VERSION}}" }}' in BAKE
    assert '["handlers", "local_inference"]' in default


def test_all_images_are_baked_with_the_descriptions_of_their_packages() -> None:
    listed = (ROOT / "docker/images.mk").read_text()
    assert list(HANDLERS) == re.findall(r"^HANDLERS := (.*)$", listed, re.MULTILINE)[0].split()
    for name, description in HANDLERS.items():
        assert description == described(name)
    assert f'DESCRIPTION = "{described("local_inference")}"' in target("local_inference")


def test_both_architectures_with_lists_of_contents_and_provenance() -> None:
    assert 'platforms  = ["linux/amd64", "linux/arm64"]' in target("image")
    assert 'attest     = ["type=sbom", "type=provenance,mode=max"]' in target("image")
    assert "rewrite-timestamp=true" in target("image")


def test_every_variable_that_is_used_is_declared_and_every_declared_one_used() -> None:
    declared = re.findall(r'^variable "(\w+)"', BAKE, re.MULTILINE)
    for name in declared:
        assert len(re.findall(rf"\b{name}\b", BAKE)) > 1, name
    used = set(re.findall(r"\$\{([A-Z_]+)\}", BAKE)) | set(re.findall(r"= ([A-Z][A-Z_]+)$", BAKE, re.MULTILINE))
    assert used <= set(declared)


def described(service: str) -> str:
    """A service's description in its pyproject file."""
    project = tomllib.loads((ROOT / "services" / service / "pyproject.toml").read_text())["project"]
    return str(project["description"])
