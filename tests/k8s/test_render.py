"""What is rendered is up to date, and follows from the declarations."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from handler_core import streams
from tools.k8s import provisioning, render
from tools.k8s.permissions import services
from tools.k8s.scaling import SCALINGS, Scaling, kubernetes_name

COMPONENTS = render.ROOT / "k8s" / "components"


def loaded(path: str) -> Any:
    return yaml.safe_load((COMPONENTS / path).read_text())


def test_the_files_in_the_project_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert render.main(["--check"]) == 0, capsys.readouterr().out


def test_rendering_writes_what_is_missing_and_nothing_the_second_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert render.main(["--root", str(tmp_path)]) == 0
    assert sorted(render.files()) == sorted(
        path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()
    )
    capsys.readouterr()
    assert render.main(["--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{len(render.files())} files are up to date\n"


def test_a_check_names_what_is_changed_missing_or_left_over_and_leaves_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    render.main(["--root", str(tmp_path)])
    changed, missing = (tmp_path / "k8s/components" / part for part in ("provision/job.yaml", "nack/streams.yaml"))
    left_over, own = (tmp_path / "k8s/components" / part for part in ("keda/gone.yaml", "keda/own.yaml"))
    changed.write_text(changed.read_text().replace("backoffLimit: 6", "backoffLimit: 7"))
    missing.unlink()
    left_over.write_text(f"{render.MARK}something; do not edit.\n")
    own.write_text("# written by hand\n")
    capsys.readouterr()
    assert render.main(["--check", "--root", str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "k8s/components/provision/job.yaml is not up to date",
        "k8s/components/nack/streams.yaml is not up to date",
        "k8s/components/keda/gone.yaml is not rendered any more",
        "run: make k8s-render",
    ]
    assert left_over.exists()
    assert render.main(["--root", str(tmp_path)]) == 0
    assert (left_over.exists(), own.exists()) == (False, True)
    assert render.main(["--check", "--root", str(tmp_path)]) == 0


def test_each_rendered_file_says_so_and_is_yaml() -> None:
    for path, content in render.files().items():
        assert content.startswith(render.MARK), path
        assert "do not edit" in content.partition("\n")[0], path
        assert not path.endswith(".yaml") or list(yaml.safe_load_all(content)), path


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling.service)
def test_a_scaled_object_has_the_declared_figures(scaling: Scaling) -> None:
    [resource] = loaded(f"keda/{scaling.service}/kustomization.yaml")["resources"]
    made = loaded(f"keda/{scaling.service}/{resource}")
    spec = made["spec"]
    [trigger] = spec["triggers"]
    steps = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert (made["metadata"]["name"], spec["scaleTargetRef"]) == (scaling.name, {"name": scaling.name})
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (scaling.min_replicas, scaling.max_replicas)
    assert (spec["pollingInterval"], spec["cooldownPeriod"]) == (scaling.polling_interval, scaling.cooldown_period)
    # KEDA falls back for a metric of this type, and asks for so many replicas times the threshold.
    assert (trigger["type"], trigger["metricType"]) == ("nats-jetstream", "AverageValue")
    assert spec["fallback"]["behavior"] == "currentReplicasIfHigher"
    metadata = trigger["metadata"]
    assert all(isinstance(value, str) for value in metadata.values())  # a number would be refused
    assert (metadata["stream"], metadata["consumer"]) == (scaling.consumer.stream, scaling.consumer.name)
    assert (metadata["lagThreshold"], metadata["activationLagThreshold"]) == (
        str(scaling.lag_threshold),
        str(scaling.activation_lag),
    )
    assert steps["scaleDown"]["stabilizationWindowSeconds"] == scaling.scale_down_stabilization
    assert steps["scaleUp"]["policies"][0]["value"] == scaling.scale_up_pods


PAGES = [page for page in ("k8s/components/keda/README.md", "docs/scaling.md") if (render.ROOT / page).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_of_the_pages_have_the_declared_figures(page: str) -> None:
    path = render.ROOT / page
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", path.read_text(), re.MULTILINE)
    for scaling in SCALINGS:
        figures = (
            f"{scaling.lag_threshold} | {scaling.min_replicas} to {scaling.max_replicas} | "
            f"{scaling.polling_interval} s | {scaling.cooldown_period} s | {scaling.fallback_replicas} | "
            f"{scaling.scale_up_pods} in {scaling.scale_up_period} s | "
            f"{scaling.scale_down_pods} in {scaling.scale_down_period} s after {scaling.scale_down_stabilization} s"
        )
        assert (scaling.service, figures) in rows


def test_all_services_are_scaled_by_one_component_or_each_by_its_own() -> None:
    assert loaded("keda/kustomization.yaml")["components"] == [scaling.service for scaling in SCALINGS]


def test_scaling_to_zero_switches_off_the_endpoints_of_those_that_have_some() -> None:
    patches = loaded("scale-to-zero/kustomization.yaml")["patches"]
    least, *others = (loaded(f"scale-to-zero/{patch['path']}") for patch in patches)
    assert (least["kind"], least["spec"]) == ("ScaledObject", {"minReplicaCount": 0})
    assert [patch["target"]["name"] for patch in patches[1:]] == [
        kubernetes_name(service.name) for service in services() if service.subjects
    ]
    for patch in others:
        [container] = patch["spec"]["template"]["spec"]["containers"]
        assert container["name"] == patch["metadata"]["name"]
        assert container["env"] == [{"name": "SERVE_ENDPOINTS", "value": "false"}]


def test_the_job_is_another_when_a_declaration_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = provisioning.fingerprint()
    assert re.fullmatch(r"[0-9a-f]{8}", before)
    assert provisioning.fingerprint() == before
    changed = dataclasses.replace(streams.CHAT_HANDLER, max_ack_pending=2000)
    monkeypatch.setattr(provisioning, "CONSUMERS", (changed, *streams.CONSUMERS[1:]))
    assert provisioning.fingerprint() != before
