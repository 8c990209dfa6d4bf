"""OpenTelemetry's exporters over HTTP, told everything explicitly, and their failures told in our own log form."""

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import requests
import structlog
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from pydantic import SecretStr

from handler_core.config import OtelSettings, masked, pairs

log = structlog.get_logger("handler_core.otlp")

SELDOM = 60.0
"""Seconds between two log lines of one kind."""


class Seldom:
    """Warnings that would otherwise come by the second: one of a kind in `SELDOM` seconds."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._lock = threading.Lock()

    def warn(self, key: str, event: str, **fields: Any) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._last.get(key, -SELDOM) < SELDOM:
                return
            self._last[key] = now
        log.warning(event, **fields)


class Seldomly(logging.Handler):
    """What OpenTelemetry logs itself, seldom and without tracebacks.

    Its exporters' lines are dropped: they may carry the URL with its query, and `Channel` tells the same.
    """

    def __init__(self, seldom: Seldom) -> None:
        super().__init__(logging.WARNING)
        self._seldom = seldom

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith("opentelemetry.exporter.otlp.proto.http"):
            self._seldom.warn(str(record.msg), "telemetry_warning", logger=record.name, warning=record.getMessage())


class Session(requests.Session):
    """Requests to a collector, with how the last one went."""

    def __init__(self) -> None:
        super().__init__()
        self.closing = False
        """From here on nothing that failed to connect is tried again."""
        self.closed = False
        self.trouble = ""
        """What the last request failed with: an exception's class or `http_{status}`."""
        self.body = b""
        """Of the last answer."""

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        try:
            response = super().request(*args, **kwargs)
        except requests.RequestException as error:
            self.trouble = type(error).__name__
            if self.closing:
                raise _NotAgain from error
            raise
        self.trouble = "" if response.status_code < 300 else f"http_{response.status_code}"
        self.body = response.content if response.ok else b""
        return response


class _NotAgain(Exception):
    """Hides from the exporter that it might try again."""


class Exporter(Protocol):
    """What `OTLPSpanExporter` and `OTLPMetricExporter` have in common."""

    def export(self, data: Any, /) -> Any: ...

    def shutdown(self) -> None: ...


class Channel:
    """One signal's way to the collector. `send` blocks, and is for one thread at a time.

    Args:
        make: the exporter's class; it is told all that the settings say of this signal.
        answer: what the collector answers with.
    """

    def __init__(
        self,
        name: str,
        url: str,
        headers: SecretStr | None,
        settings: OtelSettings,
        make: Callable[..., Exporter],
        answer: type[ExportTraceServiceResponse | ExportMetricsServiceResponse],
        seldom: Seldom,
    ) -> None:
        self._name = name
        self._url = masked(url)
        self._answer = answer
        self._seldom = seldom
        self._session = Session()
        self._failing = self._sending = False
        self._exporter = make(
            endpoint=url,
            headers=_headers(settings.otel_exporter_otlp_headers) | _headers(headers),
            timeout=settings.otel_exporter_otlp_timeout / 1000,
            compression=Compression(settings.otel_exporter_otlp_compression),
            certificate_file=_authorities(settings),
            client_certificate_file=_path(settings.otel_exporter_otlp_client_certificate),
            client_key_file=_path(settings.otel_exporter_otlp_client_key),
            session=self._session,
        )

    def send(self, data: Any, count: int) -> bool:
        """Export `count` spans or metrics, with retries; False if they are lost, which is logged."""
        self._sending = True
        # By name: the exporters' two enumerations of results have nothing else in common.
        sent = self._exporter.export(data).name == "SUCCESS" and not self._session.trouble
        self._sending = False
        if sent:
            if self._failing:
                log.info("telemetry_export_recovered", signal=self._name, endpoint=self._url)
            self._note_rejected()
        elif not self._session.closed:
            self._seldom.warn(
                self._name,
                "telemetry_export_failed",
                signal=self._name,
                endpoint=self._url,
                error=self._session.trouble or "encoding",
                lost=count,
            )
        self._failing = not sent
        return sent

    def close_soon(self) -> None:
        """Before the last `send`: no connection is tried twice, and one that is being tried again is given up."""
        self._session.closing = True
        if self._sending and self._session.trouble:
            self.close()

    def close(self) -> None:
        """Send no more; what waits for its next attempt is given up. A second call does nothing."""
        if not self._session.closed:
            self._session.closed = True
            self._exporter.shutdown()

    def _note_rejected(self) -> None:
        if not self._session.body:
            return
        try:
            partial = self._answer.FromString(self._session.body).partial_success
        except DecodeError:  # an answer of no use, but a good one by its status
            return
        if partial.error_message or partial.ByteSize():
            self._seldom.warn(
                f"{self._name} rejected", "telemetry_rejected", signal=self._name, reason=partial.error_message[:500]
            )


def _headers(secret: SecretStr | None) -> dict[str, str]:
    return pairs(secret.get_secret_value()) if secret is not None else {}


def _authorities(settings: OtelSettings) -> str | None:
    """The certificates that the collector's is checked against; None for the system's."""
    if settings.otel_exporter_otlp_certificate is not None:
        return str(settings.otel_exporter_otlp_certificate)
    if any(f"OTEL_EXPORTER_OTLP_{signal}_CERTIFICATE" in os.environ for signal in ("TRACES", "METRICS")):
        return None  # the exporter reads its own by itself
    # What Python's ssl, and with it everything else here, goes by; requests does not.
    named = os.environ.get("SSL_CERT_FILE", "")
    return named if os.path.isfile(named) else None  # noqa: PTH113 - false, not an error, for any text


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)
