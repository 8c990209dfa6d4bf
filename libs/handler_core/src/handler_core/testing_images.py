"""Container images, for tests of them: found, run and ended with whichever engine is there.

`CONTAINER_ENGINE` names another command than docker or podman, with options if need be (`podman --runtime runc`);
`CONTAINER_OPTIONS` adds options to each `run`.
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
from pathlib import Path
from typing import Any

import aiohttp

from handler_core.testing import until

PREFIX = "slim-handlers/"
START_TIMEOUT = 60.0
STOP_TIMEOUT = 40.0
PYTHON = ("--entrypoint", "/usr/bin/python3")
"""Options for `running` code of one's own in an image, by `-c`."""
NOBODY_NEEDS = ["sh", "bash", "apt", "dpkg", "pip", "perl"]
"""Commands that no image has."""


class NoEngine(Exception):
    """No docker or podman here, or it has no such image."""


def image_name(service: str) -> str:
    """The tag that `make images` gives."""
    return os.environ.get("IMAGE_PREFIX", PREFIX) + service


async def answers(url: str) -> None:
    """Wait until a container's URL says 200."""

    async def condition() -> bool:
        try:
            async with aiohttp.ClientSession() as session, session.get(url) as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    await until(condition, f"{url} answers", timeout=START_TIMEOUT)


def importing(*packages: str, without: Sequence[str] = ()) -> str:
    """Code for `python -c` that imports every module of the packages: eagerly, as lazy imports show what is missing
    only when it is used."""
    return (
        f"import importlib, pkgutil, {', '.join(packages)}\n"
        f"for package in ({', '.join(packages)},):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        f"        if not module.name.endswith('__main__') and module.name not in {list(without)}:\n"
        "            importlib.import_module(module.name)\n"
    )


@dataclass
class Container:
    """One that runs; `process` is the engine's client, whose output is the service's."""

    name: str
    process: "subprocess.Popen[str]"
    engine: "Engine"

    @property
    def pid(self) -> int:
        """The service's process id on this machine; 0 before it runs."""
        found = self.engine.ask("inspect", "--format", "{{.State.Pid}}", self.name, check=False)
        return int(found) if found.isdigit() else 0

    def stop(self) -> tuple[int, str, str]:
        """End it as Kubernetes does, by SIGTERM; gives its exit code, and stdout and stderr if they are pipes."""
        self.engine.ask("stop", "--time", "30", self.name, check=False)
        out, err = self.process.communicate(timeout=STOP_TIMEOUT)
        return self.process.returncode, out or "", err or ""

    async def ended(self) -> tuple[int, str, str]:
        """`stop`, while the event loop goes on."""
        return await asyncio.to_thread(self.stop)

    @property
    def user(self) -> str:
        """The id of the user that the service runs as."""
        return Path(f"/proc/{self.pid}/status").read_text().partition("\nUid:")[2].split()[0]


@dataclass(frozen=True)
class Engine:
    """docker, podman, or what `CONTAINER_ENGINE` names."""

    command: tuple[str, ...]

    @classmethod
    def find(cls) -> "Engine":
        """Raises NoEngine, which says what to do."""
        if named := os.environ.get("CONTAINER_ENGINE"):
            return cls(tuple(shlex.split(named)))
        for name in ("docker", "podman"):
            if shutil.which(name) and not subprocess.run([name, "info"], check=False, capture_output=True).returncode:
                return cls((name,))
        raise NoEngine("neither docker nor podman works here: install one, or name one by CONTAINER_ENGINE")

    def ask(self, *arguments: str, check: bool = True) -> str:
        """What the engine prints for a command."""
        done = subprocess.run([*self.command, *arguments], check=check, capture_output=True, text=True)
        return done.stdout.strip()

    def built(self, service: str) -> str:
        """The name of a service's image; raises NoEngine, which says what to do, where it is not here."""
        image = image_name(service)
        if self.inspect(image) is None:
            raise NoEngine(f"there is no image {image} here: make images")
        return image

    def inspect(self, image: str) -> dict[str, Any] | None:
        """What the engine knows of an image; None where there is no such image."""
        found = self.ask("image", "inspect", image, check=False)
        return dict(json.loads(found)[0]) if found not in ("", "[]") else None

    async def run(self, image: str, code: str) -> tuple[int, str, str]:
        """Run Python code in an image; its exit code, stdout and stderr."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self.running(image, {}, "-c", code, options=PYTHON, **pipes) as container:
            out, err = await asyncio.to_thread(container.process.communicate, timeout=START_TIMEOUT)
            return container.process.returncode, out, err

    @contextlib.contextmanager
    def running(
        self, image: str, environment: Mapping[str, str], *arguments: str, options: Sequence[str] = (), **popen: Any
    ) -> Iterator[Container]:
        """A container with a read-only root and this machine's network, gone after the block."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        command = [*self.command, "run", "--rm", "--name", name, "--read-only", "--network", "host", *options]
        command += shlex.split(os.environ.get("CONTAINER_OPTIONS", ""))
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
