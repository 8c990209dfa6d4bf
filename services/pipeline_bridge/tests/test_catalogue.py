"""The catalogue: what its file may say, what is told of a mistake, and how edits come into force."""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
import yaml
from hypothesis import given
from hypothesis import strategies as st

from handler_core.errors import InvalidRequest, NotFound, Transient
from handler_core.tasks import background
from handler_core.telemetry import Metrics
from handler_core.testing import until
from pipeline_bridge.catalogue import Catalogue
from pipeline_bridge.engine import run_name
from pipeline_bridge.yaml_file import MAX_BYTES, Unreadable, parse, read

NAMESPACES = {"argo": "argo", "rayjob": "ray", "kubeflow": ""}
GOOD = """
pipelines:
  ingest:
    engine: argo
    template: document-ingestion
    namespace: pipelines
    description: Reads documents.
    timeout: 2h
    parameters:
      source: {type: string, required: true, pattern: "^s3://"}
      chunk_size: {type: integer, default: 512, minimum: 64}
  train:
    engine: rayjob
    template: train.yaml
    users: [alice, "team-*"]
  ask:
    engine: kubeflow
    pipeline: rag-query
    version: "2"
"""
MANIFEST = """
apiVersion: ray.io/v1
kind: RayJob
metadata: {labels: {team: a}}
spec:
  entrypoint: python train.py
  rayClusterSpec:
    headGroupSpec:
      template: {spec: {containers: [{name: head, image: ray}]}}
    workerGroupSpecs:
      - template: {spec: {containers: [{name: worker, image: ray}]}}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "train.yaml").write_text(MANIFEST)
    path = tmp_path / "pipelines.yaml"
    path.write_text(GOOD)
    return path


def made(path: Path, **options: Any) -> Catalogue:
    return Catalogue(path, namespaces=NAMESPACES, poll_interval=0.01, **options)


async def problem(path: Path, text: str) -> str:
    """What is said of a catalogue."""
    path.write_text(text)
    catalogue = made(path)
    await catalogue.load()
    assert bool(catalogue.problem) is not catalogue.loaded
    return catalogue.problem


async def problem_of_one(path: Path, *lines: str) -> str:
    """What is said of one pipeline, whose lines begin with the third."""
    return await problem(path, "pipelines:\n  x:\n" + "".join(f"    {line}\n" for line in lines))


async def problem_of_manifest(path: Path, old: str, new: str) -> str:
    assert old in MANIFEST
    (path.parent / "train.yaml").write_text(MANIFEST.replace(old, new))
    return await problem(path, GOOD)


@asynccontextmanager
async def watched(path: Path, **options: Any) -> AsyncIterator[Catalogue]:
    catalogue = made(path, **options)
    await catalogue.load()
    async with background(catalogue.watch()):
        yield catalogue


@pytest.fixture
def ended(path: Path) -> Callable[[str], None]:
    """Adds to the catalogue's end."""

    def add(text: str) -> None:
        with path.open("a") as file:
            file.write(text)

    return add


# -- what it holds


async def test_a_pipeline_becomes_a_run(path: Path) -> None:
    catalogue = made(path)
    await catalogue.load()
    assert catalogue.problem == ""
    run = catalogue.find("ingest", "bob").run("r1", {"source": "s3://a"}, "bob", "00-t")
    assert run.model_dump() == {
        "request_id": "r1",
        "pipeline": "ingest",
        "engine": "argo",
        "namespace": "pipelines",
        "name": run_name("ingest", "r1"),
        "reference": {"template": "document-ingestion"},
        "parameters": {"source": "s3://a", "chunk_size": 512},
        "timeout": 7200.0,
        "user_id": "bob",
        "traceparent": "00-t",
    }
    with pytest.raises(InvalidRequest, match=r"parameters\.source: is required"):
        catalogue.find("ingest", None).run("r1", {}, None)


