"""The declared streams and consumers against a real server: created, compared, changed in place, refused."""

import dataclasses
from typing import Any

import pytest

from handler_core import streams
from handler_core.connection import Connection
from handler_core.errors import Transient
from handler_core.jetstream import Api, JetStreamError
from handler_core.streams import (
    AI_CHAT,
    AI_CONTROL,
    AI_EVENTS,
    CHAT_HANDLER,
    CONSUMERS,
    DLQ,
    STREAMS,
    Consumer,
    Difference,
    NotInPlace,
    Republish,
    Stream,
    apply,
    compare,
    diff,
    diff_consumer,
    diff_stream,
)
from handler_core.testing import until

SECOND = 1_000_000_000
LOG = Stream("LOG", ("log.>",), retention="limits", max_bytes=1 << 20, max_age=3600)
QUEUE = Stream("QUEUE", ("queue.>",), retention="workqueue", max_bytes=1 << 20, max_age=3600)
READER = Consumer("LOG", "reader")


def changed(declaration: Any, **fields: Any) -> Any:
    return dataclasses.replace(declaration, **fields)


async def create_stream(api: Api, stream: Stream, **fields: Any) -> None:
    await api.request(f"STREAM.CREATE.{stream.name}", stream.config() | fields)


async def create_consumer(api: Api, consumer: Consumer, *, without: str = "", **fields: Any) -> None:
    config = consumer.config() | fields
    config.pop(without, None)
    body = {"stream_name": consumer.stream, "config": config, "action": "create"}
    await api.request(f"CONSUMER.DURABLE.CREATE.{consumer.stream}.{consumer.name}", body)


async def state(api: Api, name: str) -> dict[str, Any]:
    found: dict[str, Any] = (await api.request(f"STREAM.INFO.{name}"))["state"]
    return found


# -- the declarations


def test_the_declarations_are_those_of_the_design() -> None:
    table = {s.name: (s.subjects, s.retention, s.max_age, s.max_msgs_per_subject, s.republish) for s in STREAMS}
    assert table == {
        "AI_CHAT": (("ai.chat.request", "ai.chat.user.*.message"), "workqueue", 24 * 3600, -1, None),
        "AI_VOICE": (
            ("ai.voice.request", "voice.request", "ai.voice.user.*.request"), "workqueue", 3600, -1, None
        ),
        "AI_TTS": (("ai.voice.tts.request.*",), "workqueue", 3600, -1, None),
        "AI_STT": (
            ("ai.voice.stream.*",), "limits", 15 * 60, -1,
            Republish("ai.voice.stream.*", "ai.voice.session.{{wildcard(1)}}"),
        ),
        "AI_STT_SESSIONS": (("ai.voice.session.*",), "workqueue", 7 * 24 * 3600, 1, None),
        "AI_PIPELINE": (
            ("ai.pipeline.trigger", "ai.pipeline.user.*.trigger"), "workqueue", 45 * 24 * 3600, -1, None
        ),
        "AI_PIPELINE_STATUS": (
            ("evt.pipeline.>",), "limits", 45 * 24 * 3600, 50,
            Republish("evt.pipeline.status.*", "ai.pipeline.status.{{wildcard(1)}}"),
        ),
        "AI_EVENTS": (("evt.chat.>", "evt.voice.>"), "limits", 15 * 60, -1, Republish("evt.>", "ai.>")),
        "AI_CONTROL": (("ai.turn.cancel.*",), "limits", 24 * 3600, 1, None),
        "KV_AI_SESSIONS": (("$KV.AI_SESSIONS.>",), "limits", 7 * 24 * 3600, 1, None),
        "DLQ": (("dlq.>",), "limits", 30 * 24 * 3600, -1, None),
    }  # fmt: skip
    assert [stream.name for stream in STREAMS if stream.refuse_per_subject] == ["AI_STT_SESSIONS"]


