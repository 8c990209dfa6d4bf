"""What holds for each image, whatever it does: how it is described, what is not in it, and how its process lives."""

import asyncio
import json
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from handler_core.testing import NatsServer, until
from handler_core.testing_images import (
    BASE,
    BASE_ML,
    BASES,
    HANDLERS,
    IMAGES,
    INTERPRETER,
    LOCAL_INFERENCE,
    NOBODY_NEEDS,
    PYTHON,
    SERVICES,
    Container,
    Engine,
    importing,
)
from handler_core.testing_imports import offenders, probe

NOWHERE = "http://127.0.0.1:9"
ANSWERING = dict.fromkeys(("LLM_URL", "EMBEDDINGS_URL", "RERANKER_URL", "MILVUS_URI"), NOWHERE)
UPSTREAMS = {
    "chat_handler": ANSWERING,
    "voice_assistant": {**ANSWERING, "STT_URL": NOWHERE, "TTS_URL": NOWHERE},
    "stt_module": {"STT_URL": NOWHERE},
    "tts_module": {"TTS_URL": NOWHERE},
}
"""Named, but not there: no start needs them."""

NEVER = [
    "pandas", "numpy", "pymilvus", "kubernetes", "requests", "urllib3", "http.client", "opentelemetry",
    "handler_core.otlp", "typer", "rich", "argparse", "unittest", "multiprocessing", "xml", "tarfile", "zipfile",
    "pickle", "sysconfig", "stamina", "tenacity", "nkeys", "nacl", "pydantic.networks", "aiohttp.web", "email.policy",
    "compression.zstd", "kubernetes_asyncio.client.models", "kubernetes_asyncio.client.api",
    "kubernetes_asyncio.client.api_client", "kubernetes_asyncio.watch", "dateutil",
    "pydantic_settings.sources.providers.cli",
]  # fmt: skip
NO_MILVUS = ["grpc", "google", "handler_core.vectors", "handler_core.rag", "handler_core.contract.chat"]
NO_SPEECH = ["webrtcvad", "wave", "handler_core.contract.stt", "handler_core.contract.tts"]
NEVER_IN = {
    "chat_handler": ["kubernetes_asyncio", *NO_SPEECH],
    "voice_assistant": ["kubernetes_asyncio", "webrtcvad", "wave"],
    "stt_module": ["kubernetes_asyncio", *NO_MILVUS],
    "tts_module": ["kubernetes_asyncio", "webrtcvad", *NO_MILVUS],
    "pipeline_bridge": ["uvloop", "handler_core.contract.voice", *NO_SPEECH, *NO_MILVUS],
    "local_inference": ["kubernetes_asyncio", "webrtcvad", "pocketsphinx", "soxr", "espeakng_loader", *NO_MILVUS],
}
"""What none of these has loaded by the time it is ready."""
NEEDED = {
    "local_inference": {
        "numpy", "http.client", "argparse", "pickle", "sysconfig", "aiohttp.web", "email.policy",
        "pydantic_settings.sources.providers.cli",
    },
}  # fmt: skip
"""What it computes and serves with, and what comes along: it is for development, and imports eagerly."""

MILVUS = ("chat_handler", "voice_assistant")
WITHOUT = {name: ["handler_core.vectors.searcher"] for name in SERVICES if name not in MILVUS}
"""Modules of ours for uses that a service does not have."""

LABEL = "org.opencontainers.image."
LABELS = ("description", "version", "revision", "created", "licenses", "base.name")
BUILT_FROM = {"version": "VERSION", "revision": "REVISION", "created": "CREATED", "source": "SOURCE"}
"""Labels, and the variables that `make image-test` sets to what `make images` makes them of."""
BASE_BUILT_FROM = {**{label: f"BASE_{name}" for label, name in BUILT_FROM.items()}, "source": "SOURCE"}

EXPRESSIONS = """
import importlib.metadata
print(*{found.metadata.get('License-Expression', '') for found in importlib.metadata.distributions()}, sep='\\n')
"""
PACKAGED = """
import hashlib, pathlib, re
root, listed = pathlib.Path('/'), set()
for state in (root / 'var/lib/dpkg/status.d').iterdir():
    if state.suffix == '.md5sums':
        continue
    lines = state.with_name(f'{state.name}.md5sums').read_text().splitlines()
    if not lines:
        print(f'{state.name}: no checksums')
    for checksum, path in (line.split(maxsplit=1) for line in lines):
        listed.add((root / path).resolve())
        if hashlib.md5((root / path).read_bytes()).hexdigest() != checksum:
            print(f'{state.name}: {path} is another file')
    licence = root / 'usr/share/doc' / state.name / 'copyright'
    for name in re.findall(r'/usr/share/common-licenses/([\\w.-]*\\w)', licence.read_text()):
        if not (root / 'usr/share/common-licenses' / name).read_text():
            print(f'{state.name}: no {name}')
if len(listed) < 500:
    print(f'{len(listed)} checksums in all')
for path in [*root.glob('usr/lib/*-linux-gnu/*.so*'), *root.glob('etc/ssl/certs/*.[0-9]')]:
    if path.resolve() not in listed:
        print(f'{path} is of no package')
"""

