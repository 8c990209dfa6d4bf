"""Clients built from settings; what a service's lifespan puts together."""

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from pydantic import Field, SecretStr

from handler_core.clients.embeddings import Embeddings
from handler_core.clients.http import Upstream, new_session
from handler_core.clients.llm import LLM
from handler_core.clients.reranker import Reranker
from handler_core.clients.stt import STT
from handler_core.clients.tts import TTS, VoicesFolder
from handler_core.config import (
    EmbeddingsSettings,
    LLMSettings,
    MilvusSettings,
    RerankerSettings,
    STTSettings,
    TTSSettings,
)
from handler_core.errors import HandlerError
from handler_core.rag import Rag
from handler_core.tasks import background
from handler_core.telemetry import Metrics, trace_headers
from handler_core.vectors import VectorStore, driver


class RagSettings(LLMSettings, EmbeddingsSettings, RerankerSettings, MilvusSettings):
    """All that answering questions needs."""

    prompt_tokens: int = Field(default=6000, ge=256)
    """Budget of the prompt: instructions, passages, what was said before, and the question together."""
    allowed_collections: str = Field(default="", pattern=r"^[A-Za-z0-9_{}, ]*$")
    """Collections that a request may name, with commas between; any when empty. `{user}` stands for the user, so that
    `documents,user_{user}` gives everybody one of their own. `COLLECTION_NAME` is always allowed."""

    @property
    def allowed(self) -> frozenset[str]:
        """`allowed_collections` as a set; empty when any may be named."""
        return frozenset(filter(None, (name.strip() for name in self.allowed_collections.split(","))))


@asynccontextmanager
async def rag_clients(
    settings: RagSettings, metrics: Metrics | None = None, session: aiohttp.ClientSession | None = None
) -> AsyncIterator[Rag]:
    """The clients for `rag.answer`, closed afterwards. Upstreams are contacted at their first use, but for the vector
    store, whose client is slow to import and connects meanwhile.

    Args:
        session: the process's pool of connections, where there is one already; it is left open.
    """
    pool = new_session() if session is None else contextlib.nullcontext(session)
    async with pool as session, vector_store(settings, metrics) as store, background(_warm(store)):
        yield Rag(
            llm=_llm(session, settings, metrics),
            premium=_premium(session, settings, metrics),
            embeddings=embeddings(session, settings, metrics),
            reranker=_reranker(session, settings, metrics),
            store=store,
            collection=settings.collection_name,
            allowed=settings.allowed,
            prompt_tokens=settings.prompt_tokens,
        )


async def _warm(store: VectorStore) -> None:
    with contextlib.suppress(HandlerError):  # the first search will try again, and say so
        await store.connect()


def vector_store(settings: MilvusSettings, metrics: Metrics | None = None) -> VectorStore:
    """The vector store; connects at its first use.

    Raises:
        ImportError: gRPC or protobuf is not installed.
    """
    driver.require()
    return VectorStore(
        settings.milvus_address,
        token=_plain(settings.milvus_token),
        timeout=settings.milvus_timeout,
        observe=None if metrics is None else metrics.upstream,
    )


def embeddings(
    session: aiohttp.ClientSession,
    settings: EmbeddingsSettings,
    metrics: Metrics | None = None,
    *,
    timeout: float | None = None,
) -> Embeddings:
    """The embeddings client over a shared session; `timeout` seconds a request instead of the settings' own."""
    upstream = _upstream(
        session,
        "embeddings",
        settings.embeddings_url,
        settings.embeddings_api_key,
        timeout or settings.embeddings_timeout,
        metrics,
    )
    return Embeddings(upstream, settings.embeddings_model)


def stt(session: aiohttp.ClientSession, settings: STTSettings, metrics: Metrics | None = None) -> STT:
    """The transcription client over a shared session."""
    upstream = _upstream(session, "stt", settings.stt_url, settings.stt_api_key, settings.stt_timeout, metrics)
    return STT(upstream, settings.stt_model, language=settings.stt_language)


def tts(session: aiohttp.ClientSession, settings: TTSSettings, metrics: Metrics | None = None) -> TTS:
    """The speech client over a shared session."""
    upstream = _upstream(session, "tts", settings.tts_url, settings.tts_api_key, settings.tts_timeout, metrics)
    folder = settings.voices_dir
    return TTS(
        upstream,
        engine=settings.tts_engine,
        model=settings.tts_model,
        speaker=settings.tts_speaker,
        language=settings.tts_language,
        concurrency=settings.tts_concurrency,
        max_chars=settings.tts_max_chars,
        names=settings.tts_voice_names,
        sample_rate=settings.tts_sample_rate,
        folder=None if folder is None else VoicesFolder(folder, settings.tts_voices_path),
    )


def _reranker(session: aiohttp.ClientSession, settings: RerankerSettings, metrics: Metrics | None) -> Reranker | None:
    if settings.reranker_url is None:
        return None
    upstream = _upstream(
        session, "reranker", settings.reranker_url, settings.reranker_api_key, settings.reranker_timeout, metrics
    )
    return Reranker(upstream, settings.reranker_model)


def _llm(session: aiohttp.ClientSession, settings: LLMSettings, metrics: Metrics | None) -> LLM:
    upstream = _upstream(session, "llm", settings.llm_url, settings.llm_api_key, settings.llm_timeout, metrics)
    return _completions(upstream, settings.llm_model, settings, metrics)


def _premium(session: aiohttp.ClientSession, settings: LLMSettings, metrics: Metrics | None) -> LLM | None:
    """The premium endpoint: another URL, another model on the same one, or neither."""
    if settings.llm_premium_url is None and settings.llm_premium_model is None:
        return None
    url = settings.llm_premium_url or settings.llm_url
    key = settings.llm_premium_api_key or (settings.llm_api_key if settings.llm_premium_url is None else None)
    upstream = _upstream(session, "llm_premium", url, key, settings.llm_timeout, metrics)
    return _completions(upstream, settings.llm_premium_model or settings.llm_model, settings, metrics)


def _completions(upstream: Upstream, model: str, settings: LLMSettings, metrics: Metrics | None) -> LLM:
    observe = None if metrics is None else metrics.generation
    return LLM(upstream, model, idle_timeout=settings.llm_timeout, observe=observe)


def _upstream(
    session: aiohttp.ClientSession, name: str, url: str, key: SecretStr | None, timeout: float, metrics: Metrics | None
) -> Upstream:
    observe = None if metrics is None else metrics.upstream
    return Upstream(session, name, url, api_key=_plain(key), timeout=timeout, observe=observe, headers=trace_headers)


def _plain(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
