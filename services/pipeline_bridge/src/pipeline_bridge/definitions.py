"""What the catalogue's file says: pipelines, each with its engine, and the manifests beside it."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Annotated, Any, Final, Literal, cast

from pydantic import BeforeValidator, Field, StringConstraints, ValidationError

from handler_core.contract.pipeline import PipelineInfo
from pipeline_bridge.engine import EngineName, Run, run_name
from pipeline_bridge.parameters import Declared, Misfit, Parameter, ParameterName, Parameters
from pipeline_bridge.yaml_file import Document, Place, Unreadable

KUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"
"""Of a job whose `suspend` is Kueue's to set."""
MAX_TIMEOUT: Final = 30 * 24 * 3600.0
MAX_NAMED: Final = 3
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
_DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])")
_STEPS_OF_PYDANTIC: Final = ("[key]", "int", "float")
"""In the place of an error, but not in the file."""


def _seconds(value: Any) -> Any:
    if isinstance(value, str):
        if (match := _DURATION.fullmatch(value)) is None:
            raise ValueError("has to be seconds, or a number with s, m, h or d, such as 90m")
        return float(match[1]) * _UNITS[match[2]]
    return value


Namespace = Annotated[str, StringConstraints(pattern="^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class Definition(Declared):
    """One pipeline of the file; what it runs is its engine's business."""

    engine: EngineName
    description: str = Field(default="", max_length=1000)
    namespace: Namespace | None = None
    timeout: Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=MAX_TIMEOUT)] = 3600.0
    """Seconds; the file may also say 30s, 5m, 2h or 7d."""
    users: list[Text] | None = None
    """Who may trigger it, as patterns of `fnmatch`; None for anybody."""
    parameters: dict[ParameterName, Parameter] = Field(default_factory=dict)


