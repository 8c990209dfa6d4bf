"""What surrounds the services while they are measured: NATS, models that cost next to nothing, Milvus Lite with a
passage, and a cluster whose runs are done at once. All listen on the loopback only."""

import asyncio
import json
import queue
import tempfile
import threading
import urllib.request
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from handler_core import streams
from handler_core.jetstream import Api
from handler_core.testing import connection, free_port, nats_server, process
from handler_core.testing_images import CATALOGUE, LOCAL_INFERENCE, answers
from handler_core.testing_milvus import milvus_lite_server
from handler_core.vectors import Row, VectorStore
from local_cluster.testing import running
from tools.images.starts import Surroundings

PASSAGE = "A cactus needs water, weekly at most."
ANSWERING = ("LLM_URL", "EMBEDDINGS_URL", "RERANKER_URL")
CHEAP = {"ENGINE": "echo", "ECHO_TOKENS": "16", "HOST": "127.0.0.1", "LOG_LEVEL": "error"}
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
AT_ONCE = {"PENDING_SECONDS": "0", "RUNNING_SECONDS": "0", "HOST": "127.0.0.1", "LOG_LEVEL": "error"}


@dataclass(frozen=True)
class World:
    """Everything that is there, by its address."""

    nats: str
    models: str
    milvus: str
    cluster: Path
    """The folder of its kubeconfig, and of the catalogue; without a bridge it is empty."""
    pod: Surroundings | None
    """What the bridge's container is told and given where it asks the cluster over TLS, by a service account."""

    def around(self, service: str) -> Surroundings:
        """What the service's container is told and given."""
        if service == LOCAL_INFERENCE:
            return Surroundings({"LOG_LEVEL": "warning"})
        environment = {"NATS_URL": self.nats, "LOG_LEVEL": "warning"}
        if service in ("chat_handler", "voice_assistant"):
            environment |= {**dict.fromkeys(ANSWERING, self.models), "MILVUS_URI": self.milvus}
        if service in ("stt_module", "voice_assistant"):
            environment["STT_URL"] = self.models
        if service in ("tts_module", "voice_assistant"):
            environment["TTS_URL"] = self.models
        if service != "pipeline_bridge":
            return Surroundings(environment)
        environment |= {"KUBECONFIG": "/cluster/kubeconfig", "PIPELINES_FILE": "/cluster/pipelines.yaml"}
        return Surroundings(environment, ("--volume", f"{self.cluster}:/cluster:ro,z"))

    @property
    def naive(self) -> dict[str, str]:
        """The environment of the naive peer, which does the chat handler's work."""
        return dict(self.around("chat_handler").environment)


@contextmanager
def world(services: Collection[str]) -> Iterator[World]:
    """What these services need, and the naive peer; all of it is ended after the block."""
    with ExitStack() as stack:
        nats = stack.enter_context(nats_server())
        models = f"http://127.0.0.1:{(port := free_port())}"
        stack.enter_context(process("local_inference", {**CHEAP, "PORT": str(port)}))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="image-report-")))
        milvus = stack.enter_context(milvus_lite_server(folder / "milvus"))
        cluster = folder / "cluster"
        cluster.mkdir()
        pod = None
        if "pipeline_bridge" in services:
            _cluster(stack, cluster)
            pod = stack.enter_context(_pod(nats.url, cluster))
        asyncio.run(_fill(nats.url, models, milvus))
        yield World(nats.url, models, milvus, cluster, pod)


def _cluster(stack: ExitStack, folder: Path) -> None:
    (folder / "pipelines.yaml").write_text(CATALOGUE)
    kubeconfig, port = folder / "kubeconfig", free_port()
    written = ("--write-kubeconfig", str(kubeconfig))
    stack.enter_context(process("local_cluster", {**AT_ONCE, "PORT": str(port)}, *written))
    asyncio.run(answers(f"http://127.0.0.1:{port}/version"))
    for path in (folder.parent, folder, kubeconfig):  # the container's user is another one
        path.chmod(0o755)


@contextmanager
def _pod(nats: str, folder: Path) -> Iterator[Surroundings]:
    """A second cluster, with TLS, and what a pod in it has; it is served by a thread of this process."""
    found: queue.SimpleQueue[dict[str, str] | BaseException] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()
    ended = asyncio.Event()

    async def serve() -> None:
        async with running(tls=True, tokens=["secret"]) as served:
            for path in (account := served.service_account(folder / "account")), *account.iterdir():
                path.chmod(0o755)
            found.put(served.in_cluster)
            await ended.wait()

    def work() -> None:
        try:
            loop.run_until_complete(serve())
        except BaseException as error:
            found.put(error)
            raise
        finally:
            loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        if isinstance(there := found.get(), BaseException):
            raise there
        told = {"NATS_URL": nats, "LOG_LEVEL": "warning", "PIPELINES_FILE": "/cluster/pipelines.yaml", **there}
        account = ("--volume", f"{folder / 'account'}:{SERVICE_ACCOUNT}:ro,z")
        yield Surroundings(told, ("--volume", f"{folder}:/cluster:ro,z", *account))
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(ended.set)
        thread.join()


async def _fill(nats: str, models: str, milvus: str) -> None:
    async with connection(nats) as nc:
        await streams.apply(Api(nc))
    await answers(f"{models}/health")
    body = json.dumps({"inputs": [PASSAGE]}).encode()
    request = urllib.request.Request(f"{models}/embed", body, {"Content-Type": "application/json"})
    [vector] = json.loads(await asyncio.to_thread(lambda: urllib.request.urlopen(request).read()))
    async with VectorStore(milvus) as store:
        await store.ensure_collection("documents", len(vector))
        await store.upsert("documents", [Row("cactus", PASSAGE, "plants.md", "hash", {}, vector)])
