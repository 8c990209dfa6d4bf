"""What the examples have that is no part of an overlay: templates of Argo and a job of Ray, which the bridge runs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tools.k8s import kustomize, workloads
from tools.k8s.objects import Finding, Object, title
from tools.k8s.schemas import Definitions

FOLDER = kustomize.ROOT / "k8s" / "examples" / "pipelines"
FILES = ("workflow-templates.yaml", "model-training.yaml")


def findings(definitions: Definitions | None, folder: Path = FOLDER) -> Iterator[Finding]:
    """Images name version and registry, as everywhere; and schemas hold, where CRD_DIR has them."""
    for file in FILES:
        for manifest in filter(None, yaml.safe_load_all((folder / file).read_text())):
            named = {"metadata": {"name": file}, **manifest}  # the bridge names each run
            yield from images(named)
            if definitions is not None and definitions.has(named):
                yield from definitions.check(named)


def images(manifest: Object) -> Iterator[Finding]:
    """The same as of workloads, wherever in a custom resource there are containers."""
    for path, container in _containers(manifest, ""):
        for problem in (workloads.version_problem(container), workloads.registry_problem(container)):
            if problem:
                yield Finding(title(manifest), f"{path}.image", problem)


def _containers(value: Any, path: str) -> Iterator[tuple[str, Object]]:
    if isinstance(value, dict):
        if isinstance(value.get("image"), str):
            yield path, value
        for key, each in value.items():
            yield from _containers(each, f"{path}.{key}".removeprefix("."))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _containers(each, f"{path}[{number}]")
