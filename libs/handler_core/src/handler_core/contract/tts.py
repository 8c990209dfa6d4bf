"""Text to speech: text in, audio in chunks or in one reply; and the voices that there are.

Requests arrive on `ai.voice.tts.request.{session}`; `ai.voice.tts.audio.{session}` brings the audio and
`ai.voice.tts.status.{session}` what becomes of each request. Several requests of one session are told apart by their
`request_id`.
"""

from typing import Literal

from pydantic import Field, field_validator

from handler_core.contract.answer import Response
from handler_core.contract.base import Message, Request
from handler_core.contract.errors import ErrorInfo

REQUEST_SUBJECT = "ai.voice.tts.request.{session}"
AUDIO_SUBJECT = "ai.voice.tts.audio.{session}"
STATUS_SUBJECT = "ai.voice.tts.status.{session}"
SPEAK_SUBJECT = "ai.tts.speak"
"""Request/reply: one text, one `SpeakResponse` with all its audio."""
VOICES_SUBJECT = "ai.voice.tts.voices.list"
REFRESH_SUBJECT = "ai.voice.tts.voices.refresh"

MAX_TEXT = 20_000
"""Characters of one request."""


class SpeakRequest(Request):
    """A text, and how to say it."""

    text: str = Field(max_length=MAX_TEXT)
    speaker: str | None = Field(default=None, max_length=256)
    """A voice of `voices.list`; the service's own when absent."""
    language: str | None = Field(default=None, pattern=r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8}){0,3}$")
    speaker_wav: str | None = Field(default=None, max_length=256)
    """The name of a custom voice, for callers that say it so; the same as `speaker`."""
    speed: float | None = Field(default=None, ge=0.25, le=4.0)
    """1 is the voice's own pace; only for engines that can."""
    stream: bool = True
    """Whether chunks go out as they are made; without, once all is made, so that `total_chunks` is known."""
    format: Literal["pcm", "wav"] = "pcm"
    """`pcm`: samples alone; `wav`: each chunk is a WAV file of its own. A reply (`ai.tts.speak`) is always one WAV
    file unless `pcm` is asked for by name."""

    @field_validator("text")
    @classmethod
    def _has_words(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("is empty")
        return text


class AudioChunk(Message):
    """A piece of the audio of a request, on `ai.voice.tts.audio.{session}`."""

    request_id: str
    chunk_index: int
    """From 0, rising by one over all attempts: none comes twice."""
    total_chunks: int | None = None
    """Known in the last chunk, and in all when the request says `stream: false`."""
    audio: bytes = Field(repr=False)
    is_last: bool = False
    sample_rate: int
    width: int = 2
    channels: int = 1
    format: Literal["pcm", "wav"] = "pcm"
    sentence: int = 0
    """Which piece of the text it belongs to."""
    text: str = ""
    """That piece, in its first chunk."""
    attempt: int = 1
    timestamp: float


class SpeechStatus(Message):
    """What becomes of a request, on `ai.voice.tts.status.{session}`: `started`, then `completed` or `error`."""

    request_id: str
    status: Literal["started", "completed", "error"]
    attempt: int = 1
    sentences: int = 0
    """How many pieces the text is said in."""
    chunks: int = 0
    duration_ms: float = 0.0
    """Of the audio."""
    error: ErrorInfo | None = None
    timings: dict[str, float] = Field(default_factory=dict)
    trace_id: str = ""
    timestamp: float


class SpeakResponse(Response):
    """All the audio of a text."""

    audio: bytes | None = Field(default=None, repr=False)
    format: Literal["pcm", "wav"] = "wav"
    sample_rate: int | None = None
    width: int = 2
    channels: int = 1
    duration_ms: float = 0.0


class VoicesRequest(Request):
    """Asks for the voices; for `refresh`, to look for them anew first."""


class VoiceInfo(Message):
    """A voice that can be named as `speaker`."""

    name: str
    kind: Literal["builtin", "custom"]
    """`custom` ones come from reference WAVs in the service's folder."""
    language: str | None = None


class VoicesResponse(Response):
    """The voices, sorted by name; and what the engine is."""

    engine: str = ""
    voices: list[VoiceInfo] = Field(default_factory=list)
    default: str | None = None
