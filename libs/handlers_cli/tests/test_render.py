"""`handlers streams render`: what NACK makes of the resources is what `streams.apply` would make."""

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from handler_core import streams
from handler_core.connection import Connection
from handler_core.jetstream import Api, Stored
from handler_core.streams import CONSUMERS, STREAMS, Consumer, Republish, Stream
from handler_core.testing import connection, nats_server, stored, until
from handlers_cli.main import app
from handlers_cli.render import NotExpressible, go_duration, resources, to_yaml

# Every field that a declaration can have, used at once.
FULL = Stream(
    "FULL",
    ("full.>",),
    retention="limits",
    max_bytes=1 << 20,
    max_age=90.5,
    description='quoted: "yes", #1, Ünïcode\n- & *',
    max_msgs_per_subject=3,
    duplicate_window=1.5,
    republish=Republish("full.>", "again.>"),
)
NARROW = Consumer("FULL", "narrow", ("full.a", "full.b.*"), ack_wait=2.5, max_ack_pending=7, max_waiting=9)


def rendered(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["streams", "render", *arguments], env={"NATS_URL": "nonsense: not read"})


# -- the schema of the resources


@pytest.fixture(scope="module")
def schemas() -> dict[str, dict[str, Any]]:
    """The schema of `spec` by the resource's kind."""
    documents = yaml.safe_load_all((Path(__file__).parent / "crds" / "jetstream.nats.io.yaml").read_text())
    found = {}
    for document in documents:
        [version] = document["spec"]["versions"]
        schema = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
        found[document["spec"]["names"]["kind"]] = schema
    return found


_TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}
_CHECKED = {"type", "properties", "items", "enum", "pattern", "minimum", "maximum", "minLength", "default"}


def violations(value: Any, schema: dict[str, Any], path: str = "spec") -> Iterator[str]:
    """What Kubernetes would refuse, or silently drop since the schema does not name it."""
    assert schema.keys() <= _CHECKED | {"additionalProperties"}, f"{path}: a keyword that is not checked here"
    kind = _TYPES[schema["type"]]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        yield f"{path}: {value!r} is no {schema['type']}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r} is none of {schema['enum']}"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{path}: {value!r} does not match {schema['pattern']}"
    if isinstance(value, str) and len(value) < schema.get("minLength", 0):
        yield f"{path}: {value!r} is too short"
    if isinstance(value, int) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        yield f"{path}: {value} is out of bounds"
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from violations(item, schema["items"], f"{path}[{index}]")
    if isinstance(value, dict):
        for name, item in value.items():
            if name in schema.get("properties", {}):
                yield from violations(item, schema["properties"][name], f"{path}.{name}")
            elif "additionalProperties" in schema:
                yield from violations(item, schema["additionalProperties"], f"{path}.{name}")
            else:
                yield f"{path}.{name}: the schema has no such field"


def test_every_resource_fits_the_published_schema(schemas: dict[str, dict[str, Any]]) -> None:
    made = resources([*STREAMS, FULL], [*CONSUMERS, NARROW], replicas=3, account="ai", servers=["nats://nats:4222"])
    assert len(made) == len(STREAMS) + len(CONSUMERS) + 2
    for resource in made:
        assert resource["apiVersion"] == "jetstream.nats.io/v1beta2"
        assert list(violations(resource["spec"], schemas[resource["kind"]])) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("maxBytes", "1"),
        ("replicas", 0),
        ("retention", "queue"),
        ("name", "a.b"),
        ("noSuch", 1),
        ("republish", {"a": 1}),
    ],
)
def test_the_check_finds_what_kubernetes_would_refuse(
    schemas: dict[str, dict[str, Any]], field: str, value: object
) -> None:
    [resource] = resources([FULL], [])
    assert list(violations({**resource["spec"], field: value}, schemas["Stream"]))


def test_names_are_such_as_kubernetes_takes() -> None:
    names = [(resource["kind"], resource["metadata"]["name"]) for resource in resources()]
    assert ("Stream", "ai-chat") in names
    assert ("Consumer", "ai-chat-chat-handler") in names
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name) for _, name in names)


# -- what NACK makes of them