FILES = """
import os
for folder, folders, names in os.walk('/', followlinks=False):
    folders[:] = [one for one in folders if folder != '/' or one not in ('proc', 'sys', 'dev')]
    print(*(os.path.join(folder, name) for name in names), sep='\\n')
"""
WRITABLE = """
import os
for top in ('/tmp', '/var/tmp', '/run', '/dev/shm', '/home'):
    for folder, _, names in os.walk(top):
        print(*(os.path.join(folder, name) for name in names), sep='\\n')
try:
    open('/usr/written', 'w')
except OSError:
    pass
else:
    print('the root can be written to')
"""
ORPHAN = """
import os, sys
if os.fork() == 0:
    orphan = os.fork()
    if orphan == 0:
        os.setsid(); sys.stdin.close(); os.close(1); os.close(2)
        while os.getppid() != 1: pass
        os._exit(0)
    print(orphan)
    sys.stdout.flush()
    os._exit(0)
os.wait()
"""

Start = Callable[..., AbstractContextManager[Container]]
ImageOf = Callable[[str], str]


@pytest.mark.parametrize("name", IMAGES)
def test_it_is_labelled_and_runs_as_nobody(engine: Engine, image_of: ImageOf, name: str) -> None:
    known = engine.inspect(image_of(name))
    assert known is not None
    assert known["Config"]["User"] == "65532:65532"
    assert known["Config"]["Entrypoint"][0] == INTERPRETER, "PID 1 is Python itself"
    labels = engine.labels(image_of(name))
    assert labels[LABEL + "title"] == name
    assert [label for label in LABELS if not labels.get(LABEL + label)] == []
    assert LABEL + "source" in labels


@pytest.mark.parametrize("name", IMAGES)
def test_its_labels_say_what_it_was_built_from(engine: Engine, image_of: ImageOf, name: str) -> None:
    variables = BASE_BUILT_FROM if name in BASES else BUILT_FROM
    expected = {label: os.environ[key] for label, key in variables.items() if key in os.environ}
    if name not in BASES:
        expected["base.name"] = image_of(BASE_ML if name == LOCAL_INFERENCE else BASE)
    labels = engine.labels(image_of(name))
    assert {label: labels.get(LABEL + label) for label in expected} == expected, "make images"


@pytest.mark.parametrize("name", IMAGES)
async def test_its_licences_are_named_by_its_label(engine: Engine, image_of: ImageOf, name: str) -> None:
    status, printed, problems = await engine.run(image_of(name), EXPRESSIONS)
    assert (status, problems) == (0, "")
    named = engine.labels(image_of(name))[LABEL + "licenses"].replace(" WITH ", "-WITH-").split(" AND ")
    assert named == sorted(set(named))
    found = set(re.findall(r"[\w.-]+", printed)) - {"AND", "OR"}
    assert "Apache-2.0" in found
    assert found <= set(named)


@pytest.mark.parametrize("name", IMAGES)
async def test_each_debian_package_in_it_has_its_licence_and_the_checksums_of_what_is_here(
    engine: Engine, image_of: ImageOf, name: str
) -> None:
    assert await engine.run(image_of(name), PACKAGED) == (0, "", "")


@pytest.mark.parametrize("name", SERVICES)
def test_it_is_ended_by_sigterm_and_asked_for_its_health_without_a_shell(
    engine: Engine, image_of: ImageOf, name: str
) -> None:
    known = engine.inspect(image_of(name))
    assert known is not None
    assert known["Config"].get("StopSignal", "SIGTERM") == "SIGTERM"
    assert engine.healthcheck(image_of(name))[0] == INTERPRETER


@pytest.mark.parametrize("name", IMAGES)
async def test_it_has_no_shell_no_package_manager_and_no_tests(engine: Engine, image_of: ImageOf, name: str) -> None:
    code = f"import shutil; print([name for name in {NOBODY_NEEDS} if shutil.which(name)])" + FILES
    status, printed, problems = await engine.run(image_of(name), code)
    assert (status, problems) == (0, "")
    found, *files = printed.splitlines()
    assert found == "[]"
    tests = re.compile(r"/(tests?|testing)/|/(test_[^/]*|[^/]*_test|conftest|testing(_[^/]*)?)\.py$")
    assert [file for file in files if tests.search(file)] == []


