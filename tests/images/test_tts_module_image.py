"""The image of the text-to-speech module, run as in production."""

import asyncio
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from handler_core.codec import decode, encode
from handler_core.connection import Connection
from handler_core.contract.tts import (
    AUDIO_SUBJECT,
    REQUEST_SUBJECT,
    STATUS_SUBJECT,
    VOICES_SUBJECT,
    AudioChunk,
    SpeakRequest,
    SpeechStatus,
    VoicesRequest,
    VoicesResponse,
)
from handler_core.jetstream import Api
from handler_core.testing import until
from handler_core.testing_images import Container
from handler_core.testing_voice import FakeModels, pcm_of

SERVICE = "tts_module"
SENTENCES = ["Water it once a week.", "In winter a cactus needs much less.", "Mind the pot."]

Start = Callable[..., AbstractContextManager[Container]]


class Caller:
    """Asks for a text to be spoken, and keeps what comes."""

    def __init__(self, nc: Connection) -> None:
        self.session = uuid.uuid4().hex
        self.chunks: list[AudioChunk] = []
        self.statuses: list[str] = []
        self._nc = nc

    async def ask(self) -> None:
        await self._nc.subscribe(AUDIO_SUBJECT.format(session=self.session), cb=self._on_chunk)
        await self._nc.subscribe(STATUS_SUBJECT.format(session=self.session), cb=self._on_status)
        request = SpeakRequest(text=" ".join(SENTENCES), request_id=uuid.uuid4().hex)
        await Api(self._nc).publish(REQUEST_SUBJECT.format(session=self.session), encode(request), {})

    async def _on_chunk(self, message: Any) -> None:
        self.chunks.append(decode(message.data, AudioChunk))

    async def _on_status(self, message: Any) -> None:
        self.statuses.append(decode(message.data, SpeechStatus).status)

    @property
    def audio(self) -> bytes:
        return b"".join(chunk.audio for chunk in self.chunks)

    async def told(self, status: str) -> None:
        await until(lambda: status in self.statuses, f"the text is {status}")


async def test_it_speaks_a_text_in_chunks_and_knows_the_voices(start: Start, nc: Connection, models: str) -> None:
    caller = Caller(nc)
    with start(SERVICE, TTS_URL=models) as container:
        await container.ready()
        await caller.ask()
        await caller.told("completed")
        answer = await nc.request(VOICES_SUBJECT, encode(VoicesRequest()), timeout=10)
        code, _, logged = await container.ended()
    assert [chunk.chunk_index for chunk in caller.chunks] == list(range(len(caller.chunks)))
    assert [chunk.is_last for chunk in caller.chunks] == [False] * (len(caller.chunks) - 1) + [True]
    first = caller.chunks[0]
    assert len(caller.audio) > 2 * first.sample_rate * first.width, "some seconds"
    assert any(caller.audio), "that are not silent"
    assert decode(answer.data, VoicesResponse).voices
    assert code == 0, logged


async def test_told_to_end_it_finishes_the_text_it_speaks(start: Start, nc: Connection, fakes: FakeModels) -> None:
    go_on = fakes.tts.gates[SENTENCES[1]] = asyncio.Event()
    caller = Caller(nc)
    with start(SERVICE, TTS_URL=fakes.url, TTS_ENGINE="openai") as container:
        await container.ready()
        await caller.ask()
        await until(lambda: caller.chunks, "it is in the middle")
        async with asyncio.TaskGroup() as tasks:
            ending = tasks.create_task(container.ended())
            await container.becomes(503)
            go_on.set()
    code, _, logged = ending.result()
    assert code == 0, logged
    await caller.told("completed")
    assert caller.audio == b"".join(pcm_of(sentence, fakes.tts.per_character) for sentence in SENTENCES)
    assert {chunk.attempt for chunk in caller.chunks} == {1}
    assert (await Api(nc).request("STREAM.INFO.AI_TTS"))["state"]["messages"] == 0
