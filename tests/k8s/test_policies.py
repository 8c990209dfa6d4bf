"""Each policy finds what it is there for: a good composition is broken in one place, and the place is named."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tools.k8s import networks, pod_security, references, schemas, workloads
from tools.k8s.objects import Finding, Objects, selects
from tools.k8s.policies import POLICIES, WARNINGS, Policy, findings, warnings

Manifests = dict[str, Any]
"""The objects of a composition, by kind and name: `Deployment chat-handler`."""

GOOD = yaml.safe_load_all("""
apiVersion: v1
kind: Namespace
metadata: {name: ai, labels: {pod-security.kubernetes.io/enforce: restricted}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: endpoints, namespace: ai}
data: {NATS_URL: "nats://nats.nats.svc:4222"}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: chat-handler, namespace: ai}
automountServiceAccountToken: false
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: chat-handler
  namespace: ai
  labels: {app.kubernetes.io/name: chat-handler, app.kubernetes.io/part-of: slim-handlers}
spec:
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  selector: {matchLabels: {app.kubernetes.io/name: chat-handler}}
  template:
    metadata:
      labels:
        app.kubernetes.io/name: chat-handler
        app.kubernetes.io/part-of: slim-handlers
        app.kubernetes.io/component: handler
    spec:
      serviceAccountName: chat-handler
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: 35
      securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
      topologySpreadConstraints:
        - &spread
          maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector: {matchLabels: {app.kubernetes.io/name: chat-handler}}
        - {<<: *spread, topologyKey: topology.kubernetes.io/zone}
      containers:
        - name: chat-handler
          image: localhost/slim-handlers/chat_handler:dev
          env:
            - {name: NATS_USER, value: chat_handler}
            - {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: "http://otel-collector.observability.svc:4318"}
          envFrom: [{configMapRef: {name: endpoints}}]
          ports: [{name: health, containerPort: 8080}]
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {drop: [ALL]}
          startupProbe: {httpGet: {path: /livez, port: health}, timeoutSeconds: 3}
          livenessProbe: {httpGet: {path: /livez, port: health}, timeoutSeconds: 5}
          readinessProbe: {httpGet: {path: /readyz, port: health}, timeoutSeconds: 3}
          resources: {requests: {cpu: 100m, memory: 96Mi}, limits: {memory: 256Mi}}
          volumeMounts: [{name: secrets, mountPath: /run/secrets}]
      volumes:
        - name: secrets
          secret: {secretName: chat-handler}
---
apiVersion: v1
kind: Secret
metadata: {name: chat-handler, namespace: ai}
stringData: {NATS_PASSWORD: p}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: chat-handler, namespace: ai}
spec: {maxUnavailable: 1, selector: {matchLabels: {app.kubernetes.io/name: chat-handler}}}
---
apiVersion: v1
kind: Service
metadata: {name: chat-handler, namespace: ai}
spec: {selector: {app.kubernetes.io/name: chat-handler}, ports: [{port: 80, targetPort: health}]}
---
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata: {name: handlers, namespace: ai, labels: {app.kubernetes.io/name: chat-handler}}
spec:
  selector: {matchLabels: {app.kubernetes.io/component: handler}}
  podMetricsEndpoints: [{port: health}]
---
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {name: chat-handler, namespace: ai}
spec:
  scaleTargetRef: {name: chat-handler}
  triggers: [{type: nats-jetstream, metadata: {stream: AI_CHAT, consumer: chat_handler}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: default-deny, namespace: ai}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: holes, namespace: ai}