def nanoseconds(duration: str) -> int:
    """A duration as Go's `time.ParseDuration` reads it."""
    units = {"h": 3600 * 10**9, "m": 60 * 10**9, "s": 10**9, "ms": 10**6}
    parts = re.findall(r"([\d.]+)(ms|h|m|s)", duration)
    assert "".join(number + unit for number, unit in parts) == duration
    return sum(round(float(number) * units[unit]) for number, unit in parts)


def stream_config(spec: dict[str, Any]) -> dict[str, Any]:
    """What NACK's stream controller sends to JetStream (`streamSpecToConfig`), written from its side."""
    config = {
        "name": spec["name"],
        "description": spec.get("description", ""),
        "subjects": spec["subjects"],
        "retention": spec.get("retention", "limits"),
        "storage": spec.get("storage", "memory"),
        "discard": spec.get("discard", "old"),
        "max_consumers": spec.get("maxConsumers", -1),
        "max_msgs": spec.get("maxMsgs", -1),
        "max_bytes": spec.get("maxBytes", -1),
        "max_msg_size": spec.get("maxMsgSize", -1),
        "max_age": nanoseconds(spec.get("maxAge", "0s")),
        "duplicate_window": nanoseconds(spec.get("duplicateWindow", "0s")),
        "num_replicas": spec.get("replicas", 1),
        "allow_direct": spec.get("allowDirect", False),
        "allow_rollup_hdrs": spec.get("allowRollup", False),
        "deny_delete": spec.get("denyDelete", False),
        "deny_purge": spec.get("denyPurge", False),
        "discard_new_per_subject": spec.get("discardPerSubject", False),
    }
    if spec.get("maxMsgsPerSubject", 0) > 0:
        config["max_msgs_per_subject"] = spec["maxMsgsPerSubject"]
    if "republish" in spec:
        config["republish"] = {"src": spec["republish"]["source"], "dest": spec["republish"]["destination"]}
    return config


def consumer_config(spec: dict[str, Any]) -> dict[str, Any]:
    """What NACK's consumer controller sends to JetStream (`consumerSpecToConfig`), written from its side."""
    return {
        "durable_name": spec["durableName"],
        "description": spec.get("description", ""),
        "ack_policy": spec.get("ackPolicy", "none"),
        "ack_wait": nanoseconds(spec["ackWait"]),
        "deliver_policy": {"all": "all", "lastPerSubject": "last_per_subject"}[spec["deliverPolicy"]],
        "replay_policy": spec.get("replayPolicy", "instant"),
        "max_deliver": spec["maxDeliver"],
        "max_ack_pending": spec["maxAckPending"],
        "max_waiting": spec["maxWaiting"],
        "num_replicas": spec["replicas"],
        "filter_subjects": spec.get("filterSubjects", []),
    }


async def create_as_nack_would(nc: Connection, made: list[dict[str, Any]]) -> None:
    api = Api(nc)
    for resource in made:
        spec = resource["spec"]
        if resource["kind"] == "Stream":
            await api.request(f"STREAM.CREATE.{spec['name']}", stream_config(spec))
        else:
            body = {"stream_name": spec["streamName"], "config": consumer_config(spec)}
            await api.request(f"CONSUMER.DURABLE.CREATE.{spec['streamName']}.{spec['durableName']}", body)


@pytest.mark.parametrize(
    ("declared", "consumers"), [(STREAMS, CONSUMERS), ([FULL], [NARROW])], ids=["the platform's", "every field"]
)
async def test_a_server_set_up_from_the_yaml_is_as_declared(
    declared: Sequence[Stream], consumers: Sequence[Consumer]
) -> None:
    made = list(yaml.safe_load_all(to_yaml(resources(declared, consumers))))
    with nats_server() as server:
        async with connection(server.url) as nc:
            await create_as_nack_would(nc, made)
            assert await streams.diff(Api(nc), declared, consumers) == []


@pytest.mark.parametrize("declared", [*STREAMS, *CONSUMERS, FULL, NARROW], ids=lambda declared: declared.name)
def test_every_declared_field_is_in_the_resource(declared: Stream | Consumer) -> None:
    [resource] = resources([declared], []) if isinstance(declared, Stream) else resources([], [declared])
    added = {"preventDelete"} | ({"streamName"} if isinstance(declared, Consumer) else set())
    assert len(resource["spec"].keys() - added) == len(declared.config())