async def test_each_engine_has_its_namespace_and_reference(path: Path) -> None:
    catalogue = made(path)
    await catalogue.load()
    ask = catalogue.find("ask", None).run("r1", {}, None)
    assert (ask.namespace, ask.timeout) == ("", 3600.0)
    assert ask.reference == {"pipeline": "rag-query", "version": "2", "experiment": None}
    train = catalogue.find("train", "alice").run("r1", {}, "alice")
    assert train.namespace == "ray"
    assert train.reference["manifest"]["metadata"] == {"labels": {"team": "a"}}


async def test_a_run_s_manifest_is_its_own(path: Path) -> None:
    catalogue = made(path)
    await catalogue.load()
    first = catalogue.find("train", "alice").run("r1", {}, "alice")
    first.reference["manifest"]["spec"].clear()
    assert catalogue.find("train", "alice").run("r2", {}, "alice").reference["manifest"]["spec"]


@pytest.mark.parametrize(
    ("timeout", "seconds"), [("90", 90), ("1.5", 1.5), ("30s", 30), ("5m", 300), ("1.5h", 5400), ("30d", 30 * 86400)]
)
async def test_a_timeout_is_seconds_or_has_a_unit(path: Path, timeout: str, seconds: float) -> None:
    path.write_text(f"pipelines: {{x: {{engine: argo, template: x, timeout: {timeout}}}}}")
    catalogue = made(path)
    await catalogue.load()
    assert catalogue.find("x", None).timeout == seconds


async def test_a_user_is_told_only_of_what_is_for_them(path: Path) -> None:
    catalogue = made(path)
    await catalogue.load()
    assert catalogue.names("alice") == catalogue.names("team-7") == ["ask", "ingest", "train"]
    assert catalogue.names("bob") == catalogue.names("ALICE") == catalogue.names(None) == ["ask", "ingest"]
    assert [info.name for info in catalogue.pipelines("bob")] == ["ask", "ingest"]
    info = catalogue.pipelines("bob")[1]
    assert (info.engine, info.namespace, info.timeout) == ("argo", "pipelines", 7200.0)
    assert [parameter.name for parameter in info.parameters] == ["source", "chunk_size"]


async def test_one_that_is_for_others_looks_like_one_that_there_is_not(path: Path) -> None:
    catalogue = made(path)
    await catalogue.load()
    said = []
    for name in ("train", "trains"):
        with pytest.raises(NotFound) as caught:
            catalogue.find(name, "bob")
        assert (caught.value.stage, caught.value.retryable) == ("catalogue", False)
        said.append(caught.value.message.replace(name, ""))
    assert said[0] == said[1]


async def test_a_catalogue_without_pipelines_is_one(path: Path) -> None:
    assert await problem(path, "pipelines: {}") == ""


async def test_anchors_and_merges_spare_repetition(path: Path) -> None:
    path.write_text(
        "pipelines:\n"
        "  a: &a {engine: argo, template: a, timeout: 1m, parameters: &p {x: {type: string}}}\n"
        "  b: {<<: *a, template: b}\n"
        "  c: {<<: [{timeout: 2m}, *a], parameters: {<<: *p, y: {type: integer}}}\n"
    )
    catalogue = made(path)
    await catalogue.load()
    assert catalogue.problem == ""
    found = [catalogue.find(name, None) for name in "abc"]
    assert [each.reference["template"] for each in found] == ["a", "b", "a"]
    assert [each.timeout for each in found] == [60, 60, 120]
    assert [parameter.name for parameter in found[2].info.parameters] == ["x", "y"]


