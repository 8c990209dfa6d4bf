"""What is sent for a run: parameters arrive whole, and nothing on their way interprets them."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from handler_core.errors import Internal, InvalidRequest
from pipeline_bridge.engine import Run, run_name
from pipeline_bridge.manifests import GRACE, environment_json, ray_job, unevaluated, workflow

JOB: dict[str, Any] = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "metadata": {
        "labels": {"team": "search", "app.kubernetes.io/managed-by": "somebody"},
        "annotations": {"note": "x"},
    },
    "spec": {
        "entrypoint": "python train.py",
        "runtimeEnvYAML": "pip: []\n",
        "metadata": {"kind": "training"},
        "rayClusterSpec": {
            "headGroupSpec": {
                "rayStartParams": {},
                "template": {
                    "spec": {
                        "containers": [
                            {"name": "head", "image": "ray", "env": [{"name": "A", "value": "1"}]},
                            {"name": "sidecar", "image": "other"},
                        ]
                    }
                },
            },
            "workerGroupSpecs": [
                {
                    "groupName": name,
                    "minReplicas": 0,
                    "maxReplicas": 1,
                    "rayStartParams": {},
                    "template": {"spec": {"containers": [{"name": "worker", "image": "ray"}]}},
                }
                for name in ("small", "large")
            ],
        },
    },
}


def run(engine: str, parameters: dict[str, Any] | None = None, **changes: Any) -> Run:
    references = {"argo": {"template": "ingest"}, "rayjob": {"manifest": JOB}}
    fields: dict[str, Any] = {
        "request_id": "request_1",
        "pipeline": "ingest",
        "engine": engine,
        "namespace": "pipelines",
        "name": run_name("ingest", "request_1"),
        "reference": references[engine],
        "parameters": parameters or {},
        "timeout": 90.5,
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    return Run(**{**fields, **changes})


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(
    ["$(PATH)", "$$(PATH)", "`id`", "'; id; '", '"$(id)"', "${HOME}", "a\nb: c", "\\$(X)", "{{workflow.name}}"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
given_parameters = st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,20}", fullmatch=True), values, max_size=4)


def containers(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [container for group in groups for container in group["template"]["spec"]["containers"]]


def variables(container: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container.get("env", [])}


def test_a_workflow_is_its_template_with_arguments_and_says_whose_it_is() -> None:
    made = workflow(run("argo", {"source": "s3://a b", "size": 3, "on": True, "list": ["x", 1], "no": None}))
    assert made == {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {
            "name": run_name("ingest", "request_1"),
            "namespace": "pipelines",
            "labels": {"app.kubernetes.io/managed-by": "pipeline-bridge", "slim-handlers.dev/pipeline": "ingest"},
            "annotations": {
                "slim-handlers.dev/request-id": "request_1",
                "slim-handlers.dev/traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            },
        },
        "spec": {
            "workflowTemplateRef": {"name": "ingest"},
            "arguments": {
                "parameters": [
                    {"name": "source", "value": "s3://a b"},
                    {"name": "size", "value": "3"},
                    {"name": "on", "value": "true"},
                    {"name": "list", "value": '["x",1]'},
                    {"name": "no", "value": "null"},
                ]
            },
            "activeDeadlineSeconds": 91 + GRACE,
        },
    }


def test_a_run_without_a_trace_has_no_annotation_for_it() -> None:
    assert set(workflow(run("argo", traceparent=""))["metadata"]["annotations"]) == {"slim-handlers.dev/request-id"}


def test_a_ray_job_is_the_manifest_with_the_parameters_in_the_environment_of_its_ray_containers() -> None:
    made = ray_job(run("rayjob", {"epochs": 3, "cost": "$(PRICE)"}))
    head, sidecar, *workers = containers(made)
    assert variables(sidecar) == {}
    assert variables(head).pop("A") == "1"
    for container in (head, *workers):
        assert variables(container)["PIPELINE_PARAMETERS"] == '{"epochs":3,"cost":"\\u0024(PRICE)"}'
        assert variables(container)["PIPELINE_REQUEST_ID"] == "request_1"
    assert made["metadata"]["labels"] == {
        "team": "search",
        "app.kubernetes.io/managed-by": "pipeline-bridge",
        "slim-handlers.dev/pipeline": "ingest",
    }
    assert made["metadata"]["annotations"]["note"] == "x"
    assert made["metadata"]["annotations"]["slim-handlers.dev/request-id"] == "request_1"
    assert (made["metadata"]["name"], made["metadata"]["namespace"]) == (run_name("ingest", "request_1"), "pipelines")
    assert made["spec"]["shutdownAfterJobFinishes"] is True
    assert "env" not in containers(JOB)[2], "the record of the run is left as it was"


def test_the_bridges_variables_take_the_place_of_those_in_the_manifest() -> None:
    job = json.loads(json.dumps(JOB))
    containers(job)[0]["env"] = [{"name": "PIPELINE_PARAMETERS", "value": "old"}]
    made = ray_job(run("rayjob", {"a": 1}, reference={"manifest": job}))
    assert [each["name"] for each in containers(made)[0]["env"]] == ["PIPELINE_PARAMETERS", "PIPELINE_REQUEST_ID"]
    assert variables(containers(made)[0])["PIPELINE_PARAMETERS"] == '{"a":1}'


@pytest.mark.parametrize(("own", "limit"), [(None, 211), (60, 60), (100_000, 211)])
def test_the_shorter_time_limit_counts(own: int | None, limit: int) -> None:
    job = json.loads(json.dumps(JOB))
    if own:
        job["spec"]["activeDeadlineSeconds"] = own
    assert ray_job(run("rayjob", reference={"manifest": job}))["spec"]["activeDeadlineSeconds"] == limit


@pytest.mark.parametrize(
    "broken", [{}, {"headGroupSpec": {}}, {"headGroupSpec": {"template": {"spec": {"containers": []}}}}]
)
def test_a_manifest_without_a_place_for_parameters_is_a_final_error(broken: dict[str, Any]) -> None:
    with pytest.raises(Internal, match="without a container") as caught:
        ray_job(run("rayjob", reference={"manifest": {"spec": {"rayClusterSpec": broken}}}))
    assert not caught.value.retryable


@settings(max_examples=50)
@given(given_parameters)
def test_no_parameter_reaches_what_a_shell_or_kubernetes_interprets(parameters: dict[str, Any]) -> None:
    made, plain = ray_job(run("rayjob", parameters)), ray_job(run("rayjob"))
    for container in containers(made):
        values = variables(container)
        text = values.pop("PIPELINE_PARAMETERS", "{}")
        assert "$" not in text
        assert "\0" not in text
        assert text.isascii()
        if "PIPELINE_REQUEST_ID" in values:
            assert json.loads(text) == parameters
    for container in (*containers(made), *containers(plain)):
        container["env"] = [each for each in container.get("env", []) if each["name"] != "PIPELINE_PARAMETERS"]
    assert made == plain, "the parameters are in one variable, and nowhere else"


@settings(max_examples=50)
@given(given_parameters)
def test_arguments_arrive_as_they_are_or_are_refused_by_name(parameters: dict[str, Any]) -> None:
    try:
        made = workflow(run("argo", parameters))
    except InvalidRequest as error:
        named = re.fullmatch(r"parameters\.([A-Za-z0-9_-]+): must not contain \{\{.*", error.message)
        assert named
        assert "{{" in json.dumps(parameters[named[1]])
        return
    arguments = {each["name"]: each["value"] for each in made["spec"]["arguments"]["parameters"]}
    assert "{{" not in json.dumps(arguments)
    for name, value in parameters.items():
        assert arguments[name] == value if isinstance(value, str) else json.loads(arguments[name]) == value
    made["spec"]["arguments"] = workflow(run("argo"))["spec"]["arguments"]
    assert made == workflow(run("argo")), "the parameters are in the arguments, and nowhere else"


@given(values, st.sampled_from(["{{workflow.name}}", "{{=1+1}}", "{{"]))
def test_an_expression_is_found_however_deep(value: Any, expression: str) -> None:
    for hidden in (expression, [value, expression], {"a": {expression: value}}, [[{"b": "x" + expression}]]):
        with pytest.raises(InvalidRequest, match=r"parameters\.p: "):
            unevaluated("p", hidden)


@settings(max_examples=50)
@given(values)
def test_nested_braces_of_json_itself_are_no_expression(value: Any) -> None:
    assume("{{" not in json.dumps(value))
    assert json.loads(unevaluated("p", {"a": {"b": [{}, {"c": value}]}})) == {"a": {"b": [{}, {"c": value}]}}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", {"a": {1, 2}}])
def test_what_has_no_json_is_refused(value: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"parameters\.p: cannot be written as JSON"):
        workflow(run("argo", {"p": value}))
    with pytest.raises(InvalidRequest, match="parameters: cannot be written as JSON"):
        environment_json({"p": value})


def _lacks(schema: dict[str, Any], value: Any, path: str = "") -> list[str]:
    """Where a value does not fit a structural schema: unknown fields, other types, patterns, what is required."""
    if schema.get("x-kubernetes-int-or-string") or schema.get("x-kubernetes-preserve-unknown-fields"):
        return []
    types: dict[str, tuple[type, ...]] = {
        "object": (dict,), "array": (list,), "string": (str,), "integer": (int,), "boolean": (bool,),
        "number": (int, float),
    }  # fmt: skip
    if (kind := schema.get("type")) and not isinstance(value, types[kind]):
        return [f"{path}: {value!r} is no {kind}"]
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        return [f"{path}: {value!r} does not match {schema['pattern']}"]
    if isinstance(value, list):
        return [lack for index, item in enumerate(value) for lack in _lacks(schema["items"], item, f"{path}[{index}]")]
    if not isinstance(value, dict):
        return []
    known, others = schema.get("properties", {}), schema.get("additionalProperties")
    lacks = [f"{path}.{name}: missing" for name in schema.get("required", ()) if name not in value]
    for name, item in value.items():
        below = known.get(name, others)
        if below is None:
            # Of `metadata` the schema says no more than that it is an object.
            lacks += [] if not known and kind == "object" else [f"{path}.{name}: unknown"]
        else:
            lacks += _lacks(below, item, f"{path}.{name}")
    return lacks


@pytest.mark.skipif("CRD_DIR" not in os.environ, reason="CRD_DIR names no folder of published definitions")
@pytest.mark.parametrize(
    ("file", "made"),
    [
        (
            "argoproj.io_workflows.yaml",
            workflow(run("argo", {"source": "s3://a", "size": 3, "list": [1, {"a": None}]})),
        ),
        ("ray.io_rayjobs.yaml", ray_job(run("rayjob", {"epochs": 3}))),
    ],
)
def test_resources_fit_the_published_definitions(file: str, made: dict[str, Any]) -> None:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    definition = yaml.load((Path(os.environ["CRD_DIR"]) / file).read_text(), loader)
    group, _, version = made["apiVersion"].partition("/")
    assert (definition["spec"]["group"], definition["spec"]["names"]["kind"]) == (group, made["kind"])
    [schema] = [each["schema"]["openAPIV3Schema"] for each in definition["spec"]["versions"] if each["name"] == version]
    assert _lacks(schema, made) == []
    assert _lacks(schema, {**made, "spec": {**made["spec"], "surprise": 1}}) == [".spec.surprise: unknown"]
