"""Spoken turns between real processes: one dies in the middle of an answer and another goes on, nothing is heard twice;
and a live session asks, is answered, and interrupts.

`python -m voice_assistant` and `python -m stt_module` work on one real NATS server; the endpoints are fakes that tell
what they were asked.
"""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from handler_core import streams
from handler_core.audio import wav
from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.contract.voice import VOICE, VoiceEvent, VoiceRequest, VoiceResponse
from handler_core.jetstream import Api
from handler_core.memory import Memory
from handler_core.testing import NatsServer, connection, free_port, nats_server, process, stored, text_of, until
from handler_core.testing_speech import Ears, Speaker
from handler_core.testing_voice import SPEECH, FakeModels, fake_models, pcm_of, question_wav
from handler_core.voice_speech import standing

TAKEOVER = streams.VOICE_ASSISTANT.ack_wait + 5
SENTENCES = ["Water it once a week.", "In winter a cactus needs much less.", "Mind the pot."]

pytestmark = pytest.mark.timeout(120)


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
async def models() -> AsyncIterator[FakeModels]:
    async with fake_models() as models:
        yield models


@pytest.fixture
async def ears() -> AsyncIterator[tuple[Ears, str]]:
    ears = Ears()
    async with TestServer(ears.app()) as server:
        yield ears, str(server.make_url(""))


class Workers:
    """Processes, by what their health ports tell."""

    def __init__(self, nats: NatsServer, urls: dict[str, str], stack: contextlib.ExitStack) -> None:
        self._environment = {"NATS_URL": nats.url, "LOG_FORMAT": "json", "HEALTH_HOST": "127.0.0.1", **urls}
        self._stack = stack

    async def start(self, module: str, **environment: str) -> "Worker":
        port = free_port()
        own = {**self._environment, "HEALTH_PORT": str(port), **environment}
        worker = Worker(self._stack.enter_context(process(module, own)), port)
        await until(lambda: worker.answers("/readyz"), f"{module} is ready")
        return worker


class Worker:
    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.process = process
        self._url = f"http://127.0.0.1:{port}"

    async def answers(self, path: str, text: str = "") -> bool:
        try:
            async with aiohttp.ClientSession() as session, session.get(self._url + path) as answer:
                return answer.status == 200 and text in await answer.text()
        except aiohttp.ClientConnectionError:
            return False


@pytest.fixture
def workers(nats: NatsServer, nc: Connection, models: FakeModels) -> Iterator[Workers]:
    urls = dict.fromkeys(("LLM_URL", "STT_URL", "TTS_URL", "EMBEDDINGS_URL"), models.url)
    with contextlib.ExitStack() as stack:
        yield Workers(nats, urls, stack)


async def told(nc: Connection, request_id: str) -> list[VoiceEvent]:
    found = await stored(nc, "AI_EVENTS", f"evt.{VOICE.prefix}.stream.{request_id}")
    return [decode(event.data, VoiceEvent) for event in found]


async def answered(nc: Connection, request_id: str, timeout: float = 20.0) -> tuple[list[VoiceEvent], VoiceResponse]:
    """What the stream keeps of a turn, once it is over."""

    async def ended() -> bool:
        newest = await Api(nc).last("AI_EVENTS", f"evt.{VOICE.prefix}.stream.{request_id}")
        return newest is not None and decode(newest.data, VoiceEvent).done

    await until(ended, "the answer is whole", timeout=timeout)
    [final] = await stored(nc, "AI_EVENTS", f"evt.{VOICE.prefix}.{request_id}")
    return await told(nc, request_id), decode(final.data, VoiceResponse)


def pcm(*sentences: str) -> bytes:
    return b"".join(pcm_of(sentence, 80) for sentence in sentences)