# -- what is wrong with it


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["engine: argp"], "line 3: pipelines.x.engine: has to be argo, kubeflow or rayjob"),
        (["template: x"], "line 2: pipelines.x.engine: has to be argo"),
        (["engine: argo"], "line 2: pipelines.x.template: is required"),
        (["engine: kubeflow"], "line 2: pipelines.x.pipeline: is required"),
        (["engine: argo", "template: x", "timout: 5"], "line 5: pipelines.x.timout: is unknown"),
        (["engine: argo", "template: x", "timeout: 5 min"], "line 5: pipelines.x.timeout: has to be seconds, or"),
        (["engine: argo", "template: x", "timeout: 31d"], "line 5: pipelines.x.timeout: Input should be less"),
        (["engine: argo", "template: x", "timeout: 0"], "line 5: pipelines.x.timeout: Input should be greater"),
        (["engine: argo", "template: x", "timeout: yes"], "line 5: pipelines.x.timeout: "),
        (["engine: argo", "template: x", "timeout: 1:30"], "line 5: pipelines.x.timeout: has to be seconds"),
        (["engine: argo", "template: x", "timeout: .nan"], "line 5: pipelines.x.timeout: is not a finite number"),
        (["engine: argo", "template: {{x}}"], "line 4: a key has to be a plain string"),
        (["engine: argo", "template: X_y"], "line 4: pipelines.x.template: "),
        (["engine: argo", "template: x", "namespace: a/b"], "line 5: pipelines.x.namespace: "),
        (["engine: argo", "template: x", "users: alice"], "line 5: pipelines.x.users: Input should be a valid list"),
        (["engine: argo", "template: x", "users: [a, 1]"], "line 5: pipelines.x.users.1: has to be a string; put it"),
        (["engine: kubeflow", "pipeline: x", "version: 2"], "line 5: pipelines.x.version: has to be a string; put it"),
        (["engine: rayjob", "template: ../x.yaml"], "line 4: pipelines.x.template: String should match"),
        (["engine: rayjob", "template: no.yaml"], "no.yaml: No such file or directory"),
        (["engine: argo", "template: x", "template: y"], "pipelines.x.template: is there twice, first in line 4"),
    ],
)  # fmt: skip
async def test_a_mistake_is_told_with_its_line_and_key(path: Path, lines: list[str], said: str) -> None:
    assert said in await problem_of_one(path, *lines)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("{type: text}", "parameters.p.type: Input should be 'string'"),
        ("{type: string, minimum: 1}", "parameters.p.minimum: is not for type string"),
        ("{type: integer, default: x}", "parameters.p.default: Input should be a valid integer"),
        ("{type: integer, maximum: x}", "parameters.p.maximum: "),
        ("{type: string, enum: [on, off]}", "parameters.p.enum: value 0: Input should be a valid string"),
        ("{type: string, default: '{{workflow.name}}'}", "parameters.p.default: must not contain"),
        ("{type: array, items: {type: string, pattern: '('}}", "parameters.p.items.pattern: is none that can be used"),
        ("string", "parameters.p: Input should be a valid dictionary"),
    ],
)
async def test_a_mistake_in_a_parameter_is_told_with_its_line_and_key(path: Path, words: str, said: str) -> None:
    told = await problem_of_one(path, "engine: argo", "template: x", "parameters:", f"  p: {words}")
    assert "pipelines.yaml, line 6: pipelines.x." + said in told


async def test_a_parameter_or_pipeline_has_to_have_a_name_that_is_one(path: Path) -> None:
    said = await problem_of_one(path, "engine: argo", "template: x", "parameters: {a b: {type: string}}")
    assert "line 5: pipelines.x.parameters.a b: String should match" in said
    assert "line 2: pipelines.My Pipeline: a name has" in await problem(path, "pipelines:\n  My Pipeline: {}\n")
    assert "line 2: pipelines.tail-: a name has" in await problem(path, "pipelines:\n  tail-: {}\n")


