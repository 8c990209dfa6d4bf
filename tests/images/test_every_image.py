"""What holds for each image, whatever it does: how it is described, what is not in it, and how its process lives."""

import asyncio
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from handler_core.testing import until
from handler_core.testing_images import (
    HANDLERS,
    IMAGES,
    INTERPRETER,
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
}
"""What none of these has loaded by the time it is ready."""

MILVUS = ("chat_handler", "voice_assistant")
WITHOUT = {name: ["handler_core.vectors.searcher"] for name in SERVICES if name not in MILVUS}
"""Modules of ours for uses that a service does not have."""

LABELS = ("description", "version", "revision", "created", "licenses", "base.name")

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
    assert labels["org.opencontainers.image.title"] == name
    assert [label for label in LABELS if not labels.get(f"org.opencontainers.image.{label}")] == []
    assert "org.opencontainers.image.source" in labels


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


@pytest.mark.parametrize("name", SERVICES)
async def test_its_first_process_buries_what_others_leave_behind(start: Start, name: str) -> None:
    with start(name, **UPSTREAMS.get(name, {})) as container:
        await container.ready()
        orphan = await container.python(ORPHAN)

        async def gone() -> bool:
            return await container.python(f"import os; print(os.path.exists('/proc/{orphan}'))") == "False"

        await until(gone, "the orphan is buried", timeout=30)


@pytest.mark.parametrize("name", HANDLERS)
async def test_ready_it_has_loaded_nothing_that_it_does_not_need(start: Start, name: str) -> None:
    with start(name, "-c", probe(name), options=PYTHON, **UPSTREAMS.get(name, {})) as container:
        await container.ready()
        code, out, logged = await container.ended()
    assert code == 0, logged
    assert offenders(out, [*NEVER, *NEVER_IN[name]]) == []


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
