"""What is built and checked: every overlay, and every way in which components may be put together."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from tools.k8s import kustomize
from tools.k8s.objects import Objects
from tools.k8s.scaling import SCALINGS

ROOT = kustomize.ROOT
K8S = ROOT / "k8s"
TAG = "0.0.0"
"""Of the images in a composition, which bases leave to overlays."""
SERVICES = tuple(scaling.service for scaling in SCALINGS)


@dataclass(frozen=True)
class Composition:
    """Bases with components on them; folders of `k8s/`. With no components and one folder, that folder as it is."""

    name: str
    resources: tuple[str, ...]
    components: tuple[str, ...] = ()

    @property
    def is_overlay(self) -> bool:
        """Whether it is a folder that stands for itself."""
        return self.name.startswith("overlays/")


BASE = ("base", "examples/pipelines")
"""All services, and the catalogue that the bridge mounts, which bases leave to overlays."""
WITHOUT_PIPELINES = tuple(service for service in SERVICES if service != "pipeline_bridge")
BRIDGES = ("bridge-argo", "bridge-kubeflow", "bridge-ray")
ALONE = (*BRIDGES, "external-secrets", "flux", "keda", "nack", "network-policy", "otel", "pod-monitor", "provision")
"""Components that make sense on the base alone."""
TOGETHER = (
    ("keda", "scale-to-zero"),
    ("keda", "provision"),
    ("keda", "nack"),
    ("keda", "network-policy"),
    ("external-secrets", "provision"),
    ("network-policy", "pod-monitor"),
    ("network-policy", "provision"),
    ("provision", "nats-jwt"),
    ("network-policy", "otel", "network-policy-otel"),
    ("otel", "pod-monitor"),
    BRIDGES,
    (*ALONE, "network-policy-otel", "scale-to-zero"),
)
"""Those that touch each other, and last all of them."""
OVERLAYS = tuple(
    Composition(f"overlays/{path.parent.name}", (f"overlays/{path.parent.name}",))
    for path in sorted((K8S / "overlays").glob("*/kustomization.yaml"))
)


def with_secrets(*components: str) -> tuple[str, ...]:
    """These, and where Secrets come from, which every handler waits for."""
    from_store = any(each.startswith("external-secrets") for each in components)
    return components if from_store else (*components, "secrets-by-hand")


COMPOSITIONS: tuple[Composition, ...] = (
    *OVERLAYS,
    Composition("base", BASE, with_secrets()),
    *(
        Composition(f"base/{service}", ("base/common", f"base/{service}"), with_secrets())
        for service in sorted(WITHOUT_PIPELINES)
    ),
    Composition("base/pipeline_bridge", ("base/common", "base/pipeline_bridge", "examples/pipelines"), with_secrets()),
    # As overlays/prod, and as its README has it.
    Composition(
        "without-pipelines",
        ("base/common", *(f"base/{service}" for service in WITHOUT_PIPELINES)),
        (
            *("provision", "network-policy/common", "network-policy-otel", "pod-monitor", "otel"),
            "external-secrets/provisioner",
            *(
                f"{each}/{service}"
                for each in ("keda", "network-policy", "external-secrets")
                for service in WITHOUT_PIPELINES
            ),
        ),
    ),
    Composition("base/local_inference", ("base/common", "base/local_inference")),
    Composition("base+monitoring", (*BASE, "monitoring"), with_secrets()),
    *(Composition(f"base+{each}", BASE, with_secrets(each)) for each in ALONE),
    *(Composition("base+" + "+".join(each), BASE, with_secrets(*each)) for each in TOGETHER[:-1]),
    Composition("everything", (*BASE, "monitoring"), TOGETHER[-1]),
    Composition("overlays/dev+nats-exporter", ("overlays/dev",), ("nats-exporter",)),
    Composition("overlays/prod+flux", ("overlays/prod",), ("flux",)),
    Composition("overlays/prod+scale-to-zero", ("overlays/prod",), ("scale-to-zero",)),
)


def write(composition: Composition, folder: Path) -> Path:
    """Write its kustomization.yaml into a folder of its own below the given one; gives the folder to build."""
    if composition.is_overlay and not composition.components:
        return K8S / composition.resources[0]
    place = folder / composition.name.replace("/", "-")
    place.mkdir(parents=True, exist_ok=True)

    def relative(path: str) -> str:
        return os.path.relpath(K8S / path, place.resolve())

    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [relative(each) for each in composition.resources],
        "components": [relative(f"components/{each}") for each in composition.components],
        "transformers": [relative("base/namespaced")],
        "images": [
            {"name": f"slim-handlers/{each}", "newName": f"localhost/slim-handlers/{each}", "newTag": TAG}
            for each in (*SERVICES, "local_inference", "provision")
        ],
    }
    (place / "kustomization.yaml").write_text(yaml.safe_dump(kustomization, sort_keys=False))
    return place


def build(composition: Composition, command: list[str], folder: Path) -> Objects:
    """Its objects.

    Raises:
        KustomizeError: it cannot be built.
    """
    return Objects(kustomize.build_folder(command, write(composition, folder)))


def unlisted() -> Iterator[str]:
    """Components that no composition has."""
    listed = {component for composition in COMPOSITIONS for component in composition.components}
    for path in sorted((K8S / "components").glob("*/kustomization.yaml")):
        if path.parent.name not in listed:
            yield f"components/{path.parent.name}"
