"""Settings: read from the environment or from mounted files, checked before anything starts.

Each group is a class; a service's settings inherit the groups it needs. Every field is set by the environment
variable of its name in capitals (`LLM_URL`), or read from the file that `LLM_URL_FILE` names, or from a file of the
field's name in the folder `SECRETS_DIR` (default `/run/secrets`); a setting that is a file's path, such as
`NATS_CREDS`, becomes that file's. The environment counts first; what is empty is not set.
"""

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args
from urllib.parse import unquote, urlsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict


class FileSource(PydanticBaseSettingsSource):
    """Values from the files that `NAME_FILE` variables name, or of files in `SECRETS_DIR`."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        folder = Path(os.environ.get("SECRETS_DIR") or "/run/secrets")
        # The key that the environment's source uses, so that a value from there replaces one from here.
        key = field_name if field.validation_alias is None else names(field_name, field)[0]
        for name in names(field_name, field):
            if named := os.environ.get(f"{name}_FILE"):
                return _content(field, Path(named), f"{name}_FILE"), key, False
            for candidate in (folder / name, folder / name.lower()):
                if os.path.isfile(candidate):  # noqa: PTH113 - false, not an error, in a folder that is closed to us
                    return _content(field, candidate, name), key, False
        return None, key, False

    def __call__(self) -> dict[str, Any]:
        found = (self.get_field_value(field, name) for name, field in self.settings_cls.model_fields.items())
        return {key: value for value, key, _ in found if value}  # an empty file sets nothing, as an empty variable


def _content(field: FieldInfo, path: Path, name: str) -> str:
    """What a mounted file sets: its text, or its own path where the setting is that of a file."""
    if Path in get_args(field.annotation):
        return str(path)
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        # Without the path: whoever mistakes one for the other has put the secret there.
        raise SettingsError(f"{name}: the file cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{name}: the file is not UTF-8 text") from None


def existing(path: Path | None) -> Path | None:
    """The path, for a validator, if there is a file."""
    # The path is not repeated: it may be the secret itself, set where its file's name belongs.
    if path is not None and not os.path.isfile(path):  # noqa: PTH113 - false, not an error, for any text
        raise ValueError("names no file")
    return path


def pairs(text: str) -> dict[str, str]:
    """The `name=value` pairs of a list with commas between, values percent-decoded, as W3C Baggage writes them.

    Raises:
        ValueError: it is not such a list; the text is not repeated, for it may be a secret.
    """
    found: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            raise ValueError("is not a list of name=value pairs with commas between")
        found[unquote(name.strip())] = unquote(value.strip())
    return found


class SettingsError(Exception):
    """A setting is wrong; the message is one line that names it."""


class Settings(BaseSettings):
    """The base of all settings; a setting does not change once read."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True, env_ignore_empty=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, FileSource(settings_cls)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, masked(value) if isinstance(value, str) else value