@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.name)
def test_every_stream_is_bounded_replicated_and_on_file(stream: Stream) -> None:
    config = stream.config(replicas=3)
    assert config["storage"] == "file"
    assert config["num_replicas"] == 3
    assert config["discard"] == ("new" if stream.retention == "workqueue" else "old")
    assert config["max_bytes"] > 0
    assert config["max_age"] > 0
    assert 0 < config["duplicate_window"] <= config["max_age"]


@pytest.mark.parametrize("consumer", CONSUMERS, ids=lambda consumer: consumer.name)
def test_every_consumer_leaves_giving_up_to_the_worker(consumer: Consumer) -> None:
    config = consumer.config()
    assert config["max_deliver"] == -1
    assert config["ack_policy"] == "explicit"
    assert config["ack_wait"] == (5 if consumer.name == "stt_module" else 10) * SECOND
    assert consumer.stream in {stream.name for stream in STREAMS}


# -- apply and diff


async def test_apply_creates_everything_and_a_second_one_changes_nothing(api: Api) -> None:
    missing = [
        *(f"stream {s.name} is missing" for s in STREAMS),
        *(f"consumer {c.stream}/{c.name} is missing" for c in CONSUMERS),
    ]
    assert [str(d) for d in await diff(api)] == missing
    assert [str(d) for d in await apply(api)] == missing
    assert await diff(api) == []
    assert await apply(api) == []
    names = (await api.request("STREAM.NAMES"))["streams"]
    assert {s.name for s in STREAMS} <= set(names)


async def test_a_tunable_is_updated_in_place_and_messages_survive(api: Api) -> None:
    await apply(api, [LOG], [READER])
    await api.publish("log.a", b"kept", {})
    larger = changed(LOG, max_bytes=2 << 20, max_age=60, subjects=("log.>", "more.>"), description="a log")
    slower = changed(READER, ack_wait=20.0, max_ack_pending=5, filter_subjects=("log.a",))
    found = await diff(api, [larger], [slower])
    assert found == [
        Difference("stream", "LOG", "description", "a log", None),
        Difference("stream", "LOG", "subjects", ["log.>", "more.>"], ["log.>"]),
        Difference("stream", "LOG", "max_bytes", 2 << 20, 1 << 20),
        Difference("stream", "LOG", "max_age", 60 * SECOND, 3600 * SECOND),
        Difference("stream", "LOG", "duplicate_window", 60 * SECOND, 120 * SECOND),
        Difference("consumer", "LOG/reader", "filter_subjects", ["log.a"], None),
        Difference("consumer", "LOG/reader", "ack_wait", 20 * SECOND, 10 * SECOND),
        Difference("consumer", "LOG/reader", "max_ack_pending", 5, 1000),
    ]
    assert str(found[2]) == "stream LOG: max_bytes is 1048576, declared 2097152"
    assert await apply(api, [larger], [slower]) == found
    assert await diff(api, [larger], [slower]) == []
    assert (await state(api, "LOG"))["messages"] == 1
    assert await api.publish("more.b", b"", {}) == 2


STREAM_TUNABLES: list[tuple[dict[str, Any], str]] = [
    ({"discard": "new"}, "discard"),
    ({"max_bytes": 1 << 10}, "max_bytes"),
    ({"max_msgs_per_subject": 3}, "max_msgs_per_subject"),
    ({"duplicate_window": SECOND}, "duplicate_window"),
    ({"allow_direct": False}, "allow_direct"),
    ({"retention": "interest"}, "retention"),
    ({"republish": {"src": "log.>", "dest": "copy.>"}}, "republish"),
    ({"max_msgs": 1}, "max_msgs"),
    ({"max_msg_size": 10}, "max_msg_size"),
    ({"max_consumers": 1}, "max_consumers"),
    ({"no_ack": True}, "no_ack"),
    ({"sources": [{"name": "ELSEWHERE"}]}, "sources"),
    ({"subject_transform": {"src": "log.>", "dest": "elsewhere.>"}}, "subject_transform"),
]


