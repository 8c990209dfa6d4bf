"""The alerts' and the dashboard's expressions, and whether Prometheus would take them.

The parser is that of Prometheus 2.45, in Rust; it also checks how functions and operators may be put together. Whether
alerts fire when they are meant to, `promtool test rules k8s/monitoring/tests.yaml` tells.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import promql_parser
import yaml

from tools.k8s import monitoring
from tools.k8s.objects import Finding

DASHBOARD = "k8s/monitoring/dashboard.json"
LABEL_VALUES = re.compile(r"label_values\((.*), \w+\)")
"""Grafana's own way to ask for the values of a variable; a selector within."""


def expressions(root: Path = monitoring.ROOT) -> Iterator[tuple[str, str, str]]:
    """File, name and expression: of each rule, each query of a panel, and each variable of the dashboard."""
    for group in yaml.safe_load((root / monitoring.RULES).read_text())["groups"]:
        for rule in group["rules"]:
            yield monitoring.RULES, rule.get("alert", rule.get("record", "")), rule["expr"]
    dashboard = json.loads((root / DASHBOARD).read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield DASHBOARD, f"{panel['title']} {target['refId']}", target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield DASHBOARD, variable["name"], variable["definition"]


def findings(root: Path = monitoring.ROOT) -> Iterator[Finding]:
    """Each expression is one that Prometheus reads."""
    for file, name, expression in expressions(root):
        try:
            promql_parser.parse(filled_in(expression))
        except ValueError as error:
            yield Finding(file, name, str(error))


def filled_in(expression: str) -> str:
    """What Grafana makes of it before it asks: durations and values in place of variables."""
    if found := LABEL_VALUES.fullmatch(expression):
        expression = found[1]
    return re.sub(r"\$\w+", "any", re.sub(r"\$__(rate_interval|interval|range)\b", "5m", expression))
