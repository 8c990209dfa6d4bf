"""The collector as `handlers doctor` sees it: does it take what the services would send."""

import aiohttp
from pydantic import SecretStr

from handler_core.config import OtelSettings, masked, pairs
from handlers_cli.doctor_findings import Finding, Stopwatch, fail, ok

SETTING = "OTEL_EXPORTER_OTLP_ENDPOINT"


async def check_otel(session: aiohttp.ClientSession, settings: OtelSettings, timeout: float) -> list[Finding]:
    """An empty export for each signal that is pushed: a valid one, of which nothing is kept."""
    if not settings.telemetry_on:
        return [ok(SETTING, "not set: no traces are exported, and metrics are only at /metrics")]
    signals = (
        ("traces", settings.traces_url, settings.otel_exporter_otlp_traces_headers),
        ("metrics", settings.metrics_url, settings.otel_exporter_otlp_metrics_headers),
    )
    return [
        await _export(session, signal, url, _headers(settings.otel_exporter_otlp_headers, own), timeout)
        for signal, url, own in signals
        if url
    ]


def _headers(*given: SecretStr | None) -> dict[str, str]:
    return {name: value for text in given if text is not None for name, value in pairs(text.get_secret_value()).items()}


async def _export(
    session: aiohttp.ClientSession, signal: str, url: str, headers: dict[str, str], timeout: float
) -> Finding:
    check = f"OTEL {signal}"
    watch = Stopwatch()
    try:
        # No bytes are an ExportServiceRequest without any span or metric.
        sent = {**headers, "Content-Type": "application/x-protobuf"}
        limit = aiohttp.ClientTimeout(total=timeout)
        async with session.post(url, data=b"", headers=sent, allow_redirects=False, timeout=limit) as answer:
            status = answer.status
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        fix = f"start the collector, or set {SETTING} to its OTLP/HTTP port, 4318 as a rule (4317 is gRPC)"
        return fail(check, f"{masked(url)}: {str(error) or f'no answer within {timeout:g} s'}", fix)
    if status in (401, 403):
        return fail(check, f"{masked(url)}: HTTP {status}", "set OTEL_EXPORTER_OTLP_HEADERS to what it asks for")
    if status == 404:
        return fail(check, f"{masked(url)}: HTTP 404", f"set {SETTING} without /v1/{signal}, which is added")
    if status >= 500 or 300 <= status < 400:
        return fail(check, f"{masked(url)}: HTTP {status}", "look at the collector's own log")
    return ok(check, f"{masked(url)}: answered HTTP {status} in {watch}")