class ArgoDefinition(Definition):
    """A pipeline of Argo Workflows."""

    engine: Literal["argo"]
    template: Annotated[str, StringConstraints(pattern="^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
    """A WorkflowTemplate of its namespace."""


class KubeflowDefinition(Definition):
    """A pipeline of Kubeflow Pipelines; each is an id or a name there."""

    engine: Literal["kubeflow"]
    pipeline: Text
    version: Text | None = None
    """The newest without."""
    experiment: Text | None = None


class RayJobDefinition(Definition):
    """A RayJob made of a manifest."""

    engine: Literal["rayjob"]
    template: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,251}$")]
    """A file beside the catalogue."""


_MODELS: Final[dict[str, type[Definition]]] = {
    "argo": ArgoDefinition,
    "kubeflow": KubeflowDefinition,
    "rayjob": RayJobDefinition,
}


@dataclass(frozen=True)
class Pipeline:
    """One pipeline of the catalogue, ready to be run. Two are equal when they would run the same."""

    name: str
    definition: Definition
    namespace: str
    reference: dict[str, Any]
    """What is run, in the engine's own terms."""
    parameters: Parameters = field(compare=False)

    @property
    def engine(self) -> EngineName:
        return self.definition.engine

    @property
    def timeout(self) -> float:
        """Seconds."""
        return self.definition.timeout

    @property
    def info(self) -> PipelineInfo:
        """How it is told to users."""
        return PipelineInfo(
            name=self.name,
            description=self.definition.description,
            engine=self.engine,
            namespace=self.namespace,
            timeout=self.timeout,
            parameters=self.parameters.infos(),
        )

    def allows(self, user: str | None) -> bool:
        """Whether this user may trigger it; None is nobody in particular."""
        users = self.definition.users
        return users is None or (user is not None and any(fnmatchcase(user, pattern) for pattern in users))

    def run(self, request_id: str, parameters: dict[str, Any], user: str | None, traceparent: str = "") -> Run:
        """The run of a request.

        Raises:
            InvalidRequest: a parameter is missing, unknown, or not as declared; the message names it.
        """
        return Run(
            request_id=request_id,
            pipeline=self.name,
            engine=self.engine,
            namespace=self.namespace,
            name=run_name(self.name, request_id),
            reference=copy.deepcopy(self.reference),
            parameters=self.parameters.validate(parameters),
            timeout=self.timeout,
            user_id=user,
            traceparent=traceparent,
        )


def pipelines(
    document: Document, namespaces: Mapping[str, str], manifest: Callable[[str], Document]
) -> dict[str, Pipeline]:
    """The pipelines of a catalogue, by name in their order.

    Args:
        namespaces: by engine, for pipelines that name none.
        manifest: the document in a file beside the catalogue; may raise `Unreadable` and OSError.

    Raises:
        Unreadable: names each thing that is wrong (the first three), with its line.
        OSError: from `manifest`.
    """
    raw = document.value
    found = raw.get("pipelines") if isinstance(raw, dict) else None
    if not isinstance(found, dict):
        raise Unreadable(document.problem(("pipelines",), "has to be a map of pipelines by name"))
    problems = [document.problem((key,), "is unknown; there is pipelines") for key in raw if key != "pipelines"]
    made = {}
    for name, body in found.items():
        try:
            made[name] = _pipeline(name, body, namespaces, manifest)
        except _Wrong as error:
            problems += [document.problem(("pipelines", name, *place), text) for place, text in error.found]
        except Unreadable as error:
            problems.append(str(error))
    if problems:
        more = [f"and {len(problems) - MAX_NAMED} more"] if len(problems) > MAX_NAMED else []
        raise Unreadable("; ".join([*problems[:MAX_NAMED], *more]))
    return made


class _Wrong(Exception):
    def __init__(self, found: list[tuple[Place, str]]) -> None:
        super().__init__()
        self.found = found


def _pipeline(name: str, body: Any, namespaces: Mapping[str, str], manifest: Callable[[str], Document]) -> Pipeline:
    definition = _definition(name, body)
    namespace = definition.namespace or namespaces[definition.engine]
    try:
        parameters = Parameters(definition.parameters, definition.engine)
    except Misfit as error:
        raise _Wrong([(("parameters", *error.word.split(".")), str(error))]) from None
    return Pipeline(name, definition, namespace, _reference(definition, namespace, manifest), parameters)


def _definition(name: str, body: Any) -> Definition:
    if not re.fullmatch("[a-z]([a-z0-9-]{0,61}[a-z0-9])?", name):  # it becomes a label's value
        text = "a name has a-z, 0-9 and -, begins with a letter, does not end with -, and has 63 characters at most"
        raise _Wrong([((), text)])
    if not isinstance(body, dict):
        raise _Wrong([((), "has to be a map")])
    engine = body.get("engine")
    if not isinstance(engine, str) or engine not in _MODELS:
        raise _Wrong([(("engine",), "has to be argo, kubeflow or rayjob")])
    try:
        return _MODELS[engine].model_validate(body)
    except ValidationError as error:
        raise _Wrong([_said(item) for item in error.errors(include_input=False, include_url=False)]) from None


def _said(item: Any) -> tuple[Place, str]:
    place: Place = tuple(step for step in item["loc"] if step not in _STEPS_OF_PYDANTIC)
    if isinstance(misfit := item.get("ctx", {}).get("error"), Misfit):
        return (*place, misfit.word), str(misfit)
    texts = {
        "missing": "is required",
        "extra_forbidden": "is unknown",
        "string_type": "has to be a string; put it in quotes",
    }
    return place, texts.get(item["type"], item["msg"].removeprefix("Value error, "))


def _reference(definition: Definition, namespace: str, manifest: Callable[[str], Document]) -> dict[str, Any]:
    match definition:
        case ArgoDefinition():
            return {"template": definition.template}
        case KubeflowDefinition():
            return {
                "pipeline": definition.pipeline,
                "version": definition.version,
                "experiment": definition.experiment,
            }
    template = cast("RayJobDefinition", definition).template
    document = manifest(template)
    if problems := [document.problem(place, text) for place, text in _ray_job_problems(document.value, namespace)]:
        raise Unreadable("; ".join(problems[:MAX_NAMED]))
    return {"manifest": document.value}


def _ray_job_problems(job: Any, namespace: str) -> Iterator[tuple[Place, str]]:
    """What keeps a manifest from being a run that ends, can be stopped, and gives its machines back."""
    for key, value in (("apiVersion", "ray.io/v1"), ("kind", "RayJob")):
        if _at(job, key) != value:
            yield (key,), f"has to be {value}"
    if _at(job, "metadata", "namespace") not in (None, namespace):
        yield ("metadata", "namespace"), f"is not the pipeline's, which is {namespace}"
    if _at(job, "metadata", "labels", KUEUE_LABEL) is not None:
        yield ("metadata", "labels", KUEUE_LABEL), "is not allowed: Kueue would resume a job that is to stop"
    spec = _at(job, "spec")
    if _at(spec, "deletionStrategy") is not None:
        yield ("spec", "deletionStrategy"), "is not allowed: KubeRay takes it for none that may be suspended"
    if not isinstance(_at(spec, "entrypoint"), str):
        yield ("spec", "entrypoint"), "is required"
    if _at(spec, "clusterSelector") is not None:
        yield ("spec", "clusterSelector"), "is not allowed: a job on a cluster of others cannot be suspended"
    if _at(spec, "shutdownAfterJobFinishes") is False:
        yield ("spec", "shutdownAfterJobFinishes"), "must not be false: the cluster would stay"
    if _at(spec, "suspend") is True:
        yield ("spec", "suspend"), "must not be true: the job would never begin"
    if _at(spec, "submissionMode") == "InteractiveMode":
        yield ("spec", "submissionMode"), "must not be InteractiveMode: the job would wait for somebody"
    yield from _ray_cluster_problems(_at(spec, "rayClusterSpec"))


def _ray_cluster_problems(cluster: Any) -> Iterator[tuple[Place, str]]:
    place: Place = ("spec", "rayClusterSpec")
    if not isinstance(cluster, dict):
        yield place, "is required: each run has a cluster of its own"
        return
    workers = cluster.get("workerGroupSpecs") or []
    groups: list[tuple[Place, Any]] = [((*place, "headGroupSpec"), cluster.get("headGroupSpec"))]
    if isinstance(workers, list):
        groups += [((*place, "workerGroupSpecs", number), group) for number, group in enumerate(workers)]
    else:
        yield (*place, "workerGroupSpecs"), "has to be a list"
    for where, group in groups:
        containers = _at(group, "template", "spec", "containers")
        if not isinstance(containers, list) or not containers or not isinstance(containers[0], dict):
            yield (*where, "template", "spec", "containers"), "has to have a container, which is given the parameters"


def _at(value: Any, *keys: str) -> Any:
    """What stands at a place in a manifest; None when nothing does."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