spec:
  podSelector: {matchLabels: {app.kubernetes.io/part-of: slim-handlers}}
  policyTypes: [Ingress, Egress]
  ingress: [{ports: [{port: 8080}]}]
  egress: [{ports: [{port: 53, protocol: UDP}]}, {ports: [{port: 4222}]}, {ports: [{port: 4318}]}]
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: pipeline-bridge, namespace: ai}
automountServiceAccountToken: false
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: pipeline-bridge, namespace: argo}
rules: [{apiGroups: [argoproj.io], resources: [workflows], verbs: [create]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: pipeline-bridge, namespace: argo}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: pipeline-bridge}
subjects: [{kind: ServiceAccount, name: pipeline-bridge, namespace: ai}]
""")
MANIFESTS: Manifests = {f"{each['kind']} {each['metadata']['name']}": each for each in GOOD}
DEPLOYMENT = "Deployment ai/chat-handler"
POD = "spec.template.spec"
CONTAINER = f"{POD}.containers[0]"
SECURITY = f"{CONTAINER}.securityContext"


@pytest.fixture
def manifests() -> Manifests:
    return copy.deepcopy(MANIFESTS)


def found(policy: Policy, manifests: Manifests) -> list[Finding]:
    return list(policy(Objects(manifests.values())))


def put(path: str, value: Any, of: str = "Deployment chat-handler") -> Callable[[Manifests], None]:
    """Breaks a field, named as findings name it; None takes it away."""

    def breaks(manifests: Manifests) -> None:
        *way, last = path.replace("[", ".#").replace("]", "").split(".")
        place = manifests[of]
        for key in way:
            place = place[int(key[1:])] if key.startswith("#") else place.setdefault(key, {})
        if value is None:
            del place[last]
        else:
            place[last] = value

    return breaks


def add(kind: str, name: str, like: str, **changes: Any) -> Callable[[Manifests], None]:
    """Adds an object like another one, of another kind or name, with other fields."""

    def adds(manifests: Manifests) -> None:
        made = {**copy.deepcopy(manifests[like]), "kind": kind, **changes}
        made["metadata"]["name"] = name
        manifests[f"{kind} {name}"] = made

    return adds


def both(*breaks: Callable[[Manifests], None]) -> Callable[[Manifests], None]:
    def breaks_all(manifests: Manifests) -> None:
        for each in breaks:
            each(manifests)

    return breaks_all


def volume(**source: Any) -> Callable[[Manifests], None]:
    return put(f"{POD}.volumes", [{"name": "secrets", **source}])


def context(**fields: Any) -> Callable[[Manifests], None]:
    """Sets fields of the container's security context."""

    def breaks(manifests: Manifests) -> None:
        pod = manifests["Deployment chat-handler"]["spec"]["template"]["spec"]
        pod["containers"][0]["securityContext"].update(fields)

    return breaks


