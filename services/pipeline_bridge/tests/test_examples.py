"""The pipelines and permissions that are shipped: they fit each other, the bridge, and the clusters' own schemas."""

import ast
import asyncio
import json
import os
import re
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer

from pipeline_bridge.catalogue import Catalogue
from pipeline_bridge.definitions import Pipeline
from pipeline_bridge.engine import Run
from pipeline_bridge.manifests import PARAMETERS_VARIABLE, ray_job, workflow

K8S = Path(__file__).parents[3] / "k8s"
EXAMPLES = K8S / "examples" / "pipelines"
CRD_DIR = os.environ.get("CRD_DIR")
ENGINES = {
    "batch-inference": "argo",
    "document-ingestion": "argo",
    "model-evaluation": "argo",
    "model-training": "rayjob",
    "rag-query": "kubeflow",
    "voice-pipeline": "kubeflow",
}
GIVEN: dict[str, dict[str, Any]] = {
    "batch-inference": {"source": "s3://bucket/in.jsonl", "destination": "s3://bucket/out.jsonl"},
    "document-ingestion": {"source": "s3://bucket/docs/"},
    "model-evaluation": {"dataset": "s3://bucket/questions.jsonl"},
    "model-training": {"dataset": "s3://bucket/rows", "output": "s3://bucket/models"},
    "rag-query": {"question": "Where?"},
    "voice-pipeline": {"audio": "s3://bucket/a.wav", "destination": "s3://bucket/b.wav"},
}
"""What has to be given."""
OURS = ["create", "get", "list", "watch", "patch"]


@pytest.fixture
async def catalogue() -> Catalogue:
    namespaces = {"argo": "argo", "rayjob": "ray", "kubeflow": "kubeflow-user-example-com"}
    catalogue = Catalogue(EXAMPLES / "pipelines.yaml", namespaces=namespaces)
    await catalogue.load()
    return catalogue


