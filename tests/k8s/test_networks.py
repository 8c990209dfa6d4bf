"""Closed networks are compared with where the settings of the pods lead: by namespace, pods, and port."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from tools.k8s import compositions, networks
from tools.k8s.addresses import addresses
from tools.k8s.compositions import COMPOSITIONS, Composition
from tools.k8s.objects import Object, Objects
from tools.k8s.policies import findings

Build = Callable[..., Objects]


@pytest.fixture(scope="module")
def built(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds a composition, once, and gives objects to change."""
    folder, done = tmp_path_factory.mktemp("networks"), dict[str, Objects]()

    def build(name: str) -> Objects:
        if name not in done:
            own = Composition("dev-closed", ("overlays/dev",), ("network-policy", "keda"))
            (composition,) = (each for each in (*COMPOSITIONS, own) if each.name == name)
            done[name] = compositions.build(composition, command, folder)
        return Objects(deepcopy(done[name].all))

    return build


def settings(objects: Objects, **changed: str) -> Objects:
    """With other lines in the ConfigMap that all handlers have."""
    (endpoints,) = (each for each in objects.of("ConfigMap") if each["metadata"]["name"].startswith("endpoints"))
    endpoints["data"] |= changed
    return objects


def policy(objects: Objects, name: str) -> Object:
    found = objects.find("NetworkPolicy", "ai", name)
    assert found is not None
    return found


def problems(objects: Objects) -> set[tuple[str, str]]:
    return {(each.object, each.problem) for each in findings(objects)}


def closed(name: str, address: str) -> tuple[str, str]:
    return f"Deployment ai/{name}", f"no NetworkPolicy lets its pods out to {address}"


# -- what an overlay might be changed to


@pytest.mark.parametrize(
    ("setting", "url", "pods"),
    [
        ("LLM_URL", "http://llm.inference.svc:8000", ["chat-handler", "voice-assistant"]),
        ("LLM_URL", "http://llm.models.svc:9999", ["chat-handler", "voice-assistant"]),
        ("LLM_URL", "https://llm.example.com:8443", ["chat-handler", "voice-assistant"]),
        ("LLM_URL", "http://203.0.113.7:8000", ["chat-handler", "voice-assistant"]),
        ("TTS_URL", "http://tts.models.svc.cluster.local:5003", ["tts-module", "voice-assistant"]),
        ("STT_URL", "http://stt.speech:8000", ["stt-module", "voice-assistant"]),
        ("MILVUS_URI", "http://milvus.vectors.svc:19530", ["chat-handler", "voice-assistant"]),
        ("NATS_URL", "nats://nats.nats.svc:14222", ["chat-handler", "pipeline-bridge", "stt-module"]),
        ("NATS_URL", "nats://nats.nats.svc:4222,nats://nats.other.svc:4222", ["chat-handler", "tts-module"]),
        ("KUBEFLOW_HOST", "http://ml-pipeline.kubeflow.svc:80", ["pipeline-bridge"]),
        ("ARGO_HOST", "https://argo-server.workflows.svc:2746", ["pipeline-bridge"]),
    ],
)
def test_an_address_that_no_hole_leads_to_is_found_with_those_who_call_it(
    built: Build, setting: str, url: str, pods: list[str]
) -> None:
    assert problems(built("overlays/prod")) == set()
    _, _, host = url.rpartition("//")
    assert {closed(pod, f"{setting}, {host}") for pod in pods} <= problems(
        settings(built("overlays/prod"), **{setting: url})
    )


def test_models_nats_and_milvus_that_have_all_moved_are_found(built: Build) -> None:
    moved = settings(
        built("overlays/prod"),
        NATS_URL="nats://nats.messaging.svc:4333",
        LLM_URL="http://vllm.gpu.svc:9000",
        TTS_URL="http://xtts.gpu.svc:9001",
        MILVUS_URI="http://milvus.data.svc:19531",
    )
    found = problems(moved)
    assert closed("chat-handler", "LLM_URL, vllm.gpu.svc:9000") in found
    assert closed("chat-handler", "MILVUS_URI, milvus.data.svc:19531") in found
    assert closed("voice-assistant", "TTS_URL, xtts.gpu.svc:9001") in found
    without_nats = {title for title, problem in found if "NATS_URL, nats.messaging.svc:4333" in problem}
    assert len(without_nats) == 6  # the five, and the Job