without_endpoints = put(f"{CONTAINER}.env", [{"name": "SERVE_ENDPOINTS", "value": "false"}])
PODS = pod_security.restricted_pods
CASES: list[tuple[Policy, Callable[[Manifests], None], str, str]] = [
    (PODS, put(f"{POD}.hostNetwork", True), DEPLOYMENT, f"{POD}.hostNetwork"),
    (PODS, put(f"{POD}.hostPID", True), DEPLOYMENT, f"{POD}.hostPID"),
    (PODS, put(f"{POD}.hostIPC", True), DEPLOYMENT, f"{POD}.hostIPC"),
    (PODS, volume(hostPath={"path": "/"}), DEPLOYMENT, f"{POD}.volumes[0].hostPath"),
    (PODS, volume(nfs={"server": "x", "path": "/"}), DEPLOYMENT, f"{POD}.volumes[0].nfs"),
    (PODS, put(f"{POD}.securityContext.runAsUser", 0), DEPLOYMENT, f"{POD}.securityContext.runAsUser"),
    (PODS, put(f"{POD}.securityContext.runAsNonRoot", None), DEPLOYMENT, f"{SECURITY}.runAsNonRoot"),
    (PODS, put(f"{POD}.securityContext.seccompProfile", None), DEPLOYMENT, f"{SECURITY}.seccompProfile.type"),
    (
        PODS,
        put(f"{POD}.securityContext.sysctls", [{"name": "kernel.msgmax", "value": "1"}]),
        DEPLOYMENT,
        f"{POD}.securityContext.sysctls",
    ),
    (
        PODS,
        put("spec.template.metadata.annotations", {"container.apparmor.security.beta.kubernetes.io/x": "unconfined"}),
        DEPLOYMENT,
        "metadata.annotations.container.apparmor.security.beta.kubernetes.io/x",
    ),
    (PODS, context(runAsUser=0), DEPLOYMENT, f"{SECURITY}.runAsUser"),
    (PODS, context(runAsNonRoot=False), DEPLOYMENT, f"{SECURITY}.runAsNonRoot"),
    (PODS, context(privileged=True), DEPLOYMENT, f"{SECURITY}.privileged"),
    (PODS, context(procMount="Unmasked"), DEPLOYMENT, f"{SECURITY}.procMount"),
    (PODS, context(seccompProfile={"type": "Unconfined"}), DEPLOYMENT, f"{SECURITY}.seccompProfile.type"),
    (PODS, context(seLinuxOptions={"type": "spc_t"}), DEPLOYMENT, f"{SECURITY}.seLinuxOptions.type"),
    (PODS, context(seLinuxOptions={"user": "x"}), DEPLOYMENT, f"{SECURITY}.seLinuxOptions.user"),
    (PODS, context(appArmorProfile={"type": "Unconfined"}), DEPLOYMENT, f"{SECURITY}.appArmorProfile.type"),
    (PODS, context(windowsOptions={"hostProcess": True}), DEPLOYMENT, f"{SECURITY}.windowsOptions.hostProcess"),
    (PODS, context(capabilities={"drop": ["NET_RAW"]}), DEPLOYMENT, f"{SECURITY}.capabilities.drop"),
    (
        PODS,
        context(capabilities={"drop": ["ALL"], "add": ["SYS_ADMIN"]}),
        DEPLOYMENT,
        f"{SECURITY}.capabilities.add",
    ),
    (PODS, context(allowPrivilegeEscalation=None), DEPLOYMENT, f"{SECURITY}.allowPrivilegeEscalation"),
    (PODS, put(f"{CONTAINER}.ports", [{"containerPort": 1, "hostPort": 1}]), DEPLOYMENT, f"{CONTAINER}.ports"),
    (
        PODS,
        put(f"{CONTAINER}.livenessProbe.httpGet.host", "other"),
        DEPLOYMENT,
        f"{CONTAINER}.livenessProbe.httpGet.host",
    ),
    (
        pod_security.restricted_namespaces,
        put("metadata.labels", {"pod-security.kubernetes.io/enforce": "baseline"}, "Namespace ai"),
        "Namespace ai",
        "metadata.labels.pod-security.kubernetes.io/enforce",
    ),
    (
        workloads.root_file_systems,
        context(readOnlyRootFilesystem=False),
        DEPLOYMENT,
        f"{SECURITY}.readOnlyRootFilesystem",
    ),
    (workloads.service_accounts, put(f"{POD}.serviceAccountName", None), DEPLOYMENT, f"{POD}.serviceAccountName"),
    (workloads.service_accounts, put(f"{POD}.serviceAccountName", "x"), DEPLOYMENT, f"{POD}.serviceAccountName"),
    (
        workloads.service_accounts,
        add("Deployment", "chat-two", "Deployment chat-handler"),
        "Deployment ai/chat-two",
        f"{POD}.serviceAccountName",
    ),
    (
        workloads.service_accounts,
        put(f"{POD}.automountServiceAccountToken", None),
        DEPLOYMENT,
        f"{POD}.automountServiceAccountToken",
    ),
    (
        workloads.service_accounts,
        volume(projected={"sources": [{"serviceAccountToken": {"path": "token"}}]}),
        DEPLOYMENT,
        f"{POD}.volumes[0].projected",
    ),
    (
        workloads.service_accounts,
        put("automountServiceAccountToken", True, "ServiceAccount chat-handler"),
        "ServiceAccount ai/chat-handler",
        "automountServiceAccountToken",
    ),
    (workloads.probes, put(f"{CONTAINER}.startupProbe", None), DEPLOYMENT, f"{CONTAINER}.startupProbe"),
    (
        workloads.probes,
        put(f"{CONTAINER}.livenessProbe.timeoutSeconds", None),
        DEPLOYMENT,
        f"{CONTAINER}.livenessProbe.timeoutSeconds",
    ),
    (
        workloads.probes,
        put(f"{CONTAINER}.livenessProbe.httpGet.path", "/readyz"),
        DEPLOYMENT,
        f"{CONTAINER}.livenessProbe.httpGet.path",
    ),
    (
        workloads.draining,
        put(f"{POD}.terminationGracePeriodSeconds", 34),
        DEPLOYMENT,
        f"{POD}.terminationGracePeriodSeconds",
    ),
    (
        workloads.draining,
        put(f"{CONTAINER}.env", [{"name": "DRAIN_TIMEOUT", "value": "26"}]),
        DEPLOYMENT,
        f"{POD}.terminationGracePeriodSeconds",
    ),
    (
        workloads.resources,
        put(f"{CONTAINER}.resources.limits.memory", None),
        DEPLOYMENT,
        f"{CONTAINER}.resources.limits.memory",
    ),
    (
        workloads.resources,
        put(f"{CONTAINER}.resources.limits.cpu", 1),
        DEPLOYMENT,
        f"{CONTAINER}.resources.limits.cpu",
    ),
    (workloads.images, put(f"{CONTAINER}.image", "localhost:5000/x"), DEPLOYMENT, f"{CONTAINER}.image"),
    (workloads.images, put(f"{CONTAINER}.image", "x:latest"), DEPLOYMENT, f"{CONTAINER}.image"),
    (workloads.registries, put(f"{CONTAINER}.image", "chat_handler:dev"), DEPLOYMENT, f"{CONTAINER}.image"),
    (workloads.registries, put(f"{CONTAINER}.image", "slim-handlers/x:dev"), DEPLOYMENT, f"{CONTAINER}.image"),
    (workloads.service_links, put(f"{POD}.enableServiceLinks", True), DEPLOYMENT, f"{POD}.enableServiceLinks"),
    (
        workloads.rollouts,
        put("spec.strategy.rollingUpdate.maxUnavailable", 1),
        DEPLOYMENT,
        "spec.strategy.rollingUpdate",
    ),
    (
        workloads.spread,
        put(f"{POD}.topologySpreadConstraints[1].labelSelector", {"matchLabels": {"app": "x"}}),
        DEPLOYMENT,
        f"{POD}.topologySpreadConstraints",
    ),
    (
        workloads.disruption_budgets,
        lambda manifests: manifests.pop("PodDisruptionBudget chat-handler"),
        DEPLOYMENT,
        "spec.replicas",
    ),
    (
        workloads.disruption_budgets,
        put("spec.selector.matchLabels", {"app": "x"}, "PodDisruptionBudget chat-handler"),
        "PodDisruptionBudget ai/chat-handler",
        "spec.selector",
    ),
    (
        workloads.disruption_budgets,
        put("spec.maxUnavailable", 0, "PodDisruptionBudget chat-handler"),
        "PodDisruptionBudget ai/chat-handler",
        "spec.maxUnavailable",
    ),
    (
        workloads.labels,
        put("metadata.labels", {"app.kubernetes.io/name": "x"}),
        DEPLOYMENT,
        "metadata.labels.app.kubernetes.io/name",
    ),
    (workloads.labels, put(f"{CONTAINER}.name", "main"), DEPLOYMENT, f"{POD}.containers"),
    (
        references.namespaces,
        put("metadata.namespace", None, "ConfigMap endpoints"),
        "ConfigMap endpoints",
        "metadata.namespace",
    ),
    (
        references.namespaces,
        put("metadata.namespace", "ia", "ConfigMap endpoints"),
        "ConfigMap ia/endpoints",
        "metadata.namespace",
    ),
    (
        references.settings_exist,
        lambda manifests: manifests.pop("ConfigMap endpoints"),
        DEPLOYMENT,
        f"{CONTAINER}.envFrom[0]",
    ),
    (references.settings_exist, lambda manifests: manifests.pop("Secret chat-handler"), DEPLOYMENT, f"{POD}.volumes"),
    (
        references.settings_exist,
        volume(projected={"sources": [{"configMap": {"name": "endpoints", "items": [{"key": "X", "path": "x"}]}}]}),
        DEPLOYMENT,
        f"{POD}.volumes",
    ),
    (
        references.settings_exist,
        put(f"{CONTAINER}.env", [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "chat-handler", "key": "X"}}}]),
        DEPLOYMENT,
        f"{CONTAINER}.env.X",
    ),
    (references.volume_mounts, put(f"{POD}.volumes", []), DEPLOYMENT, f"{CONTAINER}.volumeMounts"),
    (references.volume_mounts, put(f"{CONTAINER}.volumeMounts", []), DEPLOYMENT, f"{POD}.volumes"),
    (references.selectors, put("spec.selector.matchLabels", {"app": "x"}), DEPLOYMENT, "spec.selector"),
    (
        references.selectors,
        add("StatefulSet", "chat-two", "Deployment chat-handler"),
        DEPLOYMENT,
        "spec.selector",
    ),
    (
        references.selectors,
        put("spec.selector", {"app": "x"}, "Service chat-handler"),
        "Service ai/chat-handler",
        "spec.selector",
    ),
    (
        references.selectors,
        put("spec.podMetricsEndpoints[0].port", "metrics", "PodMonitor handlers"),
        "PodMonitor ai/handlers",
        "spec.podMetricsEndpoints",
    ),
    (
        references.scaled_objects,
        put("spec.scaleTargetRef.name", "chat", "ScaledObject chat-handler"),
        "ScaledObject ai/chat-handler",
        "spec.scaleTargetRef.name",
    ),
    (references.scaled_objects, put("spec.replicas", 2), DEPLOYMENT, "spec.replicas"),
    (
        references.scaled_objects,
        add("ScaledObject", "second", "ScaledObject chat-handler"),
        "ScaledObject ai/second",
        "spec.scaleTargetRef.name",
    ),
    (
        references.lags,
        put("spec.triggers[0].metadata.stream", "CHAT", "ScaledObject chat-handler"),
        "ScaledObject ai/chat-handler",
        "spec.triggers[0].metadata.stream",
    ),
    (
        references.lags,
        put("spec.triggers[0].metadata.consumer", None, "ScaledObject chat-handler"),
        "ScaledObject ai/chat-handler",
        "spec.triggers[0].metadata.consumer",
    ),
    (
        references.without_endpoints,
        both(without_endpoints, lambda manifests: manifests.pop("ScaledObject chat-handler")),
        DEPLOYMENT,
        f"{POD}.containers",
    ),
    (
        references.without_endpoints,
        both(without_endpoints, put("spec.minReplicaCount", 1, "ScaledObject chat-handler")),
        DEPLOYMENT,
        f"{POD}.containers",
    ),
    (
        references.permissions,
        put("subjects[0].name", "chat-handler", "RoleBinding pipeline-bridge"),
        "RoleBinding argo/pipeline-bridge",
        "subjects",
    ),
    (
        references.permissions,
        lambda manifests: manifests.pop("ServiceAccount pipeline-bridge"),
        "RoleBinding argo/pipeline-bridge",
        "subjects",
    ),
    (
        references.permissions,
        lambda manifests: manifests.pop("Role pipeline-bridge"),
        "RoleBinding argo/pipeline-bridge",
        "roleRef",
    ),
    (
        references.permissions,
        put("rules[0].verbs", ["*"], "Role pipeline-bridge"),
        "Role argo/pipeline-bridge",
        "rules[0].verbs",
    ),
    (
        references.permissions,
        add("ClusterRole", "all", "Role pipeline-bridge", metadata={}),
        "ClusterRole all",
        "kind",
    ),
    (
        references.names_of_parts,
        put("metadata.labels", {"app.kubernetes.io/name": "chat"}, "PodMonitor handlers"),
        "PodMonitor ai/handlers",
        "metadata.labels.app.kubernetes.io/name",
    ),
    (
        networks.network_policies,
        put("spec.podSelector", {"matchLabels": {"app": "x"}}, "NetworkPolicy holes"),
        "NetworkPolicy ai/holes",
        "spec.podSelector",
    ),
    (
        networks.network_policies,
        put("spec.policyTypes", ["Ingress"], "NetworkPolicy default-deny"),
        "Namespace ai",
        "NetworkPolicy",
    ),
    (
        networks.holes,
        put("spec.egress[0].ports", [{"port": 54}], "NetworkPolicy holes"),
        DEPLOYMENT,
        f"{POD}.containers",
    ),
    (
        networks.holes,
        put("spec.egress[1].ports", [{"port": 1}], "NetworkPolicy holes"),
        DEPLOYMENT,
        f"{POD}.containers",
    ),
    (
        networks.holes,
        put("spec.egress[2].ports", [{"port": 1}], "NetworkPolicy holes"),
        DEPLOYMENT,
        f"{POD}.containers",
    ),
    (networks.holes, put("spec.ingress", [], "NetworkPolicy holes"), DEPLOYMENT, f"{POD}.containers"),
    (
        networks.broad_blocks,
        put("spec.egress[1].to", [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "NetworkPolicy holes"),
        "NetworkPolicy ai/holes",
        "spec.egress",
    ),
]