def objects(path: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


TEMPLATES = {each["metadata"]["name"]: each for each in objects(EXAMPLES / "workflow-templates.yaml")}


def containers(template: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every container of a WorkflowTemplate, of whatever kind."""
    for each in template["spec"]["templates"]:
        yield from each.get("containerSet", {}).get("containers", ())
        yield from each.get("initContainers", ())
        yield from each.get("sidecars", ())
        yield from (each[kind] for kind in ("container", "script") if kind in each)


def program(template: str) -> str:
    """The Python program of a WorkflowTemplate."""
    (source,) = (each["args"][0] for each in containers(TEMPLATES[template]) if each.get("command") == ["python", "-c"])
    return str(source)


def run_of(pipeline: Pipeline) -> Run:
    return pipeline.run("r1", GIVEN[pipeline.name], "alice")


# -- catalogue


async def test_the_shipped_catalogue_is_in_force_as_it_is(catalogue: Catalogue) -> None:
    assert catalogue.problem == ""
    assert {info.name: info.engine for info in catalogue.pipelines("alice")} == ENGINES
    assert "model-training" not in catalogue.names(None)
    for info in catalogue.pipelines("alice"):
        assert info.description
        assert run_of(catalogue.find(info.name, "alice")).parameters.keys() >= GIVEN[info.name].keys()


async def test_a_workflow_template_declares_the_catalogue_s_parameters_and_uses_each(catalogue: Catalogue) -> None:
    argo = [info for info in catalogue.pipelines("alice") if info.engine == "argo"]
    assert {catalogue.find(info.name, None).reference["template"] for info in argo} == TEMPLATES.keys()
    for info in argo:
        template = TEMPLATES[catalogue.find(info.name, None).reference["template"]]
        declared = {parameter.name for parameter in info.parameters}
        assert {each["name"] for each in template["spec"]["arguments"]["parameters"]} == declared
        (entry,) = (each for each in template["spec"]["templates"] if each["name"] == template["spec"]["entrypoint"])
        assert {each["name"] for each in entry["inputs"]["parameters"]} == declared
        assert set(re.findall(r"\{\{inputs\.parameters\.(\w+)\}\}", json.dumps(template))) == declared


async def test_every_parameter_without_a_default_is_required_or_left_to_the_engine(catalogue: Catalogue) -> None:
    for info in catalogue.pipelines("alice"):
        for parameter in info.parameters:
            # A WorkflowTemplate here has no values of its own, and train.py no defaults.
            assert parameter.required or parameter.default is not None or info.engine == "kubeflow"


# -- no parameter becomes a command


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_no_parameter_is_part_of_a_script(name: str) -> None:
    for container in containers(TEMPLATES[name]):
        command, args = container["command"], container.get("args", [])
        assert "source" not in container
        assert not {"sh", "bash", "ash", "dash"} & {Path(word).name for word in command}
        programs = [*command, *(args[:1] if "-c" in command else [])]
        assert not any("{{" in text for text in programs)
        for argument in args[len(programs) - len(command) :]:
            assert "{{" not in argument or re.fullmatch(r"(--[a-z-]+=)?\{\{inputs\.parameters\.\w+\}\}", argument)
        for variable in container.get("env", ()):
            assert "{{" not in variable["value"] or re.fullmatch(r"\{\{inputs\.parameters\.\w+\}\}", variable["value"])


async def test_an_argument_without_an_option_cannot_begin_with_a_dash(catalogue: Catalogue) -> None:
    for name, template in TEMPLATES.items():
        patterns = {info.name: info.pattern for info in catalogue.find(name, None).info.parameters}
        for container in containers(template):
            for argument in container.get("args", ()):
                if match := re.fullmatch(r"\{\{inputs\.parameters\.(\w+)\}\}", argument):
                    assert (patterns[match[1]] or "").startswith("^s3://")


async def test_the_ray_job_reads_its_parameters_from_the_environment_only(catalogue: Catalogue) -> None:
    run = run_of(catalogue.find("model-training", "alice"))
    spec = ray_job(run)["spec"]
    assert spec["entrypoint"] == run.reference["manifest"]["spec"]["entrypoint"] == "python /home/ray/pipeline/train.py"
    cluster = spec.pop("rayClusterSpec")
    assert "bucket" not in json.dumps(spec)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        environment = {each["name"]: each["value"] for each in group["template"]["spec"]["containers"][0]["env"]}
        assert json.loads(environment[PARAMETERS_VARIABLE]) == run.parameters


async def test_the_training_program_uses_each_parameter(catalogue: Catalogue) -> None:
    source = (EXAMPLES / "train.py").read_text()
    ast.parse(source)
    declared = {parameter.name for parameter in catalogue.find("model-training", "alice").info.parameters}
    assert set(re.findall(r'parameters\["(\w+)"\]', source)) - {"columns", "classes"} == declared


# -- the programs


class Llm:
    """Answers with what it was asked, in capitals; what has "broken" in it with an error."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    async def complete(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.seen.append(body)
        question = body["messages"][-1]["content"]
        if "broken" in question:
            return web.json_response({"error": "no"}, status=500)
        return web.json_response({"choices": [{"message": {"content": question.upper()}}]})


@pytest.fixture
def llm() -> Llm:
    return Llm()


@pytest.fixture
async def llm_url(llm: Llm) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", llm.complete)
    async with TestServer(app) as server:
        yield str(server.make_url("/"))


async def ran(source: str, **environment: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-c", source), env=environment, stdout=PIPE, stderr=STDOUT
    )
    output, _ = await process.communicate()
    return int(process.returncode or 0), output.decode()


@pytest.mark.parametrize(("prompts", "status"), [(["a", "broken", "c"], 0), (["broken"], 1), ([], 0)])
async def test_batch_inference_answers_each_prompt_in_order(
    llm: Llm, llm_url: str, tmp_path: Path, prompts: list[str], status: int
) -> None:
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"id": n, "prompt": p}) + "\n" for n, p in enumerate(prompts))
    )
    environment = {"MODEL": "m", "MAX_TOKENS": "9", "TEMPERATURE": "0.5", "CONCURRENCY": "2"}
    code, output = await ran(program("batch-inference"), WORK=str(tmp_path), LLM_URL=llm_url, **environment)
    assert (code, f"{prompts.count('broken')} failed" in output) == (status, True), output
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [answer["id"] for answer in answers] == list(range(len(prompts)))
    assert [answer.get("response") for answer in answers] == [None if p == "broken" else p.upper() for p in prompts]
    assert all({"model": "m", "max_tokens": 9, "temperature": 0.5}.items() <= body.items() for body in llm.seen)


@pytest.mark.parametrize(
    ("metric", "threshold", "score", "status"),
    [("contains", "0.7", "0.7500", 0), ("contains", "0.8", "0.7500", 1), ("exact", "0.5", "0.5000", 0)],
)
async def test_model_evaluation_fails_below_its_threshold(
    llm_url: str, tmp_path: Path, metric: str, threshold: str, score: str, status: int
) -> None:
    pairs = [("Paris", "paris"), ("Rome", "Rome "), ("It is Oslo", "oslo"), ("Bern", "Basel")]
    (tmp_path / "questions.jsonl").write_text(
        "".join(json.dumps({"question": q, "expected": e}) + "\n" for q, e in pairs)
    )
    environment = {"WORK": str(tmp_path), "LLM_URL": llm_url, "MODEL": "m", "METRIC": metric, "THRESHOLD": threshold}
    code, output = await ran(program("model-evaluation"), **environment)
    assert (code, (tmp_path / "score").read_text()) == (status, score), output


