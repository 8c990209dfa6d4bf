"""`handlers streams render`: the declarations as resources of NACK, the JetStream controller for Kubernetes.

Field names and forms are those of its custom resource definitions (`jetstream.nats.io/v1beta2`): camel case, durations
as Go writes them. A declared field that they cannot express is an error, never left out.
"""

import json as json_module
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import typer

from handler_core.streams import CONSUMERS, NANOSECONDS, STREAMS, Consumer, Stream
from handlers_cli.session import say_error

API_VERSION = "jetstream.nats.io/v1beta2"


class NotExpressible(Exception):
    """A declaration has something that NACK's resources have no field for."""


def go_duration(nanoseconds: int) -> str:
    """A duration as Go's `time.ParseDuration` takes it: `24h0m0s`, `2m0s`, `1.5s`."""
    whole, rest = divmod(nanoseconds, NANOSECONDS)
    minutes, seconds = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f"{rest:09d}".rstrip("0")
    text = f"{seconds}.{fraction}s" if fraction else f"{seconds}s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


def _camel(value: str) -> str:
    head, *tail = value.split("_")
    return head + "".join(part.capitalize() for part in tail)


Mapped = str | tuple[str, Callable[[Any], Any] | Mapping[str, str]]
"""The resource's name of a field, and where its value is not the same, how it is converted or its own fields' names."""

_STREAM: Mapping[str, Mapped] = {
    "name": "name",
    "description": "description",
    "subjects": "subjects",
    "retention": "retention",
    "storage": "storage",
    "discard": "discard",
    "discard_new_per_subject": "discardPerSubject",
    "max_bytes": "maxBytes",
    "max_age": ("maxAge", go_duration),
    "max_msgs": "maxMsgs",
    "max_msgs_per_subject": "maxMsgsPerSubject",
    "max_msg_size": "maxMsgSize",
    "max_consumers": "maxConsumers",
    "duplicate_window": ("duplicateWindow", go_duration),
    "num_replicas": "replicas",
    "allow_direct": "allowDirect",
    "allow_rollup_hdrs": "allowRollup",
    "allow_msg_ttl": "allowMsgTtl",
    "subject_delete_marker_ttl": ("subjectDeleteMarkerTtl", go_duration),
    "deny_delete": "denyDelete",
    "deny_purge": "denyPurge",
    "compression": "compression",
    "metadata": "metadata",
    "republish": ("republish", {"src": "source", "dest": "destination"}),
}
_CONSUMER: Mapping[str, Mapped] = {
    "durable_name": "durableName",
    "description": "description",
    "deliver_policy": ("deliverPolicy", _camel),
    "ack_policy": "ackPolicy",
    "ack_wait": ("ackWait", go_duration),
    "max_deliver": "maxDeliver",
    "max_ack_pending": "maxAckPending",
    "max_waiting": "maxWaiting",
    "replay_policy": "replayPolicy",
    "num_replicas": "replicas",
    "filter_subjects": "filterSubjects",
    "headers_only": "headersOnly",
    "inactive_threshold": ("inactiveThreshold", go_duration),
    "metadata": "metadata",
}


def _mapped(config: Mapping[str, Any], fields: Mapping[str, Mapped], of: str) -> dict[str, Any]:
    spec = {}
    for name, value in config.items():
        if name not in fields:
            raise NotExpressible(f"{of}: NACK's resources have no field for {name}, which is {value!r}")
        field = fields[name]
        if isinstance(field, str):
            spec[field] = value
        elif isinstance(field[1], Mapping):
            spec[field[0]] = _mapped(value, field[1], f"{of}: {name}")
        else:
            spec[field[0]] = field[1](value)
    return spec


def resources(
    streams: Iterable[Stream] = STREAMS,
    consumers: Iterable[Consumer] = CONSUMERS,
    *,
    replicas: int = 1,
    namespace: str | None = None,
    account: str | None = None,
    servers: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """The declarations as Kubernetes resources, streams first.

    Deleting such a resource leaves the stream or consumer, and what it holds, where it is (`preventDelete`).

    Args:
        replicas: copies of each stream.
        namespace: of the resources; that of the `kubectl` that applies them when absent.
        account: the Account resource that says how to reach NATS.
        servers: NATS URLs, where the controller's own are not meant.

    Raises:
        NotExpressible: a declaration has something that the resources have no field for.
    """
    common: dict[str, Any] = {"preventDelete": True}
    if account:
        common["account"] = account
    if servers:
        common["servers"] = list(servers)
    made = []
    for stream in streams:
        spec = _mapped(stream.config(replicas), _STREAM, f"stream {stream.name}")
        made.append(_resource("Stream", stream.name, namespace, {**spec, **common}))
    for consumer in consumers:
        name = f"{consumer.stream}/{consumer.name}"
        spec = _mapped(consumer.config(), _CONSUMER, f"consumer {name}")
        made.append(_resource("Consumer", name, namespace, {"streamName": consumer.stream, **spec, **common}))
    return made


def _resource(kind: str, name: str, namespace: str | None, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": re.sub(r"[^a-z0-9]+", "-", name.lower())}
    if namespace:
        metadata["namespace"] = namespace
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}


def render(*, json: bool, **options: Any) -> None:
    """Print `resources(**options)` as YAML, or one JSON object per line; exits 1 when something has no field."""
    try:
        made = resources(**options)
    except NotExpressible as error:
        say_error(str(error))
        raise typer.Exit(1) from None
    if json:
        for resource in made:
            print(json_module.dumps(resource))
    else:
        print(to_yaml(made), end="")


# -- YAML, of which JSON's scalars and a block style are enough

# Plain where nothing could take it for anything but a string; quoted, as in JSON, elsewhere.
_PLAIN = re.compile(r"[A-Za-z]([A-Za-z0-9 _.,;/*>-]*[A-Za-z0-9_.*>])?").fullmatch
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})


def to_yaml(documents: Iterable[Mapping[str, Any]]) -> str:
    """The documents as YAML, `---` before each."""
    return "".join("---\n" + "\n".join(_block(document)) + "\n" for document in documents)


def _block(value: Any) -> list[str]:
    lines = []
    if isinstance(value, Mapping):
        for key, item in value.items():
            if item and isinstance(item, Mapping | list):
                deeper = "" if isinstance(item, list) else "  "
                lines += [f"{_scalar(key)}:", *(deeper + line for line in _block(item))]
            else:
                lines.append(f"{_scalar(key)}: {_scalar(item)}")
        return lines
    for item in value:
        first, *rest = _block(item) if item and isinstance(item, Mapping | list) else [_scalar(item)]
        lines += [f"- {first}", *("  " + line for line in rest)]
    return lines


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN(value) and value.lower() not in _WORDS:
        return value
    text = json_module.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in text)
