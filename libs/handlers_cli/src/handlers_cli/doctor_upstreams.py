"""The HTTP endpoints and Milvus as `handlers doctor` sees them."""

import asyncio
from typing import Any

import aiohttp
from pydantic import SecretStr

from handler_core.clients.embeddings import Embeddings
from handler_core.clients.failures import UpstreamError
from handler_core.clients.http import Upstream
from handler_core.clients.llm import LLM, PromptMessage
from handler_core.clients.reranker import Reranker
from handler_core.config import EmbeddingsSettings, LLMSettings, MilvusSettings, RerankerSettings, masked
from handler_core.deadline import Deadline
from handler_core.errors import HandlerError, Internal, NotFound
from handler_core.upstreams import vector_store
from handler_core.vectors import VectorStore
from handlers_cli.doctor_findings import Finding, Stopwatch, fail, ok, warn

SPARE = 0.5
_LISTED = 8
"""Models that are named at most."""
_REFUSED = frozenset({401, 403})


def asked_once(session: aiohttp.ClientSession, name: str, url: str, key: SecretStr | None, timeout: float) -> Upstream:
    """An upstream that is not tried again: a doctor wants to see failures."""
    secret = None if key is None else key.get_secret_value()
    return Upstream(session, name, url, api_key=secret, timeout=timeout, attempts=1)


def after(timeout: float) -> Deadline:
    """Later than the client's own time limit, which says better what is wrong."""
    return Deadline.after(timeout + SPARE)


def failed(setting: str, url: str, error: HandlerError) -> Finding:
    name = setting.removesuffix("_URL")
    if isinstance(error, UpstreamError) and error.status in _REFUSED:
        return fail(setting, f"{masked(url)}: {error.message}", f"set {name}_API_KEY to a key that it accepts")
    return fail(setting, f"{masked(url)}: {error.message}", f"start it, or set {setting} to where it is")


# -- LLM


async def check_llm(session: aiohttp.ClientSession, settings: LLMSettings, timeout: float) -> list[Finding]:
    """The endpoint and its premium twin, and whether they know the models."""
    found = [await _llm(session, "LLM", settings.llm_url, settings.llm_api_key, settings.llm_model, timeout)]
    if settings.llm_premium_url is not None or settings.llm_premium_model is not None:
        url = settings.llm_premium_url or settings.llm_url
        key = settings.llm_premium_api_key or (settings.llm_api_key if settings.llm_premium_url is None else None)
        model = settings.llm_premium_model or settings.llm_model
        found.append(await _llm(session, "LLM_PREMIUM", url, key, model, timeout))
    return found


async def _llm(
    session: aiohttp.ClientSession, name: str, url: str, key: SecretStr | None, model: str, timeout: float
) -> Finding:
    setting = f"{name}_URL"
    upstream = asked_once(session, name.lower(), url, key, timeout)
    watch = Stopwatch()
    try:
        models = _ids(await upstream.get_json("/v1/models", deadline=after(timeout)))
    except HandlerError as error:
        if not isinstance(error, UpstreamError) or error.status not in (404, 405):
            return failed(setting, url, error)
        models = []  # an endpoint need not have a list
    listing = str(watch)
    if model in models:
        return ok(setting, f"{masked(url)}: has {model}, answered in {listing}")
    return await _asked(upstream, name, url, model, models, timeout)


def _ids(answer: Any) -> list[str]:
    items = answer.get("data") if isinstance(answer, dict) else None
    return [str(item.get("id")) for item in items if isinstance(item, dict)] if isinstance(items, list) else []


async def _asked(upstream: Upstream, name: str, url: str, model: str, models: list[str], timeout: float) -> Finding:
    """Some endpoints take names that they do not list: whether this one does, a single token shows."""
    watch = Stopwatch()
    listed = ", ".join(models[:_LISTED]) + (", …" if len(models) > _LISTED else "")
    try:
        prompt = [PromptMessage("user", "Say ok.")]
        await LLM(upstream, model).complete(prompt, max_tokens=1, deadline=after(timeout))
    except HandlerError as error:
        if isinstance(error, UpstreamError) and error.status in (400, 404, 422):
            fix = f"set {name}_MODEL to one that it has{f': {listed}' if listed else ''}"
            return fail(f"{name}_MODEL", f"{masked(url)} does not take {model!r}: {error.message}", fix)
        return failed(f"{name}_URL", url, error)
    has = f"takes {model!r}, lists {listed}" if listed else f"takes {model!r}, lists no models"
    return ok(f"{name}_URL", f"{masked(url)}: {has}, one token in {watch}")


