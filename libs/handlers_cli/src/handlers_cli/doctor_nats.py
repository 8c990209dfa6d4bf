"""NATS as `handlers doctor` sees it: the server, its JetStream, the streams and consumers, and who runs."""

from collections import Counter
from typing import Any

from handler_core import streams
from handler_core.config import NatsSettings, masked
from handler_core.connection import Connection
from handler_core.jetstream import Api, JetStreamError
from handlers_cli.doctor_findings import Finding, Named, Stopwatch, fail, ok, run_checks, size, warn
from handlers_cli.services import gather
from handlers_cli.session import Unreachable, connected

APPLY = "handlers streams apply"
START = "start one: make run, or python -m {}"
USUAL_PAYLOAD = 1 << 20
NEARLY_FULL = 0.8
SESSION_BYTES = 55_000
"""Stored for a second of a live session at 16 kHz: 50 chunks of 640 bytes, their subjects and headers."""

HELD = (streams.STT_MODULE, streams.PIPELINE_BRIDGE)
"""Consumers whose messages are held for as long as a session or a run lasts, by a worker that goes on pulling."""


async def check_nats(settings: NatsSettings, timeout: float) -> list[Finding]:
    """Connect, and if that works look at all that is behind it; never longer than twice `timeout`."""
    watch = Stopwatch()
    try:
        async with connected(settings, timeout) as nc:
            found = [_server(nc, settings, str(watch))]
            found += await run_checks(
                [
                    Named("JetStream", lambda: _jetstream(nc), "enable it on the server: nats-server -js"),
                    Named("services", lambda: _services(nc), START.format("chat_handler")),
                ],
                timeout,
            )
            return found
    except Unreachable as error:
        text = str(error).partition(": ")[2] or str(error)
        refused = "authorization" in text.lower() or "authentication" in text.lower()
        credentials = "NATS_USER and NATS_PASSWORD, NATS_TOKEN, NATS_NKEY_SEED or NATS_CREDS"
        fix = f"set {credentials}" if refused else "start NATS (make run), or set NATS_URL"
        return [fail("NATS", f"{masked(settings.nats_url)}: {text}", fix)]


def _server(nc: Connection, settings: NatsSettings, connecting: str) -> Finding:
    room, server = nc.max_payload, nc.connected_server_version
    version = f"{server.major}.{server.minor}.{server.patch}"
    text = f"{masked(settings.nats_url)}, version {version}, connected in {connecting}, messages up to {size(room)}"
    if room < USUAL_PAYLOAD:
        return warn("NATS", f"{text}: answers with long sources may not fit", "raise max_payload on the server to 1MB")
    return ok("NATS", text)


async def _jetstream(nc: Connection) -> list[Finding]:
    api = Api(nc, timeout=30.0)  # what bounds a check is its own time limit
    info = await api.request("INFO")
    found = [_account(info)]
    found += await _declared(api)
    for stream in streams.STREAMS:
        found += await _stream(api, stream)
    for consumer in streams.CONSUMERS:
        found += await _consumer(api, consumer)
    return found


def _account(info: dict[str, Any]) -> Finding:
    used, most = info.get("storage", 0), info.get("limits", {}).get("max_storage", -1)
    if most <= 0:
        return ok("JetStream", f"enabled, {size(used)} stored, no limit for the account")
    wanted = sum(stream.max_bytes for stream in streams.STREAMS)
    text = f"enabled, {size(used)} of the account's {size(most)} stored"
    if used > NEARLY_FULL * most:
        return warn("JetStream", text, "raise the account's max_file, or purge what is not needed")
    if most < wanted:
        return warn("JetStream", f"{text}; the streams may hold {size(wanted)}", "raise the account's max_file")
    return ok("JetStream", text)


async def _declared(api: Api) -> list[Finding]:
    """How the server differs from the declarations; the number of copies is the operator's choice."""
    differences = [d for d in await streams.diff(api) if d.field != "num_replicas"]
    if not differences:
        return [ok("streams", f"{len(streams.STREAMS)} streams and {len(streams.CONSUMERS)} consumers as declared")]
    found = []
    for difference in differences:
        mend = APPLY if difference.in_place else f"back it up, delete it, and {APPLY}"
        make = fail if difference.unsafe else warn
        found.append(make("streams", str(difference), mend))
    return found


async def _stream(api: Api, stream: streams.Stream) -> list[Finding]:
    try:
        info = await api.request(f"STREAM.INFO.{stream.name}")
    except JetStreamError as error:
        if error.err_code == streams.STREAM_NOT_FOUND:
            return []  # has been told
        raise
    state, config = info["state"], info["config"]
    text = f"{state['messages']:,} messages, {size(state['bytes'])}, copies {config['num_replicas']}"
    name = f"stream {stream.name}"
    if stream.name == streams.DLQ.name and state["messages"]:
        return [warn(name, f"{text}: dead letters", "look at them: handlers dlq ls")]
    full = 0 < config["max_bytes"] < state["bytes"] / NEARLY_FULL
    if full and config["discard"] == "new":
        is_held = any(consumer.stream == stream.name for consumer in HELD)
        fix = "raise its max_bytes: each message is in use" if is_held else "add workers, or purge what is not needed"
        return [warn(name, f"{text}: nearly full, and then refuses", fix)]
    if stream.name == streams.AI_STT.name:
        return [_audio(name, text, config, full=full)]
    return [ok(name, text)]


def _audio(name: str, text: str, config: dict[str, Any], *, full: bool) -> Finding:
    """The audio of live sessions: full, it forgets the oldest, which a worker that takes a session over may need."""
    minutes = config["max_age"] / streams.NANOSECONDS / 60
    sessions = int(config["max_bytes"] / (minutes * 60 * SESSION_BYTES))
    if full:
        found = f"{text}: nearly full, and then forgets audio that is younger than {minutes:g} minutes"
        return warn(name, found, "raise its max_bytes, or have clients send 16 kHz mono")
    return ok(name, f"{text}, room for {minutes:g} minutes of {sessions} sessions at 16 kHz")


async def _consumer(api: Api, consumer: streams.Consumer) -> list[Finding]:
    try:
        info = await api.request(f"CONSUMER.INFO.{consumer.stream}.{consumer.name}")
    except JetStreamError as error:
        if error.err_code in (streams.STREAM_NOT_FOUND, streams.CONSUMER_NOT_FOUND):
            return []
        raise
    waiting, running, pulls = info["num_pending"], info["num_ack_pending"], info["num_waiting"]
    name = f"consumer {consumer.stream}/{consumer.name}"
    text = f"{waiting:,} wait, {running:,} in work, {pulls:,} pulls open"
    if pulls == 0 and running == 0:  # with all its hands full, a worker does not pull
        make = fail if waiting else warn
        return [make(name, f"{text}: no worker is there", START.format(consumer.name))]
    if pulls == 0 and consumer in HELD:
        return [warn(name, f"{text}: no worker takes more, or none is there", START.format(consumer.name))]
    return [ok(name, text)]


async def _services(nc: Connection) -> list[Finding]:
    running = Counter(f"{reply.get('name')} {reply.get('version')}" for reply in await gather(nc, "$SRV.PING"))
    if not running:
        return [warn("services", "none answers on $SRV.PING", START.format("chat_handler"))]
    return [ok("services", ", ".join(f"{name} x {count}" for name, count in sorted(running.items())))]