# -- permissions


def test_the_bridge_has_exactly_the_rights_it_uses() -> None:
    base = objects(K8S / "base" / "pipeline_bridge" / "pipeline-bridge.yaml")
    (account,) = (each["metadata"] for each in base if each["kind"] == "ServiceAccount")
    components = sorted((K8S / "components").glob("bridge-*/rbac.yaml"))
    found = [each for path in components for each in objects(path)]
    roles = {
        (each["metadata"]["namespace"], each["metadata"]["name"]): each["rules"]
        for each in found
        if each["kind"] == "Role"
    }
    assert roles == {
        ("argo", "pipeline-bridge"): [{"apiGroups": ["argoproj.io"], "resources": ["workflows"], "verbs": OURS}],
        ("ray", "pipeline-bridge"): [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": OURS}],
        ("kubeflow-user-example-com", "pipeline-bridge-kubeflow"): [
            {
                "apiGroups": ["pipelines.kubeflow.org"],
                "resources": ["runs"],
                "verbs": ["create", "get", "list", "terminate"],
            },
            {
                "apiGroups": ["pipelines.kubeflow.org"],
                "resources": ["pipelines", "experiments"],
                "verbs": ["get", "list"],
            },
        ],
    }
    bindings = [each for each in found if each["kind"] == "RoleBinding"]
    assert {(each["metadata"]["namespace"], each["roleRef"]["name"]) for each in bindings} == roles.keys()
    for binding in bindings:
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
        ]
    assert {each["kind"] for each in found} == {"Role", "RoleBinding"}
    # The bridge makes its runs where it has these rights, unless a pipeline says where.
    for path in components:
        (variable,) = yaml.safe_load(path.with_name("namespace.yaml").read_text())
        assert variable["value"]["name"] == path.parent.name.removeprefix("bridge-").upper() + "_NAMESPACE"
        assert {each["metadata"]["namespace"] for each in objects(path)} == {variable["value"]["value"]}


async def test_the_catalogue_of_production_is_empty_until_somebody_writes_one() -> None:
    catalogue = Catalogue(K8S / "overlays" / "prod" / "pipelines.yaml", namespaces={})
    await catalogue.load()
    assert (catalogue.loaded, catalogue.problem, catalogue.names("alice")) == (True, "", [])


# -- the clusters' schemas


def schema(file: str, version: str) -> dict[str, Any]:
    assert CRD_DIR
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    definition = yaml.load((Path(CRD_DIR) / file).read_text(), Loader=loader)
    (found,) = (each["schema"]["openAPIV3Schema"] for each in definition["spec"]["versions"] if each["name"] == version)
    return dict(found)


TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
}


def misfits(value: Any, schema: dict[str, Any], place: str = "") -> Iterator[str]:
    """Where a manifest is not as a structural schema says."""
    if schema.get("x-kubernetes-int-or-string"):
        if not isinstance(value, int | str):
            yield f"{place}: is no integer or string"
        return
    if "type" in schema and not isinstance(value, TYPES[schema["type"]]):
        yield f"{place}: is no {schema['type']}"
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from misfits(each, schema.get("items", {}), f"{place}.{number}")
    elif isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties")
        open_ended = others is True or schema.get("x-kubernetes-preserve-unknown-fields") or not (known or others)
        for name in schema.get("required", ()):
            if name not in value:
                yield f"{place}.{name}: is missing"
        for name, each in value.items():
            if name in known or isinstance(others, dict):
                yield from misfits(each, known.get(name, others), f"{place}.{name}")
            elif not open_ended:
                yield f"{place}.{name}: is unknown"
    elif "enum" in schema and value not in schema["enum"]:
        yield f"{place}: is none of {schema['enum']}"


@pytest.mark.skipif(not CRD_DIR, reason="CRD_DIR names no folder with the custom resource definitions")
async def test_they_are_as_the_published_definitions_say(catalogue: Catalogue) -> None:
    templates = schema("argoproj.io_workflowtemplates.yaml", "v1alpha1")
    workflows = schema("argoproj.io_workflows.yaml", "v1alpha1")
    jobs = schema("ray.io_rayjobs.yaml", "v1")
    assert [each for template in TEMPLATES.values() for each in misfits(template, templates)] == []
    for info in catalogue.pipelines("alice"):
        run = run_of(catalogue.find(info.name, "alice"))
        if info.engine == "argo":
            assert list(misfits(workflow(run), workflows)) == []
        elif info.engine == "rayjob":
            assert list(misfits(ray_job(run), jobs)) == []
    assert list(misfits({"spec": {"entrypoint": 1, "x": 2}}, jobs)) == [
        ".spec.entrypoint: is no string",
        ".spec.x: is unknown",
    ]
