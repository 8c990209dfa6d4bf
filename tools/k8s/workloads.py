"""Policies on what makes pods: probes, stopping, resources, images, rollouts, budgets, labels, identity."""

from collections.abc import Iterator

from tools.k8s.objects import NAME, PART_OF, Finding, Object, Objects, at, labels_of, namespace_of, selects, title

DRAIN_TIMEOUT = 25.0
"""Seconds; the default of the setting."""
BEYOND_DRAIN = 10.0
"""Seconds that a handler gets after its drain, to flush and close."""
PROBES = {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
BRIDGE = "pipeline-bridge"
"""The one service that speaks to the Kubernetes API."""


def probes(objects: Objects) -> Iterator[Finding]:
    """What runs for good has all three probes with a timeout; a handler's ask /livez, /livez and /readyz."""
    for workload in objects.workloads:
        for path, container in workload.main_containers() if workload.serves else ():
            for name, page in PROBES.items():
                probe = container.get(name)
                if probe is None:
                    yield Finding(workload.title, f"{path}.{name}", "is missing")
                elif "timeoutSeconds" not in probe:
                    yield Finding(workload.title, f"{path}.{name}.timeoutSeconds", "is missing")
                elif workload.is_handler and at(probe, "httpGet.path") != page:
                    yield Finding(workload.title, f"{path}.{name}.httpGet.path", f"is not {page}")


def draining(objects: Objects) -> Iterator[Finding]:
    """A handler's pod is given its drain time and ten seconds more."""
    for workload in objects.workloads:
        needed = float(workload.environment().get("DRAIN_TIMEOUT", DRAIN_TIMEOUT)) + BEYOND_DRAIN
        if workload.is_handler and at(workload.pod, "terminationGracePeriodSeconds", 30) < needed:
            yield workload.finding("terminationGracePeriodSeconds", f"is less than {needed:g}: drain and ten seconds")


def resources(objects: Objects) -> Iterator[Finding]:
    """Every container asks for CPU and memory, has a limit of memory, and none of CPU."""
    for workload in objects.workloads:
        for path, container in workload.containers():
            for field in ("requests.cpu", "requests.memory", "limits.memory"):
                if at(container, f"resources.{field}") is None:
                    yield Finding(workload.title, f"{path}.resources.{field}", "is missing")
            if at(container, "resources.limits.cpu") is not None:
                yield Finding(workload.title, f"{path}.resources.limits.cpu", "slows a start that is waited for")


def images(objects: Objects) -> Iterator[Finding]:
    """Every image names its version: a tag other than latest, or a digest."""
    for workload in objects.workloads:
        for path, container in workload.containers():
            if problem := version_problem(container):
                yield Finding(workload.title, f"{path}.image", problem)


def version_problem(container: Object) -> str:
    """What is wrong with the version of a container's image; empty if nothing is."""
    image = str(container.get("image", ""))
    tag = image.rpartition("/")[2].partition(":")[2]
    return f"{image} names no version" if "@sha256:" not in image and tag in {"", "latest"} else ""


def registries(objects: Objects) -> Iterator[Finding]:
    """Every image names its registry; without one it would be a stranger's, of a public hub."""
    for workload in objects.workloads:
        for path, container in workload.containers():
            if problem := registry_problem(container):
                yield Finding(workload.title, f"{path}.image", problem)


def registry_problem(container: Object) -> str:
    """What is wrong with the registry of a container's image; empty if nothing is."""
    host, slash, _ = str(container.get("image", "")).partition("/")
    named = slash and (host == "localhost" or "." in host or ":" in host)
    return "" if named else f"{container.get('image')} names no registry"


def root_file_systems(objects: Objects) -> Iterator[Finding]:
    """No container may write to its root file system."""
    for workload in objects.workloads:
        for path, container in workload.containers():
            if at(container, "securityContext.readOnlyRootFilesystem") is not True:
                yield Finding(workload.title, f"{path}.securityContext.readOnlyRootFilesystem", "is not true")


def service_links(objects: Objects) -> Iterator[Finding]:
    """No pod gets variables made of Services' names, which would be taken for settings."""
    for workload in objects.workloads:
        if workload.pod.get("enableServiceLinks") is not False:
            yield workload.finding("enableServiceLinks", "is not false: a Service milvus would set MILVUS_PORT")


def rollouts(objects: Objects) -> Iterator[Finding]:
    """A handler's new pod is ready before an old one goes."""
    for workload in objects.workloads:
        if workload.kind == "Deployment" and workload.is_handler:
            update = at(workload.manifest, "spec.strategy.rollingUpdate", {})
            if update.get("maxUnavailable") != 0 or not update.get("maxSurge"):
                yield Finding(workload.title, "spec.strategy.rollingUpdate", "is not maxUnavailable 0 and maxSurge 1")


def spread(objects: Objects) -> Iterator[Finding]:
    """What may have more than one pod spreads them over nodes and zones."""
    for workload in filter(objects.may_be_many, objects.workloads):
        constraints = workload.pod.get("topologySpreadConstraints") or ()
        for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone"):
            if not any(
                each["topologyKey"] == key and selects(each.get("labelSelector"), workload.labels)
                for each in constraints
            ):
                yield workload.finding("topologySpreadConstraints", f"none for {key} that counts these pods")


def disruption_budgets(objects: Objects) -> Iterator[Finding]:
    """What may have several pods has one PodDisruptionBudget; each of these selects pods, and lets nodes drain."""
    for budget in objects.of("PodDisruptionBudget"):
        if not objects.selected(namespace_of(budget), at(budget, "spec.selector")):
            yield Finding(title(budget), "spec.selector", "selects no pods")
        if at(budget, "spec.maxUnavailable") in {None, 0, "0%"}:
            yield Finding(title(budget), "spec.maxUnavailable", "is not set or 0: a single pod could never be moved")
    for workload in filter(objects.may_be_many, objects.workloads):
        found = [
            budget
            for budget in objects.of("PodDisruptionBudget")
            if namespace_of(budget) == workload.namespace and selects(at(budget, "spec.selector"), workload.labels)
        ]
        if len(found) != 1:
            yield Finding(workload.title, "spec.replicas", f"may be several, with {len(found)} PodDisruptionBudgets")


def service_accounts(objects: Objects) -> Iterator[Finding]:
    """Every workload has a ServiceAccount of its own, whose token is mounted nowhere but by the bridge."""
    users: dict[tuple[str, str], str] = {}
    for workload in objects.workloads:
        name = workload.pod.get("serviceAccountName")
        if not name or name == "default":
            yield workload.finding("serviceAccountName", "is missing")
            continue
        if objects.find("ServiceAccount", workload.namespace, name) is None:
            yield workload.finding("serviceAccountName", f"there is no ServiceAccount {name}")
        first = users.setdefault((workload.namespace, name), workload.title)
        if first != workload.title:
            yield workload.finding("serviceAccountName", f"{name} is that of {first} as well")
        if workload.pod.get("automountServiceAccountToken") is not False:
            yield workload.finding("automountServiceAccountToken", "is not false")
        if workload.name != BRIDGE:
            for number, volume in enumerate(workload.pod.get("volumes") or ()):
                if any("serviceAccountToken" in each for each in at(volume, "projected.sources", [])):
                    yield workload.finding(f"volumes[{number}].projected", f"a token is for {BRIDGE} only")
    for account in objects.of("ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            yield Finding(title(account), "automountServiceAccountToken", "is not false")


def labels(objects: Objects) -> Iterator[Finding]:
    """A workload, its pods and a main container go by one name, and parts of the whole say so on both."""
    for workload in objects.workloads:
        own, pods = labels_of(workload.manifest), workload.labels
        name = own.get(NAME)
        if name is None or not workload.name.startswith(name):
            yield Finding(workload.title, f"metadata.labels.{NAME}", "is not its name")
        for label in (NAME, PART_OF):
            if own.get(label) != pods.get(label):
                yield Finding(workload.title, f"{workload.pod_path}.metadata.labels.{label}", "is not the workload's")
        if name not in {container["name"] for _, container in workload.main_containers()}:
            yield workload.finding("containers", f"none is called {name}")