def test_nothing_is_found_in_a_good_composition(manifests: Manifests) -> None:
    assert findings(Objects(manifests.values())) == []
    assert warnings(Objects(manifests.values())) == []


@pytest.mark.parametrize(
    ("policy", "breaks", "object", "field"),
    CASES,
    ids=[f"{case[0].__name__}-{number}" for number, case in enumerate(CASES)],
)
def test_what_a_policy_forbids_is_named(
    manifests: Manifests, policy: Policy, breaks: Callable[[Manifests], None], object: str, field: str
) -> None:
    breaks(manifests)
    assert (object, field) in [(each.object, each.field) for each in found(policy, manifests)]


def test_every_policy_has_a_case_and_says_what_it_wants() -> None:
    assert {*POLICIES, *WARNINGS} == {policy for policy, *_ in CASES}
    assert all((policy.__doc__ or "").rstrip().endswith(".") for policy in (*POLICIES, *WARNINGS))


def test_containers_that_run_first_are_held_to_the_same(manifests: Manifests) -> None:
    pod = manifests["Deployment chat-handler"]["spec"]["template"]["spec"]
    pod["initContainers"] = [{"name": "first", "image": "busybox"}]
    fields = {each.field for each in findings(Objects(manifests.values()))}
    assert f"{POD}.initContainers[0].image" in fields
    assert f"{POD}.initContainers[0].securityContext.capabilities.drop" in fields
    assert not any("Probe" in field for field in fields)