async def test_the_first_three_mistakes_are_told(path: Path) -> None:
    said = await problem(path, "pipelines: {a: {}, b: {}, c: {}, d: {}}\nelse: 1\n")
    assert said.count("pipelines.yaml, line") == 3
    assert said.endswith("; and 2 more")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has to be a map of pipelines by name"),
        ("- a", "has to be a map of pipelines by name"),
        ("pipelines:\n", "line 1: pipelines: has to be a map"),
        ("pipelines: {}\nelse: 1\n", "line 2: else: is unknown"),
        ("pipelines:\n\tx: 1\n", "line 2: has a tab"),
        ("pipelines:\n  - [\n  \t- 1", "line 3: has a tab"),
        ("pipelines: {}\nx: 'a", "line 2, column"),
        ("pipelines: {}\n---\npipelines: {}\n", "line 2: a second document begins"),
        ("pipelines: !!python/object/apply:os.system [id]", "the tag tag:yaml.org,2002:python"),
        ("pipelines: !x {}", "the tag !x is not allowed"),
        ("pipelines: !!binary aGk=", "binary is not allowed"),
        ("pipelines: {}\n? [a]\n: 1", "line 2: a key has to be a plain string"),
        ("pipelines: *x", "*x has no &x"),
        ("pipelines: &x {a: *x}", "*x has no &x that ends before it"),
        ("pipelines:\n  <<: 1", "line 2: <<: takes a map"),
        ("pipelines: {}\nx: \x00", "line 2: has a character that YAML does not allow"),
        ("pipelines: " + "[" * 200_000, "is nested deeper"),
        ("pipelines: " + "{a: " * 200_000, "is nested deeper"),
        ("pipelines:\n- [" + "1, " * 150 + "]", "line 2: from here on it is too much: more than 100 values"),
        ("#" * (MAX_BYTES + 1), f"is larger than {MAX_BYTES} bytes"),
    ],
)
@pytest.mark.parametrize("loader", [yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader)])
async def test_what_is_no_such_yaml_is_refused(
    path: Path, text: str, said: str, loader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline_bridge.yaml_file._LOADER", loader)
    monkeypatch.setattr("pipeline_bridge.yaml_file.MAX_NODES", 100)
    assert said in await problem(path, text)


async def test_what_is_not_utf_8_is_refused(path: Path) -> None:
    path.write_bytes(b"pipelines: {}\nx: \xff\n")
    catalogue = made(path)
    await catalogue.load()
    assert catalogue.problem == "pipelines.yaml, line 2: is not UTF-8"


def test_a_bomb_of_aliases_is_refused_before_it_goes_off() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    with pytest.raises(Unreadable, match=r"line 5: from here on it is too much"):
        parse("bomb", "\n".join(lines).encode())


def test_aliases_do_not_nest_deeper_than_anything_else() -> None:
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 200))]
    with pytest.raises(Unreadable, match="is nested deeper"):
        parse("chain", "\n".join(lines).encode())


@given(st.text(alphabet="ab:- [],{}&*<!?|>'\"#%@\n\t0.1e~", max_size=60) | st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    said = ""
    try:
        document = parse("any", text.encode("utf-8", "surrogatepass"))
    except Unreadable as error:
        said = str(error)
    else:
        said = document.problem(("a", "b", 3), "x")
    assert re.match(r"any, line \d+", said)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("ray.io/v1", "ray.io/v1alpha1", "line 2: apiVersion: has to be ray.io/v1"),
        ("RayJob", "RayCluster", "line 3: kind: has to be RayJob"),
        ("labels:", "namespace: other, labels:", "metadata.namespace: is not the pipeline's, which is ray"),
        ("entrypoint: python train.py", "suspend: true", "line 5: spec.entrypoint: is required"),
        ("entrypoint:", "suspend: true\n  entrypoint:", "line 6: spec.suspend: must not be true"),
        ("entrypoint:", "clusterSelector: {a: b}\n  entrypoint:", "line 6: spec.clusterSelector: is not allowed"),
        ("entrypoint:", "shutdownAfterJobFinishes: false\n  entrypoint:", "spec.shutdownAfterJobFinishes: must not"),
        ("entrypoint:", "submissionMode: InteractiveMode\n  entrypoint:", "spec.submissionMode: must not be"),
        ("entrypoint:", "deletionStrategy: {}\n  entrypoint:", "spec.deletionStrategy: is not allowed"),
        ("labels:", "labels: {kueue.x-k8s.io/queue-name: q}, x:", "metadata.labels.kueue.x-k8s.io/queue-name: is not"),
        ("rayClusterSpec", "rayCluster", "line 5: spec.rayClusterSpec: is required"),
        ("headGroupSpec", "head", "spec.rayClusterSpec.headGroupSpec.template.spec.containers: has to have"),
        ("[{name: worker, image: ray}]", "[]", "spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers: has"),
        ("kind: RayJob", "kind: [", "train.yaml, line"),
    ],
)
async def test_a_ray_job_that_would_not_end_or_not_stop_is_refused(path: Path, old: str, new: str, said: str) -> None:
    told = await problem_of_manifest(path, old, new)
    assert told.startswith("train.yaml, line ")
    assert said in told


