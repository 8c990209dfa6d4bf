"""The alerts for the Prometheus operator: the groups of `k8s/monitoring/rules.yaml`, wrapped as they stand.

Prometheus itself, as in `compose.yaml`, takes no PrometheusRule, and kustomize cannot wrap a file; so the rules are
written once, and their resource is made from their text, comments and all.
"""

from pathlib import Path

ROOT = Path(__file__).parents[2]
RULES = "k8s/monitoring/rules.yaml"
RESOURCE = "k8s/monitoring/prometheusrule.yaml"
_HEAD = """\
# Rendered by `make k8s-render` from k8s/monitoring/rules.yaml, for the Prometheus operator; do not edit.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: slim-handlers
  namespace: ai
  labels:
    app.kubernetes.io/part-of: slim-handlers
spec:
"""


def files(root: Path = ROOT) -> dict[str, str]:
    """The resource's content by its path from the project's root."""
    _, _, groups = (root / RULES).read_text().partition("\ngroups:\n")
    lines = ["groups:", *groups.splitlines()]
    return {RESOURCE: _HEAD + "".join(f"  {line}\n" if line else "\n" for line in lines)}
