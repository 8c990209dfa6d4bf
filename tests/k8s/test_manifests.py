"""The manifests themselves: built in every composition, and fitting the services, NATS and each other."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from handler_core import provision, streams
from handler_core.config import load, names
from handler_core.testing import nats_server_binary
from tools.k8s import check, compositions, kustomize, permissions
from tools.k8s.compositions import COMPOSITIONS, K8S, Composition
from tools.k8s.objects import Objects, at
from tools.k8s.policies import findings, warnings

CRD_DIR = os.environ.get("CRD_DIR")
SERVICES = {service.name: service for service in permissions.services()}
OVERLAYS = {each.name.removeprefix("overlays/"): each for each in compositions.OVERLAYS}
ROOT = kustomize.ROOT
TLS = 7.0
"""MiB that OpenSSL takes, of which the measurements are free (docs/images.md)."""
NO_SETTINGS = {"POD_NAME", "NODE_NAME", "SECRETS_DIR"}
"""Variables that only others are made of, and where settings are looked for."""


@pytest.fixture(scope="module")
def built(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Builds an overlay, once."""
    folder, done = tmp_path_factory.mktemp("built"), dict[str, Objects]()

    def build(overlay: str) -> Objects:
        if overlay not in done:
            done[overlay] = compositions.build(OVERLAYS[overlay], command, folder)
        return done[overlay]

    return build


# -- compositions


@pytest.mark.parametrize("composition", COMPOSITIONS, ids=lambda each: each.name)
def test_a_composition_builds_and_keeps_to_schemas_and_policies(
    composition: Composition, command: list[str], tmp_path: Path
) -> None:
    objects = compositions.build(composition, command, tmp_path)
    assert objects.all
    assert findings(objects) == []
    assert not composition.is_overlay or warnings(objects) == []
    assert list(check.against_schemas(objects, check.definitions_folder())) == []


def test_every_component_is_in_a_composition() -> None:
    assert list(compositions.unlisted()) == []


def test_all_components_that_stand_alone_are_tried_together() -> None:
    assert set(compositions.ALONE) < set(compositions.TOGETHER[-1])


# -- the check