# -- edits


async def test_there_is_none_until_one_was_good(path: Path) -> None:
    path.unlink()
    with structlog.testing.capture_logs() as logs:
        async with watched(path) as catalogue:
            assert catalogue.problem == "pipelines.yaml: No such file or directory"
            assert (catalogue.loaded, catalogue.names(None), catalogue.pipelines(None)) == (False, [], [])
            with pytest.raises(Transient) as caught:
                catalogue.find("ingest", None)
            assert (caught.value.stage, caught.value.retryable) == ("catalogue", True)
            path.write_text(GOOD)
            await until(lambda: catalogue.loaded, "it is there")
    assert catalogue.problem == ""
    assert [entry["event"] for entry in logs] == ["catalogue_broken", "catalogue_loaded"]


async def test_an_edit_comes_into_force_and_the_log_says_what_changed(path: Path, ended: Callable[[str], None]) -> None:
    with structlog.testing.capture_logs() as logs:
        async with watched(path) as catalogue:
            path.write_text(GOOD.replace("timeout: 2h", "timeout: 3h").replace("  ask:", "  answer:"))
            await until(lambda: catalogue.names(None) == ["answer", "ingest"], "it is in force")
            assert catalogue.find("ingest", None).timeout == 3 * 3600
    assert logs[1:] == [
        {
            "event": "catalogue_in_force",
            "log_level": "info",
            "mended": False,
            "added": ["answer"],
            "removed": ["ask"],
            "changed": ["ingest"],
        }
    ]


async def test_a_broken_edit_leaves_in_force_what_was_and_is_logged_once(path: Path) -> None:
    metrics = Metrics()
    with structlog.testing.capture_logs() as logs:
        async with watched(path, metrics=metrics) as catalogue:
            assert "handler_catalogue_broken 0\n" in metrics.render()
            path.write_text(GOOD.replace("engine: argo", "engine: argp"))
            await until(lambda: catalogue.problem, "it is seen")
            assert "line 4: pipelines.ingest.engine" in catalogue.problem
            assert catalogue.find("ingest", None).engine == "argo"
            assert "handler_catalogue_broken 1\n" in metrics.render()
            assert "handler_catalogue_pipelines 3\n" in metrics.render()
            for _ in range(3):
                await catalogue.load()
            path.write_text(GOOD.replace("engine: argo", "engine: argp # still"))
            await until(lambda: len(logs) == 3, "the next edit is seen")
            path.write_text(GOOD)
            await until(lambda: not catalogue.problem, "it is mended")
            assert "handler_catalogue_broken 0\n" in metrics.render()
    assert [entry["event"] for entry in logs[1:]] == ["catalogue_broken", "catalogue_broken", "catalogue_in_force"]
    assert logs[1]["log_level"] == "error"
    assert logs[-1]["mended"]
    assert logs[-1]["added"] == logs[-1]["removed"] == logs[-1]["changed"] == []


