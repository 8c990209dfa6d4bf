"""Every stream and consumer of the platform as data, and the functions that make a server match it.

`apply`, `diff` and whatever renders manifests read the same declarations. Field names and units of `config()` are
those of the JetStream API (ADR-31 and the server's own JSON): durations in nanoseconds, sizes in bytes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from handler_core.jetstream import Api, JetStreamError

MiB = 1 << 20
NANOSECONDS = 1_000_000_000

STREAM_NOT_FOUND = 10059
CONSUMER_NOT_FOUND = 10014


@dataclass(frozen=True)
class Republish:
    """What the server publishes again, as it stores it: only accepted messages, with `Nats-Sequence`."""

    src: str
    dest: str
    headers_only: bool = False


@dataclass(frozen=True)
class Stream:
    """A JetStream stream; always on file, always bounded."""

    name: str
    subjects: tuple[str, ...]
    retention: Literal["workqueue", "limits"]
    max_bytes: int
    max_age: float
    """Seconds."""
    description: str = ""
    max_msgs_per_subject: int = -1
    refuse_per_subject: bool = False
    """Whether a subject that holds its `max_msgs_per_subject` refuses further ones, rather than forget its oldest."""
    duplicate_window: float = 120.0
    """Seconds in which a repeated `Nats-Msg-Id` is dropped."""
    republish: Republish | None = None
    key_value: bool = False
    """Whether it is a key-value bucket (ADR-8), a stream `KV_{bucket}` of `$KV.{bucket}.>`; but for `discard`: a full
    one forgets its oldest, as every log here."""

    def config(self, replicas: int = 1) -> dict[str, Any]:
        """This stream as the JetStream API's configuration."""
        config: dict[str, Any] = {
            "name": self.name,
            "description": self.description,
            "subjects": list(self.subjects),
            "retention": self.retention,
            "storage": "file",
            # A full work queue refuses; a full log forgets its oldest.
            "discard": "new" if self.retention == "workqueue" else "old",
            "max_bytes": self.max_bytes,
            "max_age": int(self.max_age * NANOSECONDS),
            "max_msgs_per_subject": self.max_msgs_per_subject,
            "discard_new_per_subject": self.refuse_per_subject,
            "duplicate_window": int(min(self.duplicate_window, self.max_age) * NANOSECONDS),
            "num_replicas": replicas,
            "allow_direct": True,
            "allow_rollup_hdrs": self.key_value,
            "deny_delete": self.key_value,
        }
        if self.republish is not None:
            config["republish"] = {"src": self.republish.src, "dest": self.republish.dest}
            if self.republish.headers_only:
                config["republish"]["headers_only"] = True
        return config


@dataclass(frozen=True)
class Consumer:
    """A durable pull consumer with explicit acknowledgement and no server-side limit on deliveries.

    Past a `max_deliver` the server would leave a message stranded, unseen and uncounted; the worker dead-letters it
    instead.
    """

    stream: str
    name: str
    filter_subjects: tuple[str, ...] = ()
    ack_wait: float = 10.0
    """Seconds after the last in-progress until another worker gets the message: how long a takeover takes."""
    max_ack_pending: int = 1000
    """At least the most replicas times (in flight + prefetch) of each."""
    max_waiting: int = 512
    description: str = ""

    def config(self, replicas: int = 0) -> dict[str, Any]:
        """This consumer as the JetStream API's configuration; `replicas` 0 takes the stream's."""
        config: dict[str, Any] = {
            "durable_name": self.name,
            "description": self.description,
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "ack_wait": int(self.ack_wait * NANOSECONDS),
            "max_deliver": -1,
            "max_ack_pending": self.max_ack_pending,
            "max_waiting": self.max_waiting,
            "replay_policy": "instant",
            "num_replicas": replicas,
        }
        if self.filter_subjects:
            config["filter_subjects"] = list(self.filter_subjects)
        return config


