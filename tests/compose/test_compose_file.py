"""compose.yaml by its structure: what it names is there, and what it promises holds for every service of it."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic_settings import BaseSettings

from handler_core.config import ServiceSettings
from handler_core.provision import Settings as ProvisionSettings
from handler_core.testing_images import HANDLERS, SERVICES

ROOT = Path(__file__).parents[2]
OURS = {*HANDLERS, "local_inference", "local_cluster", "provision"}
# Nothing in the first one's image could ask; the other one ends.
NOT_CHECKED = {"otel-collector", "provision"}
OF_PYTHON_AND_CHECKS = {
    **{name: {"HEALTH_PATH"} for name in HANDLERS},
    "local_cluster": {"PYTHONPATH", "HEALTH_PORT", "HEALTH_PATH"},
    "local_inference": {"HEALTH_PORT", "HEALTH_PATH"},
}
WRITES_TO_ITS_ROOT = {"milvus"}
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}
VARIABLE = re.compile(r"\$\{(\w+)(:?[-?+])?([^}]*)\}")

Services = dict[str, dict[str, Any]]


@pytest.fixture
def services(compose: dict[str, Any]) -> Services:
    found: Services = compose["services"]
    return found


@pytest.fixture
def laid_over() -> Services:
    """What `build.yaml` adds, for who changes the code."""
    found: Services = yaml.safe_load((ROOT / "docker/compose/build.yaml").read_text())["services"]
    return found


def settings_of(service: str) -> type[BaseSettings]:
    if service == "provision":
        return ProvisionSettings
    module = importlib.import_module(f"{service}.service" if service in HANDLERS else f"{service}.settings")
    found: type[BaseSettings] = module.Settings
    assert issubclass(found, BaseSettings)
    return found


def names_of(settings: type[BaseSettings]) -> set[str]:
    """The environment variables that a service reads."""
    names = set()
    for name, field in settings.model_fields.items():
        alias = field.validation_alias
        choices = [alias] if isinstance(alias, str) else getattr(alias, "choices", [name])
        names |= {str(choice).upper() for choice in choices}
    return names


def files_of(service: dict[str, Any]) -> list[tuple[str, str]]:
    """What is mounted from the project: paths of the host by default, and in the container."""
    mounts = []
    for volume in service.get("volumes", []):
        source, target = VARIABLE.sub(lambda found: found[3], volume).split(":")[:2]
        if source.startswith("."):
            mounts.append((source, target))
    return mounts


def test_each_service_of_the_project_is_in_it(services: Services) -> None:
    there = {path.parent.name for path in ROOT.glob("services/*/pyproject.toml")}
    assert there == OURS - {"provision"}
    assert set(services) >= there


def test_dependencies_are_there_in_the_same_profiles_and_have_conditions_that_can_come_true(services: Services) -> None:
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            assert how["condition"] in CONDITIONS, name
            # One that is in a profile would not start with those that are in none.
            assert set(services[other].get("profiles", [])) <= set(service.get("profiles", [])), (name, other)
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[other], (name, other)
            if how["condition"] == "service_completed_successfully":
                assert services[other]["restart"] == "no", (name, other)


def test_handlers_start_once_the_streams_are_there(services: Services) -> None:
    for name in HANDLERS:
        needed = services[name]["depends_on"]
        assert needed["provision"] == {"condition": "service_completed_successfully"}
        assert "nats" in needed
    # podman 4 refuses to start what needs a container that has ended and needed one that runs.
    assert "depends_on" not in services["provision"]


def test_containers_have_no_more_rights_than_they_need(services: Services) -> None:
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service.get("read_only", False) is (name not in WRITES_TO_ITS_ROOT), name
        assert "privileged" not in service, name
        assert "mem_limit" in service, name
        assert "max-size" in service["logging"]["options"], name
        if name in OURS:
            assert service["user"] == "65532:65532", name


def test_ports_are_published_on_the_loopback_interface_and_once_each(services: Services) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]
    fixed = []
    for port in published:
        address, host, _ = port.split(":")
        assert address == "127.0.0.1", port
        fixed += [host] if host else []
    assert len(fixed) == len(set(fixed))


def test_what_can_tell_its_health_is_asked(services: Services) -> None:
    assert {name for name, service in services.items() if "healthcheck" not in service} == NOT_CHECKED
    for name, service in services.items():
        if check := service.get("healthcheck"):
            # Without a shell: not all images have one.
            assert check["test"][0] == "CMD", name
            assert {"interval", "timeout", "retries", "start_period"} <= set(check), name


@pytest.mark.parametrize("name", ["local_inference", "local_cluster"])
def test_what_has_its_health_elsewhere_than_handlers_is_asked_there_whoever_built_it(
    services: Services, name: str
) -> None:
    given = services[name]["environment"]
    assert given["HEALTH_PORT"] == given["PORT"]
    assert given["HEALTH_PATH"].startswith("/")


def test_handlers_are_healthy_when_they_are_ready(services: Services) -> None:
    # The image's own check asks whether they are alive, which says nothing to who waits for them.
    assert {services[name]["environment"]["HEALTH_PATH"] for name in HANDLERS} == {"/readyz"}


def test_handlers_are_given_the_time_to_drain(services: Services) -> None:
    for name in HANDLERS:
        service = services[name]
        assert int(service["stop_grace_period"].removesuffix("s")) >= int(service["environment"]["DRAIN_TIMEOUT"]) + 10


def test_images_of_others_are_pinned_and_named_in_full(services: Services) -> None:
    for name, service in services.items():
        image = service["image"]
        if name in OURS:
            assert image.startswith("${IMAGE_PREFIX:-localhost/slim-handlers/}"), name
            assert image.endswith(":${VERSION:-dev}"), name
        else:
            assert re.fullmatch(r"docker\.io/[a-z-]+/[a-z-]+:v?\d+\.\d+\.\d+(-[a-z0-9]+)?", image), image


def test_an_image_of_ours_is_neither_pulled_nor_built_unless_that_is_asked_for(services: Services) -> None:
    for name in OURS:
        assert services[name]["pull_policy"] == "${PULL_POLICY:-never}", name
        # Whatever is said of pulls, compose builds what it can and lacks.
        assert "build" not in services[name], name


def test_builds_are_of_files_and_arguments_that_there_are(laid_over: Services) -> None:
    built = {name: service["build"] for name, service in laid_over.items()}
    assert set(built) == set(SERVICES)
    for name, build in built.items():
        dockerfile = (ROOT / build["context"] / build["dockerfile"]).read_text()
        assert set(build["args"]) <= set(re.findall(r"^ARG (\w+)", dockerfile, re.MULTILINE)), name
        assert re.search(rf"^FROM \S+ AS {build['target']}$", dockerfile, re.MULTILINE), name
        assert build["args"]["SERVICE"] == name
        assert ("base-ml:" in build["args"]["BASE"]) is (name == "local_inference"), name
        assert (ROOT / "locks" / f"{name}.txt").exists()


def test_what_is_mounted_is_there(compose: dict[str, Any], services: Services) -> None:
    volumes = set()
    for name, service in services.items():
        for source, target in files_of(service):
            assert (ROOT / source).exists(), source
            mounted = next(volume for volume in service["volumes"] if f"{target}:ro" in volume)
            # Relabelled, or SELinux keeps the container from it.
            assert mounted.endswith(":ro,z"), (name, source)
        volumes |= {volume.split(":")[0] for volume in service.get("volumes", []) if volume[0].isalpha()}
    assert volumes == set(compose["volumes"])


def test_sources_of_our_services_are_watched(laid_over: Services) -> None:
    for name, service in laid_over.items():
        watched = [each["path"] for each in service["develop"]["watch"] if each["action"] == "rebuild"]
        assert watched == [f"services/{name}", "libs/handler_core"]
        assert all((ROOT / path).exists() for path in watched)


def test_settings_of_our_services_are_settings_that_they_read(services: Services) -> None:
    for name in sorted(OURS):
        given = services[name]["environment"]
        assert set(given) - OF_PYTHON_AND_CHECKS.get(name, set()) <= names_of(settings_of(name)), name
        for value in given.values():
            assert isinstance(value, str), (name, value)


def test_the_example_of_an_env_file_has_every_variable_with_its_default_and_nothing_that_is_no_setting() -> None:
    variables = {name: default for name, _, default in VARIABLE.findall((ROOT / "compose.yaml").read_text())}
    example = dict(re.findall(r"^#(\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert {name: example.get(name) for name in variables} == variables
    known = set().union(*(names_of(settings_of(name)) for name in OURS))
    assert set(example) - set(variables) <= known
    assert "LLM_PREMIUM_URL" in set(example) - set(variables)


def test_the_variables_that_can_be_set_are_all_optional(services: Services) -> None:
    text = re.sub(r"^\s*#.*", "", (ROOT / "compose.yaml").read_text(), flags=re.MULTILINE)
    assert text.count("$") == len(VARIABLE.findall(text))
    for name, operator, _ in VARIABLE.findall(text):
        assert operator == ":-", name
    # podman-compose looks into the service's own environment first, so there a name may stand for nothing else.
    for service in services.values():
        for name, value in service.get("environment", {}).items():
            elsewhere = {**service, "environment": {**service["environment"], name: ""}}
            assert not re.search(rf"\$\{{{name}\b", str(elsewhere)), (name, value)


@pytest.mark.parametrize("service", HANDLERS)
def test_the_defaults_are_settings_that_the_service_accepts(
    services: Services, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in names_of(settings_of(service)):
        monkeypatch.delenv(name, raising=False)
    for name, value in services[service]["environment"].items():
        monkeypatch.setenv(name, VARIABLE.sub(lambda found: found[3], value))
    settings = settings_of(service)()
    assert isinstance(settings, ServiceSettings)
    assert settings.nats_url == "nats://nats:4222"
    assert settings.otel_exporter_otlp_endpoint is None


def test_each_profile_is_what_its_page_says(services: Services) -> None:
    profiles: dict[str, set[str]] = {}
    for name, service in services.items():
        for profile in service.get("profiles", []):
            profiles.setdefault(profile, set()).add(name)
    assert profiles == {
        "observability": {"otel-collector", "jaeger", "nats-exporter", "prometheus", "grafana"},
        "pipelines": {"pipeline_bridge", "local_cluster"},
    }
    started = {name for name, service in services.items() if "profiles" not in service}
    assert started == {"nats", "provision", "milvus", "local_inference", *HANDLERS} - {"pipeline_bridge"}


def podman_compose(folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "podman_compose", "--in-pod", "false", *arguments]
    own = {"PATH": os.environ["PATH"], "HOME": str(folder), **environment}
    return subprocess.run(command, check=False, capture_output=True, text=True, env=own, cwd=folder)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the files that compose reads, and no `.env`."""
    shutil.copytree(ROOT / "docker/compose", tmp_path / "docker/compose")
    shutil.copy(ROOT / "compose.yaml", tmp_path)
    return tmp_path


