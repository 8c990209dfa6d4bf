"""`POST /v1/audio/speech`, and how audio is sent."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from aiohttp import web
from pydantic import BaseModel, BeforeValidator, Field, StrictStr

from handler_core.audio import wav_header
from local_inference.accounting import FAULTS, drop_connection
from local_inference.errors import ApiError
from local_inference.keys import SYNTHESIZER
from local_inference.schemas import read
from local_inference.synthesizer import FORMAT, SynthesisFailed, UnknownVoice, chunked

MAX_INPUT = 4096


def _said(text: object) -> object:
    if isinstance(text, str) and not text.strip():
        raise ValueError("holds nothing to say")
    return text


Spoken = Annotated[StrictStr, BeforeValidator(_said)]


class SpeechRequest(BaseModel):
    """`POST /v1/audio/speech`. Any `model` is accepted, and `instructions` have no effect."""

    input: Spoken = Field(max_length=MAX_INPUT)
    voice: StrictStr | None = None
    response_format: Literal["wav", "pcm"] = "wav"
    speed: float = Field(default=1.0, ge=0.25, le=4, allow_inf_nan=False)


async def openai(request: web.Request) -> web.StreamResponse:
    """`pcm` is sent sentence by sentence, as it is made; `wav` once its length is known."""
    body = await read(request, SpeechRequest)
    audio = await speak(request, body.input, body.voice, body.speed, field="voice")
    if body.response_format == "wav":
        return await send_wav(request, audio)
    return await send(request, audio, web.StreamResponse(headers={"Content-Type": "audio/pcm"}))


async def voices(request: web.Request) -> web.Response:
    """`GET /v1/audio/voices`: `{voices: [name]}`, the default one first. Not OpenAI's, but of many such servers."""
    return web.json_response({"voices": list(await request.app[SYNTHESIZER].voices())})


async def speak(
    request: web.Request, text: str, voice: str | None, speed: float = 1.0, *, field: str, status: int = 400
) -> AsyncIterator[bytes]:
    """Audio in chunks of 100 ms; the first one is made before this returns, so that failures come as a status.

    Args:
        field: that names the voice.
        status: of the error where there is no such voice.

    Raises:
        ApiError: there is no such voice, or the engine failed.
    """
    synthesizer = request.app[SYNTHESIZER]
    try:
        audio = chunked(synthesizer.speak(text, await synthesizer.voice(voice), speed))
        first = await anext(audio, b"")
    except UnknownVoice as error:
        raise ApiError(status, f"{field}: {error}", param=field) from None
    except SynthesisFailed as error:
        raise ApiError(500, str(error), kind="server_error") from None
    return _with_first(first, audio)


async def send_wav(request: web.Request, audio: AsyncIterator[bytes]) -> web.StreamResponse:
    """A whole WAV file, its length in the header."""
    try:
        chunks = [chunk async for chunk in audio]
    except SynthesisFailed as error:
        raise ApiError(500, str(error), kind="server_error") from None
    header = wav_header(FORMAT, sum(map(len, chunks)))
    response = web.StreamResponse(headers={"Content-Type": "audio/wav"})
    response.content_length = len(header) + sum(map(len, chunks))
    return await send(request, _all(chunks), response, header)


async def send(
    request: web.Request, audio: AsyncIterator[bytes], response: web.StreamResponse, header: bytes = b""
) -> web.StreamResponse:
    """One write for each chunk, as the family's fault has it. Where the engine fails, the connection is dropped."""
    fault = request.app[FAULTS].of("speech")
    await response.prepare(request)
    if header:
        await response.write(header)
    sent = 0
    try:
        async for chunk in audio:
            if sent == fault.cut_after_tokens:
                drop_connection(request)
                return response
            if fault.token_delay_ms and sent:
                await asyncio.sleep(fault.token_delay_ms / 1000)
            await response.write(chunk)
            sent += 1
    except SynthesisFailed:
        drop_connection(request)
        return response
    await response.write_eof()
    return response


async def _with_first(first: bytes, audio: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in audio:
        yield chunk


async def _all(chunks: list[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
