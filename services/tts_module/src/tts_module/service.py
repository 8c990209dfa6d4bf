"""Speaks: text → sentences → speech endpoint → audio in order, while the next sentence is made; and lists voices."""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial

from pydantic import Field

from handler_core import audio, streams, upstreams
from handler_core.clients.http import new_session
from handler_core.clients.tts import TTS, VoiceInfo
from handler_core.codec import is_text
from handler_core.config import ServiceSettings, TTSSettings
from handler_core.connection import Connection
from handler_core.context import Context
from handler_core.contract import tts as contract
from handler_core.contract.tts import SpeakRequest, SpeakResponse, VoicesRequest, VoicesResponse
from handler_core.delivery import Delivery
from handler_core.errors import DownstreamUnavailable, InvalidRequest
from handler_core.limits import Limits
from handler_core.runtime import Runtime
from handler_core.service import Service
from handler_core.speech import pieces
from handler_core.synthesis import PIECE_BYTES, Emit, Skip, Spoken, Synthesis
from tts_module.requests import ATTEMPTS, Requests
from tts_module.speech import ENVELOPE, Speech


class Settings(TTSSettings, ServiceSettings):
    """Settings of the text-to-speech module."""

    max_in_flight: int = Field(default=4, ge=1, le=1000)
    """Texts spoken at once by one worker: so many from the queue, and as many by `ai.tts.speak`. How many of their
    sentences are made at once is `TTS_CONCURRENCY`."""
    chunk_bytes: int = Field(default=32_768, ge=1024)
    """The most samples of one chunk; less where the server takes no such messages. 32 KiB are 0.7 s at 24 kHz."""
    handler_timeout: float = Field(default=900.0, gt=0)
    """Seconds after which a text is taken to hang; another attempt goes on where it was."""


def limits(settings: Settings) -> Limits:
    # Nothing is prefetched: a text takes seconds, and another worker may be free. The one more delivery tells its end.
    return Limits(
        max_in_flight=settings.max_in_flight,
        prefetch=0,
        handler_timeout=settings.handler_timeout,
        max_deliveries=ATTEMPTS + 1,
    )


@dataclass(frozen=True)
class Clients:
    """What speaking needs."""

    nc: Connection
    tts: TTS
    requests: Requests


service = Service(
    "tts_module",
    Settings,
    description="Speaks texts, in chunks or in one reply, and lists the voices.",
    uvloop=False,  # it waits for speech that is made, not for messages
    reads=(streams.AI_EVENTS, streams.AI_CONTROL),
    publishes=("evt.voice.tts.audio.*", "evt.voice.tts.status.*"),
)


@service.lifespan
async def clients(settings: Settings, runtime: Runtime) -> AsyncIterator[Clients]:
    async with new_session() as session:
        tts = upstreams.tts(session, settings, runtime.metrics)
        yield Clients(runtime.nc, tts, Requests(runtime, limits(settings), settings.chunk_bytes))


@service.consumes(streams.TTS_MODULE, limits)
async def stream(delivery: Delivery, ctx: Context[Clients]) -> None:
    await ctx.clients.requests.process(delivery, ctx.clients, say)


async def say(request: SpeakRequest, ctx: Context[Clients], speech: Speech) -> None:
    """Speak a request to its session, from where earlier attempts have left it."""
    with ctx.timings.stage("tts"):
        limit = speech.position.limit or await ctx.clients.tts.limit(request.language, deadline=ctx.deadline)
        sentences = cut(request.text, limit)
        await speech.begin(sentences, limit)
        await synthesize(request, sentences, ctx, speech.say, piece_bytes=speech.piece_bytes, skip=speech.skip)
    await speech.complete()


@service.replies("speak", contract.SPEAK_SUBJECT, response=SpeakResponse, limits=limits)
async def speak(request: SpeakRequest, ctx: Context[Clients]) -> SpeakResponse:
    room = ctx.clients.nc.payload_room - ENVELOPE
    if is_text(ctx.message.data):
        room = room * 3 // 4  # it becomes base64
    pcm = bytearray()
    format = audio.PcmFormat(0)

    async def collect(spoken: Spoken) -> None:
        nonlocal format
        if not pcm:
            ctx.timings.record("tts_first_audio", time.time() - ctx.message.timestamp)
        pcm.extend(spoken.pcm)
        format = spoken.format
        if len(pcm) > room:
            text = f"text: its audio does not fit into one reply of {ctx.clients.nc.payload_room} bytes"
            raise InvalidRequest(f"{text}; {contract.REQUEST_SUBJECT} brings it in chunks")

    with ctx.timings.stage("tts"):
        limit = await ctx.clients.tts.limit(request.language, deadline=ctx.deadline)
        await synthesize(request, cut(request.text, limit), ctx, collect)
    if not pcm:
        raise DownstreamUnavailable("nothing was to be heard", stage="tts", retryable=False)
    bare = request.format == "pcm" and "format" in request.model_fields_set
    return SpeakResponse(
        audio=bytes(pcm) if bare else audio.wav(format, pcm),
        format="pcm" if bare else "wav",
        sample_rate=format.sample_rate,
        width=format.width,
        channels=format.channels,
        duration_ms=round(1000 * format.seconds(len(pcm)), 3),
    )


@service.replies("voices-list", contract.VOICES_SUBJECT, response=VoicesResponse)
async def list_voices(request: VoicesRequest, ctx: Context[Clients]) -> VoicesResponse:
    return await told(await ctx.clients.tts.voices(ctx.deadline), ctx)


@service.replies("voices-refresh", contract.REFRESH_SUBJECT, response=VoicesResponse)
async def refresh_voices(request: VoicesRequest, ctx: Context[Clients]) -> VoicesResponse:
    return await told(await ctx.clients.tts.refresh(ctx.deadline), ctx)


def cut(text: str, limit: int) -> list[str]:
    """The sentences of a text.

    Raises:
        InvalidRequest: there are none.
    """
    sentences = pieces(text, limit=limit)
    if not sentences:
        raise InvalidRequest("text: has nothing in it that can be spoken", stage="decode")
    return sentences


async def synthesize(
    request: SpeakRequest,
    sentences: list[str],
    ctx: Context[Clients],
    emit: Emit,
    *,
    piece_bytes: int = PIECE_BYTES,
    skip: Skip | None = None,
) -> None:
    """Speak the sentences as the request wants them, the audio in order; raises as `Synthesis.run`."""
    speak = partial(
        ctx.clients.tts.speak,
        speaker=request.speaker,
        language=request.language,
        speaker_wav=request.speaker_wav,
        speed=request.speed,
    )
    synthesis = Synthesis(
        lambda text, deadline: speak(text, deadline=deadline), deadline=ctx.deadline, piece_bytes=piece_bytes, skip=skip
    )
    await synthesis.run(each(sentences), emit)


async def each(sentences: list[str]) -> AsyncIterator[str]:
    for sentence in sentences:
        yield sentence


async def told(voices: list[VoiceInfo], ctx: Context[Clients]) -> VoicesResponse:
    tts = ctx.clients.tts
    return VoicesResponse(
        engine=await tts.engine(ctx.deadline),
        voices=[
            contract.VoiceInfo(name=voice.name, kind=voice.kind, language=voice.language)
            for voice in sorted(voices, key=lambda voice: voice.name)
        ],
        default=tts.speaker,
    )