def test_a_secret_may_come_from_an_external_secret_or_by_hand(manifests: Manifests) -> None:
    del manifests["Secret chat-handler"]
    assert found(references.settings_exist, manifests)
    put("metadata.annotations", {references.BY_HAND: "other,chat-handler"})(manifests)
    assert not found(references.settings_exist, manifests)
    put("metadata.annotations", None)(manifests)
    add("ExternalSecret", "any", "ScaledObject chat-handler", spec={"target": {"name": "chat-handler"}})(manifests)
    assert not found(references.settings_exist, manifests)


def test_what_is_one_by_its_own_word_needs_no_budget(manifests: Manifests) -> None:
    del manifests["PodDisruptionBudget chat-handler"]
    put("spec.replicas", 1)(manifests)
    assert not found(workloads.disruption_budgets, manifests)


def test_without_endpoints_all_may_go_by_a_scaled_object(manifests: Manifests) -> None:
    without_endpoints(manifests)
    assert not found(references.without_endpoints, manifests)


@pytest.mark.parametrize("image", ["registry.example.com/a/x:1", "registry:5000/x:1", "localhost/a/x:1"])
def test_a_host_is_a_registry(manifests: Manifests, image: str) -> None:
    put(f"{CONTAINER}.image", image)(manifests)
    assert not found(workloads.registries, manifests)