@pytest.mark.parametrize(("there", "field"), STREAM_TUNABLES)
async def test_what_a_stream_has_beyond_its_declaration_is_found_and_put_right(
    api: Api, there: dict[str, Any], field: str
) -> None:
    await create_stream(api, LOG, **there)
    assert [d.field for d in await diff_stream(api, LOG)] == [field]
    assert [d.field for d in await apply(api, [LOG], [])] == [field]
    assert await diff_stream(api, LOG) == []


async def test_a_subject_limit_with_discard_per_subject_is_put_right(api: Api) -> None:
    there = {"discard": "new", "discard_new_per_subject": True, "max_msgs_per_subject": 1}
    await create_stream(api, LOG, **there)
    assert {d.field for d in await apply(api, [LOG], [])} == set(there)
    assert await diff_stream(api, LOG) == []


CONSUMER_TUNABLES: list[tuple[dict[str, Any], str]] = [
    ({"ack_wait": SECOND}, "ack_wait"),
    ({"max_deliver": 5}, "max_deliver"),
    ({"max_ack_pending": 5}, "max_ack_pending"),
    ({"num_replicas": 1}, "num_replicas"),
    ({"description": "other"}, "description"),
    ({"filter_subject": "log.a"}, "filter_subjects"),
    ({"filter_subjects": ["log.a", "log.b"]}, "filter_subjects"),
    ({"headers_only": True}, "headers_only"),
    ({"inactive_threshold": 60 * SECOND}, "inactive_threshold"),
    ({"max_batch": 5}, "max_batch"),
    ({"max_expires": 5 * SECOND}, "max_expires"),
    ({"max_bytes": 500}, "max_bytes"),
]


@pytest.mark.parametrize(("there", "field"), CONSUMER_TUNABLES)
async def test_what_a_consumer_has_beyond_its_declaration_is_found_and_put_right(
    api: Api, there: dict[str, Any], field: str
) -> None:
    await create_stream(api, LOG)
    await create_consumer(api, READER, **there)
    assert [d.field for d in (await diff_consumer(api, READER))[0]] == [field]
    assert [d.field for d in await apply(api, [LOG], [READER])] == [field]
    assert (await diff_consumer(api, READER))[0] == []


# -- what cannot be changed in place

FIXED_STREAMS: list[tuple[Stream, dict[str, Any], str]] = [
    (LOG, {"retention": "workqueue"}, "retention"),
    (QUEUE, {"retention": "limits"}, "retention"),
    (QUEUE, {"retention": "interest"}, "retention"),
    (LOG, {"storage": "memory"}, "storage"),
]


@pytest.mark.parametrize(("stream", "there", "field"), FIXED_STREAMS)
async def test_a_stream_that_would_need_deleting_is_left_alone_and_the_others_applied(
    api: Api, stream: Stream, there: dict[str, Any], field: str
) -> None:
    await create_stream(api, stream, **there)
    if there != {"retention": "interest"}:
        await api.publish(f"{stream.name.lower()}.a", b"precious", {})
    before = await state(api, stream.name)
    other = changed(LOG, name="OTHER", subjects=("other.>",))
    wanted = changed(stream, max_bytes=5 << 20)
    with pytest.raises(NotInPlace) as caught:
        await apply(api, [wanted, other], [changed(READER, stream="OTHER")])
    assert [d.field for d in caught.value.differences] == [field]
    assert str(caught.value) == (
        f"stream {stream.name}: {field} is {there[field]!r}, declared {stream.config()[field]!r}"
        " (cannot be changed in place: delete and apply)"
    )
    assert await state(api, stream.name) == before
    assert {d.field for d in await diff_stream(api, wanted)} == {field, "max_bytes"}
    assert await diff_stream(api, other) == []
    assert (await diff_consumer(api, changed(READER, stream="OTHER")))[0] == []


