"""Speech to text, live: a session's audio in, what is said in it out.

A client publishes on `ai.voice.stream.{session}` and reads `ai.voice.transcription.{session}`.
"""

from typing import Any, Literal

from pydantic import Field

from handler_core.contract.audio import Audio
from handler_core.contract.base import Message, Token
from handler_core.contract.errors import ErrorInfo

STREAM_SUBJECT = "ai.voice.stream.{session}"
TRANSCRIPTION_SUBJECT = "ai.voice.transcription.{session}"

MAX_CHUNK = 64 * 1024
"""Bytes of audio in one message."""

MAX_SEQ = 1 << 53
"""What a client's count of its chunks stays below."""

State = Literal["listening", "responding"]


class SessionConfig(Message):
    """What a `start` says of a session; a session whose first message is a chunk has the defaults."""

    sample_rate: Literal[8000, 16_000, 32_000, 48_000] = 16_000
    channels: Literal[1, 2] = 1
    """Of two, the first is listened to."""
    frame_ms: Literal[10, 20, 30] | None = None
    """What voice activity is looked for in; the worker's own when absent. Chunks may have any size."""
    language: str | None = Field(default=None, pattern=r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8}){0,3}$")
    prompt: str | None = Field(default=None, max_length=1024)
    """Words that are likely to come up, for the speech-to-text endpoint."""
    partials: bool | None = None
    """Whether to transcribe while the speaker still speaks; the worker's own when absent."""
    keep_short: bool = False
    """Whether to transcribe what is shorter than the shortest utterance, such as a single "yes"."""
    speaker_id: str | None = Field(default=None, max_length=256)
    user_id: Token | None = None
    """Whose turns they are; only where the worker believes it (`SESSION_USERS`)."""
    turn: dict[str, Any] | None = None
    """Where given, each final transcript is asked of voice_assistant, with these fields of a `VoiceRequest`: its
    answer is on the subjects of `request_id`, which the transcript names."""


class StreamMessage(SessionConfig):
    """One message of a session. `start` is optional, and its other fields count in a `start` only."""

    type: Literal["start", "chunk", "state_change", "end"]
    audio: Audio = Field(default=b"", repr=False)
    """Signed 16-bit little-endian samples."""
    seq: int | None = Field(default=None, ge=0, lt=MAX_SEQ)
    """The client's own count of its chunks, by which lost and late ones are noticed."""
    state: State | None = None
    """In a `state_change` (or a `start`): `responding` while the client plays an answer."""


class TranscriptEvent(Message):
    """One event on `ai.voice.transcription.{session}`.

    `transcript`: what was said; a partial one is replaced by the next, a final one stays. `interrupt`: somebody speaks
    while the client is `responding`. `status`: the session's own life. `error`: something was not taken, the session
    goes on unless `status` says `ended`.
    """

    type: Literal["transcript", "interrupt", "status", "error"] = "transcript"
    transcript: str = ""
    sequence: int = 0
    """Of the utterance, from 1; partial and final transcripts of one utterance have the same."""
    is_partial: bool = False
    is_final: bool = False
    has_voice_activity: bool = False
    """Whether somebody is speaking at this moment."""
    state: State = "listening"
    speaker_id: str | None = None
    language: str | None = None
    start_ms: float | None = None
    """When the utterance began, in the session's own audio."""
    end_ms: float | None = None
    request_id: str | None = None
    """The voice turn that this transcript asked for; in an `interrupt`, the last one."""
    played_ms: float | None = Field(default=None, ge=0)
    """In an `interrupt`: how long the client had been `responding` when the speech began."""
    status: Literal["started", "resumed", "listening", "ended", "waiting"] | None = None
    """`resumed`: another worker goes on with the session; `listening`: a sign of life in long silences; `waiting`: all
    workers are full, what is said is kept."""
    reason: str = ""
    """Why it ended: `end`, `idle`."""
    error: ErrorInfo | None = None
    attempt: int = 1
    trace_id: str = ""
    timestamp: float