def test_a_digest_is_a_version(manifests: Manifests) -> None:
    put(f"{CONTAINER}.image", f"x@sha256:{'0' * 64}")(manifests)
    assert not found(workloads.images, manifests)


@pytest.mark.parametrize(
    ("selector", "taken"),
    [
        (None, False),
        ({}, True),
        ({"matchLabels": {"a": "1"}}, True),
        ({"matchLabels": {"a": "2"}}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, False),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "b", "operator": "Exists"}]}, False),
        ({"matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]}, True),
    ],
)
def test_label_selectors_select_as_in_kubernetes(selector: dict[str, Any] | None, taken: bool) -> None:
    assert selects(selector, {"a": "1"}) is taken


# -- schemas


def test_an_unknown_field_of_a_kind_of_kubernetes_is_an_error(manifests: Manifests) -> None:
    put(f"{POD}.terminationGraceSeconds", 35)(manifests)
    (finding,) = schemas.built_in(manifests["Deployment chat-handler"])
    assert finding.field == POD
    assert "terminationGraceSeconds" in finding.problem


def test_a_kind_that_kubernetes_has_not_is_an_error() -> None:
    (finding,) = schemas.built_in({"apiVersion": "v1", "kind": "Pot", "metadata": {"name": "x"}})
    assert "v1 Pot" in finding.problem