async def test_a_sealed_stream_is_left_alone(api: Api) -> None:
    await create_stream(api, LOG)
    await api.request("STREAM.UPDATE.LOG", LOG.config() | {"sealed": True})
    with pytest.raises(NotInPlace, match="stream LOG: sealed is True"):
        await apply(api, [LOG], [])
    with pytest.raises(JetStreamError, match="can not unseal"):
        await api.request("STREAM.UPDATE.LOG", LOG.config())


FIXED_CONSUMERS: list[tuple[dict[str, Any], set[str]]] = [
    ({"deliver_policy": "new"}, {"deliver_policy"}),
    ({"ack_policy": "all"}, {"ack_policy"}),
    ({"replay_policy": "original"}, {"replay_policy"}),
    ({"max_waiting": 10}, {"max_waiting"}),
    ({"mem_storage": True}, {"mem_storage"}),
    ({"deliver_subject": "push.here"}, {"deliver_subject", "max_waiting"}),
]


@pytest.mark.parametrize(("there", "fields"), FIXED_CONSUMERS)
async def test_a_consumer_that_would_need_deleting_is_left_alone_and_the_others_applied(
    api: Api, there: dict[str, Any], fields: set[str]
) -> None:
    await create_stream(api, LOG)
    await create_consumer(api, READER, without="max_waiting" if "deliver_subject" in there else "", **there)
    second = changed(READER, name="second")
    with pytest.raises(NotInPlace) as caught:
        await apply(api, [LOG], [READER, second])
    assert {d.field for d in caught.value.differences} == fields
    assert (await diff_consumer(api, second))[0] == []
    config = (await api.request("CONSUMER.INFO.LOG.reader"))["config"]
    assert config | there == config


@pytest.mark.parametrize(("stream", "there", "field"), FIXED_STREAMS)
async def test_the_server_itself_refuses_what_is_called_fixed_on_a_stream(
    api: Api, stream: Stream, there: dict[str, Any], field: str
) -> None:
    await create_stream(api, stream, **there)
    with pytest.raises(JetStreamError) as caught:
        await api.request(f"STREAM.UPDATE.{stream.name}", stream.config())
    assert caught.value.err_code == 10052


@pytest.mark.parametrize("there", [there for there, _ in FIXED_CONSUMERS])
async def test_the_server_itself_refuses_what_is_called_fixed_on_a_consumer(api: Api, there: dict[str, Any]) -> None:
    await create_stream(api, LOG)
    await create_consumer(api, READER, without="max_waiting" if "deliver_subject" in there else "", **there)
    body = {"stream_name": "LOG", "config": READER.config() | {"mem_storage": False}, "action": "update"}
    with pytest.raises(JetStreamError, match=r"can ?not (be )?update") as caught:
        await api.request("CONSUMER.DURABLE.CREATE.LOG.reader", body)
    assert caught.value.err_code == 10012


async def test_more_replicas_than_servers_are_refused_by_the_streams_name(api: Api) -> None:
    await create_stream(api, LOG)
    assert [d.field for d in await diff(api, [LOG], [], replicas=3)] == ["num_replicas"]
    with pytest.raises(JetStreamError, match=r"STREAM\.UPDATE\.LOG: replicas > 1 not supported"):
        await apply(api, [LOG], [], replicas=3)


async def test_overlapping_subjects_are_refused_by_the_streams_name(api: Api) -> None:
    await create_stream(api, LOG)
    with pytest.raises(JetStreamError, match=r"STREAM\.CREATE\.TWIN: subjects overlap") as caught:
        await apply(api, [changed(LOG, name="TWIN")], [])
    assert caught.value.err_code == 10065


async def test_a_consumer_of_a_missing_stream_is_missing_and_cannot_be_applied(api: Api) -> None:
    assert [str(d) for d in await diff(api, [], [READER])] == ["stream LOG is missing"]
    found, config = await diff_consumer(api, READER)
    assert [(d.kind, d.field, d.unsafe) for d in found] == [("stream", "missing", True)]
    assert config == {}
    with pytest.raises(JetStreamError) as caught:
        await apply(api, [], [READER])
    assert caught.value.err_code == streams.STREAM_NOT_FOUND


