"""The settings of the live sessions' worker."""

from pydantic import Field, field_validator, model_validator

from handler_core.config import ServiceSettings, STTSettings
from stt_module.rules import Rules


class Settings(STTSettings, ServiceSettings):
    """What counts as an utterance, and how many sessions one worker takes."""

    vad_mode: int = Field(default=2, ge=0, le=3)
    """0 takes almost anything for speech, 3 almost nothing."""
    frame_ms: int = 20
    """What voice activity is judged by: 10, 20 or 30; a session may ask for another."""
    speech_start_ms: int = Field(default=200, ge=30, le=2000)
    """Voiced audio with which an utterance starts."""
    speech_end_ms: int = Field(default=600, ge=30, le=10_000)
    """Silence with which it ends."""
    pre_roll_ms: int = Field(default=500, ge=0, le=5000)
    """Audio kept from before its start."""
    min_utterance_ms: int = Field(default=300, ge=0, le=10_000)
    """Utterances with less voiced audio are dropped, unless the session says `keep_short`."""
    max_utterance_ms: int = Field(default=30_000, le=43_000)
    """Longer ones are cut, with nothing lost; at most what 4 MiB hold at 48 kHz."""
    noise_ms: int = Field(default=6000, ge=0, le=60_000)
    """Audio in which the noise is looked for that speech has to stand out from; 0 takes webrtcvad's word for all."""
    interrupt_ms: int = Field(default=500, ge=100, le=10_000)
    """Speech that interrupts a client which is `responding`."""
    idle_timeout: float = Field(default=30.0, gt=0)
    """Seconds without a message after which a session ends."""
    partials: bool = True
    """Whether utterances are transcribed while they last; a session may ask otherwise."""
    partial_interval_ms: int = Field(default=1000, ge=200)
    """New audio after which the next partial transcript is made."""
    max_sessions: int = Field(default=256, ge=1, le=4096)
    """Sessions that one worker listens to at once."""
    session_users: bool = False
    """Whether the `user_id` of a session's `start` is believed, and its turns asked for as that user's: only where none
    but trusted callers, such as a gateway, may publish on sessions."""
    stt_concurrency: int = Field(default=8, ge=1, le=1000)
    """Calls of the transcription endpoint that one worker has under way at once."""

    @field_validator("noise_ms")
    @classmethod
    def _is_enough(cls, value: int) -> int:
        if 0 < value < 2000:
            raise ValueError("has to be 0, or at least 2000")
        return value

    @field_validator("frame_ms")
    @classmethod
    def _is_a_frame(cls, value: int) -> int:
        if value not in {10, 20, 30}:
            raise ValueError("has to be 10, 20 or 30")
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> "Settings":
        try:
            self.rules(frame_ms=30)  # the longest that a session may ask for
        except ValueError as error:
            raise ValueError(f"MAX_UTTERANCE_MS: {error}") from None
        return self

    def rules(self, *, frame_ms: int | None = None, keep_short: bool = False) -> Rules:
        """What counts as an utterance in a session that asks for these."""
        return Rules(
            frame_ms=frame_ms or self.frame_ms,
            mode=self.vad_mode,
            start_ms=self.speech_start_ms,
            end_ms=self.speech_end_ms,
            pre_roll_ms=self.pre_roll_ms,
            min_ms=self.min_utterance_ms,
            keep_short=keep_short,
            max_ms=self.max_utterance_ms,
            interrupt_ms=self.interrupt_ms,
            noise_ms=self.noise_ms,
        )
