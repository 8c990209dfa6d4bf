"""The image of the development models: embeddings, answers, ears and a voice, all of its own."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from handler_core.audio import read_wav
from handler_core.testing_images import LOCAL_INFERENCE, Container

AUDIO = Path(__file__).parents[1] / "audio"

Start = Callable[..., AbstractContextManager[Container]]


@pytest.fixture
async def container(start: Start) -> AsyncIterator[Container]:
    with start(LOCAL_INFERENCE) as container:
        yield await container.ready()


@pytest.fixture
async def http(container: Container) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(container.url, raise_for_status=True) as session:
        yield session


async def test_its_embeddings_know_what_is_alike(http: aiohttp.ClientSession) -> None:
    texts = ["How much water does a cactus need?", "Water your succulents weekly.", "The train was late again."]
    async with http.post("/v1/embeddings", json={"input": texts, "model": "any"}) as answer:
        question, near, far = [each["embedding"] for each in (await answer.json())["data"]]
    assert math.dist(question, near) < math.dist(question, far)


async def test_it_streams_an_answer_from_the_sources_it_is_given(http: aiohttp.ClientSession) -> None:
    messages = [
        {"role": "system", "content": "Answer from the sources.\n\n[1] A cactus needs water, weekly at most."},
        {"role": "user", "content": "How much water does a cactus need?"},
    ]
    async with http.post("/v1/chat/completions", json={"messages": messages, "model": "any", "stream": True}) as answer:
        events = [line.decode().strip() async for line in answer.content if line.strip()]
    assert events[-1] == "data: [DONE]"
    told: list[Any] = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    words = [choice["delta"].get("content") or "" for event in told for choice in event["choices"]]
    assert len([word for word in words if word]) > 1, "it comes in pieces"
    assert "water" in "".join(words)


async def test_it_understands_what_is_said(http: aiohttp.ClientSession) -> None:
    form = aiohttp.FormData()
    form.add_field("file", (AUDIO / "dead_letter.wav").read_bytes(), filename="speech.wav", content_type="audio/wav")
    async with http.post("/v1/audio/transcriptions", data=form) as answer:
        assert (await answer.json())["text"] == "what is a dead letter"


async def test_it_speaks_and_understands_itself(http: aiohttp.ClientSession) -> None:
    async with http.post("/v1/audio/speech", json={"input": "What is a dead letter?", "model": "any"}) as answer:
        spoken = read_wav(await answer.read())
    assert 0.5 < spoken.format.seconds(len(spoken.pcm)) < 10
    assert max(spoken.pcm) > 0


async def test_it_ends_at_once_though_an_answer_is_under_way(start: Start) -> None:
    with start(LOCAL_INFERENCE, FAULTS__CHAT__TOKEN_DELAY_MS="60000") as container:
        await container.ready()
        body = {"messages": [{"role": "user", "content": "hello"}], "model": "any", "stream": True}
        url = f"{container.url}/v1/chat/completions"
        async with aiohttp.ClientSession() as session, session.post(url, json=body) as answer:
            await answer.content.readline()
            code, _, logged = await asyncio.wait_for(container.ended(), 20)
    assert code == 0, logged


async def test_numpys_masked_arrays_find_the_docstrings_that_they_build_on(container: Container) -> None:
    code = "import numpy.ma, numpy.lib.recfunctions; print(numpy.ma.arange(3).sum())"
    assert (await container.python(code)).strip() == "3"