# -- differences with which a worker must not run


@pytest.mark.parametrize(
    ("there", "unsafe"),
    [
        ({"filter_subject": "log.a"}, True),
        ({"max_deliver": 3}, True),
        ({"headers_only": True}, True),
        ({"ack_policy": "all"}, True),
        ({"ack_wait": SECOND}, False),
        ({"max_ack_pending": 1}, False),
        ({"description": "x"}, False),
    ],
)
async def test_a_worker_has_to_wait_only_where_it_would_do_harm(api: Api, there: dict[str, Any], unsafe: bool) -> None:
    await create_stream(api, LOG)
    await create_consumer(api, READER, **there)
    found, config = await diff_consumer(api, READER)
    assert [d.unsafe for d in found] == [unsafe]
    assert config["durable_name"] == "reader"


def test_the_order_of_subjects_is_no_difference() -> None:
    assert compare("stream", "S", {"subjects": ["a", "b"]}, {"subjects": ["b", "a"], "max_msgs": -1} | UNLIMITED) == []


def test_what_the_server_adds_is_no_difference() -> None:
    there = AI_CHAT.config() | UNLIMITED | {"metadata": {"_nats.ver": "2.15.1"}, "compression": "none"}
    assert compare("stream", "AI_CHAT", AI_CHAT.config(), there) == []


UNLIMITED = {"max_msgs": -1, "max_msg_size": -1, "max_consumers": -1}


# -- what the declarations do on a server


async def test_accepted_events_are_republished_with_their_sequence(api: Api, nc: Connection) -> None:
    await apply(api)
    heard = await nc.subscribe("ai.>")
    sequence = await api.publish("evt.chat.response.stream.q1", b"event", {"traceparent": "t"})
    message = await heard.next_msg(timeout=10)
    assert message.subject == "ai.chat.response.stream.q1"
    assert message.data == b"event"
    assert message.headers is not None
    assert message.headers["Nats-Sequence"] == str(sequence)
    assert message.headers["Nats-Subject"] == "evt.chat.response.stream.q1"
    assert message.headers["Nats-Stream"] == "AI_EVENTS"
    assert message.headers["traceparent"] == "t"


async def test_what_the_stream_refuses_is_not_republished(api: Api, nc: Connection) -> None:
    await apply(api)
    heard = await nc.subscribe("ai.>")
    expectation = {"Nats-Expected-Last-Subject-Sequence": "7"}
    with pytest.raises(JetStreamError) as caught:
        await api.publish("evt.chat.response.q1", b"from a worker that was overtaken", expectation)
    assert caught.value.err_code == 10071
    await api.publish("evt.chat.response.q1", b"accepted", {})
    assert (await heard.next_msg(timeout=10)).data == b"accepted"


async def test_headers_only_republish_leaves_the_payload_out(api: Api, nc: Connection) -> None:
    await apply(api, [changed(LOG, republish=Republish("log.>", "copy.>", headers_only=True))], [])
    heard = await nc.subscribe("copy.>")
    await api.publish("log.a", b"x" * 1000, {})
    message = await heard.next_msg(timeout=10)
    assert message.data == b""
    assert message.headers is not None
    assert message.headers["Nats-Msg-Size"] == "1000"


async def test_a_full_work_queue_refuses_and_forgets_nothing(api: Api) -> None:
    await apply(api, [changed(QUEUE, max_bytes=2_000)], [])
    for _ in range(2):
        await api.publish("queue.a", b"x" * 900, {})
    with pytest.raises(JetStreamError) as caught:
        await api.publish("queue.a", b"x" * 900, {})
    assert (caught.value.code, caught.value.err_code) == (503, 10077)
    assert str(caught.value) == "JetStream refused queue.a: maximum bytes exceeded (10077)"
    assert (await state(api, "QUEUE"))["messages"] == 2


