"""Coqui's servers: `/api/tts` of its demonstration server, and XTTS streaming."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

from aiohttp import web
from pydantic import BaseModel, BeforeValidator, Field

from handler_core.audio import BadAudio, read_wav, wav_header
from local_inference import speech
from local_inference.errors import ApiError, Dialect
from local_inference.forms import Form, read_form
from local_inference.keys import ONE_AT_A_TIME, SYNTHESIZER
from local_inference.schemas import read
from local_inference.synthesizer import FORMAT

_LANGUAGES = ["en"]
_EMBEDDING_SIZE = 512
_LATENT = [0.0] * 1024


async def tts(request: web.Request) -> web.StreamResponse:
    """`GET` or `POST /api/tts`: fields of the query or of a form, never JSON; one synthesis at a time.

    `speaker_wav` must be a WAV file, or the path of one on this machine, but no voice is made of it: the default one
    speaks. `style_wav` has no effect.
    """
    form = await read_form(request)
    text = _field(request, form, "text")
    if not text.strip():
        raise ApiError(400, "text: is required, as a field of the query or of a form")
    language = _field(request, form, "language_id")
    if language and language.lower().partition("-")[0] not in _LANGUAGES:
        raise ApiError(400, f"language_id: only {', '.join(_LANGUAGES)} is spoken, not {language!r}")
    await _check_speaker(form.get("speaker_wav") or request.query.get("speaker_wav", ""))
    async with request.app[ONE_AT_A_TIME]:
        audio = await speech.speak(request, text, _field(request, form, "speaker_id"), field="speaker_id")
        return await speech.send_wav(request, audio)


async def voices(request: web.Request) -> web.Response:
    """`GET /voices`: a line for each, `name language u`, as MaryTTS has it; `u` because the gender is not known."""
    names = await request.app[SYNTHESIZER].voices()
    return web.Response(text="".join(f"{name} {_LANGUAGES[0]} u\n" for name in names))


def _field(request: web.Request, form: Form, name: str) -> str:
    value = request.query.get(name) or form.get(name) or ""
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


async def _check_speaker(recording: str | bytes) -> None:
    if not recording:
        return
    try:
        if isinstance(recording, str):
            recording = await asyncio.to_thread(Path(recording).read_bytes)
        read_wav(recording, field="speaker_wav")
    except BadAudio as error:
        raise ApiError(400, error.message) from None
    except (OSError, ValueError):
        raise ApiError(400, "speaker_wav: there is no such file") from None


def _is_spoken(language: Any) -> Any:
    if language not in _LANGUAGES:
        raise ValueError(f"only {', '.join(_LANGUAGES)} is spoken")
    return language


class StreamingRequest(BaseModel):
    """`POST /tts_stream`. Its chunks have 100 ms, whatever `stream_chunk_size` says."""

    text: speech.Spoken
    language: Annotated[str, BeforeValidator(_is_spoken)]
    speaker_embedding: list[float] = Field(max_length=_EMBEDDING_SIZE)
    gpt_cond_latent: list[list[float]]
    add_wav_header: bool = True
    stream_chunk_size: int = Field(default=20, ge=1)


async def stream(request: web.Request) -> web.StreamResponse:
    """`POST /tts_stream`: sentence by sentence, after a WAV header that gives a size of 0 as XTTS's does."""
    body = await read(request, StreamingRequest, Dialect.FASTAPI)
    names = await request.app[SYNTHESIZER].voices()
    voice = next((name for place, name in enumerate(names) if body.speaker_embedding == _embedding(place)), None)
    if voice is None:
        message = "speaker_embedding: is none of those from /studio_speakers, and no voice can be made of it"
        raise ApiError(422, message, param="speaker_embedding")
    audio = await speech.speak(request, body.text, voice, field="speaker_embedding", status=422)
    header = wav_header(FORMAT, 0) if body.add_wav_header else b""
    return await speech.send(request, audio, web.StreamResponse(headers={"Content-Type": "audio/wav"}), header)


async def studio_speakers(request: web.Request) -> web.Response:
    """`GET /studio_speakers`: for each voice an embedding that stands for it and means nothing else."""
    names = await request.app[SYNTHESIZER].voices()
    speakers = {
        name: {"speaker_embedding": _embedding(place), "gpt_cond_latent": [_LATENT]} for place, name in enumerate(names)
    }
    return web.json_response(speakers)


async def clone_speaker(request: web.Request) -> web.Response:
    """`POST /clone_speaker`: takes a WAV file as `wav_file`, and answers with the default voice's embedding."""
    recording = (await read_form(request)).get("wav_file")
    try:
        if not isinstance(recording, bytes):
            raise BadAudio("is missing; it is sent as a file in multipart/form-data", "wav_file")
        read_wav(recording, field="wav_file")
    except BadAudio as error:
        raise ApiError(422, error.message, param="wav_file") from None
    return web.json_response({"speaker_embedding": _embedding(0), "gpt_cond_latent": [_LATENT]})


async def languages(request: web.Request) -> web.Response:
    """`GET /languages`."""
    return web.json_response(_LANGUAGES)


def _embedding(place: int) -> list[float]:
    """1 at the voice's place, as long as XTTS's."""
    return [float(index == place) for index in range(_EMBEDDING_SIZE)]