@pytest.mark.parametrize("name", SERVICES)
async def test_every_module_of_ours_can_be_imported_but_those_of_uses_it_does_not_have(
    engine: Engine, image_of: ImageOf, name: str
) -> None:
    code = importing("handler_core", name, without=WITHOUT.get(name, []))
    assert await engine.run(image_of(name), code) == (0, "", "")


@pytest.mark.parametrize("name", SERVICES)
async def test_it_runs_read_only_as_nobody_and_ends_in_order_with_nothing_written(start: Start, name: str) -> None:
    with start(name, **UPSTREAMS.get(name, {})) as container:
        await container.ready()
        user = await container.user()
        first = await container.python("print(open('/proc/1/cmdline').read().split('\\0')[0])")
        written = await container.python(WRITABLE)
        code, out, logged = await container.ended()
    assert user == "65532"
    assert first == INTERPRETER
    assert written == ""
    assert (code, out) == (0, ""), logged
    lines = [json.loads(line) for line in logged.splitlines()]
    assert {line["level"] for line in lines} == {"info"}
    if name in HANDLERS:
        assert lines[-1]["event"] == "service_stopped"


@pytest.mark.parametrize("name", SERVICES)
async def test_its_health_check_tells_whether_it_lives(
    start: Start, engine: Engine, image_of: ImageOf, name: str
) -> None:
    check = engine.healthcheck(image_of(name))
    with start(name, **UPSTREAMS.get(name, {})) as container:
        await container.ready()
        healthy = await container.execute(*check)
    with start(name, "-c", "import time; time.sleep(60)", options=PYTHON) as container:
        await until(lambda: container.pid, "it runs", timeout=30)
        unhealthy, said = await container.execute(*check)
    assert healthy[0] == 0, healthy
    assert unhealthy == 1, said


@pytest.mark.parametrize("name", HANDLERS)
async def test_without_nats_it_is_healthy_but_to_those_who_ask_whether_it_is_ready(
    start: Start, engine: Engine, image_of: ImageOf, nats: NatsServer, name: str
) -> None:
    check = engine.healthcheck(image_of(name))
    with start(name, **UPSTREAMS.get(name, {})) as container:
        await container.ready()
        nats.kill()
        await container.becomes(503)
        healthy, said = await container.execute(*check)
        asked = ("exec", "--env", "HEALTH_PATH=/readyz", container.name, *check)
        unready, _ = await asyncio.to_thread(engine.tell, *asked)
    assert healthy == 0, said
    assert unready == 1


@pytest.mark.parametrize("name", SERVICES)
async def test_its_first_process_buries_what_others_leave_behind(start: Start, name: str) -> None:
    with start(name, **UPSTREAMS.get(name, {})) as container:
        await container.ready()
        orphan = await container.python(ORPHAN)

        async def gone() -> bool:
            return await container.python(f"import os; print(os.path.exists('/proc/{orphan}'))") == "False"

        await until(gone, "the orphan is buried", timeout=30)


@pytest.mark.parametrize("name", SERVICES)
async def test_ready_it_has_loaded_nothing_that_it_does_not_need(start: Start, name: str) -> None:
    with start(name, "-c", probe(name), options=PYTHON, **UPSTREAMS.get(name, {})) as container:
        await container.ready()
        code, out, logged = await container.ended()
    assert code == 0, logged
    never = [module for module in (*NEVER, *NEVER_IN[name]) if module not in NEEDED.get(name, ())]
    assert offenders(out, never) == []


@pytest.mark.parametrize("name", HANDLERS)
async def test_with_a_collector_named_it_exports(start: Start, name: str) -> None:
    environment = {**UPSTREAMS.get(name, {}), "OTEL_EXPORTER_OTLP_ENDPOINT": NOWHERE}
    with start(name, "-c", probe(name), options=PYTHON, **environment) as container:
        await container.ready()
        code, out, logged = await container.ended()
    assert code == 0, logged
    assert offenders(out, ["opentelemetry.exporter"])


@pytest.mark.parametrize("name", HANDLERS)
async def test_streams_and_consumers_can_be_made_from_it(start: Start, name: str) -> None:
    with start(name, "-P", "-m", "handler_core.provision", options=PYTHON) as container:
        out, logged = await asyncio.to_thread(container.process.communicate, timeout=60)
    assert (container.process.returncode, out) == (0, ""), logged
    assert json.loads(logged.splitlines()[-1])["event"] == "as_declared"
