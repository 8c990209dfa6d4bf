"""Live sessions on real workers, some of which are killed, stopped or put to sleep in the middle of what is said.

`python -m stt_module` processes on one real NATS server. But in the last test the words are known to the sample
(`testing_speech`), so that one that got lost, or was heard twice, cannot hide.
"""

import contextlib
import json
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestServer

from handler_core import streams
from handler_core.audio import read_wav
from handler_core.connection import Connection
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, connection, nats_server, stored, until
from handler_core.testing_speech import Ears, Speaker, phrase, silence, word
from handler_core.testing_workers import Worker, service_process
from local_inference.app import create_app
from local_inference.echo import Echo
from local_inference.settings import Settings

AUDIO = Path(__file__).parents[1] / "audio"
TAKEOVER = streams.STT_MODULE.ack_wait + 5
SESSIONS = 20

pytestmark = pytest.mark.timeout(120)


async def sessions(worker: Worker) -> int:
    return await worker.metric("handler_stt_sessions")


@contextlib.contextmanager
def started(nats_url: str, stt_url: str) -> Iterator[Worker]:
    with service_process("stt_module", {"NATS_URL": nats_url, "STT_URL": stt_url, "PARTIALS": "false"}) as running:
        yield running


@pytest.fixture
def nats() -> Iterator[NatsServer]:
    with nats_server() as server:
        yield server


@pytest.fixture
async def nc(nats: NatsServer) -> AsyncIterator[Connection]:
    async with connection(nats.url) as nc:
        await streams.apply(Api(nc))
        yield nc


@pytest.fixture
async def ears() -> Ears:
    return Ears()


@pytest.fixture
async def workers(nats: NatsServer, nc: Connection, ears: Ears) -> AsyncIterator[list[Worker]]:
    async with TestServer(ears.app()) as server:
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(started(nats.url, str(server.make_url("")))) for _ in range(3)]
            for worker in workers:
                await until(worker.ready, "the worker is ready")
            yield workers


async def owner(workers: list[Worker]) -> Worker:
    """The worker that listens, where only one does."""
    [found] = [worker for worker in workers if await sessions(worker)]
    return found


async def none_waits(nc: Connection) -> bool:
    return await stored(nc, "AI_STT_SESSIONS", "ai.voice.session.*") == []


async def test_of_twenty_live_sessions_none_loses_a_word_when_a_worker_is_killed(
    nc: Connection, workers: list[Worker]
) -> None:
    speakers = [await Speaker(nc, f"live-{number}", numbered=True).listen() for number in range(SESSIONS)]
    for number, speaker in enumerate(speakers):
        await speaker.start(speaker_id=str(number))
        await speaker.say(1, 2 + number)
        await speaker.play(word(30) + word(31))  # in the middle of the second utterance …
    for number, speaker in enumerate(speakers):
        await speaker.hears([1, 2 + number])
    taken = [await sessions(worker) for worker in workers]
    assert sum(taken) == SESSIONS
    busiest = workers[taken.index(max(taken))]
    busiest.process.kill()  # … of all that it listens to
    for number, speaker in enumerate(speakers):
        await speaker.play(word(32) + silence(900))
        await speaker.say(100 + number)
    for number, speaker in enumerate(speakers):
        await until(lambda who=speaker: len(who.finals) >= 3, f"{speaker} goes on", timeout=TAKEOVER + 10)
        await speaker.hears([1, 2 + number], [30, 31, 32], [100 + number])
        await speaker.end()
    for number, speaker in enumerate(speakers):
        await speaker.sees("ended")
        await speaker.hears([1, 2 + number], [30, 31, 32], [100 + number])
        finals = [event for event in speaker.events if event.is_final]
        assert [event.sequence for event in finals] == [1, 2, 3]
        assert {event.speaker_id for event in finals} == {str(number)}
    assert sum(speaker.statuses.count("resumed") for speaker in speakers) == max(taken)
    await until(lambda: none_waits(nc), "all tickets are settled")
    assert await stored(nc, "DLQ", "dlq.>") == []


