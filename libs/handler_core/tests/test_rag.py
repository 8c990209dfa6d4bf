"""Answering, over real HTTP and a real Milvus Lite server: the whole pipeline, and each way in which it fails."""

import asyncio
import dataclasses
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from aiohttp.typedefs import Handler

from handler_core import prompt
from handler_core.clients.embeddings import Embeddings
from handler_core.clients.http import Backoff, Upstream, new_session
from handler_core.clients.llm import LLM
from handler_core.clients.reranker import Reranker
from handler_core.contract.chat import ChatRequest, ChatResponse
from handler_core.contract.session import SessionTurn
from handler_core.deadline import Deadline
from handler_core.errors import (
    DeadlineExceeded,
    DownstreamUnavailable,
    HandlerError,
    Internal,
    InvalidRequest,
    NotFound,
)
from handler_core.rag import Rag, answer
from handler_core.testing import until
from handler_core.testing_milvus import milvus_lite_server
from handler_core.timings import Timings
from handler_core.vectors import Row, VectorStore
from local_inference.accounting import FAULTS, STATS
from local_inference.app import create_app
from local_inference.echo import Echo
from local_inference.engine import Engine, MiniLM
from local_inference.faults import Fault, Faults
from local_inference.settings import Settings

QUERY = "cactus water weekly"
PASSAGES = {
    # By falling similarity to the question. The reranker of the echo engine counts words, and so turns them round.
    "near": "Nothing to the point.",
    "middle": "A cactus is a plant.",
    "far": "A cactus needs water, weekly at most.",
}
NOWHERE = "http://127.0.0.1:9"
FAST = Backoff(initial=0.001, maximum=0.01, jitter=0.001)


@dataclass
class Models:
    """A running `local_inference`, and what it was asked."""

    engine: Engine
    url: str = ""
    seen: list[tuple[str, Any]] = field(default_factory=list)
    app: web.Application = field(default_factory=web.Application)

    async def start(self, stack: AsyncExitStack) -> "Models":
        @web.middleware
        async def record(request: web.Request, handler: Handler) -> web.StreamResponse:
            self.seen.append((request.path, json.loads(await request.read())))
            return await handler(request)

        self.app = create_app(Settings(), self.engine)
        self.app.middlewares.insert(0, record)
        server = await stack.enter_async_context(TestServer(self.app))
        self.url = str(server.make_url("")).rstrip("/")
        return self

    def fail(self, **faults: Fault) -> None:
        self.app[FAULTS].set(Faults(**faults))

    def stats(self, family: str) -> Any:
        return getattr(self.app[STATS], family)

    def asked(self, path: str) -> list[Any]:
        return [body for seen, body in self.seen if seen == path]


