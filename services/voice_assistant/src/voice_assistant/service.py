"""Answers spoken questions: audio → STT → recall → embed → search → rerank → LLM → TTS, spoken while it is written."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from pydantic import Field

from handler_core import streams, upstreams
from handler_core.calls import Call
from handler_core.clients.http import new_session
from handler_core.codec import encode, encode_json
from handler_core.config import ServiceSettings, STTSettings, TTSSettings
from handler_core.connection import Connection
from handler_core.context import Context
from handler_core.contract import voice as contract
from handler_core.contract.base import Message
from handler_core.contract.voice import VOICE, Transcript, VoiceEvent, VoiceRequest, VoiceResponse
from handler_core.limits import Limits
from handler_core.memory import Conversation, Memory
from handler_core.runtime import Runtime
from handler_core.service import Service
from handler_core.tasks import background
from handler_core.upstreams import RagSettings, rag_clients
from handler_core.voice import NOTHING_HEARD, Voice, voice_turn
from handler_core.voice_speech import Speaker, piece_of
from voice_assistant.playback import Interrupted, Playback, Playbacks

TOLD_LATER = 4096
"""Bytes of a message for its headers, and for the fields of a response that are filled in last."""


class Settings(RagSettings, STTSettings, TTSSettings, ServiceSettings):
    """Settings of the voice assistant."""

    max_in_flight: int = Field(default=8, ge=1, le=1000)
    """Turns answered at once by one worker: so many from the queue, and as many by each endpoint."""
    max_turns_per_user: int = Field(default=4, ge=0)
    """Turns of one user at once in one worker; further ones wait or are told `busy`. 0 for no limit."""
    handler_timeout: float = Field(default=300.0, gt=0)
    """Seconds after which a turn is taken to hang, and tried again."""
    session_tokens: int = Field(default=1500, ge=64)
    """What a session keeps and brings into the prompt: its last turns that have so many tokens together."""
    max_audio_seconds: float = Field(default=300.0, gt=0)
    """How long a question may be, where its file tells: WAV and bare samples."""
    max_response_audio: int = Field(default=512 * 1024, ge=0)
    """Bytes of audio up to which the final response holds the whole answer as a WAV file."""
    nothing_heard: str = Field(default=NOTHING_HEARD, min_length=1, max_length=1024)
    """What is said to a question without a word in it."""
    sentence_min_chars: int = Field(default=20, ge=1)
    """Characters that are spoken in one go at least; shorter sentences are joined."""
    first_sentence_min_chars: int = Field(default=10, ge=1)
    """The same for the first sentence, for which somebody waits."""


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

    voice: Voice
    memory: Memory
    playbacks: Playbacks
    nc: Connection


service = Service(
    "voice_assistant",
    Settings,
    description="Answers spoken questions, and speaks the answers.",
    uvloop=False,  # it waits for models, and for speech that is made, not for messages
    reads=(streams.AI_EVENTS, streams.AI_CONTROL, streams.AI_SESSIONS),
    publishes=("evt.voice.response.>", "$KV.AI_SESSIONS.>"),
    subscribes=("ai.voice.transcription.*",),
)


@service.lifespan
async def clients(settings: Settings, runtime: Runtime) -> AsyncIterator[Clients]:
    playbacks = Playbacks(runtime.nc)
    async with (
        new_session() as session,
        rag_clients(settings, runtime.metrics, session) as rag,
        background(playbacks.run()),
    ):
        voice = Voice(
            stt=upstreams.stt(session, settings, runtime.metrics),
            speaker=Speaker(
                upstreams.tts(session, settings, runtime.metrics),
                sentence_min_chars=settings.sentence_min_chars,
                first_min_chars=settings.first_sentence_min_chars,
                max_bytes=settings.max_response_audio,
                segment_room=runtime.nc.payload_room - TOLD_LATER,
            ),
            rag=rag,
            max_audio_seconds=settings.max_audio_seconds,
            nothing_heard=settings.nothing_heard,
        )
        yield Clients(voice, Memory(runtime.nc, tokens=settings.session_tokens), playbacks, runtime.nc)


@service.replies("ask", contract.ASK_SUBJECT, contract.USER_ASK_SUBJECT, response=VoiceResponse, limits=limits)
@service.answers(streams.VOICE_ASSISTANT, VOICE, limits)
async def answer(request: VoiceRequest, ctx: Context[Clients]) -> VoiceResponse:
    clients = ctx.clients
    streamed = request.enable_streaming and not isinstance(ctx.message, Call)
    earlier = [event for event in await ctx.earlier() if isinstance(event, VoiceEvent)]
    conversation = await Conversation.of(request, ctx.request_id, clients.memory, ctx.timings)
    playback = Playback(ctx.request_id, request.text.strip(), streamed=streamed)

    def note(piece: str | Message | None, at: float | None = None) -> None:
        playback.note(piece, at)
        if isinstance(piece, Transcript):
            ctx.known["transcription"] = piece.content

    def write(piece: str | Message) -> None:
        note(piece)
        ctx.write(piece)

    for event in earlier:
        note(piece_of(event), event.timestamp)

    async with clients.playbacks.listening(playback, request.session_id, ctx.message.timestamp):
        try:
            async with playback.interruptible():
                response = await voice_turn(
                    clients.voice,
                    request,
                    history=conversation.turns,
                    earlier=earlier,
                    write=write,
                    streamed=streamed,
                    deadline=ctx.deadline,
                    timings=ctx.timings,
                )
        except Interrupted as error:
            ctx.log.info("turn_interrupted")
            return await conversation.add(playback.broken_off(error), ctx.attempt)
        response = await conversation.add(response, ctx.attempt)
        playback.complete(lambda heard: conversation.amend(response, heard, ctx.attempt))
        return fitted(response, ctx)


def fitted(response: VoiceResponse, ctx: Context[Clients]) -> VoiceResponse:
    """The response without its audio where that does not fit into one message."""
    if response.audio is None:
        return response
    as_json = isinstance(ctx.message, Call) and ctx.message.text
    size = len(encode_json(response) if as_json else encode(response))
    if size + TOLD_LATER <= ctx.clients.nc.payload_room:
        return response
    degraded = [*response.degraded, *([] if response.audio_segments else ["audio"])]
    return response.model_copy(update={"audio": None, "degraded": degraded})
