"""The image of the speech-to-text module, run as in production: live sessions, and voice detection in it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer

from handler_core.audio import read_wav
from handler_core.connection import Connection
from handler_core.testing import stored, until
from handler_core.testing_images import Container
from handler_core.testing_speech import Ears, Speaker, silence, word

SERVICE = "stt_module"
AUDIO = Path(__file__).parents[1] / "audio"

Start = Callable[..., AbstractContextManager[Container]]


@pytest.fixture
async def ears() -> AsyncIterator[tuple[Ears, str]]:
    """An endpoint that hears words which are known to the sample."""
    ears = Ears()
    async with TestServer(ears.app()) as server:
        yield ears, str(server.make_url(""))


async def test_real_speech_becomes_its_words(start: Start, nc: Connection, models: str) -> None:
    texts = json.loads((AUDIO / "texts.json").read_text())
    speaker = await Speaker(nc, "real", numbered=True).listen()
    with start(SERVICE, STT_URL=models, PARTIALS="false") as container:
        await container.ready()
        await speaker.start(language="en")
        for name in ("dead_letter.wav", "cancel_question.wav"):
            await speaker.play(bytes(read_wav((AUDIO / name).read_bytes()).pcm) + silence(1000))
        await until(lambda: len(speaker.finals) == 2, "both are heard", timeout=60)
        await speaker.end()
        await speaker.sees("ended")
        code, _, logged = await container.ended()
    assert speaker.finals == [texts[f"{name}.wav"]["recognised"] for name in ("dead_letter", "cancel_question")]
    assert speaker.errors == []
    assert code == 0, logged


async def test_told_to_end_it_hands_its_session_to_the_next_one_and_no_word_is_lost(
    start: Start, nc: Connection, ears: tuple[Ears, str]
) -> None:
    heard, url = ears
    speaker = await Speaker(nc, "live", numbered=True).listen()
    with start(SERVICE, STT_URL=url, PARTIALS="false") as first:
        await first.ready()
        await speaker.say(1, 2)
        await speaker.hears([1, 2])
        heard.open.clear()
        await speaker.say(3)
        await until(lambda: heard.waiting == 1, "an utterance is being transcribed")
        await speaker.play(word(4) + word(5))  # in the middle of the next one …
        async with asyncio.TaskGroup() as tasks:
            ending = tasks.create_task(first.ended())  # … it is told to end
            await until(lambda: heard.waiting == 0 or ending.done(), "it lets go, or waits")
            heard.open.set()
    code, _, logged = ending.result()
    assert code == 0, logged
    with start(SERVICE, STT_URL=url, PARTIALS="false") as second:
        await second.ready()
        await speaker.play(word(6) + silence(900))
        await speaker.hears([1, 2], [3], [4, 5, 6])
        await speaker.end()
        await speaker.sees("ended")
    assert speaker.errors == []
    assert await stored(nc, "DLQ", "dlq.>") == []