AI_CHAT = Stream(
    "AI_CHAT",
    ("ai.chat.request", "ai.chat.user.*.message"),
    retention="workqueue",
    max_bytes=256 * MiB,
    max_age=24 * 3600,
    description="questions waiting for an answer",
)
AI_VOICE = Stream(
    "AI_VOICE",
    ("ai.voice.request", "voice.request", "ai.voice.user.*.request"),
    retention="workqueue",
    max_bytes=1024 * MiB,
    max_age=3600,
    description="spoken questions waiting for an answer",
)
AI_TTS = Stream(
    "AI_TTS",
    ("ai.voice.tts.request.*",),
    retention="workqueue",
    max_bytes=256 * MiB,
    max_age=3600,
    description="texts waiting to be spoken",
)
AI_STT = Stream(
    "AI_STT",
    ("ai.voice.stream.*",),
    retention="limits",
    max_bytes=2048 * MiB,
    max_age=15 * 60,
    republish=Republish("ai.voice.stream.*", "ai.voice.session.{{wildcard(1)}}"),
    description="the audio of live sessions; what is republished asks for the session's ticket, and is listened to",
)
AI_STT_SESSIONS = Stream(
    "AI_STT_SESSIONS",
    ("ai.voice.session.*",),
    retention="workqueue",
    max_bytes=256 * MiB,  # each ticket holds a chunk
    max_age=7 * 24 * 3600,
    max_msgs_per_subject=1,
    refuse_per_subject=True,
    description="one ticket for each live session: whoever holds it listens to the session",
)
AI_PIPELINE = Stream(
    "AI_PIPELINE",
    ("ai.pipeline.trigger", "ai.pipeline.user.*.trigger"),
    retention="workqueue",
    max_bytes=256 * MiB,
    max_age=45 * 24 * 3600,  # a trigger stays here until its run has ended, and a run may take 30 days
    description="runs that wait or are followed; each trigger stays until its run's end is stored",
)
AI_PIPELINE_STATUS = Stream(
    "AI_PIPELINE_STATUS",
    ("evt.pipeline.>",),
    retention="limits",
    max_bytes=1024 * MiB,  # the record of a run may have 64 KiB of parameters
    max_age=45 * 24 * 3600,  # what is known of a run must not be forgotten before its trigger is
    max_msgs_per_subject=50,
    republish=Republish("evt.pipeline.status.*", "ai.pipeline.status.{{wildcard(1)}}"),
    description="the states of runs; subscribers read the republished ai.pipeline.status.>",
)
AI_EVENTS = Stream(
    "AI_EVENTS",
    ("evt.chat.>", "evt.voice.>"),
    retention="limits",
    max_bytes=2048 * MiB,
    max_age=15 * 60,
    republish=Republish("evt.>", "ai.>"),
    description="answers and their streams; subscribers read the republished ai.>",
)
AI_CONTROL = Stream(
    "AI_CONTROL",
    ("ai.turn.cancel.*",),
    retention="limits",
    max_bytes=16 * MiB,
    max_age=24 * 3600,  # as long as a turn may be queued
    max_msgs_per_subject=1,
    description="cancelled turns",
)
AI_SESSIONS = Stream(
    "KV_AI_SESSIONS",
    ("$KV.AI_SESSIONS.>",),
    retention="limits",
    max_bytes=512 * MiB,
    max_age=7 * 24 * 3600,
    max_msgs_per_subject=1,
    key_value=True,
    description="what was said in a session; a key-value bucket",
)
DLQ = Stream(
    "DLQ",
    ("dlq.>",),
    retention="limits",
    max_bytes=512 * MiB,
    max_age=30 * 24 * 3600,
    description="dead letters, the reason in their headers",
)