# -- embeddings and Milvus


async def check_retrieval(
    session: aiohttp.ClientSession,
    embeddings: EmbeddingsSettings | None,
    milvus: MilvusSettings | None,
    timeout: float,
) -> list[Finding]:
    """The embeddings endpoint and Milvus at once, and then whether the one's vectors fit the other's collection."""
    async with asyncio.TaskGroup() as tasks:
        embedding = tasks.create_task(_embed(session, embeddings, timeout)) if embeddings else None
        stored = tasks.create_task(_milvus(milvus, embedding, timeout)) if milvus else None
    found = [embedding.result()[0]] if embedding else []
    return found + (stored.result() if stored else [])


Embedding = tuple[Finding, list[float] | None]


async def _embed(session: aiohttp.ClientSession, settings: EmbeddingsSettings, timeout: float) -> Embedding:
    url = settings.embeddings_url
    upstream = asked_once(session, "embeddings", url, settings.embeddings_api_key, timeout)
    watch = Stopwatch()
    try:
        client = Embeddings(upstream, settings.embeddings_model)
        (vector,) = await client.embed(["Is anybody there?"], deadline=after(timeout))
    except HandlerError as error:
        return failed("EMBEDDINGS_URL", url, error), None
    return ok("EMBEDDINGS_URL", f"{masked(url)}: {len(vector)} dimensions, one text in {watch}"), vector


async def _milvus(
    settings: MilvusSettings, embedding: "asyncio.Task[Embedding] | None", timeout: float
) -> list[Finding]:
    address = masked(settings.milvus_address)
    watch = Stopwatch()
    async with vector_store(settings) as store:
        try:
            async with asyncio.timeout(timeout):
                await store.connect()
        except (HandlerError, TimeoutError) as error:
            text = str(error) or f"no answer within {timeout:g} s"
            return [fail("MILVUS_URI", f"{address}: {text}", "start Milvus, or set MILVUS_URI or MILVUS_HOST")]
        found = [ok("MILVUS_URI", f"{address}: connected in {watch}")]
        vector = (await embedding)[1] if embedding else None
        try:
            async with asyncio.timeout(timeout):
                return [*found, await _collection(store, settings.collection_name, vector)]
        except (HandlerError, TimeoutError) as error:
            text = str(error) or f"no answer within {timeout:g} s"
            return [*found, fail("COLLECTION_NAME", f"{settings.collection_name}: {text}", "look at Milvus's own log")]


async def _collection(store: VectorStore, name: str, vector: list[float] | None) -> Finding:
    check = "COLLECTION_NAME"
    try:
        rows = await store.count(name)
        if vector is not None:
            await store.search(name, vector, top_k=1, deadline=Deadline.never())
    except NotFound:
        fill = f"handlers ingest docs --collection {name}"
        return fail(check, f"there is no collection {name}", f"fill it: {fill}; or set COLLECTION_NAME")
    except Internal as error:
        fix = "set EMBEDDINGS_URL and EMBEDDINGS_MODEL to what filled it, or ingest into another collection"
        return fail(check, error.message, fix)
    if not rows:
        return warn(check, f"{name} has no rows", f"fill it: handlers ingest docs --collection {name}")
    fits = "not compared with the embeddings" if vector is None else f"takes {len(vector)} dimensions"
    return ok(check, f"{name}: {rows:,} rows, {fits}")


# -- reranker


async def check_reranker(session: aiohttp.ClientSession, settings: RerankerSettings, timeout: float) -> list[Finding]:
    """One pair of texts, which one of them being the better is not looked at."""
    url = settings.reranker_url
    if url is None:
        return [ok("RERANKER_URL", "not set: sources keep the order of the search")]
    upstream = asked_once(session, "reranker", url, settings.reranker_api_key, timeout)
    watch = Stopwatch()
    try:
        client = Reranker(upstream, settings.reranker_model)
        await client.rerank("Who is there?", ["Nobody.", "Somebody is there."], deadline=after(timeout))
    except HandlerError as error:
        return [failed("RERANKER_URL", url, error)]
    return [ok("RERANKER_URL", f"{masked(url)}: two texts in {watch}")]
