"""The alerts and the dashboard: every metric in them is one that is really exposed, with these labels and values."""

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from chat_handler import service as chat_handler
from handler_core import streams
from handler_core.config import ServiceSettings
from handler_core.jetstream import Api
from handler_core.testing import connection, nats_server, serving
from handler_core.testing_images import HANDLERS
from pipeline_bridge import service as pipeline_bridge
from stt_module import service as stt_module
from tools.k8s import monitoring, promql
from tts_module import service as tts_module
from voice_assistant import service as voice_assistant

ROOT = Path(__file__).parents[2]
RULES = ROOT / monitoring.RULES
DASHBOARD = ROOT / "k8s/monitoring/dashboard.json"
NOWHERE = "http://127.0.0.1:9"
SERVICES: dict[str, Any] = {
    "chat_handler": chat_handler,
    "voice_assistant": voice_assistant,
    "stt_module": stt_module,
    "tts_module": tts_module,
    "pipeline_bridge": pipeline_bridge,
}
# What the Prometheus operator puts on the target of a PodMonitor, `endpoint` being the name of its port; a metric's own
# label of such a name becomes `exported_…`. `namespace`, `pod` and `container` are compose.yaml's as well.
OPERATOR = {"namespace", "pod", "container", "endpoint", "job", "instance"}
POD_MONITOR = ROOT / "k8s/components/pod-monitor/pod-monitor.yaml"
# Of prometheus-nats-exporter 0.17 with -jsz=all, from its collector/jsz.go.
SERVER = {"server_id", "server_name", "cluster", "domain", "meta_leader", "is_meta_leader"}
STREAM = SERVER | {"account", "account_id", "stream_name", "stream_leader", "is_stream_leader", "stream_raft_group"}
CONSUMER = STREAM | {"consumer_name", "consumer_leader", "is_consumer_leader", "consumer_desc"}
EXPORTER = {
    **dict.fromkeys(
        ("jetstream_server_total_streams", "jetstream_server_total_message_bytes", "jetstream_server_max_storage"),
        SERVER,
    ),
    **dict.fromkeys(("jetstream_stream_total_bytes", "jetstream_stream_limit_bytes"), STREAM),
    **dict.fromkeys(
        (
            "jetstream_consumer_num_pending", "jetstream_consumer_num_ack_pending", "jetstream_consumer_num_waiting",
            "jetstream_consumer_delivered_consumer_seq",
        ),
        CONSUMER,
    ),
}  # fmt: skip
PROMETHEUS = {"up": {"job", "instance"}, "ALERTS": {"alertname", "alertstate", "severity"}}
# Made when they are first counted, or a cluster is there; docs/health-and-metrics.md names them.
OUTCOMES = {("handler_upstream_duration_seconds", "outcome")}
LATER = {
    "handler_pipeline_watch_failures_total": {"resource", "namespace", "outcome"},
    "handler_pipeline_runs_watched": {"resource", "namespace"},
}

# Where the namespace is the run's, which an alert or a panel of these does not look at.
NAMESPACED = set(LATER)

METRIC = re.compile(
    r"\b((?:handler|jetstream|consumer:jetstream|consumer:handler)_\w+(?::\w+)?|up|ALERTS)\b(\{[^}]*\})?"
)
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
GROUPING = re.compile(r"\b(?:by|on|group_left|group_right)\s*\(([^)]*)\)")

Exposed = dict[str, dict[str, set[str]]]


def target_labels() -> set[str]:
    """Those that a scraped handler's metrics get, and that count before their own."""
    [endpoint] = yaml.safe_load(POD_MONITOR.read_text())["spec"]["podMetricsEndpoints"]
    dropped = [each["regex"] for each in endpoint.get("relabelings", ()) if each["action"] == "labeldrop"]
    return {label for label in OPERATOR if not any(re.fullmatch(regex, label) for regex in dropped)}


TARGET = target_labels()


def rules() -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        yield from group["rules"]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def expressions() -> dict[str, str]:
    """All there are, by where they are."""
    return {name: expression for _, name, expression in promql.expressions()}


def read(text: str, exposed: Exposed) -> None:
    """Add what a service exposes: the values of each label of each series."""
    for line in text.splitlines():
        if found := re.match(r"(\w+)(\{.*\})? \S+$", line):
            labels = exposed.setdefault(found[1], {})
            for label, value in re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', found[2] or ""):
                labels.setdefault(label, set()).add(value)


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Exposed:
    """What the five services expose, started for the purpose, with what their clients count besides."""
    with nats_server() as server:
        return asyncio.run(_exposed(server.url, tmp_path_factory.mktemp("bridge")))