CHAT_HANDLER = Consumer("AI_CHAT", "chat_handler", description="answers questions")
VOICE_ASSISTANT = Consumer("AI_VOICE", "voice_assistant", description="answers spoken questions")
TTS_MODULE = Consumer("AI_TTS", "tts_module", description="speaks texts")
STT_MODULE = Consumer(
    "AI_STT_SESSIONS",
    "stt_module",
    ack_wait=5.0,  # somebody is speaking
    max_ack_pending=16_384,
    description="listens to live sessions",
)
PIPELINE_BRIDGE = Consumer(
    "AI_PIPELINE",
    "pipeline_bridge",
    max_ack_pending=16_384,  # each run that is followed is one
    description="starts runs and follows them",
)

STREAMS: tuple[Stream, ...] = (
    AI_CHAT, AI_VOICE, AI_TTS, AI_STT, AI_STT_SESSIONS, AI_PIPELINE, AI_PIPELINE_STATUS, AI_EVENTS, AI_CONTROL,
    AI_SESSIONS, DLQ
)  # fmt: skip
CONSUMERS: tuple[Consumer, ...] = (CHAT_HANDLER, VOICE_ASSISTANT, TTS_MODULE, STT_MODULE, PIPELINE_BRIDGE)


def declared(subject: str) -> tuple[Stream, str] | None:
    """The stream that takes a subject, and the subject as declared there, which names no user and no session; None for
    one that no stream of single-token wildcards takes."""
    tokens = subject.split(".")
    for stream in STREAMS:
        for pattern in stream.subjects:
            expected = pattern.split(".")
            if len(expected) == len(tokens) and all(e in ("*", t) for e, t in zip(expected, tokens, strict=True)):
                return stream, pattern
    return None


# What the server (2.15) refuses to change on an existing stream or consumer; `retention` see `Difference.in_place`.
_FIXED = frozenset({"storage", "sealed", "durable_name", "deliver_policy", "ack_policy",
                    "replay_policy", "max_waiting", "deliver_subject", "mem_storage"})  # fmt: skip
# Differences with which a worker must not run: it would take another's messages, lose its own, or get none.
_UNSAFE = frozenset({"ack_policy", "filter_subjects", "deliver_subject", "max_deliver", "headers_only",
                     "priority_policy", "missing"})  # fmt: skip
# What must not be set without being declared: it changes what is kept or delivered, and an update would undo it.
_UNSET: dict[str, dict[str, Any]] = {
    "stream": dict.fromkeys(("republish", "mirror", "sources", "subject_transform", "sealed", "no_ack"))
    | {"max_msgs": -1, "max_msg_size": -1, "max_consumers": -1},
    "consumer": dict.fromkeys(("filter_subjects", "deliver_subject", "headers_only", "backoff", "inactive_threshold",
                               "priority_policy", "max_batch", "max_expires", "max_bytes", "mem_storage")),
}  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """One thing in which the server differs from the declaration."""

    kind: Literal["stream", "consumer"]
    name: str
    """`STREAM` or `STREAM/consumer`."""
    field: str
    """A field of the JetStream configuration, or `missing`."""
    declared: Any
    actual: Any

    @property
    def in_place(self) -> bool:
        """Whether `apply` can mend it without deleting anything."""
        if self.field == "retention":
            return "workqueue" not in (self.declared, self.actual)
        return self.field not in _FIXED

    @property
    def unsafe(self) -> bool:
        """Whether a worker has to wait until it is mended."""
        return self.field in _UNSAFE

    def __str__(self) -> str:
        if self.field == "missing":
            return f"{self.kind} {self.name} is missing"
        note = "" if self.in_place else " (cannot be changed in place: delete and apply)"
        return f"{self.kind} {self.name}: {self.field} is {self.actual!r}, declared {self.declared!r}{note}"