def test_without_definitions_the_check_fails_and_says_where_they_are(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUSTOMIZE", command[0])
    monkeypatch.setattr(kustomize, "find", lambda: command)
    monkeypatch.delenv("CRD_DIR", raising=False)
    assert check.main(["--only", "base/tts_module"]) == 1
    out, err = capsys.readouterr()
    assert "ok base/tts_module 5 objects" in out
    assert "make k8s-check CRD_DIR=" in err
    assert "https://github.com/kedacore/keda  config/crd/bases" in err


@pytest.mark.skipif(not CRD_DIR, reason="CRD_DIR names no folder with the custom resource definitions")
def test_with_definitions_the_check_passes(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kustomize, "find", lambda: command)
    assert check.main(["--only", "base+keda+scale-to-zero"]) == 0
    assert re.search(r"^ok base\+keda\+scale-to-zero \d+ objects$", capsys.readouterr().out, flags=re.MULTILINE)


def test_what_cannot_be_built_is_named_with_the_reason(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kustomize, "find", lambda: command)
    monkeypatch.setattr(compositions, "COMPOSITIONS", (Composition("broken", ("base",), ("nothing",)),))
    assert check.main([]) == 1
    assert re.search(r"^FAILED broken: .*components/nothing", capsys.readouterr().out, flags=re.MULTILINE)


def test_a_kustomize_that_is_named_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUSTOMIZE", "docker run 'a b'")
    assert kustomize.find() == ["docker", "run", "a b", "build"]


def test_without_any_kustomize_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KUSTOMIZE", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(kustomize, "BINARY", tmp_path / "kustomize")
    with pytest.raises(kustomize.KustomizeError, match="KUSTOMIZE=/path/to/kustomize"):
        kustomize.find()
    (tmp_path / "kubectl").touch(mode=0o755)
    assert kustomize.find() == [str(tmp_path / "kubectl"), "kustomize"]


# -- what pods are told


@pytest.mark.parametrize("overlay", ["dev", "prod"])
@pytest.mark.parametrize("name", list(SERVICES))
def test_a_service_takes_the_settings_that_its_pod_gets(
    built: Any, overlay: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = built(overlay)
    (workload,) = (each for each in objects.workloads if each.name == name.replace("_", "-"))
    service, told = SERVICES[name], objects.environment(workload)
    monkeypatch.setattr(os, "environ", told)
    settings = load(service.settings)
    assert (settings.nats_user, settings.nats_inbox_prefix) == (name, f"_INBOX_{name}")
    known = {alias for field, info in service.settings.model_fields.items() for alias in names(field, info)}
    assert workload.environment().keys() <= known | NO_SETTINGS


@pytest.mark.parametrize("overlay", ["dev", "prod"])
def test_a_pod_looks_for_its_secret_where_it_is_mounted_and_waits_for_it(built: Any, overlay: str) -> None:
    told = [each for each in built(overlay).workloads if "NATS_USER" in each.environment()]
    assert len(told) == len(SERVICES) + 1
    for workload in told:
        ((_, container),) = workload.main_containers()
        (mount,) = (each["mountPath"] for each in container["volumeMounts"] if each["name"] == "secrets")
        assert mount == workload.environment()["SECRETS_DIR"]
        (secret,) = (each["secret"] for each in workload.pod["volumes"] if each["name"] == "secrets")
        assert "optional" not in secret


@pytest.mark.parametrize("overlay", ["dev", "prod"])
def test_every_endpoint_is_a_setting_of_some_service(built: Any, overlay: str) -> None:
    (endpoints,) = (
        each for each in built(overlay).of("ConfigMap") if each["metadata"]["name"].startswith("endpoints-")
    )
    known = {
        alias
        for service in SERVICES.values()
        for field, info in service.settings.model_fields.items()
        for alias in names(field, info)
    }
    assert endpoints["data"].keys() <= known


def test_the_network_policies_open_the_ports_of_the_endpoints(built: Any) -> None:
    objects = built("prod")
    for workload in objects.workloads:
        if not workload.is_handler:
            continue
        (service,) = (each for name, each in SERVICES.items() if name.replace("_", "-") == workload.name)
        known = {alias for field, info in service.settings.model_fields.items() for alias in names(field, info)}
        told = {name: value for name, value in objects.environment(workload).items() if name in known}
        wanted = {urlsplit(value).port for value in told.values() if "://" in value}
        open_ports = {
            port["port"]
            for policy in objects.of("NetworkPolicy")
            if workload in objects.selected(workload.namespace, policy["spec"]["podSelector"])
            for rule in policy["spec"].get("egress", ())
            for port in rule["ports"]
        }
        assert wanted <= open_ports, workload.name
        # … and none that this service does not need: 53 for names; the bridge's engines may be elsewhere.
        if workload.name != "pipeline-bridge":
            assert open_ports == wanted | {53}, workload.name


def test_with_jwts_neither_the_handlers_nor_the_job_name_a_user(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (composition,) = (each for each in COMPOSITIONS if each.components[:2] == ("provision", "nats-jwt"))
    objects = compositions.build(composition, command, tmp_path)
    told = [objects.environment(each) for each in objects.workloads]
    assert [each["NATS_USER"] for each in told] == [""] * (len(SERVICES) + 1)
    (tmp_path / "NATS_CREDS").touch()
    for each in told:
        monkeypatch.setattr(os, "environ", {**each, "SECRETS_DIR": "", "NATS_CREDS": str(tmp_path / "NATS_CREDS")})
        settings = load(provision.Settings)
        assert (settings.nats_user, settings.nats_creds) == (None, tmp_path / "NATS_CREDS")


def test_every_stream_has_three_replicas_in_production(built: Any) -> None:
    (job,) = built("prod").of("Job")
    arguments = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert arguments[arguments.index("--replicas") + 1] == "3"


def test_the_pods_of_a_node_that_is_lost_are_made_anew_within_a_minute_and_a_half(built: Any) -> None:
    noticed = 50  # Kubernetes's own, from 1.32
    for workload in built("prod").workloads:
        if workload.is_handler:
            stays = {each["key"]: each["tolerationSeconds"] for each in workload.pod["tolerations"]}
            assert stays.keys() == {"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"}
            assert noticed + max(stays.values()) < 90


def test_each_handler_asks_for_the_memory_that_it_was_measured_to_hold_under_load_with_tls(built: Any) -> None:
    page = (ROOT / "docs" / "images.md").read_text()
    measured = dict(re.findall(r"^\| `(\w+)` \|.*\| ([\d.]+) MiB \|$", page, re.MULTILINE))
    grown = float(re.findall(r"between \d+ and (\d+) MiB", page)[0])  # voice_assistant, after more turns
    for workload in built("prod").workloads:
        if workload.is_handler:
            ((_, container),) = workload.main_containers()
            asked, limit = (
                float(container["resources"][each]["memory"].removesuffix("Mi")) for each in ("requests", "limits")
            )
            service = workload.name.replace("-", "_")
            held = max(float(measured[service]) + TLS, grown if service == "voice_assistant" else 0)
            assert held <= asked <= limit / 2, service


def test_where_flux_writes_there_is_a_policy_for_it() -> None:
    text = (K8S / "overlays" / "prod" / "kustomization.yaml").read_text()
    images = [each for each in yaml.safe_load_all((K8S / "components" / "flux" / "images.yaml").read_text()) if each]
    policies = {each["metadata"]["name"] for each in images if each["kind"] == "ImagePolicy"}
    repositories = {each["metadata"]["name"]: each["spec"]["image"] for each in images if "image" in each["spec"]}
    marked = re.findall(r'(newName|newTag): (\S+) # \{"\$imagepolicy": "flux-system:([a-z-]+):(name|tag)"\}', text)
    assert len(marked) == 2 * (len(SERVICES) + 1)  # the Job's image as well
    tags = {
        each["metadata"]["name"]: each["spec"]["filterTags"]["pattern"] for each in images if "policy" in each["spec"]
    }
    for field, value, policy, kind in marked:
        assert policy in policies
        assert kind == {"newName": "name", "newTag": "tag"}[field]
        assert value == repositories[policy] if kind == "name" else re.fullmatch(tags[policy], value)


# -- NATS


@pytest.mark.parametrize("overlay", ["dev", "nats"])
def test_the_server_takes_its_configuration(built: Any, overlay: str, tmp_path: Path) -> None:
    (config,) = (each for each in built(overlay).of("ConfigMap") if "nats.conf" in each["data"])
    for name, text in config["data"].items():
        (tmp_path / name).write_text(text)
    variables = set(re.findall(r"\$([A-Z_]+_PASSWORD)\b", config["data"]["authorization.conf"]))
    assert variables == {f"{name.upper()}_PASSWORD" for name in (*SERVICES, "provisioner", permissions.OPERATOR)}
    done = subprocess.run(
        [nats_server_binary(), "-t", "-c", str(tmp_path / "nats.conf")],
        env={**dict.fromkeys(variables, "x"), "POD_NAME": "nats-0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_three_servers_are_on_three_nodes(built: Any) -> None:
    (stateful_set,) = built("nats").of("StatefulSet")
    by_node, _ = at(stateful_set, "spec.template.spec.topologySpreadConstraints")
    assert at(stateful_set, "spec.replicas") == by_node["minDomains"] == 3
    assert (by_node["topologyKey"], by_node["whenUnsatisfiable"], by_node["maxSkew"]) == (
        "kubernetes.io/hostname", "DoNotSchedule", 1,
    )  # fmt: skip


def test_the_store_holds_what_all_streams_may_take(built: Any) -> None:
    (size,) = re.findall(r"max_file_store: (\d+)GB", (K8S / "nats" / "nats.conf").read_text())
    (stateful_set,) = built("nats").of("StatefulSet")
    (claim,) = at(stateful_set, "spec.volumeClaimTemplates")
    volume = int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi"))
    assert sum(stream.max_bytes for stream in streams.STREAMS) < int(size) * 2**30 < volume * 2**30


def test_in_development_the_server_and_its_users_have_the_same_passwords() -> None:
    folder = K8S / "overlays" / "dev"
    lines = [line for line in (folder / "passwords.env").read_text().splitlines() if not line.startswith("#")]
    passwords = dict(line.split("=") for line in lines)
    secrets = yaml.safe_load((folder / "kustomization.yaml").read_text())["secretGenerator"]
    told = {each["name"]: each["literals"] for each in secrets if "literals" in each}
    assert told.keys() == {name.replace("_", "-") for name in (*SERVICES, "provisioner")}
    for name, literals in told.items():
        assert literals == [f"NATS_PASSWORD={passwords[name.replace('-', '_').upper() + '_PASSWORD']}"]
    assert len(passwords) == len(told) + 1
