"""A thousand messages of each service's main job: asked as fast as it takes them, and each of them has to succeed."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import aiohttp
import msgpack

from handler_core import client
from handler_core.audio import PcmFormat, wav
from handler_core.codec import decode
from handler_core.connection import Connection
from handler_core.contract.answer import Response
from handler_core.contract.base import Request
from handler_core.contract.chat import CHAT, ChatRequest
from handler_core.contract.pipeline import STATUS_SUBJECT, TRIGGER_SUBJECT, PipelineStatus, RunStatus, TriggerRequest
from handler_core.contract.stt import STREAM_SUBJECT, TRANSCRIPTION_SUBJECT, TranscriptEvent
from handler_core.contract.tts import REQUEST_SUBJECT as SPEAK_SUBJECT
from handler_core.contract.tts import STATUS_SUBJECT as SPEECH_STATUS_SUBJECT
from handler_core.contract.tts import SpeakRequest, SpeechStatus
from handler_core.contract.voice import VOICE, VoiceRequest
from handler_core.jetstream import Api
from handler_core.testing import connection
from handler_core.testing_images import LOCAL_INFERENCE
from handler_core.testing_speech import RATE, phrase
from tools.images.starts import ReportError

PATIENCE = 300.0
"""Seconds for all messages of a job."""
CONCURRENCY = 32
"""Sessions that speak, and requests of embeddings, at once."""
SPOKEN = wav(PcmFormat(RATE), phrase(1, 2, 3))
CHUNK = RATE // 5 * 2
"""Bytes of 200 ms."""

Verdict = Callable[[bytes], str | None]
"""Of a message that was heard: None as long as it is not the end of a job, "" where it ended well, or what is wrong."""


async def do(service: str, messages: int, nats: str, url: str) -> None:
    """Have a service that is ready do its main job so many times.

    Args:
        url: of its own port, for what is asked over HTTP.

    Raises:
        ReportError: one of them failed, or not all were done in time.
    """
    try:
        async with asyncio.timeout(PATIENCE):
            if service == LOCAL_INFERENCE:
                await embed(url, messages)
                return
            async with connection(nats) as nc:
                await JOBS[service](nc, messages)
    except TimeoutError:
        raise ReportError(f"{service} did not do {messages} messages within {PATIENCE:g} s") from None


async def burst(nc: Connection, asked: Sequence[tuple[str, Request]], heard: str, verdict: Verdict) -> None:
    """Queue all requests, and wait until as many have ended."""
    ended, problems = 0, []
    done = asyncio.Event()

    async def on_message(message: Any) -> None:
        nonlocal ended
        if (problem := verdict(message.data)) is None:
            return
        ended += 1
        if problem:
            problems.append(problem)
        if problems or ended == len(asked):
            done.set()

    await nc.subscribe(heard, cb=on_message)
    api = Api(nc)
    for subject, request in asked:
        await client.publish(api, subject, request)
    await done.wait()
    if problems:
        raise ReportError(f"of {len(asked)} messages one failed: {problems[0]}")


def _id() -> str:
    return uuid.uuid4().hex


def _whole(model: type[Response]) -> Verdict:
    """A response that lacks nothing."""

    def verdict(data: bytes) -> str:
        response = decode(data, model)
        return str(response.error or ", ".join(response.degraded) or "")

    return verdict


# -- the jobs


async def chat(nc: Connection, messages: int) -> None:
    """Questions, answered from a passage, streamed."""
    questions = [
        ChatRequest(query=f"How much water do {number} cactuses need?", enable_streaming=True, request_id=_id())
        for number in range(messages)
    ]
    asked = [("ai.chat.request", question) for question in questions]
    await burst(nc, asked, CHAT.response_subject("*"), _whole(CHAT.response))


async def voice(nc: Connection, messages: int) -> None:
    """Spoken questions of two seconds, and spoken answers."""
    asked = [("ai.voice.request", VoiceRequest(audio=SPOKEN, request_id=_id())) for _ in range(messages)]
    await burst(nc, asked, VOICE.response_subject("*"), _whole(VOICE.response))


async def tts(nc: Connection, messages: int) -> None:
    """Texts of two sentences, each in a session of its own."""
    texts = [f"Cactus {number} needs water once a week. In winter it needs much less." for number in range(messages)]
    asked = [(SPEAK_SUBJECT.format(session=_id()), SpeakRequest(text=text, request_id=_id())) for text in texts]

    def verdict(data: bytes) -> str | None:
        status = decode(data, SpeechStatus)
        return {"started": None, "completed": ""}.get(status.status, str(status.error))

    await burst(nc, asked, SPEECH_STATUS_SUBJECT.format(session="*"), verdict)


async def pipeline(nc: Connection, messages: int) -> None:
    """Runs, followed to their success."""
    asked = [(TRIGGER_SUBJECT, TriggerRequest(pipeline="ingest", request_id=_id())) for _ in range(messages)]

    def verdict(data: bytes) -> str | None:
        status = decode(data, PipelineStatus)
        if not status.status.final:
            return None
        return "" if status.status is RunStatus.SUCCEEDED else f"{status.status}: {status.error}"

    await burst(nc, asked, STATUS_SUBJECT.format(request_id="*"), verdict)


async def stt(nc: Connection, messages: int) -> None:
    """Utterances, in live sessions that go on side by side: each message here is one utterance, in chunks of 200 ms."""
    left = iter(range(messages))

    async def speak(session: str) -> None:
        heard: asyncio.Queue[TranscriptEvent] = asyncio.Queue()

        async def on_event(message: Any) -> None:
            heard.put_nowait(decode(message.data, TranscriptEvent))

        async def until(condition: Callable[[TranscriptEvent], bool]) -> None:
            while not condition(event := await heard.get()):
                if event.error is not None:
                    raise ReportError(f"a live session failed: {event.error}")

        async def send(**message: Any) -> None:
            await nc.publish(STREAM_SUBJECT.format(session=session), msgpack.packb(message))

        subscription = await nc.subscribe(TRANSCRIPTION_SUBJECT.format(session=session), cb=on_event)
        for _ in left:
            spoken = phrase(1, 2, 3)
            for place in range(0, len(spoken), CHUNK):
                await send(type="chunk", audio=spoken[place : place + CHUNK])
            await until(lambda event: event.is_final)
        await send(type="end")
        await until(lambda event: event.status == "ended")
        await subscription.unsubscribe()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(CONCURRENCY, messages)):
            tasks.create_task(speak(_id()))


async def embed(url: str, messages: int) -> None:
    """Embeddings, of a text each."""
    left = iter(range(messages))

    async def ask(http: aiohttp.ClientSession) -> None:
        for number in left:
            body = {"input": f"How much water do {number} cactuses need?", "model": "any"}
            async with http.post("/v1/embeddings", json=body) as answer:
                await answer.read()

    async with aiohttp.ClientSession(url, raise_for_status=True) as http, asyncio.TaskGroup() as tasks:
        for _ in range(min(CONCURRENCY, messages)):
            tasks.create_task(ask(http))


JOBS: dict[str, Callable[[Connection, int], Awaitable[None]]] = {
    "chat_handler": chat,
    "voice_assistant": voice,
    "stt_module": stt,
    "tts_module": tts,
    "pipeline_bridge": pipeline,
}
