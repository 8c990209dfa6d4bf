"""Messages that will not be tried again: kept, once, with the reason, before the original is let go."""

import json
from typing import Any

import pytest

from handler_core.connection import header_block
from handler_core.delivery import Delivery
from handler_core.errors import HandlerError, InvalidRequest, NotFound
from handler_core.jetstream import Stored
from handler_core.streams import DLQ, apply
from handler_core.telemetry import Metrics
from handler_core.testing import stored, until

from .stage import Log, Stage, pulling, running

KEEP = 256 * 1024


async def letters(stage: Stage) -> list[Stored]:
    """The dead letters of the stage's consumer."""
    return await stored(stage.nc, "DLQ", f"dlq.{stage.stream.name}.{stage.consumer.name}")


@pytest.fixture
async def buried(stage: Stage) -> Stage:
    """The stage, with a dead letter stream beside it."""
    await apply(stage.api, [DLQ], [])
    return stage


async def poison(delivery: Delivery) -> None:
    raise InvalidRequest("query: missing", stage="decode")


async def test_a_letter_has_the_message_and_everything_about_its_death(buried: Stage) -> None:
    metrics = Metrics()
    advisories: list[dict[str, Any]] = []

    async def note(message: Any) -> None:
        advisories.append(json.loads(message.data))

    name = f"{buried.stream.name}.{buried.consumer.name}"
    await buried.nc.subscribe(f"$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.{name}", cb=note)
    async with running(pulling(buried.nc, buried.consumer, poison, metrics)):
        await buried.publish(b"body", headers={"traceparent": "00-a", "Content-Type": "x"})
        await buried.all_settled()
        await until(lambda: advisories, "the server tells of it")
    (letter,) = await letters(buried)
    timestamp = letter.headers.pop("Dead-Letter-Timestamp")
    assert 1.7e9 < float(timestamp) < 1e10
    stream, sequence, nanoseconds, consumer = letter.headers.pop("Nats-Msg-Id").split(":")
    assert (stream, sequence, consumer) == (buried.stream.name, "1", buried.consumer.name)
    assert float(timestamp) == pytest.approx(int(nanoseconds) / 1e9, abs=1e-6)
    assert letter.data == b"body"
    assert letter.headers == {
        "traceparent": "00-a",
        "Content-Type": "x",
        "Dead-Letter-Reason": "query: missing",
        "Dead-Letter-Type": "validation_error",
        "Dead-Letter-Stage": "decode",
        "Dead-Letter-Subject": buried.subject,
        "Dead-Letter-Stream": buried.stream.name,
        "Dead-Letter-Consumer": buried.consumer.name,
        "Dead-Letter-Sequence": "1",
        "Dead-Letter-Deliveries": "1",
    }
    assert advisories[0]["reason"] == "query: missing"
    assert 'outcome="dead_letter"} 1' in metrics.render()


async def test_the_letter_is_stored_before_the_message_is_let_go(buried: Stage) -> None:
    order: list[str] = []

    async def note(message: Any) -> None:
        payload = bytes(message.data)
        order.append("letter" if message.subject.startswith("dlq.") else payload[:5].decode())

    await buried.nc.subscribe(f"dlq.{buried.stream.name}.>", cb=note)
    await buried.nc.subscribe(f"$JS.ACK.{buried.stream.name}.>", cb=note)
    async with running(pulling(buried.nc, buried.consumer, poison)):
        await buried.publish(b"body")
        await buried.all_settled()
        await until(lambda: len(order) >= 2, "both were seen")
    assert order == ["letter", "+TERM"]


