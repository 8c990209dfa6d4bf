"""Container images, for tests of them: found, run and ended with whichever engine is there.

`CONTAINER_ENGINE` names another command than docker or podman, with options if need be (`podman --runtime runc`);
`CONTAINER_OPTIONS` adds options to each `run`. `IMAGE_PREFIX`, `VERSION` and `BASE_VERSION` are those of `make images`.
"""

import asyncio
import contextlib
import json
import os
import shlex
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from handler_core.testing import free_port, until

PREFIX = "localhost/slim-handlers/"
BASE = "base"
BASE_ML = "base-ml"
LOCAL_INFERENCE = "local_inference"
HANDLERS = ("chat_handler", "voice_assistant", "stt_module", "tts_module", "pipeline_bridge")
SERVICES = (*HANDLERS, LOCAL_INFERENCE)
BASES = {BASE: HANDLERS[0], BASE_ML: LOCAL_INFERENCE}
"""Each with a service that stands on it."""
IMAGES = (*BASES, *SERVICES)
START_TIMEOUT = 60.0
STOP_TIMEOUT = 40.0
INTERPRETER = "/usr/bin/python3"
PYTHON = ("--entrypoint", INTERPRETER)
"""Options for `running` code of one's own in an image, by `-c`."""
NOBODY_NEEDS = ["sh", "bash", "dash", "busybox", "apt", "dpkg", "pip", "pip3", "perl", "openssl"]
"""Commands that no image has."""
CATALOGUE = "pipelines: {ingest: {engine: argo, template: document-ingestion}}\n"
"""Pipelines for the bridge, which is not ready without any."""
USER = "print(open('/proc/1/status').read().partition('\\nUid:')[2].split()[0])"
"""Code that prints the user id of a container's first process, the service."""

COMMANDS: tuple[tuple[str, ...], ...] = (("docker",), ("podman",), ("podman", "--runtime", "runc"))
LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000")


class NoEngine(Exception):
    """No docker or podman here, or it has no such image."""


async def answers(url: str, status: int = 200) -> None:
    """Wait until a container's URL says this status."""

    async def condition() -> bool:
        try:
            async with aiohttp.ClientSession() as session, session.get(url) as answer:
                return answer.status == status
        except aiohttp.ClientError:
            return False

    await until(condition, f"{url} answers {status}", timeout=START_TIMEOUT)


def importing(*packages: str, without: Sequence[str] = ()) -> str:
    """Code for `python -c` that imports every module of the packages but those `without`, and those below them.

    Eagerly, as lazy imports show what is missing only when it is used.
    """
    return (
        f"import importlib, pkgutil, {', '.join(packages)}\n"
        f"without = {list(without)}\n"
        f"packages = [({', '.join(packages)},)]\n"
        "def load(package):\n"
        "    for module in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):\n"
        "        if module.name not in without and not module.name.endswith('__main__'):\n"
        "            found = importlib.import_module(module.name)\n"
        "            if module.ispkg: load(found)\n"
        "for package in packages[0]: load(package)\n"
    )


