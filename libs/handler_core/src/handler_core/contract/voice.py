"""Voice: a spoken question, and its spoken answer while it is being written.

Requests arrive on `ai.voice.request`, `voice.request` or `ai.voice.user.{user}.request`. Clients subscribe to
`ai.voice.response.stream.{request_id}` and `ai.voice.response.{request_id}` before they publish.
"""

from typing import Literal

from pydantic import Field, model_validator

from handler_core.contract.answer import Family, Response, StreamEvent
from handler_core.contract.audio import Audio
from handler_core.contract.base import Message
from handler_core.contract.chat import ChatRequest, Citation, Question, Source, Usage

REQUEST_SUBJECT = "ai.voice.request"
SHORT_SUBJECT = "voice.request"
USER_SUBJECT = "ai.voice.user.{user}.request"
ASK_SUBJECT = "ai.voice.ask"
"""Request/reply: one question, one `VoiceResponse`, in JSON when the request is JSON."""
USER_ASK_SUBJECT = "ai.voice.user.{user}.ask"

FORMATS = ("wav", "pcm", "mp3", "ogg", "opus", "webm", "flac", "m4a", "mp4")


class VoiceRequest(Question):
    """A question as audio, or as text that is already transcribed, with how it is to be answered."""

    audio: Audio = Field(default=b"", repr=False)
    text: str = Field(default="", max_length=65_536)
    """The question where it is known already, as from a live session: nothing is transcribed."""
    format: Literal["wav", "pcm", "mp3", "ogg", "opus", "webm", "flac", "m4a", "mp4"] = "wav"
    """`pcm` is described by the three fields below; what is compressed goes to the speech-to-text endpoint as it is."""
    sample_rate: int = Field(default=16_000, ge=4000, le=192_000)
    width: Literal[1, 2, 3, 4] = 2
    channels: int = Field(default=1, ge=1, le=8)
    language: str | None = Field(default=None, pattern=r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8}){0,3}$")
    """Spoken in the question and in the answer; found by the endpoint when absent."""
    enable_streaming: bool = True
    """Whether text and audio go out while they are made; without, the final response is all there is."""
    enable_tts: bool = True
    """Whether the answer is spoken."""
    speaker: str | None = Field(default=None, max_length=256)
    """The voice; the handler's own when absent."""

    @model_validator(mode="after")
    def _says_something(self) -> "VoiceRequest":
        if not self.audio and not self.text.strip():
            raise ValueError("audio: is empty, and there is no text")
        return self

    def question(self, query: str) -> ChatRequest:
        """What to ask, now that it is known what was said."""
        options = {name: getattr(self, name) for name in Question.model_fields}
        return ChatRequest(query=query, **{**options, "enable_tts": False})  # the voice turn speaks by itself


class Transcript(Message):
    """Part of a stream: what was understood of the question."""

    type: Literal["transcript"] = "transcript"
    content: str
    language: str | None = None


class Segment(Message):
    """Part of a stream: a piece of the answer's audio. Pieces play one after the other, by their `segment`.

    A segment with a number that a client has already, of a later `attempt`, replaces that one and all after it.
    """

    type: Literal["audio"] = "audio"
    segment: int = Field(ge=0)
    """Rises by one, from 0, over all attempts."""
    sentence: int = Field(ge=0)
    """Which sentence of the answer it belongs to."""
    text: str = ""
    """The sentence, in its first segment."""
    last: bool = False
    """Whether it ends its sentence."""
    audio: bytes = Field(repr=False)
    """Signed 16-bit little-endian samples, unless `width` says otherwise."""
    sample_rate: int
    width: int = 2
    channels: int = 1


class VoiceEvent(StreamEvent):
    """One event of a spoken answer: as in a chat's stream, and those of type `transcript` and `audio`, which have the
    fields of `Transcript` and `Segment`."""

    type: Literal["chunk", "restart", "done", "error", "transcript", "audio"]  # type: ignore[assignment]
    language: str | None = None
    segment: int | None = None
    sentence: int | None = None
    text: str = ""
    last: bool = False
    audio: bytes = Field(default=b"", repr=False)
    sample_rate: int | None = None
    width: int = 2
    channels: int = 1


class VoiceResponse(Response):
    """The final answer, on `ai.voice.response.{request_id}`.

    `timings` has those of a chat, and `stt_ms`, `tts_first_audio_ms` (from the request's arrival to the first audio),
    `tts_ms`; `degraded` names those of a chat, and `tts` (the answer, or its rest, is not spoken) and `audio` (it does
    not fit here, and was not streamed either).
    """

    transcription: str = ""
    language: str | None = None
    response: str = ""
    audio: bytes | None = Field(default=None, repr=False)
    """The whole answer as a WAV file; None when it is larger than the handler's limit, 512 KiB by default."""
    audio_segments: int = 0
    """How many audio segments are in the stream."""
    sample_rate: int | None = None
    sources: list[Source] = Field(default_factory=list)
    citations: list[Citation] = Field(default_factory=list)
    used_rag: bool = False
    usage: Usage = Usage()


VOICE: Family[VoiceResponse] = Family("voice.response", VoiceResponse, event=VoiceEvent)