async def test_a_full_log_forgets_its_oldest(api: Api) -> None:
    await apply(api, [changed(LOG, max_bytes=2_000)], [])
    for _ in range(3):
        await api.publish("log.a", b"x" * 900, {})
    assert (await state(api, "LOG"))["first_seq"] == 2


async def test_a_repeated_message_id_is_stored_once(api: Api) -> None:
    await apply(api, [DLQ], [])
    assert await api.publish("dlq.a.b", b"", {"Nats-Msg-Id": "a:b:1"}) == 1
    assert await api.publish("dlq.a.b", b"", {"Nats-Msg-Id": "a:b:1"}) == 1
    assert (await state(api, "DLQ"))["messages"] == 1


async def test_only_the_last_cancel_of_a_turn_is_kept(api: Api) -> None:
    await apply(api, [AI_CONTROL], [])
    await api.publish("ai.turn.cancel.q1", b"first", {})
    await api.publish("ai.turn.cancel.q1", b"second", {})
    last = await api.last("AI_CONTROL", "ai.turn.cancel.q1")
    assert last is not None
    assert (last.data, last.sequence) == (b"second", 2)
    assert (await state(api, "AI_CONTROL"))["messages"] == 1


async def pending(api: Api, consumer: str, count: int) -> bool:
    """Whether so many wait for a consumer; the server counts them in its own time."""
    return bool((await api.request(f"CONSUMER.INFO.{consumer}"))["num_pending"] == count)


@pytest.mark.parametrize("subject", ["ai.chat.request", "ai.chat.user.ann.message"])
async def test_questions_reach_the_chat_handler(api: Api, subject: str) -> None:
    await apply(api, [AI_CHAT], [CHAT_HANDLER])
    await api.publish(subject, b"", {})
    await until(lambda: pending(api, "AI_CHAT.chat_handler", 1), "the question waits for the handler")


@pytest.mark.parametrize(
    "subject",
    ["ai.chat.ask", "ai.chat.user.a.b.message", "ai.chat.response.q1", "ai.pipeline.list", "ai.pipeline.status.r1"],
)
async def test_no_stream_captures_what_it_should_not(api: Api, subject: str) -> None:
    await apply(api)
    with pytest.raises(Transient, match=f"no stream or API answers on {subject}"):
        await api.publish(subject, b"", {})


async def test_a_filtered_durable_gets_its_subjects_only(api: Api) -> None:
    picky = changed(READER, filter_subjects=("log.a", "log.b.*"))
    await apply(api, [LOG], [picky])
    for subject in ("log.a", "log.b.c", "log.c"):
        await api.publish(subject, b"", {})
    await until(lambda: pending(api, "LOG.reader", 2), "those of its subjects are pending")
    assert await diff(api, [LOG], [picky]) == []


# -- the API calls beneath


async def test_the_newest_message_is_read_back_with_its_headers(api: Api) -> None:
    await apply(api, [AI_EVENTS], [])
    await api.publish("evt.chat.a", b"\x00\xff", {"One": "1", "Two": "zwei: ü"})
    stored = await api.last("AI_EVENTS", "evt.chat.a")
    assert stored is not None
    assert stored.data == b"\x00\xff"
    assert stored.headers == {"One": "1", "Two": "zwei: ü"}
    assert await api.last("AI_EVENTS", "evt.chat.b") is None


async def test_an_answer_from_something_else_is_not_taken_for_a_streams(api: Api, nc: Connection) -> None:
    answers = iter((b"pong", b"[]", b"{}", b""))

    async def pong(message: Any) -> None:
        await message.respond(next(answers))

    await nc.subscribe("not.a.stream", cb=pong)
    for _ in range(4):
        with pytest.raises(Transient, match=r"what answers on not\.a\.stream is no"):
            await api.publish("not.a.stream", b"", {})


async def test_silence_is_told_as_such(nc: Connection) -> None:
    await nc.subscribe("silent")
    with pytest.raises(Transient, match=r"no answer on silent within 0\.05 s"):
        await Api(nc, timeout=0.05).publish("silent", b"", {})