async def _exposed(nats_url: str, folder: Path) -> Exposed:
    (folder / "pipelines.yaml").write_text("pipelines: {ingest: {engine: argo, template: document-ingestion}}\n")
    own: dict[str, dict[str, Any]] = {
        # With a collector that is away, so that what becomes of spans is counted.
        "chat_handler": {"otel_exporter_otlp_endpoint": NOWHERE, "otel_metrics_exporter": "none"},
        "pipeline_bridge": {"pipelines_file": folder / "pipelines.yaml"},
    }
    found: Exposed = {}
    async with connection(nats_url) as nc:
        await streams.apply(Api(nc))
    for name, module in SERVICES.items():
        settings: ServiceSettings = module.Settings(
            nats_url=nats_url, health_host="127.0.0.1", health_port=0, **own.get(name, {})
        )
        async with serving(module.service, settings) as runtime:
            runtime.metrics.upstream("llm", 0.1, "ok")
            runtime.metrics.generation("llm", 0.1, 1, 1)
            read(runtime.metrics.render(), found)
    return found


def known(exposed: Exposed, metric: str) -> dict[str, set[str]] | None:
    """The labels of a metric; None if nobody exposes it."""
    recorded: Exposed = {rule["record"]: {"stream": set(), "consumer": set()} for rule in rules() if "record" in rule}
    if metric in recorded:
        return recorded[metric]
    for others in (EXPORTER, PROMETHEUS, LATER):
        if metric in others:
            return {label: set() for label in others[metric]}
    return exposed.get(metric)


def test_the_metrics_labels_and_values_in_them_are_exposed(exposed: Exposed) -> None:
    wrong = []
    for place, expression in expressions().items():
        for metric, selector in METRIC.findall(expression):
            labels = known(exposed, metric)
            if labels is None:
                wrong.append(f"{place}: nobody exposes {metric}")
                continue
            for label, operator, value in MATCHER.findall(selector):
                if label not in labels and label not in TARGET:
                    wrong.append(f"{place}: {metric} has no label {label}")
                family = re.sub(r"_(bucket|count|sum)$", "", metric)
                free = "$" in value or "*" in value or label in TARGET or (family, label) in OUTCOMES
                if metric.startswith("handler_") and not free and operator in {"=", "=~", "!~"}:
                    missing = set(value.split("|")) - labels.get(label, set())
                    wrong += [f"{place}: {metric} is never {label}={each}" for each in missing]
    assert wrong == []


def test_no_label_of_a_metric_is_pushed_aside_by_one_of_the_target(exposed: Exposed) -> None:
    used = {metric for expression in expressions().values() for metric, _ in METRIC.findall(expression)}
    handlers = {metric for metric in used if metric.startswith("handler_")}
    for metric in handlers - NAMESPACED:
        assert not TARGET & set(known(exposed, metric) or ()), metric
    for metric in used & set(EXPORTER):
        assert not OPERATOR & EXPORTER[metric], metric
    assert "endpoint" in (known(exposed, "handler_requests_total") or ())


def test_prometheus_reads_every_expression() -> None:
    assert list(promql.findings()) == []
    assert len(expressions()) > 80


@pytest.mark.parametrize(
    "wrong",
    [
        "sum by (a) (rate(x))",
        "rate(x[5m]",
        "sum(x))",
        "histogram_quantile(x)",
        "no_such_function(x)",
        'x{a=~"("}',
        "x and 1",
    ],
)
def test_an_expression_that_prometheus_would_refuse_is_found(tmp_path: Path, wrong: str) -> None:
    for file in (monitoring.RULES, promql.DASHBOARD):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text((ROOT / file).read_text())
    found = yaml.safe_load(RULES.read_text())
    found["groups"][0]["rules"][0]["expr"] = wrong
    (tmp_path / monitoring.RULES).write_text(yaml.safe_dump(found))
    assert [(each.object, each.field) for each in promql.findings(tmp_path)] == [
        (monitoring.RULES, "consumer:jetstream_pending:sum")
    ]


def test_series_are_put_together_by_labels_that_there_are(exposed: Exposed) -> None:
    for place, expression in expressions().items():
        there = set(TARGET) | {"le"} | {label for _, label, *_ in re.findall(r'(")(\w+)", "\$1"', expression)}
        for metric, _ in METRIC.findall(expression):
            there |= set(known(exposed, metric) or ())
        for names in GROUPING.findall(expression):
            assert {name.strip() for name in names.split(",") if name.strip()} <= there, place


def test_what_is_counted_later_is_documented() -> None:
    page = (ROOT / "docs/health-and-metrics.md").read_text()
    for name, labels in LATER.items():
        [row] = re.findall(rf"^\| `{name}` \| \w+ \| (.*?) \|", page, re.MULTILINE)
        assert set(re.findall(r"\w+", row)) == labels