@dataclass
class Container:
    """One that runs; `process` is the engine's client, whose output is the service's."""

    name: str
    process: "subprocess.Popen[str]"
    engine: "Engine"
    url: str = ""
    """Of its health port."""
    ready_path: str = "/readyz"

    @property
    def pid(self) -> int:
        """The service's process id on this machine; 0 before it runs."""
        found = self.engine.ask("inspect", "--format", "{{.State.Pid}}", self.name, check=False)
        return int(found) if found.isdigit() else 0

    async def user(self) -> str:
        """The id of the user that the service runs as, as the container has it."""
        # Not from this machine's /proc: an engine without root maps the container's ids to others here.
        return await self.python(USER)

    async def becomes(self, status: int) -> None:
        """Wait until its readiness has this status."""
        await answers(self.url + self.ready_path, status)

    async def ready(self) -> "Container":
        """Wait until it is."""
        await self.becomes(200)
        return self

    async def metric(self, name: str) -> int:
        """A whole number among its metrics, by the beginning of its line; 0 where there is none."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        return next((int(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), 0)

    async def execute(self, *command: str) -> tuple[int, str]:
        """Run a command in it; its exit code, and what it printed."""
        return await asyncio.to_thread(self.engine.tell, "exec", self.name, *command)

    async def python(self, code: str) -> str:
        """Run code in it, and give what it printed.

        Raises:
            AssertionError: it failed.
        """
        status, printed = await self.execute(INTERPRETER, "-c", code)
        if status:
            raise AssertionError(f"code in {self.name} ended with {status}: {printed}")
        return printed

    def stop(self) -> tuple[int, str, str]:
        """End it as Kubernetes does, by SIGTERM; gives its exit code, and stdout and stderr if they are pipes."""
        # What it says at its end is read meanwhile: it would wait for a full pipe.
        command = [*self.engine.command, "stop", "--time", "30", self.name]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
            out, err = self.process.communicate(timeout=STOP_TIMEOUT)
        return self.process.returncode, out or "", err or ""

    async def ended(self) -> tuple[int, str, str]:
        """`stop`, while the event loop goes on."""
        return await asyncio.to_thread(self.stop)


def _answers(command: tuple[str, ...]) -> bool:
    found = shutil.which(command[0]) is not None
    return found and subprocess.run([*command, "info"], check=False, capture_output=True).returncode == 0


@dataclass(frozen=True)
class Engine:
    """docker, podman, or what `CONTAINER_ENGINE` names."""

    command: tuple[str, ...]
    options: tuple[str, ...] = ()
    """What each `run` needs."""

    @classmethod
    def find(cls) -> "Engine":
        """The first that works; of one that starts no container as it is, with what lets it: another runtime, or limits
        that this process may set, as where it is in a container itself.

        Raises NoEngine, which says what to do.
        """
        named, given = os.environ.get("CONTAINER_ENGINE", ""), os.environ.get("CONTAINER_OPTIONS", "")
        commands = [command for command in COMMANDS if named in ("", command[0])] or [tuple(shlex.split(named))]
        here = [command for command in commands if named or _answers(command)]
        if not here:
            raise NoEngine("neither docker nor podman works here: install one, or name one by CONTAINER_ENGINE")
        choices = [tuple(shlex.split(given))] if given else [(), LIMITS]
        engines = [cls(command, options) for command in here for options in choices]
        return next((engine for engine in engines if engine._starts()), engines[0])

    def _starts(self) -> bool:
        """Whether it can start a container; taken for granted while there is no image to try it with."""
        for service in SERVICES:
            with contextlib.suppress(NoEngine, subprocess.TimeoutExpired):
                run = [*self.command, "run", "--rm", "--network", "host", *self.options, *PYTHON, self.built(service)]
                tried = subprocess.run([*run, "-I", "-S", "-c", ""], check=False, capture_output=True, timeout=30)
                return tried.returncode == 0
        return True

    def ask(self, *arguments: str, check: bool = True) -> str:
        """What the engine prints for a command."""
        done = subprocess.run([*self.command, *arguments], check=check, capture_output=True, text=True)
        return done.stdout.strip()

    def tell(self, *arguments: str) -> tuple[int, str]:
        """The exit code of a command, and all that it printed."""
        done = subprocess.run(
            [*self.command, *arguments], check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        return done.returncode, done.stdout.strip()

    # -- images

    def built(self, service: str) -> str:
        """The name of a service's image, or of a base; raises NoEngine, which says what to do, where it is not
        here."""
        tag = os.environ.get("VERSION", "dev")
        if service in BASES and not (tag := os.environ.get("BASE_VERSION", "")):
            image = self.labels(self.built(BASES[service])).get("org.opencontainers.image.base.name", service)
        else:
            image = f"{os.environ.get('IMAGE_PREFIX', PREFIX)}{service}:{tag}"
        if self.inspect(image) is None:
            raise NoEngine(f"there is no image {image} here: make images")
        return image

    def inspect(self, image: str) -> dict[str, Any] | None:
        """What the engine knows of an image; None where there is no such image."""
        found = self.ask("image", "inspect", image, check=False)
        return dict(json.loads(found)[0]) if found not in ("", "[]") else None

    def labels(self, image: str) -> dict[str, str]:
        """What an image says of itself."""
        return dict(((self.inspect(image) or {}).get("Config") or {}).get("Labels") or {})

    def healthcheck(self, image: str) -> list[str]:
        """The command by which an image's health is checked; empty without one."""
        known = self.inspect(image) or {}
        check = known["Config"].get("Healthcheck") or known.get("HealthCheck") or known.get("Healthcheck") or {}
        kind, *command = check.get("Test") or [""]
        return command if kind == "CMD" else []

    # -- containers

    async def run(
        self, image: str, code: str, environment: Mapping[str, str] | None = None, *, options: Sequence[str] = ()
    ) -> tuple[int, str, str]:
        """Run Python code in an image; its exit code, stdout and stderr."""
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self.running(image, environment or {}, "-c", code, options=(*PYTHON, *options), **pipes) as container:
            out, err = await asyncio.to_thread(container.process.communicate, timeout=START_TIMEOUT)
            return container.process.returncode, out, err

    @contextlib.contextmanager
    def service(
        self, service: str, environment: Mapping[str, str], *arguments: str, **options: Any
    ) -> Iterator[Container]:
        """`running` a service's image, its health on a port of its own; raises NoEngine as `built`."""
        port = free_port()
        own = {"HEALTH_HOST": "127.0.0.1", "HEALTH_PORT": str(port)}
        if service == LOCAL_INFERENCE:
            own = {"HOST": "127.0.0.1", "PORT": str(port), "HEALTH_PORT": str(port)}
        with self.running(self.built(service), {**own, **environment}, *arguments, **options) as container:
            container.url = f"http://127.0.0.1:{port}"
            container.ready_path = "/health" if service == LOCAL_INFERENCE else "/readyz"
            yield container

    @contextlib.contextmanager
    def running(
        self, image: str, environment: Mapping[str, str], *arguments: str, options: Sequence[str] = (), **popen: Any
    ) -> Iterator[Container]:
        """A container with a read-only root and this machine's network, gone after the block."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        command = [*self.command, "run", "--rm", "--name", name, "--read-only", "--network", "host"]
        # Tests check the health themselves, and podman has a say on stderr where it finds no systemd to do it.
        command += ["--no-healthcheck", *options, *self.options]
        for key, value in environment.items():
            command += ["--env", f"{key}={value}"]
        # A session of its own: an interrupt at the terminal reaches the one who measures, and it ends the container.
        process = subprocess.Popen([*command, image, *arguments], text=True, start_new_session=True, **popen)
        try:
            yield Container(name, process, self)
        finally:
            if process.poll() is None:
                self.ask("kill", name, check=False)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                process.kill()
            process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
