"""Validates objects as an API server does with strict field validation: unknown fields are errors.

Kubernetes' own kinds by `kubernetes-validate`; custom resources by the `openAPIV3Schema` of their published
CustomResourceDefinitions. Rules in CEL (`x-kubernetes-validations`) are not evaluated.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate  # type: ignore[import-untyped]
import yaml

from tools.k8s.objects import Finding, Object, title

VERSIONS = ("1.33", "1.37")
"""The versions of Kubernetes whose schemas count: the oldest that is supported, and the newest known."""
BUILT_IN = {"apps", "autoscaling", "batch", "policy"}


@dataclass(frozen=True)
class Source:
    """Where a project publishes its CustomResourceDefinitions."""

    group: str
    repository: str
    path: str


SOURCES = (
    Source("keda.sh", "https://github.com/kedacore/keda", "config/crd/bases"),
    Source("jetstream.nats.io", "https://github.com/nats-io/nack", "deploy/crds.yml"),
    Source(
        "monitoring.coreos.com",
        "https://github.com/prometheus-operator/prometheus-operator",
        "example/prometheus-operator-crd",
    ),
    Source("external-secrets.io", "https://github.com/external-secrets/external-secrets", "config/crds/bases"),
    Source("image.toolkit.fluxcd.io", "https://github.com/fluxcd/image-reflector-controller", "config/crd/bases"),
    Source("image.toolkit.fluxcd.io", "https://github.com/fluxcd/image-automation-controller", "config/crd/bases"),
)


def is_custom(manifest: Object) -> bool:
    """Whether it is a custom resource: its group has a dot, and is not one of Kubernetes' own."""
    group, slash, _ = str(manifest["apiVersion"]).partition("/")
    return bool(slash) and group not in BUILT_IN and not group.endswith(".k8s.io")


def built_in(manifest: Object) -> Iterable[Finding]:
    """What Kubernetes itself would refuse of one of its own kinds."""
    return _built_in(json.dumps(manifest))


@cache
def _built_in(text: str) -> tuple[Finding, ...]:
    # Remembered by their text: most objects are the same in all compositions, and a look costs a read of all schemas.
    manifest = json.loads(text)
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            field = ".".join(str(each) for each in error.path) or "."
            return (Finding(title(manifest), field, f"{error.message.splitlines()[0]} (Kubernetes {version})"),)
        except kubernetes_validate.SchemaNotFoundError:
            kind = f"{manifest['apiVersion']} {manifest['kind']}"
            return (Finding(title(manifest), "apiVersion", f"Kubernetes {version} has no {kind}"),)
    return ()


class Definitions:
    """The CustomResourceDefinitions in the files of a folder, whatever these are called; read when they are needed."""

    def __init__(self, folder: Path) -> None:
        self._texts: dict[tuple[str, str], str] = {}
        for path in sorted(folder.glob("*.y*ml")):
            # Some are megabytes: only what is asked for is parsed.
            for text in re.split(r"^---", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
                group = re.search(r"^  group: (\S+)$", text, flags=re.MULTILINE)
                kind = re.search(r"^    kind: (\S+)$", text, flags=re.MULTILINE)
                if group and kind:
                    self._texts[group[1], kind[1]] = text
        self.validator = cache(self._validator)

    def has(self, manifest: Object) -> bool:
        """Whether a custom resource's definition is there."""
        return (str(manifest["apiVersion"]).partition("/")[0], str(manifest["kind"])) in self._texts

    def check(self, manifest: Object) -> Iterator[Finding]:
        """What the API server would refuse of a custom resource."""
        group, _, version = str(manifest["apiVersion"]).partition("/")
        validator = self.validator(group, str(manifest["kind"]), version)
        if validator is None:
            problem = f"CRD_DIR has no definition of {manifest['apiVersion']} {manifest['kind']}"
            yield Finding(title(manifest), "apiVersion", problem)
            return
        for error in sorted(validator.iter_errors(manifest), key=lambda error: [str(each) for each in error.path]):
            field = ".".join(str(each) for each in error.absolute_path) or "."
            yield Finding(title(manifest), field, error.message.splitlines()[0][:300])

    def _validator(self, group: str, kind: str, version: str) -> Any | None:
        text = self._texts.get((group, kind))
        if text is None:
            return None
        definition = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        for each in definition["spec"]["versions"]:
            if each["name"] == version and each.get("served", True):
                return jsonschema.Draft4Validator(as_json_schema(each["schema"]["openAPIV3Schema"], root=True))
        return None


def as_json_schema(schema: Any, *, root: bool = False) -> Any:
    """A structural schema as JSON Schema: draft 4, whose exclusive bounds are OpenAPI 3.0's. Unknown fields are errors.

    Args:
        root: it is that of a whole resource, or of one within another: it has `apiVersion`, `kind` and `metadata`.
    """
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            made[key] = {name: as_json_schema(each) for name, each in value.items()}
        elif key in {"items", "not"} or (key == "additionalProperties" and isinstance(value, dict)):
            made[key] = as_json_schema(value)
        elif key in {"allOf", "anyOf", "oneOf"}:
            # These only restrict values: in a structural schema all fields are named outside of them.
            made[key] = [_restriction(each) for each in value]
        elif not key.startswith("x-") and key not in {"default", "description", "example", "externalDocs", "nullable"}:
            made[key] = value
    if root or schema.get("x-kubernetes-embedded-resource"):
        made["properties"] = {
            **{key: {"type": "string"} for key in ("apiVersion", "kind")},
            **made.get("properties", {}),
            "metadata": {"type": "object"},
        }
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    is_object = schema.get("type") == "object"
    if is_object and "additionalProperties" not in made and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made["additionalProperties"] = False
    if schema.get("nullable"):
        return {"anyOf": [made, {"type": "null"}]}
    return made


def _restriction(schema: Any) -> Any:
    """A branch of allOf, anyOf or oneOf, without what JSON Schema does not know."""
    if isinstance(schema, dict):
        return {key: _restriction(each) for key, each in schema.items() if not key.startswith("x-")}
    return [_restriction(each) for each in schema] if isinstance(schema, list) else schema