async def test_a_manifest_that_changes_vanishes_and_comes_back_counts(path: Path) -> None:
    manifest = path.parent / "train.yaml"
    with structlog.testing.capture_logs() as logs:
        async with watched(path) as catalogue:
            manifest.write_text(MANIFEST.replace("train.py", "train2.py"))
            await until(lambda: len(logs) == 2, "it is seen")
            manifest.unlink()
            await until(lambda: catalogue.problem, "it is missed")
            assert catalogue.problem == "train.yaml: No such file or directory"
            run = catalogue.find("train", "alice").run("r1", {}, "alice")
            assert run.reference["manifest"]["spec"]["entrypoint"] == "python train2.py"
            manifest.write_text(MANIFEST)
            await until(lambda: not catalogue.problem, "it is back")
    assert [entry.get("changed") for entry in logs[1:]] == [["train"], None, ["train"]]


async def test_a_mounted_config_map_that_is_swapped_is_read_again(tmp_path: Path) -> None:
    """Kubernetes writes a new folder and turns the link `..data` to it."""

    def project(version: str, text: str, manifest: str) -> None:
        folder = tmp_path / f"..{version}"
        folder.mkdir()
        (folder / "pipelines.yaml").write_text(text)
        (folder / "train.yaml").write_text(manifest)
        (tmp_path / "..data_tmp").symlink_to(folder.name)
        (tmp_path / "..data_tmp").replace(tmp_path / "..data")

    project("1", GOOD, MANIFEST)
    for name in ("pipelines.yaml", "train.yaml"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    async with watched(tmp_path / "pipelines.yaml") as catalogue:
        assert catalogue.problem == ""
        project("2", GOOD.replace("  ask:", "  answer:"), MANIFEST.replace("train.py", "other.py"))
        await until(lambda: "answer" in catalogue.names(None), "the swap is seen")
        run = catalogue.find("train", "alice").run("r1", {}, "alice")
        assert run.reference["manifest"]["spec"]["entrypoint"] == "python other.py"
        (tmp_path / "..data").unlink()
        await until(lambda: catalogue.problem, "the link is gone")
        project("3", GOOD, MANIFEST)
        await until(lambda: "ask" in catalogue.names(None), "it is back")


async def test_files_that_change_while_they_are_read_are_read_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of one edit with half of another is no catalogue."""
    reads: list[str] = []

    def interrupted(file: Path) -> Any:
        document = read(file)
        reads.append(file.name)
        if len(reads) == 1:
            path.write_text(GOOD.replace("template: train.yaml", "template: new.yaml"))
            (path.parent / "new.yaml").write_text(MANIFEST)
            (path.parent / "train.yaml").unlink()
        return document

    monkeypatch.setattr("pipeline_bridge.catalogue.read", interrupted)
    catalogue = made(path)
    await catalogue.load()
    assert catalogue.problem == ""
    assert reads == ["pipelines.yaml", "pipelines.yaml", "new.yaml"]


async def test_a_file_that_cannot_be_read_for_a_while_is_read_when_it_can(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the disk or the network leaves no trace in what `stat` says."""
    broken = [True]

    def failing(file: Path) -> Any:
        if broken:
            raise OSError(5, os.strerror(5))
        return read(file)

    monkeypatch.setattr("pipeline_bridge.catalogue.read", failing)
    with structlog.testing.capture_logs() as logs:
        catalogue = made(path)
        for _ in range(3):
            await catalogue.load()
        assert catalogue.problem == "pipelines.yaml: Input/output error"
        assert len(logs) == 1
        broken.clear()
        await catalogue.load()
    assert catalogue.loaded


async def test_what_is_no_file_is_refused_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        catalogue = made(path)
        async with asyncio.timeout(10):
            await catalogue.load()
        assert catalogue.problem == f"{path.name}: is no regular file"