def test_an_alert_tells_what_is_wrong_and_where_to_read_on() -> None:
    names = [alert["alert"] for alert in alerts()]
    assert len(names) == len(set(names)) > 20
    for alert in alerts():
        assert alert["labels"]["severity"] in {"critical", "warning", "info"}, alert["alert"]
        told = alert["annotations"]
        assert set(told) == {"summary", "description", "runbook_url"}, alert["alert"]
        page, _, heading = told["runbook_url"].partition("#")
        titles = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(), re.MULTILINE)
        assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, alert["alert"]


def test_all_alerts_but_of_what_has_happened_wait_for_it_to_last() -> None:
    assert [alert["alert"] for alert in alerts() if "for" not in alert] == ["DeadLetters"]


def test_the_operator_gets_the_rules_that_prometheus_gets() -> None:
    rendered = monitoring.files()
    for path, text in rendered.items():
        assert (ROOT / path).read_text() == text, "make k8s-render"
    resource = yaml.safe_load(rendered[monitoring.RESOURCE])
    assert resource["spec"] == yaml.safe_load(RULES.read_text())


def test_the_limits_in_the_rules_are_those_of_the_services() -> None:
    declared = {
        rule["labels"]["consumer"]: float(re.findall(r"vector\((\d+)\)", rule["expr"])[0])
        for rule in rules()
        if rule.get("record") == "consumer:handler_max_in_flight:declared"
    }
    fields = {name: module.Settings.model_fields for name, module in SERVICES.items()}
    assert declared == {
        name: float(found["max_sessions" if name == "stt_module" else "max_in_flight"].default)
        for name, found in fields.items()
    }


def test_every_declared_consumer_is_missed_when_it_is_missing() -> None:
    [missing] = [alert["expr"] for alert in alerts() if alert["alert"] == "ConsumerMissing"]
    pairs = re.findall(r'absent\(\S+\{stream_name="(\w+)", consumer_name="(\w+)"\}\)', missing)
    assert sorted(pairs) == sorted((consumer.stream, consumer.name) for consumer in streams.CONSUMERS)
    assert {name for _, name in pairs} == set(HANDLERS)


def test_the_queues_that_refuse_when_they_are_full_are_told_from_streams_that_forget() -> None:
    queues = {stream.name for stream in streams.STREAMS if stream.retention == "workqueue"}
    for name in ("QueueNearlyFull", "StreamNearlyFull"):
        [expression] = [alert["expr"] for alert in alerts() if alert["alert"] == name]
        [(named)] = re.findall(r'stream_name[!=]~"([^"]*)"', expression)
        assert set(named.split("|")) == queues


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    board = dashboard()
    assert board["schemaVersion"] >= 39
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    rows = [panel["title"] for panel in board["panels"] if panel["type"] == "row"]
    assert rows == ["Overview", "Queues", "Upstreams", "LLM", "Voice", "Pipelines", "Process"]
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        if panel["type"] != "row":
            assert panel["description"], panel["title"]
            assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
    cells = [
        (x, y)
        for panel in board["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells)), "panels overlap"


def test_the_variables_of_the_dashboard_are_there_and_used() -> None:
    variables = {variable["name"] for variable in dashboard()["templating"]["list"]}
    assert {"datasource", "namespace", "service"} <= variables
    used = {name for expression in expressions().values() for name in re.findall(r"\$(\w+)", expression)}
    assert used - {"__rate_interval", "__range", "1"} == variables - {"datasource"}


def test_the_dashboard_counts_all_alerts_and_no_others() -> None:
    [named] = [v["query"] for v in dashboard()["templating"]["list"] if v["name"] == "alerts"]
    assert named.split("|") == [alert["alert"] for alert in alerts()]


def test_kustomize_takes_what_there_is() -> None:
    folder = ROOT / "k8s/monitoring"
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert [(folder / name).exists() for name in kustomization["resources"]] == [True]
    [made] = kustomization["configMapGenerator"]
    assert made["options"]["labels"]["grafana_dashboard"] == "1"
    [file] = made["files"]
    assert (folder / file.partition("=")[2]).exists()
    # A ConfigMap holds a mebibyte.
    assert DASHBOARD.stat().st_size < 2**20


def test_the_rules_fire_when_they_are_meant_to() -> None:
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("no promtool here; it is in Prometheus's releases and image")
    for arguments in (("check", "rules", monitoring.RULES), ("test", "rules", "k8s/monitoring/tests.yaml")):
        done = subprocess.run([promtool, *arguments], check=False, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_case_in_which_it_fires() -> None:
    cases = (ROOT / "k8s/monitoring/tests.yaml").read_text()
    assert [alert["alert"] for alert in alerts() if not re.search(rf"\b{alert['alert']}\b", cases)] == []