async def test_a_message_buried_twice_is_one_letter(buried: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the worker dies between the letter and the term."""
    log = Log(poison)
    term = Delivery.term

    def first_lost(delivery: Delivery, reason: str) -> None:
        if delivery.attempt == 1:
            delivery.nak()
        else:
            term(delivery, reason)

    monkeypatch.setattr(Delivery, "term", first_lost)
    async with running(pulling(buried.nc, buried.consumer, log)):
        await buried.publish(b"body")
        await buried.all_settled()
    assert log.attempts == [1, 2]
    assert len(await letters(buried)) == 1


async def test_a_message_of_a_stream_made_anew_has_a_letter_of_its_own(buried: Stage) -> None:
    """It has the number of one that was buried a moment ago."""
    for body in (b"before", b"after"):
        await buried.api.request(f"STREAM.DELETE.{buried.stream.name}")
        await apply(buried.api, [buried.stream], [buried.consumer])
        async with running(pulling(buried.nc, buried.consumer, poison)):
            await buried.publish(body)
            await buried.all_settled()
    found = await letters(buried)
    assert [letter.headers["Dead-Letter-Sequence"] for letter in found] == ["1", "1"]
    assert [letter.data for letter in found] == [b"before", b"after"]


async def test_without_a_dlq_stream_the_message_is_kept_until_there_is_one(stage: Stage) -> None:
    names = (await stage.api.request("STREAM.NAMES"))["streams"] or ()
    if "DLQ" in names:
        await stage.api.request("STREAM.DELETE.DLQ")
    log = Log(poison)
    consumer = pulling(stage.nc, stage.consumer, log)
    async with running(consumer):
        await stage.publish(b"body")
        await until(lambda: len(log.started) >= 3, "it is tried again")
        assert (await stage.stream_state())["messages"] == 1
        await apply(stage.api, [DLQ], [])
        await stage.all_settled()
        assert consumer.bound
    (letter,) = await letters(stage)
    assert letter.data == b"body"
    assert int(letter.headers["Dead-Letter-Deliveries"]) >= 4


async def test_a_message_as_large_as_the_server_takes_is_cut_and_says_so(buried: Stage) -> None:
    size = buried.nc.max_payload
    async with running(pulling(buried.nc, buried.consumer, poison)):
        buried.nc._write(b"PUB %b %d\r\n%b\r\n" % (buried.subject.encode(), size, b"x" * size))
        await until(lambda: _count(buried), "it is buried")
        await buried.all_settled()
    (letter,) = await letters(buried)
    assert letter.headers["Truncated"] == str(size)
    assert letter.data == b"x" * KEEP


async def _count(stage: Stage) -> int:
    return len(await letters(stage))


@pytest.mark.parametrize(("headers", "body"), [(60_000, 10), (65_400, 10), (64_000, 983_300), (500, 1_047_000)])
async def test_headers_beyond_what_a_letter_takes_do_not_keep_it_from_being_stored(
    buried: Stage, headers: int, body: int
) -> None:
    block = header_block({"Big": "h" * headers})
    async with running(pulling(buried.nc, buried.consumer, poison)):
        whole = block + b"b" * body
        buried.nc._write(b"HPUB %b %d %d\r\n%b\r\n" % (buried.subject.encode(), len(block), len(whole), whole))
        await until(lambda: _count(buried), "it is buried")
        await buried.all_settled()
    (letter,) = await letters(buried)
    assert letter.headers["Dead-Letter-Reason"] == "query: missing"
    assert letter.data == b"b" * min(body, KEEP if "Truncated" in letter.headers else body)
    assert ("Big" in letter.headers) == (headers != 65_400)
    assert ("Truncated" in letter.headers) == (headers != 60_000 or body > 10)


async def test_a_long_id_in_the_reason_is_cut(buried: Stage) -> None:
    name = "i" * 5000

    async def unknown(_: Delivery) -> None:
        raise NotFound(f"no such document: {name}")

    async with running(pulling(buried.nc, buried.consumer, unknown)):
        await buried.publish(name.encode())
        await buried.all_settled()
    (letter,) = await letters(buried)
    assert letter.data == name.encode()
    assert letter.headers["Dead-Letter-Reason"] == f"no such document: {name}"[:1024]


@pytest.mark.parametrize("reason", ["half a \ud800 pair", "two\r\nlines: of it", "Ünïcode ✓", "", "\x00"])
async def test_any_reason_can_be_written_down(buried: Stage, reason: str) -> None:
    async def fail(_: Delivery) -> None:
        raise HandlerError(reason, stage="a\r\nb")

    async with running(pulling(buried.nc, buried.consumer, fail)):
        await buried.publish(b"body")
        await buried.all_settled()
    (letter,) = await letters(buried)
    assert letter.headers["Dead-Letter-Reason"].isprintable() or reason == "\x00"
    assert letter.headers["Dead-Letter-Stage"] == "a  b"


DANGEROUS = {
    "Nats-Expected-Stream": "another",
    "Nats-Expected-Last-Sequence": "77",
    "Nats-Expected-Last-Subject-Sequence": "77",
    "Nats-Expected-Last-Msg-Id": "x",
    "nats-msg-id": "mine",
    "Nats-TTL": "1s",
    "Nats-Rollup": "sub",
    "Nats-Batch-Id": "b",
    "Nats-Batch-Sequence": "2",
    "Nats-Incr": "+1",
    "Nats-Schedule": "@every 1s",
    "Dead-Letter-Reason": "forged",
    "Dead-Letter-Extra": "forged",
    "Truncated": "no",
}


@pytest.mark.parametrize("name", sorted(DANGEROUS))
async def test_headers_that_would_act_on_the_letter_are_not_copied(buried: Stage, name: str) -> None:
    """They arrive in a message as the server stored it, so it is put there without asking the server."""
    seen: list[dict[str, str]] = []

    async def tainted(delivery: Delivery) -> None:
        delivery.raw_headers = header_block({"X-Kept": "yes", name: DANGEROUS[name]})
        seen.append(delivery.headers)
        raise InvalidRequest("bad")

    async with running(pulling(buried.nc, buried.consumer, tainted)):
        await buried.publish(b"body")
        await buried.all_settled()
    (letter,) = await letters(buried)
    assert len(seen) == 1
    assert letter.headers["X-Kept"] == "yes"
    assert DANGEROUS[name] not in letter.headers.values()


async def test_more_deliveries_than_allowed_end_before_the_handler_runs(buried: Stage) -> None:
    async def fail(_: Delivery) -> None:
        raise KeyError("always")

    log = Log(fail)
    async with running(pulling(buried.nc, buried.consumer, log, max_deliveries=3)):
        await buried.publish(b"body")
        await buried.all_settled()
    assert log.attempts == [1, 2, 3]
    (letter,) = await letters(buried)
    assert letter.headers["Dead-Letter-Reason"] == "given up after 3 deliveries"
    assert letter.headers["Dead-Letter-Stage"] == "max_deliveries"
    assert letter.headers["Dead-Letter-Deliveries"] == "4"
    assert letter.headers["Dead-Letter-Type"] == "internal"


async def test_the_caller_is_answered_before_the_letter(buried: Stage) -> None:
    told: list[tuple[int, str]] = []

    async def refuse(delivery: Delivery, error: HandlerError) -> None:
        told.append((len(await letters(buried)), error.message))

    consumer = pulling(buried.nc, buried.consumer, poison)
    consumer._workers._refuse = refuse
    async with running(consumer):
        await buried.publish(b"body")
        await buried.all_settled()
    assert told == [(0, "query: missing")]
