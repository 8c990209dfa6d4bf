"""The ScaledObjects of KEDA, 2.20 or newer, made of the scaling's declarations.

Earlier versions take a stream's last sequence for the lag while its consumer is missing, and scale to the maximum;
from 2.20 a missing consumer is an error, and `fallback` counts.
"""

from typing import Any

from tools.k8s.scaling import NAMESPACE, Scaling, labels

API_VERSION = "keda.sh/v1alpha1"
MONITORING = "nats-headless.nats.svc:8222"
"""The monitoring port of NATS, by the name of a headless service: KEDA asks a consumer's leader by `{pod}.{this}`."""
ACCOUNT = "$G"
"""The account that holds the streams; this is its name where the server's configuration has no accounts."""


def scaled_object(scaling: Scaling) -> dict[str, Any]:
    """The ScaledObject of a service, for a Deployment of the same name."""
    behavior = {
        "scaleUp": _steps(scaling.scale_up_pods, scaling.scale_up_period, scaling.scale_up_stabilization),
        "scaleDown": _steps(scaling.scale_down_pods, scaling.scale_down_period, scaling.scale_down_stabilization),
    }
    return {
        "apiVersion": API_VERSION,
        "kind": "ScaledObject",
        "metadata": {"name": scaling.name, "namespace": NAMESPACE, "labels": labels(scaling.name)},
        "spec": {
            "scaleTargetRef": {"name": scaling.name},
            "minReplicaCount": scaling.min_replicas,
            "maxReplicaCount": scaling.max_replicas,
            "pollingInterval": scaling.polling_interval,
            "cooldownPeriod": scaling.cooldown_period,
            "fallback": {
                "failureThreshold": scaling.fallback_failures,
                "replicas": scaling.fallback_replicas,
                "behavior": "currentReplicasIfHigher",
            },
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": behavior}},
            "triggers": [{"type": "nats-jetstream", "metricType": "AverageValue", "metadata": _metadata(scaling)}],
        },
    }


def _metadata(scaling: Scaling) -> dict[str, str]:
    return {
        "natsServerMonitoringEndpoint": MONITORING,
        "account": ACCOUNT,
        "stream": scaling.consumer.stream,
        "consumer": scaling.consumer.name,
        "lagThreshold": str(scaling.lag_threshold),
        "activationLagThreshold": str(scaling.activation_lag),
        "useHttps": "false",
    }


def _steps(pods: int, period: int, window: int) -> dict[str, Any]:
    return {
        "stabilizationWindowSeconds": window,
        "policies": [{"type": "Pods", "value": pods, "periodSeconds": period}],
    }
