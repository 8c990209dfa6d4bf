"""The Job that makes streams and consumers, named after what it makes: a changed declaration is another Job."""

import hashlib
import json
from typing import Any

from handler_core.streams import CONSUMERS, STREAMS
from tools.k8s.permissions import PROVISIONER
from tools.k8s.scaling import NAMESPACE, labels

NAME = "provision"
COMMAND = ["/usr/bin/python3", "-P", "-m", "handler_core.provision"]
LABELS = labels(NAME)
IMAGE = "slim-handlers/provision"
"""A name of its own, so that an overlay without tts_module maps it too: to any handler's, tts_module's the smallest."""
SECRETS_DIR = "/etc/handler-secrets"
"""As in k8s/base/handler."""


def fingerprint() -> str:
    """Eight hexadecimal digits that change with the declarations of streams and consumers."""
    declared = [[stream.config() for stream in STREAMS], [consumer.config() for consumer in CONSUMERS]]
    return hashlib.sha256(json.dumps(declared, sort_keys=True).encode()).hexdigest()[:8]


def resources() -> list[dict[str, Any]]:
    """The Job and the account that it runs as, which may do nothing in Kubernetes."""
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": LABELS},
        "automountServiceAccountToken": False,
    }
    metadata = {
        "name": f"{NAME}-{fingerprint()}",
        "namespace": NAMESPACE,
        "labels": LABELS,
        # A Job cannot be changed: with another image Flux deletes it and makes it anew.
        "annotations": {"kustomize.toolkit.fluxcd.io/force": "enabled"},
    }
    spec = {
        "backoffLimit": 6,
        "activeDeadlineSeconds": 1800,
        "ttlSecondsAfterFinished": 600,
        "template": {"metadata": {"labels": LABELS}, "spec": _pod()},
    }
    return [account, {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}]


def _pod() -> dict[str, Any]:
    secret = {"secretName": PROVISIONER.name, "defaultMode": 0o440}
    return {
        "restartPolicy": "Never",
        "serviceAccountName": NAME,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": NAME,
                "image": IMAGE,
                "command": COMMAND,
                "args": ["--replicas", "1", "--wait", "120"],
                "env": [
                    {"name": "NATS_USER", "value": PROVISIONER.name},
                    {"name": "NATS_INBOX_PREFIX", "value": PROVISIONER.inbox},
                    {"name": "SECRETS_DIR", "value": SECRETS_DIR},
                ],
                "envFrom": [{"configMapRef": {"name": "endpoints"}}],
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "resources": {"requests": {"cpu": "50m", "memory": "48Mi"}, "limits": {"memory": "96Mi"}},
                "volumeMounts": [{"name": "secrets", "mountPath": SECRETS_DIR, "readOnly": True}],
            }
        ],
        "volumes": [{"name": "secrets", "secret": secret}],
    }
