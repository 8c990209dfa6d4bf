"""The objects of one composition, and what policies ask of them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Object = dict[str, Any]
"""One manifest, as YAML gives it."""

NAME = "app.kubernetes.io/name"
PART_OF = "app.kubernetes.io/part-of"
COMPONENT = "app.kubernetes.io/component"

TEMPLATES = {
    "Deployment": "spec.template",
    "StatefulSet": "spec.template",
    "DaemonSet": "spec.template",
    "ReplicaSet": "spec.template",
    "Job": "spec.template",
    "CronJob": "spec.jobTemplate.spec.template",
    "Pod": "",
}
"""Where a kind has its pod."""


@dataclass(frozen=True)
class Finding:
    """What is wrong, and where."""

    object: str
    """Kind, namespace and name: `Deployment ai/chat-handler`."""
    field: str
    """The path of the field, or of where it should be."""
    problem: str

    def __str__(self) -> str:
        return f"{self.object}: {self.field}: {self.problem}"


def at(value: Any, path: str, default: Any = None) -> Any:
    """The value at a dotted path of mappings; the default where something on the way is missing or null."""
    for key in filter(None, path.split(".")):
        value = value.get(key) if isinstance(value, Mapping) else None
    return default if value is None else value


def title(manifest: Object) -> str:
    """How a finding names an object."""
    metadata = manifest.get("metadata") or {}
    namespace = metadata.get("namespace")
    return f"{manifest.get('kind')} {f'{namespace}/' if namespace else ''}{metadata.get('name')}"


def labels_of(manifest: Object) -> dict[str, str]:
    """Its labels."""
    return dict(at(manifest, "metadata.labels", {}))


def namespace_of(manifest: Object) -> str:
    """Its namespace; `default` where it names none, which is where it would go."""
    return str(at(manifest, "metadata.namespace", "default"))


def selects(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Whether a label selector takes these labels. An empty one takes all, none takes nothing."""
    if selector is None:
        return False
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_meets(each, labels) for each in selector.get("matchExpressions") or ())


def _meets(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, operator, values = expression["key"], expression["operator"], list(expression.get("values") or ())
    if operator == "In":
        return labels.get(key) in values
    if operator == "NotIn":
        return labels.get(key) not in values
    return (key in labels) is (operator == "Exists")


@dataclass(frozen=True)
class Workload:
    """An object that makes pods."""

    manifest: Object

    @property
    def title(self) -> str:
        """How a finding names it."""
        return title(self.manifest)

    @property
    def kind(self) -> str:
        """Its kind."""
        return str(self.manifest["kind"])

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.manifest["metadata"]["name"])

    @property
    def namespace(self) -> str:
        """Its namespace."""
        return namespace_of(self.manifest)

    @property
    def template(self) -> Object:
        """The pod that it makes: metadata and spec."""
        return dict(at(self.manifest, TEMPLATES[self.kind], {}))

    @property
    def labels(self) -> dict[str, str]:
        """The labels of its pods."""
        return labels_of(self.template)

    @property
    def pod(self) -> Object:
        """The pod's spec."""
        return dict(at(self.template, "spec", {}))

    @property
    def pod_path(self) -> str:
        """Where the pod's spec is."""
        return ".".join(filter(None, (TEMPLATES[self.kind], "spec")))

    @property
    def serves(self) -> bool:
        """Whether it runs for good."""
        return self.kind in {"Deployment", "StatefulSet", "DaemonSet"}

    @property
    def is_handler(self) -> bool:
        """Whether it is one of the handlers."""
        return self.labels.get(COMPONENT) == "handler"

    def containers(self) -> Iterator[tuple[str, Object]]:
        """Every container with its path, those that run first included."""
        for kind in ("initContainers", "containers", "ephemeralContainers"):
            for number, container in enumerate(self.pod.get(kind) or ()):
                yield f"{self.pod_path}.{kind}[{number}]", container

    def main_containers(self) -> Iterator[tuple[str, Object]]:
        """The containers that it is there for."""
        yield from ((path, each) for path, each in self.containers() if ".containers[" in path)

    def environment(self) -> dict[str, str]:
        """The variables that have a value of their own; of one that is there twice the last counts."""
        return {
            each["name"]: each["value"]
            for _, container in self.main_containers()
            for each in container.get("env") or ()
            if "value" in each
        }

    def finding(self, field: str, problem: str) -> Finding:
        """A finding about a field of the pod's spec."""
        return Finding(self.title, f"{self.pod_path}.{field}", problem)


class Objects:
    """All objects of one composition."""

    def __init__(self, manifests: Iterable[Object]) -> None:
        self.all = [each for each in manifests if each]

    def of(self, *kinds: str) -> Iterator[Object]:
        """The objects of these kinds."""
        yield from (each for each in self.all if each["kind"] in kinds)

    def find(self, kind: str, namespace: str, name: str) -> Object | None:
        """One object; None if there is none of that name."""
        for each in self.of(kind):
            if each["metadata"]["name"] == name and namespace_of(each) == namespace:
                return each
        return None

    @cached_property
    def workloads(self) -> list[Workload]:
        """Whatever makes pods."""
        return [Workload(each) for each in self.of(*TEMPLATES)]

    def selected(self, namespace: str, selector: Mapping[str, Any] | None) -> list[Workload]:
        """The workloads of a namespace whose pods a selector takes."""
        return [each for each in self.workloads if each.namespace == namespace and selects(selector, each.labels)]

    def environment(self, workload: Workload) -> dict[str, str]:
        """A workload's variables, those of the ConfigMaps that it names included; what is in Secrets is not known."""
        shared: dict[str, str] = {}
        own: dict[str, str] = {}
        for _, container in workload.main_containers():
            for each in container.get("envFrom") or ():
                data = self._config(workload.namespace, at(each, "configMapRef.name"))
                shared |= {f"{each.get('prefix', '')}{name}": value for name, value in data.items()}
            for each in container.get("env") or ():
                source = at(each, "valueFrom.configMapKeyRef", {})
                found = each.get("value", self._config(workload.namespace, source.get("name")).get(source.get("key")))
                if found is not None:
                    own[each["name"]] = str(found)
        return shared | own

    def _config(self, namespace: str, name: str | None) -> dict[str, str]:
        found = self.find("ConfigMap", namespace, name) if name else None
        return {key: str(value) for key, value in at(found, "data", {}).items()}

    def may_be_many(self, workload: Workload) -> bool:
        """Whether more than one of its pods is wanted at any time: said so, or left to an autoscaler."""
        replicas = int(at(workload.manifest, "spec.replicas", 2))
        return workload.kind in {"Deployment", "StatefulSet"} and replicas > 1
