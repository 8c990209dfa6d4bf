"""OpenTelemetry's own variables: what each switches, and how a wrong one is told."""

import os
from pathlib import Path

import pytest

from handler_core.config import OtelSettings, ServiceSettings, SettingsError, load, pairs, printable

BASE = "http://collector:4318"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SECRETS_DIR", str(tmp_path / "none"))


def loaded(monkeypatch: pytest.MonkeyPatch, **environment: str) -> OtelSettings:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return load(ServiceSettings)


def test_nothing_is_exported_without_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = loaded(monkeypatch, OTEL_TRACES_SAMPLER="always_on", OTEL_EXPORTER_OTLP_ENDPOINT="")
    assert (settings.telemetry_on, settings.traces_url, settings.metrics_url) == (False, "", "")


@pytest.mark.parametrize("base", [BASE, f"{BASE}/", f"{BASE}/otlp", f"{BASE}/otlp/"])
def test_the_signals_paths_are_added_to_the_base_url(monkeypatch: pytest.MonkeyPatch, base: str) -> None:
    settings = loaded(monkeypatch, OTEL_EXPORTER_OTLP_ENDPOINT=base)
    assert settings.telemetry_on
    assert settings.traces_url == base.removesuffix("/") + "/v1/traces"
    assert settings.metrics_url == base.removesuffix("/") + "/v1/metrics"


def test_a_signals_own_url_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = loaded(monkeypatch, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT="https://traces:443/in/")
    assert (settings.traces_url, settings.metrics_url) == ("https://traces:443/in/", "")
    settings = loaded(monkeypatch, OTEL_EXPORTER_OTLP_ENDPOINT=BASE)
    assert (settings.traces_url, settings.metrics_url) == ("https://traces:443/in/", f"{BASE}/v1/metrics")


@pytest.mark.parametrize(
    ("environment", "traces", "metrics"),
    [
        ({"OTEL_TRACES_EXPORTER": "none"}, False, True),
        ({"OTEL_METRICS_EXPORTER": "none"}, True, False),
        ({"OTEL_METRICS_EXPORTER": "prometheus"}, True, False),
        ({"OTEL_SDK_DISABLED": "true"}, False, False),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}, False, False),
    ],
)
def test_a_signal_can_be_off(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], traces: bool, metrics: bool
) -> None:
    settings = loaded(monkeypatch, OTEL_EXPORTER_OTLP_ENDPOINT=BASE, **environment)
    assert (bool(settings.traces_url), bool(settings.metrics_url)) == (traces, metrics)
    assert settings.telemetry_on is (traces or metrics)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "pattern"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "only http/protobuf is supported"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc", "only http/protobuf is supported"),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/json", "only http/protobuf is supported"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", "'none', 'gzip' or 'deflate'"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10", "greater than or equal to 100"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/no/such/file", "names no file"),
        ("OTEL_TRACES_EXPORTER", "zipkin", "'otlp' or 'none'"),
        ("OTEL_TRACES_SAMPLER", "sometimes", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5", "less than or equal to 1"),
        ("OTEL_RESOURCE_ATTRIBUTES", "prod", "is not a list of name=value pairs"),
        ("OTEL_BSP_SCHEDULE_DELAY", "soon", "valid integer"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "100000", "cannot be more than OTEL_BSP_MAX_QUEUE_SIZE"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "0", "greater than or equal to 100"),
        ("OTEL_SDK_DISABLED", "perhaps", "valid boolean"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        loaded(monkeypatch, **{name: value})
    assert str(caught.value).startswith(f"{name}: ")
    assert says in str(caught.value)


def test_a_clients_key_needs_its_certificate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.touch()
    with pytest.raises(SettingsError, match="needs OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE as well"):
        loaded(monkeypatch, OTEL_EXPORTER_OTLP_CLIENT_KEY=str(key))


@pytest.mark.parametrize(
    "headers", ["hunter2", "api-key=ok,hunter2", "api key=hunter2", "api-key=hunter2%0d%0aHost: a", "api-key=hünter2"]
)
@pytest.mark.parametrize("signal", ["", "TRACES_", "METRICS_"])
def test_headers_that_cannot_be_sent_are_refused_untold(
    monkeypatch: pytest.MonkeyPatch, headers: str, signal: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        loaded(monkeypatch, **{f"OTEL_EXPORTER_OTLP_{signal}HEADERS": headers})
    assert str(caught.value).startswith(f"OTEL_EXPORTER_OTLP_{signal}HEADERS: ")
    assert "nter2" not in str(caught.value)


def test_headers_may_be_mounted_and_are_never_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "headers").write_text("api-key=hunter2\n")
    settings = loaded(monkeypatch, OTEL_EXPORTER_OTLP_HEADERS_FILE=str(tmp_path / "headers"))
    assert settings.otel_exporter_otlp_headers is not None
    assert settings.otel_exporter_otlp_headers.get_secret_value() == "api-key=hunter2"
    assert "hunter2" not in printable(settings) + repr(settings)


def test_pairs_are_read_as_w3c_baggage_writes_them() -> None:
    assert pairs(" a = 1 ,b=x%2Cy%3D, ,c=d=e,e=") == {"a": "1", "b": "x,y=", "c": "d=e", "e": ""}
