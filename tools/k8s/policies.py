"""What the manifests have to keep to, beyond their schemas: functions from all objects of a composition to findings."""

from collections.abc import Callable, Iterator

from tools.k8s import networks, pod_security, references, workloads
from tools.k8s.objects import Finding, Objects

Policy = Callable[[Objects], Iterator[Finding]]

POLICIES: tuple[Policy, ...] = (
    pod_security.restricted_pods,
    pod_security.restricted_namespaces,
    workloads.root_file_systems,
    workloads.service_accounts,
    workloads.probes,
    workloads.draining,
    workloads.resources,
    workloads.images,
    workloads.registries,
    workloads.service_links,
    workloads.rollouts,
    workloads.spread,
    workloads.disruption_budgets,
    workloads.labels,
    references.namespaces,
    references.settings_exist,
    references.volume_mounts,
    references.selectors,
    references.scaled_objects,
    references.lags,
    references.without_endpoints,
    references.permissions,
    references.names_of_parts,
    networks.network_policies,
    networks.holes,
)
WARNINGS: tuple[Policy, ...] = (networks.broad_blocks,)
"""What works, and an overlay had better not have; bases and components may."""


def findings(objects: Objects) -> list[Finding]:
    """What all policies find, in their order."""
    return [finding for policy in POLICIES for finding in policy(objects)]


def warnings(objects: Objects) -> list[Finding]:
    """What does not fail the check, but is said of an overlay."""
    return [finding for policy in WARNINGS for finding in policy(objects)]
