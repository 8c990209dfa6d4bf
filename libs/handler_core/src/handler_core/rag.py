"""Retrieval-augmented answering: embed → search → rerank → prompt → stream.

Plain functions over clients that know nothing of NATS, so that a handler, an HTTP endpoint, a test or another runtime
can call them. What an answer can do without, it does without, and says so in `degraded`.
"""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

import structlog

from handler_core import prompt
from handler_core.citations import CitedText, citations
from handler_core.clients.completion import Delta
from handler_core.clients.embeddings import Embeddings
from handler_core.clients.llm import LLM
from handler_core.clients.reranker import Reranker
from handler_core.contract.chat import ChatRequest, ChatResponse, FilterTerm, Source, Usage
from handler_core.contract.session import SessionTurn
from handler_core.deadline import Deadline
from handler_core.errors import DownstreamUnavailable, Internal, InvalidRequest, NotFound
from handler_core.timings import Timings
from handler_core.vectors import Hit

log = structlog.get_logger("handler_core.rag")

CANDIDATES_PER_SOURCE = 4
MAX_CANDIDATES = 100


class Store(Protocol):
    """Where passages are searched; `handler_core.vectors.VectorStore` is one."""

    async def search(
        self,
        collection: str,
        vector: Sequence[float],
        *,
        top_k: int,
        filter: dict[str, FilterTerm] | None = None,
        deadline: Deadline,
    ) -> list[Hit]: ...


@dataclass(frozen=True)
class Rag:
    """What answering needs.

    Args:
        premium: answers requests that ask for it; `llm` does where there is none.
        reranker: without one, sources keep the search's order.
        collection: searched when a request names none.
        allowed: collections that a request may name besides, `{user}` standing for its user; any when empty.
        prompt_tokens: budget of the prompt, instructions and question included.
    """

    llm: LLM
    embeddings: Embeddings
    store: Store
    reranker: Reranker | None = None
    premium: LLM | None = None
    collection: str = "documents"
    allowed: frozenset[str] = frozenset()
    prompt_tokens: int = 6000


async def answer(
    rag: Rag,
    request: ChatRequest,
    *,
    history: Sequence[SessionTurn] = (),
    deadline: Deadline | None = None,
    timings: Timings | None = None,
) -> AsyncGenerator[str | ChatResponse, None]:
    """Answer a question: yields text as the LLM writes it, then the whole response.

    Args:
        history: what was said before in the session, the oldest first; it takes its room from the passages'.

    Raises:
        DownstreamUnavailable: the LLM cannot be reached or broke off before it said anything.
        DeadlineExceeded: the time was up.
        NotFound, Internal: the collection that the request names does not exist, or cannot be searched.
        InvalidRequest: the filter cannot be expressed, or the collection is not one that the user may name.
    """
    check_collection(rag, request)
    deadline, timings = deadline or Deadline.never(), timings or Timings()
    degraded: list[str] = []
    sources: list[Source] = []
    if request.enable_rag:
        sources = await retrieve(rag, request, deadline, timings, degraded)
        sources = await rerank(rag, request, sources, deadline, timings, degraded)
    room = rag.prompt_tokens - prompt.tokens(request.query) - prompt.tokens(request.system_prompt or prompt.SYSTEM)
    history = prompt.recent(history, room // 2)
    said = sum(prompt.tokens(turn.query) + prompt.tokens(turn.response) for turn in history)
    sources = prompt.fit(request.query, sources, rag.prompt_tokens - said, request.system_prompt)
    messages = prompt.messages(request.query, sources, request.system_prompt, history)

    text, last, said = CitedText(), Delta(), False
    llm = rag.premium if request.premium and rag.premium is not None else rag.llm
    with timings.stage("llm"):
        started = time.perf_counter()
        deltas = llm.stream(
            messages,
            model=request.model,
            temperature=request.temperature,
            max_tokens=request.max_tokens,
            deadline=deadline,
        )
        try:
            async with aclosing(deltas):
                async for last in deltas:
                    if started and (last.text or last.reasoning):
                        timings.record("llm_first_token", time.perf_counter() - started)
                        started = 0.0
                    said = said or bool(last.text)
                    if piece := text.feed(last.text):
                        yield piece
        except DownstreamUnavailable as error:
            if not said:
                raise
            _degrade("llm_truncated", error, degraded)
        if piece := text.close():
            yield piece

    if last.finish_reason == "truncated":
        degraded.append("llm_truncated")
    if request.enable_tts:
        degraded.append("tts")
    yield ChatResponse(
        response=text.text,
        sources=sources,
        citations=citations(text.text, sources),
        used_rag=bool(sources),
        usage=last.usage or Usage(),
        degraded=degraded,
        timings=timings.as_dict(),
    )


def check_collection(rag: Rag, request: ChatRequest) -> None:
    """Raise `InvalidRequest` unless the request's user may search the collection that it names."""
    named = request.collection
    if named is None or not rag.allowed or named == rag.collection or named in rag.allowed:
        return
    if request.user_id is None or named not in {name.replace("{user}", request.user_id) for name in rag.allowed}:
        raise InvalidRequest(f"collection: {named} is none of those that may be searched", stage="decode")


async def retrieve(
    rag: Rag, request: ChatRequest, deadline: Deadline, timings: Timings, degraded: list[str]
) -> list[Source]:
    """The passages nearest to the question, more than `top_k` where a reranker will choose among them."""
    try:
        with timings.stage("embed"):
            [vector] = await rag.embeddings.embed([request.query], deadline=deadline)
    except DownstreamUnavailable as error:
        _degrade("embeddings", error, degraded)
        return []
    wanted = request.top_k
    if request.enable_reranker and rag.reranker is not None:
        wanted = max(wanted, min(wanted * CANDIDATES_PER_SOURCE, MAX_CANDIDATES))
    try:
        with timings.stage("search"):
            hits = await rag.store.search(
                request.collection or rag.collection, vector, top_k=wanted, filter=request.filter, deadline=deadline
            )
    except DownstreamUnavailable as error:
        _degrade("vectors", error, degraded)
        return []
    except (NotFound, Internal) as error:
        # Internal: filled with another embedding model, or no collection of texts at all.
        if request.collection is not None:
            raise
        _degrade("vectors", error, degraded)
        return []
    return [Source(id=hit.id, text=hit.text, score=hit.score, metadata=hit.metadata) for hit in hits]


async def rerank(
    rag: Rag, request: ChatRequest, sources: list[Source], deadline: Deadline, timings: Timings, degraded: list[str]
) -> list[Source]:
    """The best `top_k` of the passages: by the reranker, or in the order they came."""
    if request.enable_reranker and rag.reranker is not None and sources:
        try:
            with timings.stage("rerank"):
                ranked = await rag.reranker.rerank(
                    request.query, [source.text for source in sources], deadline=deadline
                )
        except DownstreamUnavailable as error:
            _degrade("reranker", error, degraded)
        else:
            best = ranked[: request.top_k]
            sources = [sources[item.index].model_copy(update={"score": item.score}) for item in best]
    return sources[: request.top_k]


def _degrade(what: str, error: Exception, degraded: list[str]) -> None:
    log.warning("degraded", without=what, error=str(error))
    degraded.append(what)