def test_podman_compose_reads_it(project: Path, services: Services) -> None:
    profiles = ["--profile", "observability", "--profile", "pipelines"]
    done = podman_compose(project, *profiles, "config", LLM_URL="http://gpu:8000/llm")
    assert done.returncode == 0, done.stderr
    read = yaml.safe_load(done.stdout)["services"]
    assert set(read) == set(services)
    assert read["voice_assistant"]["environment"]["LLM_URL"] == "http://gpu:8000/llm"
    assert read["chat_handler"]["pull_policy"] == "never"


def test_builds_are_laid_over_it_and_want_to_know_their_base(project: Path) -> None:
    files = ["-f", "compose.yaml", "-f", "docker/compose/build.yaml"]
    without = podman_compose(project, *files, "config")
    assert without.returncode != 0
    assert "make -s base-version" in without.stderr
    done = podman_compose(project, *files, "config", BASE_VERSION="3.15-0123456789ab", PULL_POLICY="missing")
    assert done.returncode == 0, done.stderr
    read = yaml.safe_load(done.stdout)["services"]["chat_handler"]
    assert "BUILDER=localhost/slim-handlers/builder:3.15-0123456789ab" in read["build"]["args"]
    assert read["pull_policy"] == "missing"


def test_any_setting_of_an_env_file_reaches_all_of_ours_and_beats_the_defaults(project: Path) -> None:
    (project / ".env").write_text("LLM_PREMIUM_URL=http://big:8001\nLLM_URL=http://gpu:8000\n")
    # A dry run makes volumes all the same.
    engine = project / "podman"
    engine.write_text("#!/bin/sh\necho []\n")
    engine.chmod(0o755)
    options = ["--verbose", "--podman-path", str(engine), "--profile", "pipelines", "--dry-run"]
    done = podman_compose(project, *options, "up", "--detach")
    assert done.returncode == 0, done.stderr
    created = dict(re.findall(r"/podman create --name=slim-handlers_(\S+)_1 (.*)", done.stderr))
    given = {name: dict(re.findall(r" -e (\w+)=(\S*)", command)) for name, command in created.items()}
    assert {name for name in given if given[name].get("LLM_PREMIUM_URL") == "http://big:8001"} == OURS
    assert {given[name]["LLM_URL"] for name in OURS} == {"http://gpu:8000"}
