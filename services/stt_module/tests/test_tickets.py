"""No session is forgotten: its ticket is there as long as something of it is unheard, whatever becomes of the worker,
of the chunks' own tickets, or of the stream; and it is listened to once at a time."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgpack import packb

from handler_core import streams, upstreams
from handler_core.clients.http import new_session
from handler_core.connection import Connection
from handler_core.contract.stt import STREAM_SUBJECT
from handler_core.delivery import ACK, NAK, Delivery
from handler_core.errors import Abandoned, Transient
from handler_core.jetstream import MSG_ID, Api
from handler_core.telemetry import Metrics
from handler_core.testing import NatsServer, connection, guarded_server, login, serving, stored, until
from handler_core.testing_speech import Speaker, phrase
from stt_module import tickets
from stt_module.events import WAITING
from stt_module.meters import Meters
from stt_module.service import service
from stt_module.tickets import LostTickets, give_back
from stt_module.transcription import Transcriber
from stt_module.worker import Worker

from .conftest import SettingsFor, SpeakerFor

PAGE = Path(__file__).parents[3] / "docs" / "stt.md"
EXPECTING = {"Nats-Expected-Stream": "AI_STT"}
"""Headers of a chunk that AI_STT takes, and whose copy AI_STT_SESSIONS refuses."""


@pytest.fixture
def guarded() -> Iterator[NatsServer]:
    with guarded_server(PAGE) as server:
        yield server


async def waiting(nc: Connection) -> list[str]:
    """The sessions that have a ticket."""
    return [ticket.subject.rpartition(".")[2] for ticket in await stored(nc, "AI_STT_SESSIONS", "ai.voice.session.*")]


async def take(nc: Connection) -> Delivery:
    """The next ticket, as a worker gets it."""
    inbox = nc.new_inbox()
    subscription = await nc.subscribe(inbox)
    await nc.publish("$JS.API.CONSUMER.MSG.NEXT.AI_STT_SESSIONS.stt_module", b'{"batch":1}', reply=inbox)
    message = await subscription.next_msg(timeout=5)
    return Delivery(nc, message.subject.encode(), message.reply.encode(), message.data, None)


async def say_without_a_ticket(nc: Connection, speaker: Speaker, *words: int) -> None:
    for chunk in speaker.chunks(phrase(*words)):
        await Api(nc).publish(STREAM_SUBJECT.format(session=speaker.session), packb(chunk), EXPECTING)


async def until_none_waits(nc: Connection) -> None:
    async def none() -> bool:
        return await waiting(nc) == []

    await until(none, "the tickets are settled")


# -- giving a ticket back


async def test_what_is_said_right_behind_an_end_needs_no_second_ticket(
    settings: SettingsFor, speaker: SpeakerFor, nc: Connection
) -> None:
    """A worker killed at the first one's end leaves the ticket, and with it what came behind."""
    before = (await Api(nc).request("STREAM.INFO.AI_STT_SESSIONS"))["state"]["last_seq"]
    alice = await speaker()
    await alice.say(1)
    await alice.end()
    await alice.say(2)
    await alice.end()
    async with serving(service, settings()):
        await alice.hears([1], [2])
        await alice.sees("ended", times=2)
        await until_none_waits(nc)
    assert alice.statuses == ["started", "ended", "started", "ended"]
    assert (await Api(nc).request("STREAM.INFO.AI_STT_SESSIONS"))["state"]["last_seq"] == before + 1


