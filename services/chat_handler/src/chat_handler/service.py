"""Answers questions: embed → search → rerank → LLM, streamed token by token, with citations."""

from collections.abc import AsyncIterator

from pydantic import Field

from handler_core import rag, streams
from handler_core.config import ServiceSettings
from handler_core.context import Context
from handler_core.contract.chat import CHAT, ChatRequest, ChatResponse
from handler_core.limits import Limits
from handler_core.service import Runtime, Service
from handler_core.upstreams import RagSettings, rag_clients


class Settings(RagSettings, ServiceSettings):
    """Settings of the chat handler."""

    max_in_flight: int = Field(default=32, ge=1, le=1000)
    """Turns answered at once by one worker."""
    handler_timeout: float = Field(default=300.0, gt=0)
    """Seconds after which a turn is taken to hang, and tried again."""


def limits(settings: Settings) -> Limits:
    # Nothing is prefetched: a turn takes seconds, and another worker may be free.
    return Limits(max_in_flight=settings.max_in_flight, prefetch=0, handler_timeout=settings.handler_timeout)


service = Service("chat_handler", Settings)


@service.lifespan
async def clients(settings: Settings, runtime: Runtime) -> AsyncIterator[rag.Rag]:
    async with rag_clients(settings, runtime.metrics.upstream) as built:
        yield built


@service.answers(streams.CHAT_HANDLER, CHAT, limits)
def chat(request: ChatRequest, ctx: Context[rag.Rag]) -> AsyncIterator[str | ChatResponse]:
    return rag.answer(ctx.clients, request, deadline=ctx.deadline, timings=ctx.timings)