@pytest.fixture(scope="module")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Milvus Lite with `documents`, whose passages are `PASSAGES`; `real`, embedded by MiniLM; and `other`."""
    with milvus_lite_server(tmp_path_factory.mktemp("milvus")) as uri:
        asyncio.run(fill(uri))
        yield uri


async def fill(uri: str) -> None:
    engine = Echo(dimensions=16)
    towards = (await engine.embed([QUERY])).vectors[0]
    async with VectorStore(uri) as store:
        await store.ensure_collection("documents", 16)
        rows = []
        for turned, (name, text) in enumerate(PASSAGES.items()):
            vector = [-x for x in towards[: 3 * turned]] + towards[3 * turned :]
            metadata = {"title": name.title(), "rank": turned}
            rows.append(Row(name, text, f"{name}.md", "hash", metadata, vector))
        await store.upsert("documents", rows)
        await store.ensure_collection("other", 2)
        await store.upsert("other", [Row("a", "text", "a.md", "hash", {}, [1.0, 0.0])])
        await store.ensure_collection("empty", 16)


@pytest.fixture
async def models() -> AsyncIterator[Models]:
    async with AsyncExitStack() as stack:
        yield await Models(Echo(dimensions=16, tokens=5)).start(stack)


@pytest.fixture
async def clients(milvus: str, models: Models) -> AsyncIterator[Rag]:
    async with new_session() as session, VectorStore(milvus) as store:

        def upstream(name: str) -> Upstream:
            return Upstream(session, name, models.url, backoff=FAST, attempts=2)

        yield Rag(
            llm=LLM(upstream("llm"), "default-model"),
            embeddings=Embeddings(upstream("embeddings"), None),
            reranker=Reranker(upstream("reranker"), None),
            store=store,
        )


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


async def ask(clients: Rag, deadline: Deadline | None = None, **request: Any) -> tuple[list[str], ChatResponse]:
    """The streamed pieces and the response, which comes once and last."""
    asked = ChatRequest(**{"query": QUERY, **request})
    async with aclosing(answer(clients, asked, deadline=deadline)) as produced:
        *pieces, response = [item async for item in produced]
    assert isinstance(response, ChatResponse)
    assert "".join(map(str, pieces)) == response.response
    return [str(piece) for piece in pieces], response


class Teller:
    """An LLM endpoint that says what it is told to.

    Strings are words, dicts whole deltas; events are waited for; None cuts the connection.
    """

    def __init__(self) -> None:
        self.url = ""
        self.script: list[str | dict[str, str] | asyncio.Event | None] = []

    async def complete(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for step in self.script:
            if isinstance(step, asyncio.Event):
                await step.wait()
            elif step is None:
                assert request.transport is not None
                request.transport.close()
                return response
            else:
                delta = {"content": step} if isinstance(step, str) else step
                chunk = {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
                await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
        await response.write(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')
        return response


@pytest.fixture
async def teller(clients: Rag) -> AsyncIterator[tuple[Teller, Rag]]:
    """A scripted LLM, and clients that use it."""
    told = Teller()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", told.complete)
    async with TestServer(app) as server, new_session() as session:
        upstream = Upstream(session, "llm", str(server.make_url("")), backoff=FAST, attempts=1)
        yield told, dataclasses.replace(clients, llm=LLM(upstream, "m"))


# -- the whole way


async def test_a_question_is_embedded_searched_reranked_and_answered(clients: Rag, models: Models) -> None:
    pieces, response = await ask(clients)
    assert response.response == "token token token token end."
    assert len(pieces) == 5, "each token is handed on by itself"
    assert [source.id for source in response.sources] == ["far", "middle", "near"]
    assert [source.score for source in response.sources] == pytest.approx([1, 1 / 3, 0])
    assert response.sources[0].metadata == {"source": "far.md", "title": "Far", "rank": 2}
    assert (response.used_rag, response.degraded, response.error) == (True, [], None)
    assert response.usage.completion_tokens == 5
    stages = {"embed_ms", "search_ms", "rerank_ms", "llm_first_token_ms", "llm_ms", "total_ms"}
    assert response.timings.keys() == stages
    assert response.timings["llm_first_token_ms"] <= response.timings["llm_ms"] <= response.timings["total_ms"]
    [chat] = models.asked("/v1/chat/completions")
    system, user = chat["messages"]
    assert system["content"].endswith(f"\n\n[1] Far\n{PASSAGES['far']}\n\n[2] Middle\nA cactus is a plant.\n\n"
                                      "[3] Near\nNothing to the point.")  # fmt: skip
    assert user == {"role": "user", "content": QUERY}


async def test_markers_in_the_text_become_citations_and_are_never_cut(teller: tuple[Teller, Rag]) -> None:
    told, clients = teller
    told.script = ["Water", " it", " [", "1", ",", " 2", "]", ", not", " a", "[", "0", "]", " or [9", "]", " ["]
    pieces, response = await ask(clients)
    assert response.response == "Water it [1, 2], not a[0] or [9] ["
    assert [(c.index, c.source_id, c.start) for c in response.citations] == [(1, "far", 9), (2, "middle", 9)]
    assert "[1, 2]" in pieces


async def test_a_piece_is_handed_on_while_the_upstream_still_waits(teller: tuple[Teller, Rag]) -> None:
    told, clients = teller
    go_on = asyncio.Event()
    told.script = ["first", go_on, " second"]
    async with aclosing(answer(clients, ChatRequest(query=QUERY))) as produced:
        assert await anext(produced) == "first"
        go_on.set()
        assert [item async for item in produced if isinstance(item, str)] == [" second"]


async def test_real_embeddings_find_the_passage_and_the_answer_cites_it(milvus: str) -> None:
    engine = MiniLM()
    await engine.start()
    texts = {
        "moon": "The Moon is about 384,400 kilometres away from the Earth.",
        "bread": "Bread dough rises because yeast ferments sugar into carbon dioxide.",
        "cat": "Cats sleep between twelve and sixteen hours on an ordinary day.",
    }
    async with AsyncExitStack() as stack:
        stack.callback(engine.close)
        models = await Models(engine).start(stack)
        store = await stack.enter_async_context(VectorStore(milvus))
        upstream = Upstream(await stack.enter_async_context(new_session()), "models", models.url)
        embeddings = Embeddings(upstream, None)
        vectors = await embeddings.embed(list(texts.values()), deadline=Deadline.never())
        await store.ensure_collection("real", len(vectors[0]))
        named = zip(texts.items(), vectors, strict=True)
        await store.upsert("real", [Row(name, text, "s", "h", {}, vector) for (name, text), vector in named])
        clients = Rag(LLM(upstream, "m"), embeddings, store, Reranker(upstream, None), collection="real")

        _, response = await ask(clients, query="How far away is the Moon from the Earth?", top_k=2)

    assert response.sources[0].id == "moon"
    assert "384,400 kilometres" in response.response
    assert (response.citations[0].index, response.citations[0].source_id) == (1, "moon")


# -- what a request may ask for


async def test_model_temperature_max_tokens_and_system_prompt_reach_the_llm(clients: Rag, models: Models) -> None:
    _, response = await ask(clients, model="big", temperature=0.25, max_tokens=3, system_prompt="Be a pirate.")
    [chat] = models.asked("/v1/chat/completions")
    assert (chat["model"], chat["temperature"], chat["max_tokens"]) == ("big", 0.25, 3)
    assert chat["messages"][0]["content"].startswith("Be a pirate.\n\nPassages:\n\n[1] Far\n")
    assert response.response == "token token token", "the model heeds max_tokens"


async def test_what_a_request_leaves_open_is_left_to_the_llm(clients: Rag, models: Models) -> None:
    await ask(clients)
    [chat] = models.asked("/v1/chat/completions")
    assert chat["model"] == "default-model"
    assert not {"temperature", "max_tokens"} & chat.keys()


@pytest.mark.parametrize(("premium", "model"), [(True, "gold"), (False, "default-model")])
async def test_premium_requests_go_to_the_premium_endpoint(clients: Rag, premium: bool, model: str) -> None:
    async with AsyncExitStack() as stack:
        gold = await Models(Echo(dimensions=16, tokens=2)).start(stack)
        upstream = Upstream(await stack.enter_async_context(new_session()), "llm_premium", gold.url)
        _, response = await ask(dataclasses.replace(clients, premium=LLM(upstream, "gold")), premium=premium)
        assert [body["model"] for body in gold.asked("/v1/chat/completions")] == (["gold"] if premium else [])
    assert response.response == ("token end." if premium else "token token token token end.")


async def test_a_premium_request_is_answered_by_the_llm_where_there_is_no_other(clients: Rag) -> None:
    _, response = await ask(clients, premium=True)
    assert (response.response, response.degraded) == ("token token token token end.", [])


async def test_without_rag_neither_embeddings_nor_vectors_are_asked(clients: Rag, models: Models) -> None:
    _, response = await ask(dataclasses.replace(clients, store=VectorStore(NOWHERE)), enable_rag=False)
    assert [path for path, _ in models.seen] == ["/v1/chat/completions"]
    assert (response.used_rag, response.sources, response.degraded) == (False, [], [])
    assert response.timings.keys() == {"llm_first_token_ms", "llm_ms", "total_ms"}


@pytest.mark.parametrize("configured", [True, False])
async def test_without_reranking_sources_keep_the_order_of_the_search(
    clients: Rag, models: Models, configured: bool
) -> None:
    if not configured:
        clients = dataclasses.replace(clients, reranker=None)
    _, response = await ask(clients, enable_reranker=not configured, top_k=2)
    assert [source.id for source in response.sources] == ["near", "middle"]
    assert models.stats("rerank").requests == 0
    assert (response.degraded, "rerank_ms" in response.timings) == ([], False)


async def test_the_reranker_chooses_among_more_passages_than_are_wanted(clients: Rag, models: Models) -> None:
    _, response = await ask(clients, top_k=1)
    assert [source.id for source in response.sources] == ["far"]
    assert len(models.asked("/rerank")[0]["texts"]) == 3


async def test_a_filter_narrows_the_sources(clients: Rag) -> None:
    _, response = await ask(clients, filter={"rank": {"lt": 2}})
    assert {source.id for source in response.sources} == {"near", "middle"}


async def test_a_collection_that_has_nothing_gives_an_answer_without_sources(clients: Rag, models: Models) -> None:
    _, response = await ask(clients, collection="empty")
    assert (response.sources, response.used_rag, response.degraded) == ([], False, [])
    assert models.stats("rerank").requests == 0
    assert response.response


async def test_sources_that_exceed_the_prompts_budget_are_cut(clients: Rag) -> None:
    _, response = await ask(dataclasses.replace(clients, prompt_tokens=50), system_prompt="Be brief.")
    assert [source.id for source in response.sources] == ["far"]
    assert response.used_rag


async def test_speech_is_not_offered_and_that_is_said(clients: Rag) -> None:
    _, response = await ask(clients, enable_tts=True)
    assert (response.degraded, response.audio) == (["tts"], None)


# -- what was said before, and who asks


async def test_what_was_said_before_stands_between_the_passages_and_the_question(clients: Rag, models: Models) -> None:
    history = [SessionTurn(request_id="r1", query="Is it green?", response="It is.", timestamp=0.0)]
    async with aclosing(answer(clients, ChatRequest(query=QUERY), history=history)) as produced:
        *_, response = [item async for item in produced]
    [chat] = models.asked("/v1/chat/completions")
    assert [message["role"] for message in chat["messages"]] == ["system", "user", "assistant", "user"]
    assert [message["content"] for message in chat["messages"][1:]] == ["Is it green?", "It is.", QUERY]
    assert models.asked("/v1/embeddings")[0]["input"] == [QUERY], "only the question is searched for"
    assert isinstance(response, ChatResponse)
    assert len(response.sources) == 3


async def test_a_long_history_is_cut_and_leaves_the_question_and_half_of_the_room(clients: Rag, models: Models) -> None:
    history = [SessionTurn(request_id="r1", query="x" * 3500, response="y" * 3500, timestamp=0.0)]
    tight = dataclasses.replace(clients, prompt_tokens=256)
    async with aclosing(answer(tight, ChatRequest(query=QUERY), history=history)) as produced:
        *_, response = [item async for item in produced]
    [chat] = models.asked("/v1/chat/completions")
    assert chat["messages"][-1]["content"] == QUERY
    assert sum(prompt.tokens(message["content"]) for message in chat["messages"]) <= 256
    assert chat["messages"][1]["content"].startswith("xxx")
    assert isinstance(response, ChatResponse)
    assert (response.used_rag, response.degraded) == (True, [])


@pytest.mark.parametrize(
    ("collection", "user"),
    [(None, None), ("documents", None), ("empty", None), ("other_bob", "bob"), ("bob_bob", "bob")],
)
async def test_a_collection_that_is_allowed_passes(
    clients: Rag, models: Models, collection: str | None, user: str | None
) -> None:
    limited = dataclasses.replace(clients, allowed=frozenset({"empty", "other_{user}", "{user}_{user}"}))
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(VectorStore(NOWHERE, timeout=0.3))
        _, response = await ask(dataclasses.replace(limited, store=store), collection=collection, user_id=user)
    assert response.degraded == ["vectors"]


@pytest.mark.parametrize(
    ("collection", "user"),
    [("other", None), ("other_bob", "alice"), ("other_bob", None), ("other_", None), ("other_user", None)],
)
async def test_a_collection_that_is_not_allowed_is_refused_before_anybody_is_asked(
    clients: Rag, models: Models, collection: str, user: str | None
) -> None:
    limited = dataclasses.replace(clients, allowed=frozenset({"empty", "other_{user}"}))
    error = await failure(limited, collection=collection, user_id=user)
    assert (type(error), error.stage) == (InvalidRequest, "decode")
    assert error.message == f"collection: {collection} is none of those that may be searched"
    assert models.seen == []


async def test_without_a_list_any_collection_may_be_named(clients: Rag) -> None:
    error = await failure(clients, collection="missing", user_id="bob")
    assert type(error) is NotFound


# -- what it can do without


async def test_without_embeddings_it_answers_without_sources(clients: Rag, models: Models) -> None:
    models.fail(embeddings=Fault(error_rate=1))
    _, response = await ask(clients)
    assert (response.degraded, response.sources, response.used_rag) == (["embeddings"], [], False)
    assert response.response
    assert models.stats("embeddings").requests == 2, "a 503 is tried again"


async def test_without_milvus_it_answers_without_sources(clients: Rag) -> None:
    async with VectorStore(NOWHERE, timeout=0.3) as store:
        _, response = await ask(dataclasses.replace(clients, store=store))
    assert (response.degraded, response.sources, bool(response.response)) == (["vectors"], [], True)


@pytest.mark.parametrize("collection", ["missing", "other"])
async def test_without_a_usable_default_collection_it_answers_without_sources(clients: Rag, collection: str) -> None:
    _, response = await ask(dataclasses.replace(clients, collection=collection))
    assert (response.degraded, response.sources, bool(response.response)) == (["vectors"], [], True)


@pytest.mark.parametrize(
    "fault", [Fault(error_rate=1), Fault(error_rate=1, error_status=400), Fault(cut_after_tokens=0)]
)
async def test_without_the_reranker_it_answers_in_the_order_of_the_search(
    clients: Rag, models: Models, fault: Fault
) -> None:
    models.fail(rerank=fault)
    _, response = await ask(clients, top_k=2)
    assert (response.degraded, [source.id for source in response.sources]) == (["reranker"], ["near", "middle"])


@pytest.mark.parametrize("garbage", [b"<html>", b"{}", b'[{"index": 7, "score": 1}]', b'[{"index": 0, "score": NaN}]'])
async def test_a_reranker_that_makes_no_sense_is_done_without(clients: Rag, garbage: bytes) -> None:
    async def rerank(request: web.Request) -> web.Response:
        return web.Response(body=garbage, content_type="application/json")

    app = web.Application()
    app.router.add_post("/rerank", rerank)
    async with TestServer(app) as server, new_session() as session:
        reranker = Reranker(Upstream(session, "reranker", str(server.make_url("")), backoff=FAST), None)
        _, response = await ask(dataclasses.replace(clients, reranker=reranker), top_k=2)
    assert (response.degraded, [source.id for source in response.sources]) == (["reranker"], ["near", "middle"])


@pytest.mark.parametrize(("family", "without"), [("embeddings", "embeddings"), ("rerank", "reranker")])
async def test_an_upstream_that_hangs_is_done_without_after_its_own_timeout(
    clients: Rag, models: Models, family: str, without: str
) -> None:
    models.fail(**{family: Fault(hang=True)})
    clients.embeddings.upstream.timeout = 30 if family == "rerank" else 0.1
    assert clients.reranker is not None
    clients.reranker.upstream.timeout = 0.1
    _, response = await ask(clients, Deadline.after(30))
    assert (response.degraded, bool(response.response)) == ([without], True)
    assert models.stats(family).requests == 1, "one that hangs is not asked twice"
    await until(lambda: models.stats(family).aborted == 1, "it saw the call being given up")


async def test_an_llm_that_breaks_off_leaves_what_it_said(clients: Rag, models: Models) -> None:
    models.fail(chat=Fault(cut_after_tokens=3))
    _, response = await ask(clients)
    assert (response.response, response.degraded) == ("token token token", ["llm_truncated"])
    assert models.stats("chat").requests == 1


async def test_an_llm_that_falls_silent_leaves_what_it_said(teller: tuple[Teller, Rag]) -> None:
    told, clients = teller
    clients.llm.idle_timeout = 0.2
    told.script = ["It is [1", asyncio.Event()]
    _, response = await ask(clients)
    assert (response.response, response.degraded) == ("It is [1", ["llm_truncated"])


# -- what it cannot do without


async def failure(clients: Rag, deadline: Deadline | None = None, **request: Any) -> HandlerError:
    with pytest.raises(HandlerError) as caught:
        await ask(clients, deadline, **request)
    return caught.value


async def test_a_collection_that_the_request_names_must_exist(clients: Rag) -> None:
    error = await failure(clients, collection="missing")
    assert (type(error), error.stage, error.retryable) == (NotFound, "search", False)


async def test_a_collection_that_the_request_names_must_hold_vectors_of_this_model(clients: Rag) -> None:
    error = await failure(clients, collection="other")
    assert (type(error), error.stage) == (Internal, "search")


async def test_a_filter_that_cannot_be_expressed_is_named(clients: Rag) -> None:
    error = await failure(clients, filter={'a"]': 1})
    assert (type(error), error.stage) == (InvalidRequest, "search")
    assert error.message.startswith("filter.")


@pytest.mark.parametrize("fault", [Fault(error_rate=1), Fault(cut_after_tokens=0)])
async def test_without_the_llm_the_turn_may_be_tried_again(clients: Rag, models: Models, fault: Fault) -> None:
    models.fail(chat=fault)
    error = await failure(clients)
    assert (type(error).__mro__[1], error.stage, error.retryable) == (DownstreamUnavailable, "llm", True)


async def test_an_llm_that_breaks_off_while_it_only_reasoned_has_said_nothing(teller: tuple[Teller, Rag]) -> None:
    told, clients = teller
    told.script = [{"reasoning_content": "Hmm, [1"}, None]
    error = await failure(clients)
    assert (error.stage, error.retryable) == ("llm", True)


async def test_a_request_that_the_llm_refuses_is_not_tried_again(clients: Rag, models: Models) -> None:
    models.fail(chat=Fault(error_rate=1, error_status=404))
    error = await failure(clients)
    assert (error.stage, error.retryable) == ("llm", False)


@pytest.mark.parametrize(
    ("stage", "family", "seconds"), [("embed", "embeddings", 0.2), ("rerank", "rerank", 1.0), ("llm", "chat", 0.2)]
)
async def test_the_deadline_ends_each_stage_and_its_call(
    clients: Rag, models: Models, stage: str, family: str, seconds: float
) -> None:
    await clients.store.search("documents", [1.0] * 16, top_k=1, deadline=Deadline.never())  # connected
    models.fail(**{family: Fault(hang=True)})
    error = await failure(clients, Deadline.after(seconds), enable_rag=stage != "llm")
    assert (type(error), error.stage) == (DeadlineExceeded, stage)
    await until(lambda: models.stats(family).aborted == 1, "the upstream saw the call being given up")
    assert models.stats(family).in_flight == 0


async def test_the_deadline_ends_a_search(clients: Rag, silent: str) -> None:
    async with VectorStore(silent) as store:
        error = await failure(dataclasses.replace(clients, store=store), Deadline.after(0.3))
    assert (type(error), error.stage) == (DeadlineExceeded, "search")


async def test_the_deadline_ends_a_stream(clients: Rag, models: Models) -> None:
    models.fail(chat=Fault(token_delay_ms=60_000))
    error = await failure(clients, Deadline.after(0.3), enable_rag=False)
    assert (type(error), error.stage) == (DeadlineExceeded, "llm")
    await until(lambda: models.stats("chat").aborted == 1, "the upstream saw the call being given up")


async def test_a_deadline_gone_by_asks_nobody(clients: Rag, models: Models) -> None:
    error = await failure(clients, Deadline.after(-1))
    assert (type(error), models.seen) == (DeadlineExceeded, [])


async def test_closing_the_answer_early_ends_the_call_to_the_llm(clients: Rag, models: Models) -> None:
    models.fail(chat=Fault(token_delay_ms=60_000))
    produced = answer(clients, ChatRequest(query=QUERY))
    assert await anext(produced) == "token"
    assert models.stats("chat").in_flight == 1
    await produced.aclose()
    await until(lambda: models.stats("chat").aborted == 1, "the upstream saw the call being given up")


async def test_canceling_the_answer_ends_the_call_at_any_stage(clients: Rag, models: Models) -> None:
    models.fail(embeddings=Fault(hang=True))
    task = asyncio.ensure_future(ask(clients))
    await until(lambda: models.stats("embeddings").in_flight == 1, "the embedding is asked for")
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await until(lambda: models.stats("embeddings").aborted == 1, "the upstream saw the call being given up")


async def test_the_timings_that_the_caller_hands_in_go_on(clients: Rag) -> None:
    timings = Timings()
    timings.record("queue", 2.0)
    request = ChatRequest(query=QUERY)
    async with aclosing(answer(clients, request, timings=timings)) as produced:
        *_, response = [item async for item in produced]
    assert isinstance(response, ChatResponse)
    assert response.timings["queue_ms"] == 2000
    assert timings.as_dict().keys() == response.timings.keys()
