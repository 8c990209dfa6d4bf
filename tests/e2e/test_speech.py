"""A text is spoken whole, and nothing of it twice, whatever becomes of the worker that speaks it.

Real processes: NATS, `tts_module` workers, and `local_inference` with a real voice, slowed down.
"""

import asyncio
import contextlib
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

from handler_core import streams
from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.contract.tts import AudioChunk, SpeakRequest, SpeechStatus
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, connection, free_port, nats_server, process, stored, until
from handler_core.testing_workers import Worker, service_process

TAKEOVER = streams.TTS_MODULE.ack_wait + 2
TEXT = (
    "When a worker dies in the middle of a sentence, another one takes over. It does not begin anew, for the caller "
    "has heard the first half already. It says what is missing, and only that. Nobody hears a word twice, and nobody "
    "misses one. That is all there is to it, and it is harder than it sounds."
)

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def nats() -> Iterator[NatsServer]:
    with nats_server() as server:
        yield server


@pytest.fixture
async def nc(nats: NatsServer) -> AsyncIterator[Connection]:
    async with connection(nats.url) as nc:
        await streams.apply(Api(nc))
        await Api(nc).request("STREAM.PURGE.AI_EVENTS")
        yield nc


@pytest.fixture(scope="module")
def models() -> Iterator[str]:
    """A voice whose sentences take a moment: 20 ms for each tenth of a second of sound."""
    port = free_port()
    environment = {"HOST": "127.0.0.1", "PORT": str(port), "ENGINE": "minilm", "LOG_FORMAT": "json",
                   "LOG_LEVEL": "error", "FAULTS__SPEECH__TOKEN_DELAY_MS": "20"}  # fmt: skip
    with process("local_inference", environment):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
async def workers(nats: NatsServer, nc: Connection, models: str) -> AsyncIterator[list[Worker]]:
    with contextlib.ExitStack() as stack:
        environment = {"NATS_URL": nats.url, "TTS_URL": models, "TTS_ENGINE": "openai", "CHUNK_BYTES": "8192"}
        workers = [stack.enter_context(service_process("tts_module", environment)) for _ in range(2)]
        for worker in workers:
            await until(worker.ready, "the worker is ready")
        await until(lambda: _answers(f"{models}/health"), "the voice is there", timeout=60)
        yield workers


async def _answers(url: str) -> bool:
    with contextlib.suppress(aiohttp.ClientConnectionError):
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return answer.status == 200
    return False


class Caller:
    """A listener in a session of its own, who was there before the request."""

    def __init__(self, nc: Connection) -> None:
        self.session = uuid.uuid4().hex
        self.chunks: list[AudioChunk] = []
        self.statuses: list[SpeechStatus] = []
        self._nc = nc

    async def ask(self) -> None:
        await self._nc.subscribe(f"ai.voice.tts.audio.{self.session}", cb=self._on_chunk)
        await self._nc.subscribe(f"ai.voice.tts.status.{self.session}", cb=self._on_status)
        request = SpeakRequest(text=TEXT, request_id=uuid.uuid4().hex)
        await Api(self._nc).publish(f"ai.voice.tts.request.{self.session}", encode(request), {})

    async def _on_chunk(self, message: Any) -> None:
        self.chunks.append(decode(message.data, AudioChunk))

    async def _on_status(self, message: Any) -> None:
        self.statuses.append(decode(message.data, SpeechStatus))

    @property
    def audio(self) -> bytes:
        return b"".join(chunk.audio for chunk in self.chunks)

    def attempts(self) -> set[int]:
        return {chunk.attempt for chunk in self.chunks}

    def ended(self) -> bool:
        return any(status.status != "started" for status in self.statuses)


async def undisturbed(nc: Connection) -> bytes:
    """The audio of the text as a worker speaks it that nothing happens to."""
    caller = Caller(nc)
    await caller.ask()
    await until(caller.ended, "the text is spoken")
    assert caller.attempts() == {1}
    return caller.audio


async def assert_whole(caller: Caller, nc: Connection) -> None:
    async def settled() -> bool:
        return int((await Api(nc).request("STREAM.INFO.AI_TTS"))["state"]["messages"]) == 0

    await until(settled, "the request is settled")
    kept = [decode(each.data, AudioChunk)
            for each in await stored(nc, "AI_EVENTS", f"evt.voice.tts.audio.{caller.session}")]  # fmt: skip
    await until(lambda: len(caller.chunks) == len(kept), "the listener has all that is stored")
    assert [chunk.chunk_index for chunk in caller.chunks] == list(range(len(kept)))
    assert [status.status for status in caller.statuses if status.status != "started"] == ["completed"]
    assert caller.chunks[-1].is_last
    assert caller.attempts() == {1, 2}
    assert caller.audio == await undisturbed(nc), "nothing is heard twice, and nothing is missing"
    assert await stored(nc, "DLQ", "dlq.>") == []


async def begin(caller: Caller, workers: list[Worker]) -> tuple[Worker, Worker]:
    """Ask, wait until it is in the middle, and tell the worker that speaks from the other."""
    await caller.ask()
    await until(lambda: caller.chunks and caller.chunks[-1].sentence >= 1, "it is in the middle")
    [busy] = [worker for worker in workers if await worker.busy()]
    [other] = [worker for worker in workers if worker is not busy]
    return busy, other


async def test_a_worker_that_is_killed_is_succeeded_by_another(nc: Connection, workers: list[Worker]) -> None:
    caller = Caller(nc)
    busy, _ = await begin(caller, workers)
    busy.process.kill()
    await until(lambda: 2 in caller.attempts(), "another worker has taken over", timeout=TAKEOVER + 5)
    await until(caller.ended, "the text is spoken")
    await assert_whole(caller, nc)


@pytest.mark.parametrize("wakes", ["while the other speaks", "after the other has spoken"])
async def test_a_worker_that_wakes_up_again_finds_the_speech_taken_over(
    nc: Connection, workers: list[Worker], wakes: str
) -> None:
    caller = Caller(nc)
    asleep, other = await begin(caller, workers)
    asleep.process.send_signal(signal.SIGSTOP)
    if wakes == "while the other speaks":
        await until(lambda: 2 in caller.attempts(), "another worker has taken over", timeout=TAKEOVER + 5)
    else:
        await until(caller.ended, "the text is spoken", timeout=TAKEOVER + 15)
    asleep.process.send_signal(signal.SIGCONT)
    await until(caller.ended, "the text is spoken")
    await until(asleep.idle, "the one that slept has given up")
    await until(other.idle, "the other is done")
    assert await asleep.metric("handler_messages_settled_total", 'outcome="nak"') == 0
    await assert_whole(caller, nc)
    await until(asleep.ready, "the one that slept works on")


async def test_a_worker_told_to_end_finishes_what_it_speaks(nc: Connection, workers: list[Worker]) -> None:
    caller = Caller(nc)
    busy, _ = await begin(caller, workers)
    busy.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(busy.process.wait, 30) == 0
    await until(caller.ended, "the text is spoken")
    assert caller.attempts() == {1}
    assert caller.audio == await undisturbed(nc)
