"""The restricted Pod Security Standard (Kubernetes: "Pod Security Standards"), field by field.

Kubernetes refuses such pods when they are made, which is after the Deployment was accepted; here it shows before.
"""

from collections.abc import Iterator
from typing import Any

from tools.k8s.objects import Finding, Object, Objects, Workload, at, labels_of

VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
}
SELINUX_TYPES = {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
SECCOMP = {"RuntimeDefault", "Localhost"}
APPARMOR = {None, "RuntimeDefault", "Localhost"}
APPARMOR_ANNOTATION = "container.apparmor.security.beta.kubernetes.io/"


def restricted_pods(objects: Objects) -> Iterator[Finding]:
    """Every pod keeps to the restricted Pod Security Standard."""
    for workload in objects.workloads:
        yield from _pod(workload)
        yield from _volumes(workload)
        for path, container in workload.containers():
            yield from _container(workload, path, container)


def restricted_namespaces(objects: Objects) -> Iterator[Finding]:
    """A namespace that pods are put into has the restricted standard enforced."""
    used = {workload.namespace for workload in objects.workloads}
    label = "pod-security.kubernetes.io/enforce"
    for namespace in objects.of("Namespace"):
        name = namespace["metadata"]["name"]
        if name in used and labels_of(namespace).get(label) != "restricted":
            yield Finding(f"Namespace {name}", f"metadata.labels.{label}", "is not restricted")


def _pod(workload: Workload) -> Iterator[Finding]:
    pod, context = workload.pod, at(workload.pod, "securityContext", {})
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield workload.finding(field, "shares what is the node's")
    for sysctl in context.get("sysctls") or ():
        if sysctl["name"] not in SYSCTLS:
            yield workload.finding("securityContext.sysctls", f"{sysctl['name']} is not a safe one")
    for key, value in at(workload.template, "metadata.annotations", {}).items():
        if key.startswith(APPARMOR_ANNOTATION) and not value.startswith(("runtime/default", "localhost/")):
            yield Finding(workload.title, f"metadata.annotations.{key}", f"{value} is not allowed")
    yield from _context(workload, "securityContext", context)


def _context(workload: Workload, field: str, context: Object) -> Iterator[Finding]:
    """What is the same for pods and containers; what is not set is not looked at here."""
    if at(context, "windowsOptions.hostProcess"):
        yield workload.finding(f"{field}.windowsOptions.hostProcess", "is a process of the node")
    if at(context, "seLinuxOptions.type") not in SELINUX_TYPES:
        yield workload.finding(f"{field}.seLinuxOptions.type", "is not allowed")
    for option in ("user", "role"):
        if at(context, f"seLinuxOptions.{option}"):
            yield workload.finding(f"{field}.seLinuxOptions.{option}", "may not be set")
    if at(context, "appArmorProfile.type") not in APPARMOR:
        yield workload.finding(f"{field}.appArmorProfile.type", "is not allowed")
    if context.get("runAsUser") == 0:
        yield workload.finding(f"{field}.runAsUser", "is root")
    seccomp = at(context, "seccompProfile.type")
    if seccomp is not None and seccomp not in SECCOMP:
        yield workload.finding(f"{field}.seccompProfile.type", f"{seccomp} is not allowed")


def _volumes(workload: Workload) -> Iterator[Finding]:
    for number, volume in enumerate(workload.pod.get("volumes") or ()):
        for kind in volume.keys() - {"name"} - VOLUMES:
            yield workload.finding(f"volumes[{number}].{kind}", "is not a kind of volume that is allowed")


def _container(workload: Workload, path: str, container: Object) -> Iterator[Finding]:
    where = path.removeprefix(f"{workload.pod_path}.")
    context = at(container, "securityContext", {})
    field = f"{where}.securityContext"
    yield from _context(workload, field, context)
    if context.get("privileged"):
        yield workload.finding(f"{field}.privileged", "is true")
    if context.get("allowPrivilegeEscalation") is not False:
        yield workload.finding(f"{field}.allowPrivilegeEscalation", "is not false")
    if context.get("procMount") not in {None, "Default"}:
        yield workload.finding(f"{field}.procMount", "is not Default")
    if "ALL" not in at(context, "capabilities.drop", []):
        yield workload.finding(f"{field}.capabilities.drop", "is not [ALL]")
    if added := set(at(context, "capabilities.add", [])) - {"NET_BIND_SERVICE"}:
        yield workload.finding(f"{field}.capabilities.add", f"{', '.join(sorted(added))} may not be added")
    yield from _either(workload, field, context)
    for port in container.get("ports") or ():
        if port.get("hostPort"):
            yield workload.finding(f"{where}.ports", f"{port['hostPort']} is a port of the node")
    for name, handler in _handlers(container):
        for kind in ("httpGet", "tcpSocket"):
            if at(handler, f"{kind}.host"):
                yield workload.finding(f"{where}.{name}.{kind}.host", "may not be set")


def _either(workload: Workload, field: str, context: Object) -> Iterator[Finding]:
    """What the container has to set where the pod does not; its own counts first."""
    pod = at(workload.pod, "securityContext", {})
    if context.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        yield workload.finding(f"{field}.runAsNonRoot", "is not true, neither here nor for the pod")
    if at(context, "seccompProfile.type", at(pod, "seccompProfile.type")) is None:
        yield workload.finding(f"{field}.seccompProfile.type", "is set neither here nor for the pod")


def _handlers(container: Object) -> Iterator[tuple[str, Any]]:
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        yield probe, container.get(probe)
    for hook in ("postStart", "preStop"):
        yield f"lifecycle.{hook}", at(container, f"lifecycle.{hook}")