DEFINITION = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
spec:
  group: example.com
  names:
    kind: Thing
  versions:
  - name: v1
    schema:
      openAPIV3Schema:
        type: object
        required: [spec]
        properties:
          spec:
            type: object
            required: [port]
            properties:
              port: {x-kubernetes-int-or-string: true, anyOf: [{type: integer}, {type: string}]}
              free: {type: object, x-kubernetes-preserve-unknown-fields: true}
              map: {type: object, additionalProperties: {type: integer, minimum: 0, exclusiveMinimum: true}}
              list: {type: array, items: {type: object, properties: {name: {type: string}}}}
              none: {type: string, nullable: true}
              pod: {type: object, x-kubernetes-embedded-resource: true, properties: {spec: {type: object}}}
"""


@pytest.mark.parametrize(
    ("spec", "fields"),
    [
        ({"port": 1, "free": {"x": [1]}, "map": {"a": 1}, "list": [{"name": "x"}], "none": None}, []),
        ({"port": "http", "pod": {"kind": "Pod", "metadata": {"name": "x"}, "spec": {}}}, []),
        ({"port": 1.5}, ["spec.port"]),
        ({}, ["spec"]),
        ({"port": 1, "prot": 1}, ["spec"]),
        ({"port": 1, "map": {"a": 0}}, ["spec.map.a"]),
        ({"port": 1, "list": [{"nam": "x"}]}, ["spec.list.0"]),
        ({"port": 1, "pod": {"sepc": {}}}, ["spec.pod"]),
        ({"port": 1, "none": 1}, ["spec.none"]),
    ],
)
def test_a_custom_resource_is_held_to_its_definition(tmp_path: Any, spec: dict[str, Any], fields: list[str]) -> None:
    (tmp_path / "any-name.yaml").write_text(f"# Other text\n---{DEFINITION}")
    definitions = schemas.Definitions(tmp_path)
    manifest = {"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "x", "any": 1}, "spec": spec}
    assert [each.field for each in definitions.check(manifest)] == fields
    (unknown,) = definitions.check({**manifest, "apiVersion": "example.com/v2"})
    assert "example.com/v2 Thing" in unknown.problem