def test_a_hole_to_another_namespace_than_that_of_nats_is_found(built: Build) -> None:
    objects = built("overlays/prod")
    (rule,) = policy(objects, "to-nats")["spec"]["egress"]
    rule["to"][0]["namespaceSelector"]["matchLabels"] = {"kubernetes.io/metadata.name": "elsewhere"}
    assert closed("stt-module", "NATS_URL, nats.nats.svc:4222") in problems(objects)


def test_the_development_overlay_closed_is_found_as_its_nats_and_models_are_in_the_same_namespace(built: Build) -> None:
    found = problems(built("dev-closed"))
    assert closed("chat-handler", "NATS_URL, nats:4222") in found
    assert closed("chat-handler", "LLM_URL, local-inference:8900") in found
    assert ("StatefulSet ai/nats", "no NetworkPolicy lets in Deployment ai/chat-handler: NATS_URL, nats:4222") in found


def test_lags_of_streams_and_consumers_that_are_not_declared_are_found(built: Build) -> None:
    objects = built("overlays/prod")
    for each in objects.of("ScaledObject"):
        (trigger,) = each["spec"]["triggers"]
        trigger["metadata"] |= {"stream": "NO_SUCH_STREAM", "consumer": "no_such_consumer"}
    found = problems(objects)
    assert ("ScaledObject ai/chat-handler", "is NO_SUCH_STREAM; chat-handler works off AI_CHAT") in found
    assert ("ScaledObject ai/tts-module", "is no_such_consumer; tts-module works off tts_module") in found
    assert len(found) == 10


# -- how holes are read


def opened(objects: Objects, rule: dict[str, Any]) -> Objects:
    """With one more hole for chat-handler."""
    policy(objects, "chat-handler")["spec"]["egress"].append(rule)
    return objects


TO_INFERENCE = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "inference"}}}
PORTS = [{"port": 8000}]


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("http://llm.inference.svc:8000", {"to": [TO_INFERENCE], "ports": PORTS}),
        ("http://llm.inference:8000", {"to": [TO_INFERENCE], "ports": [{"port": 7000, "endPort": 9000}]}),
        ("http://llm.inference.svc:8000", {"to": [TO_INFERENCE], "ports": [{"port": "http"}]}),
        ("http://llm.inference.svc:8000", {"to": [{"namespaceSelector": {}}]}),
        ("http://llm:8000", {"to": [{"podSelector": {"matchLabels": {"app": "llm"}}}], "ports": PORTS}),
        ("http://llm.example.com:8000", {"to": [{"ipBlock": {"cidr": "203.0.113.0/24"}}], "ports": PORTS}),
        ("https://example.com", {"to": [{"ipBlock": {"cidr": "203.0.113.0/24"}}], "ports": [{"port": 443}]}),
        ("http://203.0.113.7:8000", {"to": [{"ipBlock": {"cidr": "203.0.113.0/24"}}], "ports": PORTS}),
        ("http://203.0.113.7:8000", {"ports": PORTS}),
    ],
)
def test_a_hole_that_leads_there_is_enough(built: Build, url: str, rule: dict[str, Any]) -> None:
    objects = opened(settings(built("overlays/prod"), LLM_URL=url), rule)
    assert not {problem for title, problem in problems(objects) if title == "Deployment ai/chat-handler"}


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("http://llm.inference.svc:8000", {"to": [TO_INFERENCE], "ports": [{"port": 8000, "protocol": "UDP"}]}),
        ("http://llm.inference.svc:8000", {"to": [{"podSelector": {}}], "ports": PORTS}),
        ("http://llm.inference.svc:8000", {"to": [{"ipBlock": {"cidr": "203.0.113.0/24"}}], "ports": PORTS}),
        ("http://203.0.113.7:8000", {"to": [TO_INFERENCE], "ports": PORTS}),
        (
            "http://203.0.113.7:8000",
            {"to": [{"ipBlock": {"cidr": "203.0.113.0/24", "except": ["203.0.113.0/28"]}}], "ports": PORTS},
        ),
    ],
)
def test_a_hole_that_leads_elsewhere_is_not(built: Build, url: str, rule: dict[str, Any]) -> None:
    objects = opened(settings(built("overlays/prod"), LLM_URL=url), rule)
    assert {problem for title, problem in problems(objects) if title == "Deployment ai/chat-handler"}


