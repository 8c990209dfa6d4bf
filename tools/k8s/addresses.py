"""Where a pod goes: the addresses among its settings, and which of them are Services of the cluster."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from handler_core import provision
from handler_core.config import ServiceSettings, names
from handler_core.config.nats import NatsSettings
from tools.k8s.objects import NAME, Objects, Workload, at, selects
from tools.k8s.permissions import services
from tools.k8s.provisioning import NAME as PROVISION

PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443, "nats": 4222, "tls": 4222}
"""Of a URL that names none."""


@dataclass(frozen=True)
class Address:
    """Where one setting leads."""

    setting: str
    host: str
    port: int
    service: str | None = None
    """The Service's name; None for what is outside of the cluster."""
    namespace: str = ""
    """The Service's namespace."""

    def __str__(self) -> str:
        return f"{self.setting}, {self.host}:{self.port}"


def addresses(objects: Objects, workload: Workload) -> Iterator[Address]:
    """Where the settings of a workload lead, those left out that its service does not have."""
    known = _settings().get(workload.labels.get(NAME, ""))
    told = {name: value for name, value in objects.environment(workload).items() if known is None or name in known}
    for name, value in _with_milvus(told).items():
        for url in value.split(","):
            parts = urlsplit(url.strip())
            if parts.scheme in PORTS and parts.hostname:
                yield _address(name, parts.scheme, parts.hostname, parts.port, workload.namespace)


@cache
def _settings() -> Mapping[str, set[str]]:
    """The variables that a service knows, by its pods' name."""
    kinds: dict[str, type[NatsSettings]] = {PROVISION: provision.Settings}
    for service in services():
        settings: type[ServiceSettings] = service.settings
        kinds[service.name.replace("_", "-")] = settings
    return {
        name: {alias for field, info in kind.model_fields.items() for alias in names(field, info)}
        for name, kind in kinds.items()
    }


def _with_milvus(told: Mapping[str, str]) -> Mapping[str, str]:
    """With the one address that may be given in two parts, as a URL."""
    if "MILVUS_HOST" not in told or "MILVUS_URI" in told:
        return told
    return {**told, "MILVUS_HOST": f"http://{told['MILVUS_HOST']}:{told.get('MILVUS_PORT', 19530)}"}


def _address(setting: str, scheme: str, host: str, port: int | None, own_namespace: str) -> Address:
    at_port = port or PORTS[scheme]
    labels = host.rstrip(".").split(".")
    if "svc" in labels[2:]:
        *_, service, namespace = labels[: labels.index("svc", 2)]  # before it, a pod's name may stand
    elif len(labels) == 1 and not is_numeric(host):
        service, namespace = host, own_namespace
    elif len(labels) == 2 and (port or scheme != "https"):
        service, namespace = labels  # whoever encrypts and leaves out the port means `example.com`, not `llm.models`
    else:
        return Address(setting, host, at_port)
    return Address(setting, host, at_port, service, namespace)


def is_numeric(host: str) -> bool:
    """Whether it is an address itself, and no name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def pods_behind(objects: Objects, address: Address) -> list[Workload] | None:
    """The workloads behind a Service; None for one that is not among the objects."""
    service = objects.find("Service", address.namespace, address.service or "")
    if service is None:
        return None
    selector = {"matchLabels": at(service, "spec.selector", {})}
    return [
        each for each in objects.workloads if each.namespace == address.namespace and selects(selector, each.labels)
    ]
