"""`make image-report`: what the image of a service weighs, how soon it is ready and what it holds, beside a naive peer.

Sizes are bytes as a registry stores them (each layer by gzip -6). Start: from the start of the service's process, the
container runtime's set-up of it included, until `/readyz` says 200; memory: resident, in MiB, two seconds after that
with every upstream connected, and after the first answered question or run. Progress goes to stderr.
"""

import argparse
import asyncio
import gzip
import json
import os
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, ExitStack, aclosing, contextmanager
from pathlib import Path
from typing import Any

from handler_core import pipelines, streams
from handler_core.contract.chat import CHAT, ChatRequest
from handler_core.contract.pipeline import RunStatus, TriggerRequest
from handler_core.jetstream import Api
from handler_core.testing import ask, connection, free_port, nats_server, process
from handler_core.testing_images import Engine, NoEngine, image_name
from handler_core.testing_milvus import milvus_lite_server
from handler_core.vectors import Row, VectorStore

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 60.0
SETTLE = 2.0
"""Seconds from ready until memory is read."""
QUESTION = "How much water does a cactus need?"
PASSAGE = "A cactus needs water, weekly at most."
NAIVE = [sys.executable, "-m", "benchmarks.start.naive"]
PACKAGES = "/dist-packages/"
CATALOGUE = "pipelines: {ingest: {engine: argo, template: document-ingestion}}\n"
MOUNT = "MOUNT"
"""Stands in an environment for a folder that the container needs as well."""


class ReportError(Exception):
    """What went wrong, and what to do next."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def layers(engine: Engine, image: str) -> list[dict[str, Any]]:
    """Each layer's size, and what it holds by package, both as they are and compressed."""
    with tempfile.TemporaryDirectory(prefix="image-") as folder:
        archive = Path(folder, "image.tar")
        engine.ask("save", "--output", str(archive), image)
        with tarfile.open(archive) as whole:
            manifest = json.load(_member(whole, "manifest.json"))
            return [_layer(_member(whole, name).read()) for name in manifest[0]["Layers"]]


def _member(archive: tarfile.TarFile, name: str) -> Any:
    found = archive.extractfile(name)
    assert found is not None, name
    return found


def _layer(content: bytes) -> dict[str, Any]:
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    path = Path(tempfile.mkstemp(suffix=".tar")[1])
    try:
        path.write_bytes(content)
        parts: dict[str, list[bytes]] = {}
        with tarfile.open(path) as layer:
            for member in layer:
                if member.isfile():
                    parts.setdefault(_part("/" + member.name.lstrip("./")), []).append(
                        _member(layer, member.name).read()
                    )
    finally:
        path.unlink()
    packages = {
        name: {"installed": sum(map(len, files)), "gzip": len(gzip.compress(b"".join(files), 6))}
        for name, files in parts.items()
    }
    return {"installed": len(content), "gzip": len(gzip.compress(content, 6)), "packages": packages}


def _part(path: str) -> str:
    """The package that a file belongs to: a distribution's, or a part of the base."""
    if PACKAGES in path:
        return path.partition(PACKAGES)[2].split("/")[0].split("-")[0].split(".")[0]
    if "/lib-dynload/" in path or path.startswith("/usr/lib/python3"):
        return "Python's standard library"
    if path.startswith("/usr/bin/python"):
        return "Python's interpreter"
    if path.startswith("/etc/ssl"):
        return "certificates"
    return path.rpartition("/")[2] if ".so" in path else "licences, accounts and the like"


@contextmanager
def models_and_store() -> Iterator[dict[str, str]]:
    """NATS, Milvus Lite with one passage, and models; gives the environment that names them."""
    with ExitStack() as stack:
        nats = stack.enter_context(nats_server())
        data = stack.enter_context(tempfile.TemporaryDirectory(prefix="image-milvus-"))
        milvus = stack.enter_context(milvus_lite_server(data))
        port = free_port()
        models = f"http://127.0.0.1:{port}"
        listening = {"HOST": "127.0.0.1", "PORT": str(port), "LOG_LEVEL": "error"}
        stack.enter_context(process("local_inference", listening))
        asyncio.run(_prepare(nats.url, milvus, models))
        urls = dict.fromkeys(("LLM_URL", "EMBEDDINGS_URL", "RERANKER_URL"), models)
        yield {**urls, "NATS_URL": nats.url, "MILVUS_URI": milvus, "HEALTH_HOST": "127.0.0.1", "LOG_LEVEL": "warning"}


