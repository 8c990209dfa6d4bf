"""Policies on what objects say of each other: names, selectors, namespaces, rights, networks."""

from collections.abc import Iterator, Mapping
from typing import Any

from tools.k8s.objects import NAME, Finding, Object, Objects, Workload, at, labels_of, namespace_of, selects, title
from tools.k8s.scaling import SCALINGS
from tools.k8s.workloads import BRIDGE

CLUSTER_WIDE = {"Namespace", "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "PriorityClass"}
ELSEWHERE = {"argo", "ray", "kubeflow-user-example-com", "flux-system"}
"""Namespaces of others that something of ours is put into."""
IN_EVERY_NAMESPACE = {"kube-root-ca.crt"}
"""ConfigMaps that Kubernetes itself makes."""
BY_HAND = "slim-handlers.dev/secrets-made-by-hand"
"""An annotation of a workload: Secrets, with commas between, that its README has somebody make."""


def namespaces(objects: Objects) -> Iterator[Finding]:
    """Every object names its namespace: one that is made here, or one of those of others."""
    known = {each["metadata"]["name"] for each in objects.of("Namespace")} | ELSEWHERE
    for each in objects.all:
        namespace = at(each, "metadata.namespace")
        if each["kind"] in CLUSTER_WIDE:
            continue
        if namespace is None:
            yield Finding(title(each), "metadata.namespace", "is missing")
        elif namespace not in known:
            yield Finding(title(each), "metadata.namespace", f"{namespace} is made nowhere")


def settings_exist(objects: Objects) -> Iterator[Finding]:
    """Every ConfigMap and Secret that a pod needs is there, is optional, or is a Secret said to come from elsewhere."""
    for workload in objects.workloads:
        for field, kind, name, key in _references(workload):
            if kind == "ConfigMap" and name in IN_EVERY_NAMESPACE:
                continue
            found = objects.find(kind, workload.namespace, name)
            if found is not None:
                parts = ("data", "stringData", "binaryData")
                if key is not None and not any(key in at(found, part, {}) for part in parts):
                    yield Finding(workload.title, field, f"the {kind} {name} has no {key}")
            elif kind == "ConfigMap" or name not in _made_elsewhere(objects, workload):
                yield Finding(workload.title, field, f"there is no {kind} {name}")


def _made_elsewhere(objects: Objects, workload: Workload) -> set[str]:
    """The Secrets that ExternalSecrets, or people, make for it."""
    by_hand = str(at(workload.manifest, "metadata.annotations", {}).get(BY_HAND, ""))
    return set(by_hand.split(",")) | {
        at(each, "spec.target.name", each["metadata"]["name"])
        for each in objects.of("ExternalSecret")
        if namespace_of(each) == workload.namespace
    }


def _references(workload: Workload) -> Iterator[tuple[str, str, str, str | None]]:
    """Field, kind, name and key of what a pod cannot start without."""
    for path, container in workload.containers():
        for number, each in enumerate(container.get("envFrom") or ()):
            for source, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                if source in each and not each[source].get("optional"):
                    yield f"{path}.envFrom[{number}]", kind, each[source]["name"], None
        for variable in container.get("env") or ():
            for source, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
                found = at(variable, f"valueFrom.{source}")
                if found and not found.get("optional"):
                    yield f"{path}.env.{variable['name']}", kind, found["name"], found["key"]
    for volume in workload.pod.get("volumes") or ():
        for source in (volume, *at(volume, "projected.sources", [])):
            for key, kind, name in (("configMap", "ConfigMap", "name"), ("secret", "Secret", "secretName")):
                found = source.get(key)
                if found and not found.get("optional"):
                    items = [item["key"] for item in found.get("items") or ()] or [None]
                    for item in items:
                        yield f"{workload.pod_path}.volumes", kind, found.get(name) or found["name"], item


def volume_mounts(objects: Objects) -> Iterator[Finding]:
    """Every mount has its volume, and no volume lies about."""
    for workload in objects.workloads:
        volumes = {each["name"] for each in workload.pod.get("volumes") or ()}
        claimed = {each["metadata"]["name"] for each in at(workload.manifest, "spec.volumeClaimTemplates", [])}
        mounted: set[str] = set()
        for path, container in workload.containers():
            for mount in container.get("volumeMounts") or ():
                mounted.add(mount["name"])
                if mount["name"] not in volumes | claimed:
                    yield Finding(workload.title, f"{path}.volumeMounts", f"there is no volume {mount['name']}")
        for name in sorted((volumes | claimed) - mounted):
            yield workload.finding("volumes", f"{name} is mounted nowhere")


def selectors(objects: Objects) -> Iterator[Finding]:
    """Workloads select their own pods and no others; Services and PodMonitors select some, with the ports they name."""
    for workload in objects.workloads:
        selector = at(workload.manifest, "spec.selector")
        if not workload.serves:
            continue
        if not selects(selector, workload.labels):
            yield Finding(workload.title, "spec.selector", "does not select its own pods")
        for other in objects.selected(workload.namespace, selector):
            if other.title != workload.title:
                yield Finding(workload.title, "spec.selector", f"selects the pods of {other.title}")
    for service in objects.of("Service"):
        wanted = {"matchLabels": at(service, "spec.selector", {})}
        ports = [("port", each.get("targetPort", each["port"])) for each in at(service, "spec.ports", [])]
        yield from _selects_ports(objects, service, namespace_of(service), wanted, ports)
    for monitor in objects.of("PodMonitor"):
        ports = [("podMetricsEndpoints", each.get("port")) for each in at(monitor, "spec.podMetricsEndpoints", [])]
        yield from _selects_ports(objects, monitor, namespace_of(monitor), at(monitor, "spec.selector"), ports)


def _selects_ports(
    objects: Objects,
    manifest: Object,
    namespace: str,
    selector: Mapping[str, Any] | None,
    ports: list[tuple[str, Any]],
) -> Iterator[Finding]:
    found = objects.selected(namespace, selector)
    if not found:
        yield Finding(title(manifest), "spec.selector", "selects no pods")
    for workload in found:
        there = {
            port.get(key)
            for _, container in workload.main_containers()
            for port in container.get("ports") or ()
            for key in ("name", "containerPort")
        }
        for field, port in ports:
            if port not in there:
                yield Finding(title(manifest), f"spec.{field}", f"{workload.title} has no port {port}")


def scaled_objects(objects: Objects) -> Iterator[Finding]:
    """What a ScaledObject scales is there, has no number of replicas of its own, and no second ScaledObject."""
    scaled: dict[str, str] = {}
    for each in objects.of("ScaledObject"):
        target = at(each, "spec.scaleTargetRef", {})
        kind, name = target.get("kind", "Deployment"), target.get("name")
        found = objects.find(kind, namespace_of(each), name)
        if found is None:
            yield Finding(title(each), "spec.scaleTargetRef.name", f"there is no {kind} {name}")
            continue
        if at(found, "spec.replicas") is not None:
            yield Finding(title(found), "spec.replicas", "is decided by its ScaledObject")
        if (first := scaled.setdefault(title(found), title(each))) != title(each):
            yield Finding(title(each), "spec.scaleTargetRef.name", f"{name} is scaled by {first} as well")


def lags(objects: Objects) -> Iterator[Finding]:
    """A handler is scaled on the lag of the consumer that it works off, as it is declared."""
    declared = {scaling.name: scaling.consumer for scaling in SCALINGS}
    for each in objects.of("ScaledObject"):
        name = at(each, "spec.scaleTargetRef.name")
        for number, trigger in enumerate(at(each, "spec.triggers", [])):
            if trigger["type"] == "nats-jetstream" and (consumer := declared.get(name)):
                for field, wanted in (("stream", consumer.stream), ("consumer", consumer.name)):
                    if (found := at(trigger, f"metadata.{field}")) != wanted:
                        problem = f"is {found}; {name} works off {wanted}"
                        yield Finding(title(each), f"spec.triggers[{number}].metadata.{field}", problem)


def without_endpoints(objects: Objects) -> Iterator[Finding]:
    """Who serves no request/reply for the sake of scaling to zero has a ScaledObject that does it."""
    scaled = {
        (namespace_of(each), at(each, "spec.scaleTargetRef.name"))
        for each in objects.of("ScaledObject")
        if at(each, "spec.minReplicaCount", 0) == 0
    }
    for workload in objects.workloads:
        off = workload.environment().get("SERVE_ENDPOINTS") == "false"
        if workload.is_handler and off and (workload.namespace, workload.name) not in scaled:
            yield workload.finding("containers", "SERVE_ENDPOINTS is false, but no ScaledObject scales it to zero")


def permissions(objects: Objects) -> Iterator[Finding]:
    """Rights in Kubernetes are the bridge's alone, in single namespaces, without wildcards, by roles that are there."""
    for each in objects.of("ClusterRole", "ClusterRoleBinding"):
        yield Finding(title(each), "kind", "rights are given in single namespaces only")
    for role in objects.of("Role"):
        for number, rule in enumerate(role.get("rules") or ()):
            for field in ("apiGroups", "resources", "verbs"):
                if "*" in rule.get(field, ()):
                    yield Finding(title(role), f"rules[{number}].{field}", "is a wildcard")
    for binding in objects.of("RoleBinding"):
        kind, name = at(binding, "roleRef.kind"), at(binding, "roleRef.name")
        if kind != "Role" or objects.find("Role", namespace_of(binding), name) is None:
            yield Finding(title(binding), "roleRef", f"there is no {kind} {name} in its namespace")
        for subject in binding.get("subjects") or ():
            if subject["kind"] != "ServiceAccount" or subject["name"] != BRIDGE:
                yield Finding(title(binding), "subjects", f"{subject['name']} is not {BRIDGE}")
            elif objects.find("ServiceAccount", subject.get("namespace", "default"), subject["name"]) is None:
                yield Finding(title(binding), "subjects", f"there is no ServiceAccount {subject['name']}")


def names_of_parts(objects: Objects) -> Iterator[Finding]:
    """An object that is labelled with a name stands beside pods of that name in its namespace."""
    there = {(workload.namespace, workload.labels.get(NAME)) for workload in objects.workloads}
    namespaces_with_pods = {namespace for namespace, _ in there}
    for each in objects.all:
        name, namespace = labels_of(each).get(NAME), namespace_of(each)
        if each["kind"] == "ExternalSecret":  # those of the base are all there, whichever services are taken
            continue
        if name and namespace in namespaces_with_pods and (namespace, name) not in there:
            yield Finding(title(each), f"metadata.labels.{NAME}", f"there are no pods of {name}")