@pytest.mark.parametrize("again", ["the same", "another"])
async def test_a_worker_that_is_killed_in_mid_answer_is_succeeded_and_nothing_is_heard_twice(
    nc: Connection, workers: Workers, models: FakeModels, again: str
) -> None:
    both = [await workers.start("voice_assistant") for _ in range(2)]
    models.llm.script = [f"{SENTENCES[0]} {SENTENCES[1]} M", asyncio.Event()]
    request = VoiceRequest(audio=question_wav(), request_id="r1", enable_rag=False, session_id="s1")
    await Api(nc).publish("ai.voice.request", encode(request), {})

    async def two_sentences() -> bool:
        return sum(event.last for event in await told(nc, "r1")) == 2

    await until(two_sentences, "two sentences are spoken")
    second = SENTENCES[1] if again == "the same" else "In summer it may want some more."
    models.llm.script = [f"{SENTENCES[0]} {second} {SENTENCES[2]}"]
    [busy] = [worker for worker in both if await worker.answers("/metrics", 'consumer="voice_assistant"} 1\n')]
    busy.process.kill()
    events, response = await answered(nc, "r1", timeout=TAKEOVER)

    assert response.success
    assert response.response == text_of(list(events)) == f"{SENTENCES[0]} {second} {SENTENCES[2]}"
    assert (models.stt.calls, [event.type for event in events].count("transcript")) == (1, 1)
    spoken = [SENTENCES[0], SENTENCES[1], *([] if again == "the same" else [second]), SENTENCES[2]]
    assert models.tts.spoken == spoken, "no sentence is synthesised twice"
    expected = pcm(SENTENCES[0], second, SENTENCES[2])
    assert b"".join(segment.audio for segment in standing(events)) == expected
    assert response.audio == wav(SPEECH, expected)
    numbers = [event.segment for event in events if event.type == "audio"]
    if again == "the same":
        assert numbers == list(range(response.audio_segments)), "no segment comes twice"
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [turn.response for turn in await Memory(nc).recall(None, "s1")] == [response.response]
    assert await stored(nc, "DLQ", "dlq.>") == []


async def test_a_live_session_asks_is_answered_and_interrupts(
    nc: Connection, workers: Workers, models: FakeModels, ears: tuple[Ears, str]
) -> None:
    await workers.start("voice_assistant")
    await workers.start("stt_module", STT_URL=ears[1], SESSION_USERS="true")
    alice = await Speaker(nc, "s1").listen()
    await alice.start(user_id="alice", turn={"enable_rag": False, "system_prompt": "Be brief."})
    models.llm.script = [f"{SENTENCES[0]} M", asyncio.Event()]
    await alice.say(1, 2, 3)
    await until(lambda: alice.finals, "the question is understood")
    first = str(next(event.request_id for event in alice.events if event.is_final))

    async def spoken() -> bool:
        return any(event.last for event in await told(nc, first))

    await until(spoken, "the first sentence is spoken")
    models.llm.script = list(SENTENCES[2])
    await alice.send(type="state_change", state="responding")
    await alice.say(4, 5, 6)
    events, response = await answered(nc, first)
    assert response.error is not None
    assert (response.error.type, response.transcription) == ("canceled", "w1 w2 w3")
    assert events[-1].type == "error"
    [interrupt] = [event for event in alice.events if event.type == "interrupt"]
    assert interrupt.request_id == first

    await until(lambda: len(alice.finals) == 2, "what was said instead is understood")
    second = str([event.request_id for event in alice.events if event.is_final][1])
    _, response = await answered(nc, second)
    assert (response.response, response.transcription) == (SENTENCES[2], "w4 w5 w6")
    assert response.audio == wav(SPEECH, pcm(SENTENCES[2]))
    said = [message["content"] for message in models.llm.prompts[-1]]
    assert said[:2] == ["Be brief.", "w1 w2 w3"]
    assert said[2].endswith("…")
    assert SENTENCES[0].startswith(said[2].removesuffix("…").strip())
    assert said[3:] == ["w4 w5 w6"]
    assert models.stt.calls == 0, "the session has heard it already"
    await alice.end()