async def _prepare(nats: str, milvus: str, models: str) -> None:
    await _provision(nats)
    await asyncio.to_thread(_ready, f"{models}/health", None)
    body = json.dumps({"inputs": [PASSAGE]}).encode()
    request = urllib.request.Request(f"{models}/embed", body, {"Content-Type": "application/json"})
    [vector] = json.loads(await asyncio.to_thread(lambda: urllib.request.urlopen(request).read()))
    async with VectorStore(milvus) as store:
        await store.ensure_collection("documents", len(vector))
        await store.upsert("documents", [Row("cactus", PASSAGE, "plants.md", "hash", {}, vector)])


@contextmanager
def emulated_cluster() -> Iterator[dict[str, str]]:
    """NATS, a cluster whose runs are done at once, and a catalogue; gives the environment that names them."""
    with ExitStack() as stack:
        nats = stack.enter_context(nats_server())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="image-cluster-")))
        folder.chmod(0o755)
        (folder / "pipelines.yaml").write_text(CATALOGUE)
        kubeconfig, port = folder / "kubeconfig", free_port()
        at_once = {"PENDING_SECONDS": "0", "RUNNING_SECONDS": "0"}
        listening = {"HOST": "127.0.0.1", "PORT": str(port), "LOG_LEVEL": "error", **at_once}
        stack.enter_context(process("local_cluster", listening, "--write-kubeconfig", str(kubeconfig)))
        asyncio.run(_provision(nats.url))
        _ready(f"http://127.0.0.1:{port}/version", None)
        kubeconfig.chmod(0o644)
        yield {
            "NATS_URL": nats.url, "HEALTH_HOST": "127.0.0.1", "LOG_LEVEL": "warning", MOUNT: str(folder),
            "KUBECONFIG": str(kubeconfig), "PIPELINES_FILE": str(folder / "pipelines.yaml"),
        }  # fmt: skip


async def _provision(nats: str) -> None:
    async with connection(nats) as nc:
        await streams.apply(Api(nc))


def _ready(url: str, running: "subprocess.Popen[Any] | None") -> float:
    """When `url` first said 200, on the clock of `_began`."""
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return time.clock_gettime(time.CLOCK_BOOTTIME)
        except (urllib.error.URLError, OSError):
            if running is not None and running.poll() is not None:
                raise ReportError(f"the service ended with {running.returncode}") from None
        time.sleep(0.004)
    raise ReportError(f"{url} did not answer within {PATIENCE:g} s")


