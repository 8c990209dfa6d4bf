"""What the environment may set."""

import os
from enum import StrEnum

import pydantic_settings
from pydantic import Field, ValidationError
from pydantic_settings import SettingsConfigDict

from handler_core.config import LogSettings, SettingsError
from local_inference.faults import Faults


class EngineName(StrEnum):
    """What answers."""

    MINILM = "minilm"
    ECHO = "echo"


class SpeechEngine(StrEnum):
    """What speaks."""

    AUTO = "auto"
    FLITE = "flite"
    ESPEAK = "espeak"


class Settings(LogSettings):
    """Settings, each by the environment variable of its name in capitals."""

    model_config = SettingsConfigDict(env_nested_delimiter="__")

    host: str = Field(default="127.0.0.1", min_length=1)
    """The address to listen on."""
    port: int = Field(default=8900, ge=0, le=65_535)
    """The port to listen on; 0 takes a free one, and the start-up line tells which."""
    engine: EngineName = EngineName.MINILM
    """`minilm`: real embeddings, an extractive responder, a hybrid reranker, and real speech. `echo`: no model, next to
    no cost."""
    speech_engine: SpeechEngine = SpeechEngine.AUTO
    """`flite`, the command; `espeak`, which is always there; `auto`: flite where it is installed. The echo engine has
    a tone of its own."""
    transcribers: int = Field(default_factory=lambda: min(2, os.cpu_count() or 1), ge=1, le=64)
    """Processes that recognise speech, 100 MB each; one is started when it is first needed."""
    threads: int = Field(default_factory=lambda: min(4, os.cpu_count() or 1), ge=1, le=256)
    """Batches of texts computed at once, and sentences that flite speaks at once; as many as there are cores, up to 4,
    unless set."""
    max_body_bytes: int = Field(default=25 * 1024 * 1024, ge=1024)
    """The largest request body; OpenAI's limit for audio unless set."""
    max_client_batch_size: int = Field(default=32, ge=1, le=4096)
    """The most texts of one embeddings or TEI rerank request, as `/info` tells."""
    echo_dimensions: int = Field(default=384, ge=8, le=8192, multiple_of=8)
    """The length of the echo engine's embeddings."""
    echo_tokens: int = Field(default=64, ge=1, le=100_000)
    """The length of the echo engine's replies, in tokens."""
    faults: Faults = Faults()
    """Injected from the start: as JSON, or one by one as FAULTS__CHAT__LATENCY_MS=200."""


def load_settings() -> Settings:
    """Read the environment.

    Raises:
        SettingsError: a setting is wrong; the message is one line that names it, nested ones in full.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise SettingsError(f"{'__'.join(map(str, first['loc'])).upper()}: {first['msg']}") from None
    except pydantic_settings.SettingsError:
        raise SettingsError("FAULTS: is not a JSON object") from None
