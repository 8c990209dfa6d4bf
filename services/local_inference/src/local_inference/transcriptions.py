"""`POST /v1/audio/transcriptions`."""

from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import AfterValidator, BaseModel, Field, ValidationError

from handler_core.audio import BadAudio, Wav, read_wav
from local_inference.errors import ApiError
from local_inference.forms import Form, read_form
from local_inference.keys import TRANSCRIBER
from local_inference.transcriber import Segment, TranscriptionFailed


def _is_english(language: str | None) -> str | None:
    if language and language.lower() != "english" and language.lower().replace("_", "-").partition("-")[0] != "en":
        raise ValueError(f"only English (en) is recognised, not {language!r}")
    return language


class TranscriptionRequest(BaseModel):
    """The fields beside the file. `model`, `prompt` and `temperature` have no effect."""

    language: Annotated[str | None, AfterValidator(_is_english)] = None
    response_format: Literal["json", "verbose_json", "text"] = "json"
    temperature: float = Field(default=0, ge=0, le=1, allow_inf_nan=False)
    granularities: list[Literal["word", "segment"]] = Field(default=[], alias="timestamp_granularities[]")


async def transcriptions(request: web.Request) -> web.Response:
    """Recognise a WAV file of any rate and width, all channels together."""
    form = await read_form(request)
    values: dict[str, Any] = {name: value for name, value in form.items() if isinstance(value, str)}
    if (name := "timestamp_granularities[]") in form:
        values[name] = form.getall(name)
    try:
        fields = TranscriptionRequest.model_validate(values)
        audio = read_wav(_file(form), field="file")
    except ValidationError as error:
        raise ApiError.invalid(error) from None
    except BadAudio as error:
        raise ApiError(400, error.message, param="file") from None
    if not audio.pcm:
        raise ApiError(400, "file: the WAV file holds no audio", param="file")
    try:
        segments = await request.app[TRANSCRIBER].transcribe(audio)
    except TranscriptionFailed as error:
        raise ApiError(503, str(error), kind="server_error") from None
    text = " ".join(segment.text for segment in segments)
    match fields.response_format:
        case "json":
            return web.json_response({"text": text})
        case "text":
            return web.Response(text=f"{text}\n")
    return web.json_response(_verbose(text, audio, segments, words="word" in fields.granularities))


def _file(form: Form) -> bytes:
    file = form.get("file")
    if file is None:
        raise BadAudio("is missing; it is sent as multipart/form-data", "file")
    if isinstance(file, str):
        raise BadAudio("has no filename, and so is no file", "file")
    return file


def _verbose(text: str, audio: Wav, segments: list[Segment], *, words: bool) -> dict[str, Any]:
    """`verbose_json`. Where the numbers of a segment come from is told by `Segment`; it has no token ids, and all seeks
    are 0, as the file is searched whole."""
    reply: dict[str, Any] = {
        "task": "transcribe",
        "language": "english",
        "duration": round(audio.format.seconds(len(audio.pcm)), 3),
        "text": text,
        "segments": [_segment(number, segment) for number, segment in enumerate(segments)],
    }
    if words:
        spoken = [word for segment in segments for word in segment.words]
        reply["words"] = [{"word": word.text, "start": word.start, "end": word.end} for word in spoken]
    return reply


def _segment(number: int, segment: Segment) -> dict[str, Any]:
    return {
        "id": number,
        "seek": 0,
        "start": segment.words[0].start,
        "end": segment.words[-1].end,
        "text": segment.text,
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": round(segment.avg_logprob, 4),
        "compression_ratio": round(segment.compression_ratio, 4),
        "no_speech_prob": round(segment.no_speech_prob, 4),
    }
