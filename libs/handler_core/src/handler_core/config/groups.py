"""The groups that services put together: logs, the process itself, and one for each upstream."""

from typing import Literal

from pydantic import Field, SecretStr

from handler_core.config.base import Settings, url_field
from handler_core.config.nats import NatsSettings
from handler_core.config.telemetry import OtelSettings


class LogSettings(Settings):
    """What is logged, and how."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"
    """`auto`: colours on a terminal, JSON elsewhere."""


class ServiceSettings(NatsSettings, LogSettings, OtelSettings):
    """What every service reads."""

    health_host: str = "0.0.0.0"
    health_port: int = Field(default=8080, ge=0, le=65535)
    """0 takes a free port, which is logged."""
    drain_timeout: float = Field(default=25.0, gt=0)
    """Seconds that running work gets to finish after SIGTERM; `terminationGracePeriodSeconds` needs 10 more."""


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