class Ahead(Stream):
    """A declaration with a field that the rendering does not know."""

    def config(self, replicas: int = 1) -> dict[str, Any]:
        return {**super().config(replicas), "persist_mode": "async"}


@pytest.mark.parametrize(
    ("declared", "field"),
    [
        (
            Ahead("AHEAD", ("a",), retention="limits", max_bytes=1, max_age=1),
            "stream AHEAD: .* no field for persist_mode",
        ),
        (
            dataclasses.replace(FULL, republish=Republish("full.>", "h.>", headers_only=True)),
            "stream FULL: .* no field for headers_only",
        ),
    ],
)
def test_what_the_resources_cannot_express_is_an_error(declared: Stream, field: str) -> None:
    with pytest.raises(NotExpressible, match=field):
        resources([declared], [])


async def test_the_tickets_of_live_sessions_are_made_from_the_rendered_streams_too() -> None:
    made = list(yaml.safe_load_all(to_yaml(resources([streams.AI_STT, streams.AI_STT_SESSIONS], []))))
    with nats_server() as server:
        async with connection(server.url) as nc:
            await create_as_nack_would(nc, made)
            for session in ("one", "one", "two"):
                await Api(nc).publish(f"ai.voice.stream.{session}", b"audio", {})

            async def tickets() -> list[Stored]:
                return await stored(nc, "AI_STT_SESSIONS", "ai.voice.session.*")

            async def made_both() -> bool:  # a moment after the chunks have been acknowledged
                return len(await tickets()) == 2

            await until(made_both, "both sessions have a ticket")
            found = await tickets()
    assert [(ticket.subject, ticket.headers["Nats-Sequence"]) for ticket in found] == [
        ("ai.voice.session.one", "1"),
        ("ai.voice.session.two", "3"),
    ]


def test_deleting_a_resource_deletes_no_messages() -> None:
    assert all(resource["spec"]["preventDelete"] is True for resource in resources())


# -- the text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(24 * 3600, "24h0m0s"), (900, "15m0s"), (10, "10s"), (1.5, "1.5s"), (3661.25, "1h1m1.25s"), (0, "0s")],
)
def test_durations_are_as_go_writes_them(seconds: float, text: str) -> None:
    assert go_duration(int(seconds * 1e9)) == text


@pytest.mark.parametrize(
    "value",
    ["plain", "a: b", "a #b", "- x", "*", ">", "", " x", "x ", "yes", "No", "null", "1", "1e3", "0x1f", "24h0m0s", "~",
     "2026-01-01", "a\nb", 'q"q', "back\\slash", "ünï 🎉", "evt.>", "$KV.A.>", "a -b", "a - b", "{x}", "[x]", "%x",
     "@x", "&x", "!x", "|", "'x'", 1, -1, 1.5, True, False, None, [], {}, "\x7f",
     [[1, 2], {"a": [{"b": 1, "c": [True]}]}]],
)  # fmt: skip
def test_yaml_reads_back_as_what_was_written(value: Any) -> None:
    document = {"key": value, "list": [value, value], "deep": {"map": {"key": value}}}
    assert list(yaml.safe_load_all(to_yaml([document, document]))) == [document, document]


def test_the_command_prints_yaml_and_needs_no_server_and_no_settings() -> None:
    done = rendered("--replicas", "3", "--namespace", "ai", "--account", "team", "--server", "nats://a:4222")
    assert (done.exit_code, done.stderr) == (0, "")
    made = list(yaml.safe_load_all(done.stdout))
    assert made == resources(replicas=3, namespace="ai", account="team", servers=["nats://a:4222"])
    assert {resource["metadata"]["namespace"] for resource in made} == {"ai"}
    chat = made[0]["spec"]
    assert (chat["name"], chat["replicas"], chat["maxAge"]) == ("AI_CHAT", 3, "24h0m0s")
    assert (chat["account"], chat["servers"]) == ("team", ["nats://a:4222"])


def test_json_is_one_resource_per_line() -> None:
    done = rendered("--json")
    assert [json.loads(line) for line in done.stdout.splitlines()] == resources()


def test_help_shows_an_example() -> None:
    done = rendered("--help")
    assert (done.exit_code, "kubectl apply" in done.stdout) == (0, True)