class LogSettings(Settings):
    """What is logged, and how."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"
    """`auto`: colours on a terminal, JSON elsewhere."""


class NatsSettings(Settings):
    """How to reach NATS: one way of authentication at most."""

    nats_url: str = "nats://127.0.0.1:4222"
    """One URL, or several of a cluster with commas between."""
    nats_user: str | None = None
    """With `NATS_PASSWORD`."""
    nats_password: SecretStr | None = None
    nats_token: SecretStr | None = None
    nats_nkey_seed: SecretStr | None = None
    nats_creds: Path | None = None
    """A credentials file (JWT and seed)."""
    nats_tls_ca: Path | None = None
    nats_tls_cert: Path | None = None
    nats_tls_key: Path | None = None

    @field_validator("nats_url")
    @classmethod
    def _is_nats(cls, url: str) -> str:
        for part in url.split(","):
            if not part.startswith(("nats://", "tls://", "ws://", "wss://")):
                raise ValueError("must start with nats://, tls://, ws:// or wss://")
            try:
                parsed = urlsplit(part)
                complete = bool(parsed.hostname) and parsed.port != 0
            except ValueError:
                complete = False
            if not complete:
                raise ValueError("is not a URL with a host and an optional port")
        return url

    @field_validator("nats_creds", "nats_tls_ca", "nats_tls_cert", "nats_tls_key")
    @classmethod
    def _exists(cls, path: Path | None) -> Path | None:
        return existing(path)

    @field_validator("nats_nkey_seed")
    @classmethod
    def _is_seed(cls, seed: SecretStr | None) -> SecretStr | None:
        if seed is not None and not re.fullmatch(r"SU[A-Z2-7]{56}", seed.get_secret_value()):
            raise ValueError("is not the seed of a user (SU…)")
        return seed

    @model_validator(mode="after")
    def _is_coherent(self) -> "NatsSettings":
        ways = ("nats_user", "nats_token", "nats_nkey_seed", "nats_creds")
        chosen = [name.upper() for name in ways if getattr(self, name) is not None]
        if len(chosen) > 1:
            raise ValueError(f"{chosen[1]}: cannot be set together with {chosen[0]}")
        for name, needed in (("nats_password", "nats_user"), ("nats_tls_key", "nats_tls_cert")):
            if getattr(self, name) is not None and getattr(self, needed) is None:
                raise ValueError(f"{name.upper()}: needs {needed.upper()} as well")
        return self


def url_field(name: str, *aliases: str, default: str | None = None) -> Any:
    """A setting that is an http(s) base URL; it may carry a path prefix."""
    return Field(default=default, validation_alias=AliasChoices(name, *aliases), pattern=r"^https?://[^\s]+$")


class OtelSettings(Settings):
    """Where traces and metrics are pushed to, if anywhere: OpenTelemetry's own variables, in its units (milliseconds).

    Source: OpenTelemetry specification, "Environment Variable Specification" and "OTLP Exporter Configuration".
    """

    otel_sdk_disabled: bool = False
    otel_exporter_otlp_endpoint: str | None = url_field("OTEL_EXPORTER_OTLP_ENDPOINT")
    """A collector's base URL, to which `/v1/traces` and `/v1/metrics` are added; with none, nothing is exported."""
    otel_exporter_otlp_traces_endpoint: str | None = url_field("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    """The whole URL for traces; counts before the base URL. The same holds for metrics."""
    otel_exporter_otlp_metrics_endpoint: str | None = url_field("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
    otel_traces_exporter: Literal["otlp", "none"] = "otlp"
    otel_metrics_exporter: Literal["otlp", "prometheus", "none"] = "otlp"
    """`prometheus` and `none`: not pushed. `/metrics` is there in any case."""
    otel_exporter_otlp_protocol: str = "http/protobuf"
    otel_exporter_otlp_traces_protocol: str | None = None
    otel_exporter_otlp_metrics_protocol: str | None = None
    otel_exporter_otlp_headers: SecretStr | None = None
    """`name=value` pairs with commas between, values percent-encoded; those of a signal are added to it."""
    otel_exporter_otlp_traces_headers: SecretStr | None = None
    otel_exporter_otlp_metrics_headers: SecretStr | None = None
    otel_exporter_otlp_timeout: int = Field(default=10_000, ge=100)
    """Milliseconds that one export may take, with its retries."""
    otel_exporter_otlp_compression: Literal["none", "gzip", "deflate"] = "none"
    otel_exporter_otlp_certificate: Path | None = None
    """The certificates that the collector's is checked against."""
    otel_exporter_otlp_client_certificate: Path | None = None
    otel_exporter_otlp_client_key: Path | None = None
    otel_service_name: str | None = None
    """Instead of the service's own name."""
    otel_resource_attributes: str | None = None
    """`name=value` pairs with commas between, values percent-encoded, such as `deployment.environment.name=prod`."""
    otel_traces_sampler: Literal[
        "always_on",
        "always_off",
        "traceidratio",
        "parentbased_always_on",
        "parentbased_always_off",
        "parentbased_traceidratio",
    ] = "parentbased_always_on"
    otel_traces_sampler_arg: float = Field(default=1.0, ge=0, le=1)
    """The ratio of the two samplers that have one."""
    otel_bsp_schedule_delay: int = Field(default=1_000, ge=1)
    """Milliseconds that a span waits for others at most; a killed process loses as much."""
    otel_bsp_max_queue_size: int = Field(default=8_192, ge=1)
    """Spans that wait for the collector at most; beyond, new ones are dropped and counted."""
    otel_bsp_max_export_batch_size: int = Field(default=512, ge=1)
    otel_metric_export_interval: int = Field(default=60_000, ge=100)
    """Milliseconds from one push of the metrics to the next."""

    @field_validator(
        "otel_exporter_otlp_protocol", "otel_exporter_otlp_traces_protocol", "otel_exporter_otlp_metrics_protocol"
    )
    @classmethod
    def _protocol_is_supported(cls, protocol: str | None) -> str | None:
        if protocol not in (None, "http/protobuf"):
            raise ValueError("only http/protobuf is supported (a collector's port for it is 4318 as a rule)")
        return protocol

    @field_validator(
        "otel_exporter_otlp_headers", "otel_exporter_otlp_traces_headers", "otel_exporter_otlp_metrics_headers"
    )
    @classmethod
    def _are_headers(cls, headers: SecretStr | None) -> SecretStr | None:
        for name, value in pairs(headers.get_secret_value() if headers else "").items():
            if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or not re.fullmatch(r"[\x20-\x7e]*", value):
                raise ValueError("has a name or a value that no HTTP header can have")
        return headers

    @field_validator("otel_resource_attributes")
    @classmethod
    def _are_attributes(cls, attributes: str | None) -> str | None:
        pairs(attributes or "")
        return attributes

    @field_validator(
        "otel_exporter_otlp_certificate", "otel_exporter_otlp_client_certificate", "otel_exporter_otlp_client_key"
    )
    @classmethod
    def _certificate_exists(cls, path: Path | None) -> Path | None:
        return existing(path)

    @model_validator(mode="after")
    def _otel_is_coherent(self) -> "OtelSettings":
        if self.otel_bsp_max_export_batch_size > self.otel_bsp_max_queue_size:
            raise ValueError("OTEL_BSP_MAX_EXPORT_BATCH_SIZE: cannot be more than OTEL_BSP_MAX_QUEUE_SIZE")
        if self.otel_exporter_otlp_client_key and not self.otel_exporter_otlp_client_certificate:
            raise ValueError("OTEL_EXPORTER_OTLP_CLIENT_KEY: needs OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE as well")
        return self

    @property
    def traces_url(self) -> str:
        """Where spans are sent; empty when they are not."""
        return self._signal_url(self.otel_exporter_otlp_traces_endpoint, "traces", self.otel_traces_exporter)

    @property
    def metrics_url(self) -> str:
        """Where metrics are pushed; empty when they are not."""
        return self._signal_url(self.otel_exporter_otlp_metrics_endpoint, "metrics", self.otel_metrics_exporter)

    @property
    def telemetry_on(self) -> bool:
        """Whether anything is exported; only then is `handler_core.otlp` needed."""
        return bool(self.traces_url or self.metrics_url)

    def _signal_url(self, own: str | None, signal: str, exporter: str) -> str:
        if self.otel_sdk_disabled or exporter != "otlp":
            return ""
        base = self.otel_exporter_otlp_endpoint
        return own or (f"{base.removesuffix('/')}/v1/{signal}" if base else "")


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


S = TypeVar("S", bound=Settings)


def names(field_name: str, field: FieldInfo) -> list[str]:
    """The environment variables that set a field, the preferred one first."""
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        return [str(choice) for choice in alias.choices]
    return [field_name.upper()]


def load(settings: type[S], **overrides: Any) -> S:
    """Read the settings.

    Raises:
        SettingsError: one is wrong; its message names the variable, never the value of a secret.
    """
    try:
        return settings(**overrides)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        text = first["msg"].removeprefix("Value error, ")
        if first["loc"]:
            name = str(first["loc"][0])
            if name in settings.model_fields:
                name = names(name, settings.model_fields[name])[0]
            text = f"{name}: {text}"
        raise SettingsError(text) from None


def load_or_exit(settings: type[S], **overrides: Any) -> S:
    """Read the settings, or end the process with one line that names the wrong one (exit code 2)."""
    try:
        return load(settings, **overrides)
    except SettingsError as error:
        _exit(f"setting {error}")


def _exit(line: str) -> NoReturn:
    print(line, file=sys.stderr)
    raise SystemExit(2)


def printable(settings: Settings) -> str:
    """The effective values as `NAME=value` lines, secrets masked."""
    lines = []
    for field_name, field in type(settings).model_fields.items():
        value = getattr(settings, field_name)
        if isinstance(value, str):
            value = masked(value)
        lines.append(f"{names(field_name, field)[0]}={'' if value is None else value}")
    return "\n".join(lines)


def masked(url: str) -> str:
    """A URL, or several with commas between, without the user information and the query that may stand in it."""
    parts = []
    for part in url.split(","):
        scheme, separator, rest = part.partition("://")
        if separator:
            user, at, place = rest.rpartition("@")
            base, mark, _ = place.partition("?")
            parts.append(f"{scheme}://{'…@' if user and at else ''}{base}{'?…' if mark else ''}")
        else:
            parts.append(part)
    return ",".join(parts)