def compare(
    kind: Literal["stream", "consumer"], name: str, declared: dict[str, Any], actual: dict[str, Any]
) -> list[Difference]:
    """The fields in which the server's configuration differs; of those not declared, only what must not be set."""
    differences = []
    for field, value in {**_UNSET[kind], **declared}.items():
        there = actual.get(field)
        if field == "filter_subjects" and actual.get("filter_subject"):
            there = [actual["filter_subject"]]
        same = sorted(value) == sorted(there or []) if isinstance(value, list) else (value or None) == (there or None)
        if not same:
            differences.append(Difference(kind, name, field, value, there))
    return differences


async def diff_stream(api: Api, stream: Stream, replicas: int = 1) -> list[Difference]:
    """How the server's stream differs from the declaration; one `missing` when there is none."""
    try:
        info = await api.request(f"STREAM.INFO.{stream.name}")
    except JetStreamError as error:
        if error.err_code != STREAM_NOT_FOUND:
            raise
        return [Difference("stream", stream.name, "missing", None, None)]
    return compare("stream", stream.name, stream.config(replicas), info["config"])


async def diff_consumer(api: Api, consumer: Consumer) -> tuple[list[Difference], dict[str, Any]]:
    """How the server's consumer differs from the declaration, and its configuration there (empty if missing)."""
    name = f"{consumer.stream}/{consumer.name}"
    try:
        info = await api.request(f"CONSUMER.INFO.{consumer.stream}.{consumer.name}")
    except JetStreamError as error:
        if error.err_code == STREAM_NOT_FOUND:
            return [Difference("stream", consumer.stream, "missing", None, None)], {}
        if error.err_code != CONSUMER_NOT_FOUND:
            raise
        return [Difference("consumer", name, "missing", None, None)], {}
    return compare("consumer", name, consumer.config(), info["config"]), info["config"]


async def diff(
    api: Api, streams: Iterable[Stream] = STREAMS, consumers: Iterable[Consumer] = CONSUMERS, *, replicas: int = 1
) -> list[Difference]:
    """Everything in which the server differs from the declarations, streams first."""
    differences: list[Difference] = []
    for stream in streams:
        differences += await diff_stream(api, stream, replicas)
    missing = {d.name for d in differences if d.field == "missing"}
    for consumer in consumers:
        if consumer.stream in missing:
            differences.append(Difference("consumer", f"{consumer.stream}/{consumer.name}", "missing", None, None))
        else:
            differences += (await diff_consumer(api, consumer))[0]
    return differences


class NotInPlace(Exception):
    """The server has a stream or consumer whose declared change needs it deleted first; nothing was deleted."""

    def __init__(self, differences: Sequence[Difference]) -> None:
        super().__init__("; ".join(map(str, differences)))
        self.differences = list(differences)


async def apply(
    api: Api, streams: Iterable[Stream] = STREAMS, consumers: Iterable[Consumer] = CONSUMERS, *, replicas: int = 1
) -> list[Difference]:
    """Create what is missing, update what differs, and return what was changed; a second call changes nothing.

    Raises:
        NotInPlace: a stream or consumer cannot be changed without deleting it; it was left as it is, and all others
            have been applied.
        JetStreamError: the server refused a configuration; those before it have been applied.
    """
    changed: list[Difference] = []
    refused: list[Difference] = []
    for stream in streams:
        found = await diff_stream(api, stream, replicas)
        refused += (fixed := [d for d in found if not d.in_place])
        if not found or fixed:
            continue
        verb = "CREATE" if found[0].field == "missing" else "UPDATE"
        await api.request(f"STREAM.{verb}.{stream.name}", stream.config(replicas))
        changed += found
    for consumer in consumers:
        found, _ = await diff_consumer(api, consumer)
        refused += (fixed := [d for d in found if not d.in_place])
        if not found or fixed:
            continue
        action = "create" if found[0].field == "missing" else "update"
        body = {"stream_name": consumer.stream, "config": consumer.config(), "action": action}
        await api.request(f"CONSUMER.DURABLE.CREATE.{consumer.stream}.{consumer.name}", body)
        changed += found
    if refused:
        raise NotInPlace(refused)
    return changed
