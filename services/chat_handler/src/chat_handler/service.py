"""Answers questions: recall → embed → search → rerank → LLM → remember, streamed token by token, with citations."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from pydantic import Field

from handler_core import rag, streams
from handler_core.config import ServiceSettings
from handler_core.context import Context
from handler_core.contract import chat as contract
from handler_core.contract import session as sessions
from handler_core.contract.chat import CHAT, ChatRequest, ChatResponse
from handler_core.contract.session import SessionRequest, SessionResponse
from handler_core.errors import NotFound
from handler_core.limits import Limits
from handler_core.memory import Conversation, Memory
from handler_core.runtime import Runtime
from handler_core.service import Service
from handler_core.upstreams import RagSettings, rag_clients


class Settings(RagSettings, ServiceSettings):  # type: ignore[misc]  # a name of the mypy plugin's own making
    """Settings of the chat handler."""

    max_in_flight: int = Field(default=32, ge=1, le=1000)
    """Turns answered at once by one worker: so many from the queue, and as many by each endpoint."""
    max_turns_per_user: int = Field(default=8, ge=0)
    """Turns of one user at once in one worker; further ones wait or are told `busy`. 0 for no limit."""
    handler_timeout: float = Field(default=300.0, gt=0)
    """Seconds after which a turn is taken to hang, and tried again."""
    session_tokens: int = Field(default=1500, ge=64)
    """What a session keeps and brings into the prompt: its last turns that have so many tokens together."""


def limits(settings: Settings) -> Limits:
    # Nothing is prefetched: a turn takes seconds, and another worker may be free.
    return Limits(
        max_in_flight=settings.max_in_flight,
        max_per_user=settings.max_turns_per_user,
        prefetch=0,
        handler_timeout=settings.handler_timeout,
    )


@dataclass(frozen=True)
class Clients:
    """What a turn needs."""

    rag: rag.Rag
    memory: Memory


service = Service(
    "chat_handler",
    Settings,
    description="Answers questions from your documents, with citations.",
    uvloop=False,  # a turn takes as much of the processor with it
    reads=(streams.AI_EVENTS, streams.AI_CONTROL, streams.AI_SESSIONS),
    publishes=("evt.chat.response.>", "$KV.AI_SESSIONS.>"),
)


@service.lifespan
async def clients(settings: Settings, runtime: Runtime) -> AsyncIterator[Clients]:
    async with rag_clients(settings, runtime.metrics) as built:
        yield Clients(built, Memory(runtime.nc, tokens=settings.session_tokens))


@service.replies("ask", contract.ASK_SUBJECT, contract.USER_ASK_SUBJECT, response=ChatResponse, limits=limits)
@service.answers(streams.CHAT_HANDLER, CHAT, limits)
async def chat(request: ChatRequest, ctx: Context[Clients]) -> AsyncIterator[str | ChatResponse]:
    conversation = await Conversation.of(request, ctx.request_id, ctx.clients.memory, ctx.timings)
    answer = rag.answer(
        ctx.clients.rag, request, history=conversation.turns, deadline=ctx.deadline, timings=ctx.timings
    )
    async with aclosing(answer):
        async for piece in answer:
            if isinstance(piece, ChatResponse):
                yield await conversation.add(piece, ctx.attempt)
            else:
                yield piece


@service.replies("session-show", sessions.SHOW_SUBJECT, sessions.USER_SHOW_SUBJECT, response=SessionResponse)
async def show_session(request: SessionRequest, ctx: Context[Clients]) -> SessionResponse:
    turns = await ctx.clients.memory.recall(request.user_id, request.session_id)
    if not turns:
        raise NotFound("no such session of this user")
    return SessionResponse(session_id=request.session_id, turns=turns)


@service.replies("session-delete", sessions.DELETE_SUBJECT, sessions.USER_DELETE_SUBJECT, response=SessionResponse)
async def delete_session(request: SessionRequest, ctx: Context[Clients]) -> SessionResponse:
    if not await ctx.clients.memory.forget(request.user_id, request.session_id):
        raise NotFound("no such session of this user")
    return SessionResponse(session_id=request.session_id)