def test_of_a_service_that_is_here_the_pods_and_their_port_count(built: Build) -> None:
    own = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "local-inference"}}}
    for port, through in ((8900, True), (80, False)):
        objects = settings(built("dev-closed"), LLM_URL="http://local-inference:80")
        (service,) = (each for each in objects.of("Service") if each["metadata"]["name"] == "local-inference")
        service["spec"]["ports"][0]["port"] = 80  # its target is the pods' port `http`, 8900
        opened(objects, {"to": [own], "ports": [{"port": port}]})
        assert (closed("chat-handler", "LLM_URL, local-inference:80") not in problems(objects)) is through


def test_of_a_service_elsewhere_an_annotation_tells_the_port_of_its_pods(built: Build) -> None:
    objects = settings(built("overlays/prod"), LLM_URL="http://llm.models.svc")
    for name in ("chat-handler", "voice-assistant"):
        assert closed(name, "LLM_URL, llm.models.svc:80") in problems(objects)
        policy(objects, name)["metadata"]["annotations"] = {networks.SERVICE_PORTS: "a.b:1=2, llm.models:80=8000"}
    assert problems(objects) == set()


def test_the_bridge_needs_a_hole_to_an_address_of_the_kubernetes_api(built: Build) -> None:
    objects = built("overlays/prod")
    del policy(objects, "pipeline-bridge")["spec"]["egress"][0]
    (found,) = problems(objects)
    assert found == (
        "Deployment ai/pipeline-bridge",
        "no NetworkPolicy lets its pods out to an address of the Kubernetes API",
    )


def test_what_is_not_closed_in_is_not_looked_at(built: Build) -> None:
    assert problems(settings(built("overlays/dev"), LLM_URL="http://anywhere.example.com:1")) == set()


# -- addresses


def test_settings_of_other_services_are_none_of_a_pods_own(built: Build) -> None:
    objects = settings(built("overlays/prod"), MILVUS_HOST="milvus", NO_SETTING_URL="http://x.y.svc:1")
    by_name = {each.name: {found.setting for found in addresses(objects, each)} for each in objects.workloads}
    assert by_name["tts-module"] == {"NATS_URL", "TTS_URL", "OTEL_EXPORTER_OTLP_ENDPOINT"}
    assert by_name[next(name for name in by_name if name.startswith("provision-"))] == {"NATS_URL"}
    assert "MILVUS_URI" in by_name["chat-handler"]
    assert "MILVUS_HOST" not in by_name["chat-handler"]  # the URI counts before it


def test_milvus_in_two_parts_is_an_address(built: Build) -> None:
    objects = settings(built("overlays/dev"), MILVUS_HOST="milvus.vectors.svc", MILVUS_PORT="19531")
    (chat,) = (each for each in objects.workloads if each.name == "chat-handler")
    (found,) = (each for each in addresses(objects, chat) if each.setting == "MILVUS_HOST")
    assert (found.service, found.namespace, found.port) == ("milvus", "vectors", 19531)


def test_an_own_variable_counts_before_that_of_a_config_map(built: Build) -> None:
    objects = settings(built("overlays/prod"), LLM_URL="http://llm.inference.svc:8000")
    (chat,) = (each for each in objects.workloads if each.name == "chat-handler")
    container = chat.manifest["spec"]["template"]["spec"]["containers"][0]
    container["env"].append({"name": "LLM_URL", "value": "http://llm.models.svc:8000"})
    assert not {problem for title, problem in problems(objects) if title == "Deployment ai/chat-handler"}
