"""`make demo`: the whole stack on ports and data of its own, a written question and a spoken one; then all gone again,
but for the spoken answer."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
DOCUMENTS = ["docs"]
QUESTION = "What keeps the message of a slow handler from being redelivered while it runs?"
SERVICES = ["chat_handler", "voice_assistant"]
READY_TIMEOUT = 60.0
SPOKEN_QUESTION = Path("tests/audio/worker_dies.wav")
SPOKEN_ANSWER = Path("build/demo/answer.wav")
TOKEN_DELAY_MS = "15"
"""The extractive responder is done at once; this lets it speak at the pace of a language model."""


class DemoError(Exception):
    """What went wrong, and what to do next."""


def say(text: str) -> None:
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"{bold}{text}{plain}", flush=True)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Stack:
    """The processes of the demo, each with a log file; all end with the block."""

    def __init__(self, data: Path, environment: dict[str, str]) -> None:
        self.data = data
        self.environment = environment
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str, **environment: str) -> None:
        with (self.data / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command, env={**self.environment, **environment}, cwd=self.data, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def wait(self, name: str, ready: "Ready") -> None:
        """Wait until `ready()` holds, saying how long it took."""
        began = time.monotonic()
        while not ready():
            if self.processes[name].poll() is not None:
                raise DemoError(f"{name} ended early:\n{self.log(name)}")
            if time.monotonic() - began > READY_TIMEOUT:
                raise DemoError(f"{name} was not ready within {READY_TIMEOUT:g} s:\n{self.log(name)}")
            time.sleep(0.02)
        print(f"  {name:<16} ready", flush=True)

    def log(self, name: str) -> str:
        lines = (self.data / f"{name}.log").read_text(errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-15:])

    def stop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self.processes.values():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            give_up = time.monotonic() + 5
            for process in self.processes.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, give_up - time.monotonic()))
            if all(process.poll() is not None for process in self.processes.values()):
                return


class Ready:
    """A condition to poll: an HTTP 200, or a TCP port that accepts."""

    def __init__(self, port: int, path: str | None = None) -> None:
        self.port = port
        self.path = path

    def __call__(self) -> bool:
        try:
            if self.path is None:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return True
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{self.path}", timeout=2) as reply:
                return bool(reply.status == 200)
        except (OSError, urllib.error.URLError):
            return False


@contextlib.contextmanager
def stack() -> Iterator[Stack]:
    """The running stack: NATS, Milvus Lite, local_inference, chat_handler and voice_assistant."""
    nats, milvus, inference, *health = free_ports(3 + len(SERVICES))
    (ROOT / ".data").mkdir(exist_ok=True)
    data = Path(tempfile.mkdtemp(prefix="demo-", dir=ROOT / ".data"))
    local = f"http://127.0.0.1:{inference}"
    defaults = {"LLM_URL": os.environ.get("VLLM_URL", local), "EMBEDDINGS_URL": local, "RERANKER_URL": local,
                "STT_URL": os.environ.get("WHISPER_URL", local), "TTS_URL": local}  # fmt: skip
    environment = {
        **defaults,
        **os.environ,
        "NATS_URL": f"nats://127.0.0.1:{nats}",
        "MILVUS_URI": f"http://127.0.0.1:{milvus}",
        "COLLECTION_NAME": "demo",
        "LOG_FORMAT": "console",
    }
    running = Stack(data, environment)
    try:
        running.start(
            "nats", str(BIN / "nats-server"), "-a", "127.0.0.1", "-p", str(nats), "-js", "-sd", str(data / "nats")
        )
        running.start("milvus", str(BIN / "milvus-lite"), "server", "--data-dir", str(data / "milvus"),
                      "--host", "127.0.0.1", "--port", str(milvus))  # fmt: skip
        running.start("local_inference", sys.executable, "-m", "local_inference", HOST="127.0.0.1",
                      PORT=str(inference), FAULTS__CHAT__TOKEN_DELAY_MS=TOKEN_DELAY_MS)  # fmt: skip
        running.wait("nats", Ready(nats))
        handlers(running, "streams", "apply", quiet=True)
        for service, port in zip(SERVICES, health, strict=True):
            running.start(service, sys.executable, "-m", service, HEALTH_HOST="127.0.0.1", HEALTH_PORT=str(port))
        for service, port in zip(SERVICES, health, strict=True):
            running.wait(service, Ready(port, "/readyz"))
        running.wait("local_inference", Ready(inference, "/health"))
        running.wait("milvus", Ready(milvus))
        yield running
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # an impatient second Ctrl-C must leave nothing behind either
        running.stop()
        shutil.rmtree(data, ignore_errors=True)


def handlers(running: Stack, *arguments: str, quiet: bool = False) -> None:
    """Run the `handlers` command line, as a user would."""
    if not quiet:
        shown = " ".join(f'"{word}"' if " " in word else word for word in arguments)
        say(f"\n$ handlers {shown}")
    command = [str(BIN / "handlers"), *arguments]
    result = subprocess.run(command, env=running.environment, cwd=ROOT, check=False, capture_output=quiet, text=True)
    if result.returncode != 0:
        logs = "\n".join(f"  {name}:\n{running.log(name)}" for name in running.processes)
        raise DemoError(f"handlers {arguments[0]} failed\n{result.stderr or ''}\n{logs}")


def main() -> int:
    began = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        say("Starting NATS, Milvus Lite, local_inference, chat_handler and voice_assistant …")
        with stack() as running:
            handlers(running, "ingest", *DOCUMENTS)
            handlers(running, "ask", QUESTION, "--top-k", "4")
            (ROOT / SPOKEN_ANSWER).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / SPOKEN_ANSWER).unlink(missing_ok=True)
            handlers(running, "talk", str(SPOKEN_QUESTION), "-o", str(SPOKEN_ANSWER), "--top-k", "3")
        say(f"\nDone in {time.monotonic() - began:.0f} s; everything is stopped and removed.")
        print(f"The spoken answer is in {SPOKEN_ANSWER}; the question was {SPOKEN_QUESTION}.")
        print("Next: `make run` keeps the stack running; then ask your own questions with `.venv/bin/handlers ask`.")
    except DemoError as error:
        print(f"\nThe demo failed: {error}\nNext: `make clean`, then `make demo` again.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; everything is stopped and removed", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
