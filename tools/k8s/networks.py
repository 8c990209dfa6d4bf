"""Policies on network policies: closed by default, and open where the settings of the pods lead."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from tools.k8s.addresses import Address, addresses, is_numeric, pods_behind
from tools.k8s.objects import Finding, Object, Objects, Workload, at, labels_of, namespace_of, selects, title
from tools.k8s.workloads import BRIDGE

DNS = {53, 5353}
"""Of names: the second is OpenShift's."""
SCRAPED = 8080
SERVICE_PORTS = "slim-handlers.dev/service-ports"
"""An annotation of a network policy: `llm.models:80=8000`, with commas between. Policies count the ports of pods; these
are said so of Services that are not among the objects, and whose pods listen on another port."""
BROAD = {4: 16, 6: 48}
"""Prefixes, by the version of the protocol: with one as short, a block is a whole network and no subnet of it."""


@dataclass(frozen=True)
class Peer:
    """The other end of a connection, as far as the objects tell of it."""

    port: int
    namespace: str | None = None
    """None for what is outside of the cluster."""
    pods: Mapping[str, str] | None = None
    """Their labels; None if they are not known."""
    address: str | None = None
    """None where only a name is known."""


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
    """Where pods are closed in, they reach names and what their settings lead to, and scrapers reach handlers."""
    scraped = {namespace_of(monitor) for monitor in objects.of("PodMonitor")}
    for workload in objects.workloads:
        if "NATS_USER" in workload.environment():
            yield from _ways_out(objects, workload)
        if workload.is_handler and workload.namespace in scraped:
            rules = _rules(objects, workload, "Ingress")
            if rules is not None and not any(_has_port(rule, SCRAPED) for _, rule in rules):
                yield workload.finding("containers", f"no NetworkPolicy lets a scraper in to port {SCRAPED}")


def broad_blocks(objects: Objects) -> Iterator[Finding]:
    """The pods are let out to single addresses or subnets, not to whole private networks."""
    for policy in objects.of("NetworkPolicy"):
        for rule in at(policy, "spec.egress", []):
            for peer in rule.get("to") or ():
                cidr = at(peer, "ipBlock.cidr")
                if cidr and (block := ip_network(cidr)).prefixlen <= BROAD[block.version]:
                    problem = f"lets out to all of {cidr}; narrow it to the address that is meant"
                    yield Finding(title(policy), "spec.egress", problem)


def _ways_out(objects: Objects, workload: Workload) -> Iterator[Finding]:
    rules = _rules(objects, workload, "Egress")
    if rules is None:
        return
    if not any(_has_port(rule, port, "UDP") for _, rule in rules for port in DNS):
        yield workload.finding("containers", "no NetworkPolicy lets its pods out to port 53 for names")
    if workload.name == BRIDGE and not any(_to_blocks(rule) for _, rule in rules):
        yield workload.finding("containers", "no NetworkPolicy lets its pods out to an address of the Kubernetes API")
    for address in addresses(objects, workload):
        if not all(
            any(_lets(objects, policy, rule, "to", peer) for policy, rule in rules)
            for peer in _peers(objects, address, rules)
        ):
            yield workload.finding("containers", f"no NetworkPolicy lets its pods out to {address}")
        for other in pods_behind(objects, address) or ():
            own = Peer(_pods_port(objects, address, other), workload.namespace, workload.labels)
            ways_in = _rules(objects, other, "Ingress")
            if ways_in is not None and not any(_lets(objects, *each, "from", own) for each in ways_in):
                yield other.finding("containers", f"no NetworkPolicy lets in {workload.title}: {address}")


def _peers(objects: Objects, address: Address, rules: list[tuple[Object, Object]]) -> Iterator[Peer]:
    """What is behind an address: pods, of each workload one, or what is known of them, or something outside."""
    if address.service is None:
        yield Peer(address.port, address=address.host if is_numeric(address.host) else None)
        return
    there = pods_behind(objects, address)
    for workload in there or ():
        yield Peer(_pods_port(objects, address, workload), address.namespace, workload.labels)
    if not there:
        name = f"{address.service}.{address.namespace}:{address.port}="
        told = ",".join(at(policy, "metadata.annotations", {}).get(SERVICE_PORTS, "") for policy, _ in rules)
        ports = [each.strip().removeprefix(name) for each in told.split(",") if each.strip().startswith(name)]
        yield Peer(int(ports[0]) if ports else address.port, address.namespace)


