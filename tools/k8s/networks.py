"""Policies on network policies: closed by default, and open where it is needed."""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from tools.k8s.objects import Finding, Objects, Workload, at, namespace_of, title

NATS, DNS = 4222, 53
COLLECTOR = "OTEL_EXPORTER_OTLP_ENDPOINT"
SCRAPED = 8080


def network_policies(objects: Objects) -> Iterator[Finding]:
    """Each network policy selects pods that are there, and its namespace is closed by default both ways."""
    for policy in objects.of("NetworkPolicy"):
        if not objects.selected(namespace_of(policy), at(policy, "spec.podSelector", {})):
            yield Finding(title(policy), "spec.podSelector", "selects no pods")
    for namespace in sorted({namespace_of(policy) for policy in objects.of("NetworkPolicy")}):
        for direction in ("Ingress", "Egress"):
            if not _closed(objects, namespace, direction):
                yield Finding(f"Namespace {namespace}", "NetworkPolicy", f"none denies all {direction} by default")


def holes(objects: Objects) -> Iterator[Finding]:
    """Where a namespace is closed, pods still reach names, NATS and the collector, and scrapers the handlers."""
    scraped = {namespace_of(monitor) for monitor in objects.of("PodMonitor")}
    for workload in objects.workloads:
        if _closed(objects, workload.namespace, "Egress") and "NATS_USER" in workload.environment():
            needed = {DNS: "for names", NATS: "of NATS"}
            if collector := workload.environment().get(COLLECTOR):
                needed[urlsplit(collector).port or 80] = "of the collector"
            for port, what in needed.items():
                if not _open(objects, workload, "egress", port):
                    yield workload.finding("containers", f"no NetworkPolicy lets its pods out to port {port} {what}")
        is_scraped = workload.is_handler and workload.namespace in scraped
        closed = _closed(objects, workload.namespace, "Ingress")
        if is_scraped and closed and not _open(objects, workload, "ingress", SCRAPED):
            yield workload.finding("containers", f"no NetworkPolicy lets a scraper in to port {SCRAPED}")


def _closed(objects: Objects, namespace: str, direction: str) -> bool:
    """Whether a policy for all pods of the namespace has nothing open."""
    return any(
        namespace_of(policy) == namespace
        and not at(policy, "spec.podSelector", {})
        and direction in at(policy, "spec.policyTypes", [])
        and not at(policy, f"spec.{direction.lower()}")
        for policy in objects.of("NetworkPolicy")
    )


def _open(objects: Objects, workload: Workload, direction: str, port: int) -> bool:
    """Whether some policy for these pods has a rule for the port."""
    return any(
        workload in objects.selected(namespace_of(policy), at(policy, "spec.podSelector", {}))
        and any(_has_port(rule, port) for rule in at(policy, f"spec.{direction}", []))
        for policy in objects.of("NetworkPolicy")
    )


def _has_port(rule: Mapping[str, Any], port: int) -> bool:
    return not rule.get("ports") or any(each.get("port") == port for each in rule["ports"])