async def test_a_worker_that_slept_through_its_takeover_says_nothing_more(
    nc: Connection, workers: list[Worker]
) -> None:
    speaker = await Speaker(nc, "sleeper").listen()
    await speaker.say(1)
    await speaker.play(word(2))
    await speaker.hears([1])
    asleep = await owner(workers)
    asleep.process.send_signal(signal.SIGSTOP)
    await speaker.say(3)  # waits for it in its socket
    await until(lambda: "resumed" in speaker.statuses, "another worker has taken over", timeout=TAKEOVER)
    await speaker.hears([1], [2, 3])
    asleep.process.send_signal(signal.SIGCONT)
    await speaker.say(4)

    async def given_up() -> bool:
        return await asleep.metric("handler_messages_settled_total", 'outcome="abandoned"') == 1

    await until(given_up, "the one that slept has given up")
    await speaker.say(5)
    await speaker.end()
    await speaker.sees("ended")
    await speaker.hears([1], [2, 3], [4], [5])
    resumed = next(event for event in speaker.events if event.status == "resumed")
    after = speaker.events[speaker.events.index(resumed) :]
    assert {event.attempt for event in after} == {resumed.attempt}
    await until(asleep.ready, "it works on")
    await until(lambda: none_waits(nc), "the ticket is settled")


async def test_workers_that_are_replaced_one_after_the_other_are_not_noticed(
    nc: Connection, workers: list[Worker]
) -> None:
    """SIGTERM, as in a rollout, of each worker that listens: with a ticket that nobody else would get for an hour."""
    config: dict[str, Any] = {**streams.STT_MODULE.config(), "ack_wait": 3600 * streams.NANOSECONDS}
    body = {"stream_name": "AI_STT_SESSIONS", "config": config, "action": "update"}
    await Api(nc).request("CONSUMER.DURABLE.CREATE.AI_STT_SESSIONS.stt_module", body)
    speaker = await Speaker(nc, "rollout", numbered=True).listen()
    chunks = speaker.chunks(b"".join(phrase(*range(i, i + 4)) for i in range(1, 25, 4)))
    third = len(chunks) // 3
    left = list(workers)
    for part in range(3):
        for chunk in chunks[part * third : (part + 1) * third if part < 2 else len(chunks)]:
            await speaker.send(**chunk)
        await speaker.sees("resumed" if part else "started", times=part or 1)
        if part < 2:
            leaving = await owner(left)
            left.remove(leaving)
            leaving.process.terminate()
    await speaker.hears(*(list(range(i, i + 4)) for i in range(1, 25, 4)))
    await speaker.end()
    await speaker.sees("ended")
    for worker in workers:
        if worker not in left:
            assert worker.process.wait(10) == 0


async def test_real_speech_becomes_its_words_though_the_worker_dies_of_it(nats: NatsServer, nc: Connection) -> None:
    """From the sample audio through voice detection and a real recogniser; the worker is killed between two words."""
    texts = json.loads((AUDIO / "texts.json").read_text())
    names = ["dead_letter", "cancel_question", "messages_in_queue"]
    said = [bytes(read_wav((AUDIO / f"{name}.wav").read_bytes()).pcm) for name in names]
    async with TestServer(create_app(Settings(log_level="error"), Echo(dimensions=8))) as server:
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(started(nats.url, str(server.make_url("")))) for _ in range(2)]
            for worker in workers:
                await until(worker.ready, "the worker is ready")
            speaker = await Speaker(nc, "real", numbered=True).listen()
            await speaker.start(language="en")
            await speaker.play(said[0] + silence(1000) + said[1][: len(said[1]) // 2 // 640 * 640])
            await until(lambda: len(speaker.finals) == 1, "the first is heard")
            (await owner(workers)).process.kill()
            await speaker.play(said[1][len(said[1]) // 2 // 640 * 640 :] + silence(1000) + said[2] + silence(1000))
            await until(lambda: len(speaker.finals) == 3, "all is heard", timeout=TAKEOVER + 20)
    assert speaker.finals == [texts[f"{name}.wav"]["recognised"] for name in names]
    assert speaker.statuses[:2] == ["started", "resumed"]