async def test_a_worker_told_to_stop_while_it_gives_a_ticket_back_still_looks_for_what_came_since(
    nc: Connection, speaker: SpeakerFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await speaker()
    await Api(nc).publish(f"ai.voice.session.{alice.session}", b"", {})
    await say_without_a_ticket(nc, alice, 1)
    ticket = await take(nc)
    arrived, confirmations, ask = asyncio.Event(), [], Connection.ask

    async def slow(self: Connection, subject: str, payload: bytes, *, headers: bytes = b"", timeout: float) -> bytes:
        reply = await ask(self, subject, payload, headers=headers, timeout=timeout)
        if payload == ACK:
            confirmations.append(reply)
            if len(confirmations) == 1:
                arrived.set()
                await asyncio.Event().wait()  # the confirmation is on its way
        return reply

    monkeypatch.setattr(Connection, "ask", slow)
    async with asyncio.TaskGroup() as tasks:
        giving_back = tasks.create_task(give_back(nc, ticket, alice.session, 1))
        await arrived.wait()
        assert await waiting(nc) == []
        giving_back.cancel()
    assert giving_back.cancelled()
    assert await waiting(nc) == [alice.session]


# -- tickets that are missing


async def test_chunks_that_can_make_no_ticket_are_heard_all_the_same(
    guarded: NatsServer, settings: SettingsFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tickets, "FIND_EVERY", 0.1)
    own = {"nats_url": guarded.url, **login("stt_module", "s")}
    async with connection(guarded.url, nats_user="operator", nats_password="o") as provisioner:
        await streams.apply(Api(provisioner))
        async with serving(service, settings(**own)), connection(guarded.url, **login("alice", "x")) as nc:
            alice = await Speaker(nc, "alice-1").listen()
            await say_without_a_ticket(nc, alice, 1)
            await alice.hears([1])
            await alice.send(EXPECTING, type="end")
            await alice.sees("ended")
            await until_none_waits(provisioner)
            await say_without_a_ticket(nc, alice, 2)
            await alice.hears([1], [2])
            assert alice.statuses == ["started", "ended", "started"]
    assert guarded.violations("stt_module") == []


async def test_a_session_whose_worker_died_as_it_gave_the_ticket_back_gets_another(
    settings: SettingsFor, speaker: SpeakerFor, nc: Connection
) -> None:
    alice = await speaker()
    async with serving(service, settings()):
        await alice.say(1)
        await alice.end()
        await alice.sees("ended")
        await until_none_waits(nc)
    await say_without_a_ticket(nc, alice, 2)
    assert await waiting(nc) == []
    await LostTickets(nc).look()
    assert await waiting(nc) == [alice.session]
    async with serving(service, settings()):
        await alice.hears([1], [2])


async def test_a_session_that_was_heard_to_its_end_gets_no_ticket(
    settings: SettingsFor, speaker: SpeakerFor, nc: Connection
) -> None:
    alice, lost = await speaker(), LostTickets(nc)
    await lost.look()
    async with serving(service, settings()):
        await alice.say(1)
        await lost.look()  # while it is listened to
        await alice.end()
        await alice.sees("ended")
        await until_none_waits(nc)
    await lost.look()
    assert await waiting(nc) == []
    await Api(nc).request("STREAM.PURGE.AI_EVENTS")
    await lost.look()
    await LostTickets(nc).look()
    assert await waiting(nc) == [], "that its events are gone does not make it unheard"


async def test_a_session_is_looked_into_again_only_when_more_has_come(
    speaker: SpeakerFor, nc: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    request = Api.request

    async def listened(self: Api, operation: str, body: object = None) -> object:
        asked.append(operation)
        return await request(self, operation, body)  # type: ignore[arg-type]

    for _ in range(3):
        await say_without_a_ticket(nc, await speaker(), 1)
    lost = LostTickets(nc)
    await lost.look()
    monkeypatch.setattr(Api, "request", listened)
    await lost.look()
    assert asked == ["STREAM.INFO.AI_STT"]


# -- a stream made anew


async def make_anew(nc: Connection) -> None:
    await Api(nc).request("STREAM.DELETE.AI_STT")
    await Api(nc).request("STREAM.CREATE.AI_STT", streams.AI_STT.config())


async def test_an_ended_session_begins_again_in_a_stream_made_anew(
    settings: SettingsFor, speaker: SpeakerFor, nc: Connection
) -> None:
    alice = await speaker()
    async with serving(service, settings()):
        await alice.pause(4000)
        await alice.say(1)
        await alice.end()
        await alice.sees("ended")
        await until_none_waits(nc)
        await make_anew(nc)
        await alice.say(2)
        await alice.hears([1], [2])
        await alice.end()
        await alice.sees("ended", times=2)
        await until_none_waits(nc)
    assert alice.statuses == ["started", "ended", "started", "ended"]


async def test_a_session_goes_on_in_a_stream_made_anew(
    settings: SettingsFor, speaker: SpeakerFor, nc: Connection
) -> None:
    alice = await speaker()
    async with serving(service, settings()):
        await alice.pause(4000)
        await alice.say(1)
        await alice.hears([1])
    await make_anew(nc)
    await alice.start(speaker_id="alice")
    await alice.say(2)
    async with serving(service, settings()):
        await alice.hears([1], [2])
        await alice.end()
        await alice.sees("ended")
    finals = [event for event in alice.events if event.is_final]
    assert [event.sequence for event in finals] == [1, 2]
    assert finals[1].speaker_id == "alice"


# -- full workers


async def test_all_who_wait_are_told_however_many_they_are(
    settings: SettingsFor, speaker: SpeakerFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tickets, "LOOK_EVERY", 0.05)
    monkeypatch.setattr(tickets, "MOST_TOLD", 2)
    publish, failures = Api.publish, [1]

    async def refusing(self: Api, subject: str, payload: bytes, headers: dict[str, str]) -> int:
        if headers.get(MSG_ID, "").startswith(WAITING) and failures:
            raise Transient(f"the stream is busy, {failures.pop()}")
        return await publish(self, subject, payload, headers)

    monkeypatch.setattr(Api, "publish", refusing)
    async with serving(service, settings(max_sessions=1)):
        first = await speaker()
        await first.say(9)
        await first.hears([9])
        others = [await speaker() for _ in range(7)]
        for other in others:
            await other.pause(20)
        for other in others:
            await other.sees("waiting")
    assert failures == []
    assert all(other.statuses.count("waiting") == 1 for other in others)


# -- one at a time


async def test_a_worker_that_is_given_its_own_ticket_again_listens_on_as_if_nothing_were(
    settings: SettingsFor, speaker: SpeakerFor, nc: Connection
) -> None:
    alice = await speaker()
    async with serving(service, settings()) as runtime:
        await alice.say(1)
        await alice.hears([1])
        info = await Api(nc).request("CONSUMER.INFO.AI_STT_SESSIONS.stt_module")
        at = info["delivered"]
        await nc.publish(f"$JS.ACK.AI_STT_SESSIONS.stt_module.1.{at['stream_seq']}.{at['consumer_seq']}.1.0", NAK)
        received = 'handler_messages_received_total{stream="AI_STT_SESSIONS",consumer="stt_module"} 2'
        await until(lambda: received in runtime.metrics.render(), "it comes again")
        await alice.say(2)
        await alice.hears([1], [2])
        assert "handler_stt_sessions 1\n" in runtime.metrics.render()
        await alice.end()
        await alice.sees("ended")
        await until_none_waits(nc)
    assert "resumed" not in alice.statuses
    assert 'outcome="nak"} 0' in runtime.metrics.render()


async def test_of_two_tickets_of_one_session_the_later_waits_until_the_earlier_has_ended(
    settings: SettingsFor, nc: Connection
) -> None:
    order: list[str] = []
    listens = asyncio.Event()

    async def earlier() -> None:
        try:
            async with worker.owning("alice"):
                listens.set()
                await asyncio.Event().wait()
        except Abandoned:
            order.append("earlier has ended")

    metrics = Metrics()
    async with new_session() as http, asyncio.TaskGroup() as tasks:
        worker = Worker(nc, settings(), Transcriber(upstreams.stt(http, settings(), metrics), 1), Meters(metrics))
        tasks.create_task(earlier())
        await listens.wait()
        async with worker.owning("alice"):
            order.append("later begins")
    assert order == ["earlier has ended", "later begins"]
    assert not worker.owned
