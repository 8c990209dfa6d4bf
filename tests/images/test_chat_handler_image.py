"""The image of the chat handler, run as in production: read-only, not as root, against real servers."""

import asyncio
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager

from handler_core.connection import Connection
from handler_core.contract.chat import CHAT, ChatRequest
from handler_core.jetstream import Api
from handler_core.testing import ask
from handler_core.testing_images import Container
from handler_core.testing_voice import FakeModels

SERVICE = "chat_handler"

Start = Callable[..., AbstractContextManager[Container]]


async def test_it_answers_with_embedding_search_reranker_and_llm(
    start: Start, nc: Connection, models: str, milvus: str
) -> None:
    with start(SERVICE, LLM_URL=models, EMBEDDINGS_URL=models, RERANKER_URL=models, MILVUS_URI=milvus) as container:
        await container.ready()
        request = ChatRequest(
            query="How much water does a cactus need?", enable_streaming=True, request_id=uuid.uuid4().hex,
            filter={"rank": 1},
        )  # fmt: skip
        answered = await ask(nc, CHAT, "ai.chat.request", request)
        code, _, logged = await container.ended()
    response = answered.response
    assert response.error is None
    assert "water" in response.response
    assert answered.text == response.response
    assert [source.id for source in response.sources] == ["cactus"]
    assert [citation.source_id for citation in response.citations] == ["cactus"]
    assert response.degraded == []
    assert code == 0, logged


async def test_told_to_end_it_finishes_the_turn_it_is_in(start: Start, nc: Connection, fakes: FakeModels) -> None:
    go_on = asyncio.Event()
    fakes.llm.script = ["begun", go_on, " and finished"]
    request = ChatRequest(query="hello", request_id=uuid.uuid4().hex, enable_rag=False, enable_streaming=True)
    chunks = await nc.subscribe(CHAT.stream_subject(str(request.request_id)))
    with start(SERVICE, LLM_URL=fakes.url) as container:
        await container.ready()
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(ask(nc, CHAT, "ai.chat.request", request))
            await chunks.next_msg(10)
            ending = tasks.create_task(container.ended())
            await container.becomes(503)
            go_on.set()
    code, _, logged = ending.result()
    assert code == 0, logged
    answered = asked.result()
    assert answered.text == answered.response.response == "begun and finished"
    assert "restart" not in [event.type for event in answered.events]
    assert (await Api(nc).request("STREAM.INFO.AI_CHAT"))["state"]["messages"] == 0