def _began(pid: int) -> float:
    """When a process started, in seconds since the machine did; exact to 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _resident(pid: int) -> float:
    line = next(one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def start_image(engine: Engine, image: str, job: "Job", environment: dict[str, str]) -> dict[str, float]:
    """One start of the image, and one question or run."""
    port = free_port()
    variables = {**environment, "HEALTH_PORT": str(port)}
    folder = variables.pop(MOUNT, None)
    options = ("--volume", f"{folder}:{folder}:ro") if folder else ()
    with engine.running(image, variables, options=options, stderr=subprocess.DEVNULL) as container:
        ready = _ready(f"http://127.0.0.1:{port}/readyz", container.process)
        pid = container.pid
        found = {"ready_ms": (ready - _began(pid)) * 1000}
        time.sleep(SETTLE)
        found["idle_mb"] = _resident(pid)
        asyncio.run(job(environment["NATS_URL"]))
        found["answered_mb"] = _resident(pid)
        container.stop()
    return found


async def _ask(nats: str) -> None:
    async with connection(nats) as nc:
        answered = await ask(nc, CHAT, "ai.chat.request", ChatRequest(query=QUESTION, request_id=uuid.uuid4().hex))
    if answered.response.degraded or answered.response.error or not answered.response.sources:
        raise ReportError(f"the image answered, but not in full: {answered.response}")


async def _run(nats: str) -> None:
    request = TriggerRequest(pipeline="ingest", request_id=uuid.uuid4().hex)
    async with connection(nats) as nc:
        await pipelines.trigger(Api(nc), request)
        async with aclosing(pipelines.statuses(nc, str(request.request_id))) as statuses:
            ended = [status async for status in statuses][-1]
    if ended.status is not RunStatus.SUCCEEDED:
        raise ReportError(f"the image followed a run, but not to its success: {ended}")


Job = Callable[[str], Coroutine[Any, Any, None]]
SERVICES: dict[str, tuple[Callable[[], AbstractContextManager[dict[str, str]]], Job]] = {
    "chat_handler": (models_and_store, _ask),
    "pipeline_bridge": (emulated_cluster, _run),
}


def start_naive(environment: dict[str, str]) -> dict[str, float]:
    """One start of `benchmarks/start/naive.py` in this environment."""
    port = free_port()
    running = subprocess.Popen(
        NAIVE, cwd=ROOT, env={**os.environ, **environment, "HEALTH_PORT": str(port)}, stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        ready = _ready(f"http://127.0.0.1:{port}/readyz", running)
        found = {"ready_ms": (ready - _began(running.pid)) * 1000}
        time.sleep(SETTLE)
        return {**found, "idle_mb": _resident(running.pid)}
    finally:
        running.kill()
        running.wait()


def measure(engine: Engine, image: str, service: str, rounds: int) -> dict[str, Any]:
    """Medians of interleaved starts; the first of each warms the page cache and does not count."""
    found: dict[str, list[dict[str, float]]] = {"image": [], "naive": []}
    surroundings, job = SERVICES[service]
    with surroundings() as environment:
        for number in range(rounds + 1):
            image_start, naive_start = start_image(engine, image, job, environment), start_naive(environment)
            if number:
                found["image"].append(image_start)
                found["naive"].append(naive_start)
                say(f"round {number}/{rounds}  image {image_start['ready_ms']:.0f} ms  "
                    f"naive {naive_start['ready_ms']:.0f} ms")  # fmt: skip
    return {
        name: {key: round(statistics.median(start[key] for start in starts), 1) for key in starts[0]}
        for name, starts in found.items()
    }


def show(report: dict[str, Any]) -> None:
    """The report as tables, on stdout."""
    print(f"{'layer':10}{'MB':>8}{'MB gzip':>10}")
    for name, layer in zip(("base", "packages", "own code"), report["layers"], strict=True):
        print(f"{name:10}{layer['installed'] / 1e6:8.1f}{layer['gzip'] / 1e6:10.2f}")
    print(f"{'in all':10}{report['installed'] / 1e6:8.1f}{report['gzip'] / 1e6:10.2f}\n")
    installed: Counter[str] = Counter()
    packed: Counter[str] = Counter()
    for layer in report["layers"]:
        for name, sizes in layer["packages"].items():
            installed[name] += sizes["installed"]
            packed[name] += sizes["gzip"]
    print(f"{'of which':34}{'MB':>8}{'MB gzip':>10}")
    for name, size in packed.most_common(20):
        print(f"{name:34}{installed[name] / 1e6:8.2f}{size / 1e6:10.2f}")
    if starts := report.get("starts"):
        print(f"\n{'start':10}{'ready ms':>10}{'idle MB':>10}{'answered MB':>13}")
        for name, start in starts.items():
            answered = f"{start['answered_mb']:.1f}" if "answered_mb" in start else ""
            print(f"{name:10}{start['ready_ms']:10.0f}{start['idle_mb']:10.1f}{answered:>13}")
        print(f"ratio     {starts['image']['ready_ms'] / starts['naive']['ready_ms']:10.2f}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tools/image_report.py", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="starts of each, interleaved; 0: sizes only (default: 5)")
    parser.add_argument(
        "--service", choices=SERVICES, default="chat_handler", help="whose image (default: chat_handler)"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    image = image_name(arguments.service)
    try:
        engine = Engine.find()
        if engine.inspect(image) is None:
            raise ReportError(f"there is no image {image} here: make images")
        say("sizes …")
        found = layers(engine, image)
        report: dict[str, Any] = {"image": image, "layers": found}
        report |= {key: sum(layer[key] for layer in found) for key in ("installed", "gzip")}
        if arguments.rounds:
            report["starts"] = measure(engine, image, arguments.service, arguments.rounds)
    except (ReportError, NoEngine) as error:
        print(f"image-report: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nimage-report: interrupted; what it started has been ended", file=sys.stderr)
        return 130
    show(report)
    path = ROOT / "build" / "images" / f"{arguments.service}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    say(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