def _pods_port(objects: Objects, address: Address, workload: Workload) -> int:
    """The port at which the pods behind a Service get what is sent to it; 0 if the Service has no such port."""
    service = objects.find("Service", address.namespace, address.service or "") or {}
    if at(service, "spec.clusterIP") == "None":
        return address.port
    for each in at(service, "spec.ports", []):
        if each["port"] == address.port:
            target = each.get("targetPort", each["port"])
            return target if isinstance(target, int) else _numbers(workload).get(target, 0)
    return 0


def _numbers(workload: Workload) -> dict[str, int]:
    """The ports of its pods, by their names."""
    return {
        port["name"]: port["containerPort"]
        for _, container in workload.main_containers()
        for port in container.get("ports") or ()
        if "name" in port
    }


def _closed(objects: Objects, namespace: str, direction: str) -> bool:
    """Whether a policy for all pods of the namespace has nothing open."""
    return any(
        namespace_of(policy) == namespace
        and not at(policy, "spec.podSelector", {})
        and direction in _directions(policy)
        and not at(policy, f"spec.{direction.lower()}")
        for policy in objects.of("NetworkPolicy")
    )


def _directions(policy: Object) -> list[str]:
    egress = ["Egress"] if "egress" in policy["spec"] else []
    return list(at(policy, "spec.policyTypes", ["Ingress", *egress]))


def _rules(objects: Objects, workload: Workload, direction: str) -> list[tuple[Object, Object]] | None:
    """Policies with their rules for these pods; None if there is no policy for them, so that all is open."""
    policies = [
        policy
        for policy in objects.of("NetworkPolicy")
        if direction in _directions(policy)
        and workload in objects.selected(namespace_of(policy), at(policy, "spec.podSelector", {}))
    ]
    return [(policy, rule) for policy in policies for rule in at(policy, f"spec.{direction.lower()}", [])] or (
        [] if policies else None
    )


def _lets(objects: Objects, policy: Object, rule: Object, side: str, peer: Peer) -> bool:
    """Whether a rule lets a connection through; what is not known of the other end is taken to fit."""
    if not _has_port(rule, peer.port):
        return False
    return not rule.get(side) or any(_is_meant(objects, policy, each, peer) for each in rule[side])


def _is_meant(objects: Objects, policy: Object, meant: Mapping[str, Any], peer: Peer) -> bool:
    if "ipBlock" in meant:
        block = meant["ipBlock"]
        return peer.namespace is None and (peer.address is None or _within(peer.address, block))
    if peer.namespace is None:
        return False
    own = namespace_of(policy) == peer.namespace
    if not (_takes(meant["namespaceSelector"], objects, peer.namespace) if "namespaceSelector" in meant else own):
        return False
    return peer.pods is None or selects(meant.get("podSelector", {}), peer.pods)


def _takes(selector: Mapping[str, Any], objects: Objects, namespace: str) -> bool:
    """Whether a selector takes a namespace; of one that is not among the objects, only the name is known."""
    labels = {"kubernetes.io/metadata.name": namespace}
    for each in objects.of("Namespace"):
        if each["metadata"]["name"] == namespace:
            return selects(selector, labels_of(each) | labels)
    expressions = [each for each in selector.get("matchExpressions") or () if each["key"] in labels]
    known = {key: value for key, value in (selector.get("matchLabels") or {}).items() if key in labels}
    return selects({"matchLabels": known, "matchExpressions": expressions}, labels)


def _within(address: str, block: Mapping[str, Any]) -> bool:
    inside = ip_address(address)
    return inside in ip_network(block["cidr"]) and not any(
        inside in ip_network(each) for each in block.get("except") or ()
    )


def _to_blocks(rule: Object) -> bool:
    return not rule.get("to") or any("ipBlock" in peer for peer in rule["to"])


def _has_port(rule: Mapping[str, Any], port: int, protocol: str = "TCP") -> bool:
    """Whether a rule is for a port; one that is called by a name is taken to be it."""
    for each in rule.get("ports") or ():
        first = each.get("port")
        if each.get("protocol", "TCP") != protocol:
            continue
        if not isinstance(first, int) or first <= port <= each.get("endPort", first):
            return True
    return not rule.get("ports")
