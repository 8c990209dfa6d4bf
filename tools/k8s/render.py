"""`python -m tools.k8s render`: writes the parts of `k8s/` that follow from declarations, or compares them.

Whatever is rendered says so in its first line; everything else in `k8s/` is written by hand.
"""

import argparse
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from handlers_cli.render import resources as nack_resources
from handlers_cli.render import to_yaml
from tools.k8s import keda, monitoring, permissions, provisioning
from tools.k8s.scaling import NAMESPACE, SCALINGS, kubernetes_name

ROOT = Path(__file__).parents[2]
MARK = "# Rendered by `make k8s-render` from "
STREAMS = "libs/handler_core/src/handler_core/streams.py"
SCALING = "tools/k8s/scaling.py"


def files() -> dict[str, str]:
    """What is rendered: contents by their paths from the project's root."""
    return {**_keda(), **_scale_to_zero(), **_provision(), **_nack(), **_authorization(), **monitoring.files()}


def main(argv: list[str]) -> int:
    """Write what differs, or with `--check` only name it; gives the exit code of the process."""
    parser = argparse.ArgumentParser(prog="python -m tools.k8s render", description="Render parts of k8s/.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is not up to date")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    rendered = files()
    changed, stale = _differences(rendered, arguments.root)
    if arguments.check:
        for path in changed:
            print(f"{path} is not up to date")
        for path in stale:
            print(f"{path} is not rendered any more")
        if changed or stale:
            print("run: make k8s-render")
        return 1 if changed or stale else 0
    for path in changed:
        target = arguments.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(rendered[path])
        print(f"wrote {path}")
    for path in stale:
        (arguments.root / path).unlink()
        print(f"removed {path}")
    print(f"{len(rendered)} files are up to date")
    return 0


def _differences(rendered: Mapping[str, str], root: Path) -> tuple[list[str], list[str]]:
    """The paths that have another content or none, and the rendered files that would not be rendered now."""
    there = {
        path.relative_to(root).as_posix(): path.read_text()
        for path in sorted((root / "k8s").rglob("*"))
        if path.suffix in {".yaml", ".conf"} and path.is_file()
    }
    changed = [path for path, content in rendered.items() if there.get(path) != content]
    return changed, [path for path, content in there.items() if content.startswith(MARK) and path not in rendered]


def _file(source: str, documents: Iterable[Mapping[str, Any]], note: str = "") -> str:
    comment = [f"{MARK}{source}; do not edit.", *textwrap.wrap(note, 110)]
    return "\n# ".join(comment) + "\n" + to_yaml(documents)


def _component(**fields: Any) -> dict[str, Any]:
    return {"apiVersion": "kustomize.config.k8s.io/v1alpha1", "kind": "Component", **fields}


def _keda() -> dict[str, str]:
    folder = "k8s/components/keda"
    made = {f"{folder}/kustomization.yaml": _file(SCALING, [_component(components=[s.service for s in SCALINGS])])}
    for scaling in SCALINGS:
        own = f"{folder}/{scaling.service}"
        made[f"{own}/kustomization.yaml"] = _file(SCALING, [_component(resources=["scaled-object.yaml"])])
        made[f"{own}/scaled-object.yaml"] = _file(SCALING, [keda.scaled_object(scaling)], scaling.why)
    return made


def _scale_to_zero() -> dict[str, str]:
    folder, source = "k8s/components/scale-to-zero", "the services' declarations of endpoints"
    everything = {"kind": "ScaledObject", "labelSelector": "app.kubernetes.io/part-of=slim-handlers"}
    # A target that is not there is no error, unlike a patch without one: a composition may have some services only.
    patches = [{"path": "no-replica.yaml", "target": everything}]
    no_replica = {"apiVersion": keda.API_VERSION, "kind": "ScaledObject", "metadata": {"name": "any"}}
    made = {f"{folder}/no-replica.yaml": _file(source, [{**no_replica, "spec": {"minReplicaCount": 0}}])}
    for service in permissions.services():
        if service.subjects:
            name = kubernetes_name(service.name)
            container = {"name": name, "env": [{"name": "SERVE_ENDPOINTS", "value": "false"}]}
            patch = {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": name},
                "spec": {"template": {"spec": {"containers": [container]}}},
            }
            made[f"{folder}/{name}.yaml"] = _file(source, [patch])
            patches.append({"path": f"{name}.yaml", "target": {"kind": "Deployment", "name": name}})
    return {f"{folder}/kustomization.yaml": _file(source, [_component(patches=patches)]), **made}


def _provision() -> dict[str, str]:
    folder = "k8s/components/provision"
    return {
        f"{folder}/kustomization.yaml": _file(STREAMS, [_component(resources=["job.yaml"])]),
        f"{folder}/job.yaml": _file(STREAMS, provisioning.resources()),
    }


def _nack() -> dict[str, str]:
    folder, made = "k8s/components/nack", nack_resources(namespace=NAMESPACE)
    kinds = {"streams.yaml": "Stream", "consumers.yaml": "Consumer"}
    return {
        f"{folder}/kustomization.yaml": _file(STREAMS, [_component(resources=list(kinds))]),
        **{
            f"{folder}/{name}": _file(STREAMS, [resource for resource in made if resource["kind"] == kind])
            for name, kind in kinds.items()
        },
    }


def _authorization() -> dict[str, str]:
    note = (
        "Passwords are the server's environment variables. It reads their values as configuration: letters and digits, "
        'a letter first, or in double quotes; so for the bcrypt hash of a password: "$2b$11$…".'
    )
    content = "\n# ".join([f"{MARK}the services' declarations; do not edit.", *textwrap.wrap(note, 110)])
    return {"k8s/nats/authorization.conf": f"{content}\n{permissions.authorization(permissions.users())}"}
