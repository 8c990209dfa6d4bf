"""OpenTelemetry's settings."""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from handler_core.config.base import Settings, existing, pairs, url_field


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
    """The certificates that the collector's is checked against; unset, those that `SSL_CERT_FILE` names, or the
    system's."""
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
