"""Traces and metrics pushed to a collector: OTLP over HTTP, on OpenTelemetry's SDK and exporters.

Loaded only where an endpoint is set. Nothing here is global: no provider is registered, no library instrumented, and
the event loop neither waits for the collector nor encodes for it.
"""

try:
    import opentelemetry.exporter.otlp.proto.http  # noqa: F401
except ImportError as error:
    raise ImportError("OTEL_EXPORTER_OTLP_ENDPOINT needs OpenTelemetry: install handler-core[otlp]") from error

from handler_core.otlp.export import Telemetry, exporting

__all__ = ["Telemetry", "exporting"]
