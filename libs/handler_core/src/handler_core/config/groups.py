"""The groups that services put together, one for each upstream."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

from handler_core.config.base import Settings, url_field

LOCAL = "http://127.0.0.1:8900"
"""Where `local_inference` listens: what development finds without any setting."""


class LLMSettings(Settings):
    """The chat completions endpoint."""

    llm_url: str = url_field("LLM_URL", "VLLM_URL", default=LOCAL)
    llm_model: str = "default"
    llm_api_key: SecretStr | None = None
    llm_timeout: float = Field(default=60.0, gt=0)
    """Seconds without a byte from the LLM until the call is given up."""
    llm_premium_url: str | None = url_field("LLM_PREMIUM_URL")
    llm_premium_model: str | None = None
    llm_premium_api_key: SecretStr | None = None


class EmbeddingsSettings(Settings):
    """The embeddings endpoint."""

    embeddings_url: str = url_field("EMBEDDINGS_URL", default=LOCAL)
    embeddings_model: str | None = None
    embeddings_api_key: SecretStr | None = None
    embeddings_timeout: float = Field(default=10.0, gt=0)


class RerankerSettings(Settings):
    """The reranker endpoint; without one, sources keep the vector search's order."""

    reranker_url: str | None = url_field("RERANKER_URL")
    reranker_model: str | None = None
    reranker_api_key: SecretStr | None = None
    reranker_timeout: float = Field(default=10.0, gt=0)


class STTSettings(Settings):
    """The transcription endpoint."""

    stt_url: str = url_field("STT_URL", "WHISPER_URL", default=LOCAL)
    stt_model: str | None = None
    stt_api_key: SecretStr | None = None
    stt_timeout: float = Field(default=30.0, gt=0)
    stt_language: str | None = None
    """The language to expect, as a code; with none, the model tells it from the audio."""


class TTSSettings(Settings):
    """The speech endpoint, and the voices it may clone."""

    tts_url: str = url_field("TTS_URL", default=LOCAL)
    tts_engine: Literal["auto", "coqui", "xtts", "openai"] = "auto"
    tts_model: str | None = None
    tts_api_key: SecretStr | None = None
    tts_timeout: float = Field(default=30.0, gt=0)
    """Seconds until the first audio of a piece of text, and between two parts of it, until the call is given up."""
    tts_speaker: str | None = None
    """The voice when a request names none; the engine's own choice without."""
    tts_language: str = "en"
    tts_concurrency: int = Field(default=1, ge=1)
    """Pieces of text spoken at once, by each replica; most servers make one at a time."""
    tts_max_chars: int = Field(default=0, ge=0)
    """Characters in one piece of text; 0 for what the engine is known to take."""
    tts_voices: str = ""
    """Names of the endpoint's voices with commas between, for one that does not tell them."""
    tts_sample_rate: int = Field(default=24_000, ge=8_000, le=192_000)
    """Of bare samples, where the endpoint does not tell."""
    voices_dir: Path | None = None
    """A folder of recordings to clone, one WAV file for each voice and named after it."""
    tts_voices_path: str | None = None
    """The same folder as the speech server sees it; the same path without."""

    @property
    def tts_voice_names(self) -> list[str]:
        """`tts_voices` as a list."""
        return [name for name in map(str.strip, self.tts_voices.split(",")) if name]


class MilvusSettings(Settings):
    """The vector store."""

    milvus_uri: str | None = url_field("MILVUS_URI")
    """Counts before `MILVUS_HOST` and `MILVUS_PORT`."""
    milvus_host: str = "127.0.0.1"
    milvus_port: int = Field(default=19530, ge=1, le=65535)
    milvus_token: SecretStr | None = None
    milvus_timeout: float = Field(default=10.0, gt=0)
    collection_name: str = Field(default="documents", pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,254}$")

    @property
    def milvus_address(self) -> str:
        """The URI to connect to."""
        return self.milvus_uri or f"http://{self.milvus_host}:{self.milvus_port}"
