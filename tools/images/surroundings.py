"""What surrounds the services while they are measured: NATS, models that cost next to nothing, Milvus Lite with a
passage, and a cluster whose runs are done at once. All listen on the loopback only."""

import asyncio
import json
import tempfile
import urllib.request
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from handler_core import streams
from handler_core.jetstream import Api
from handler_core.testing import connection, free_port, in_thread, nats_server, process
from handler_core.testing_images import CATALOGUE, LOCAL_INFERENCE, answers
from handler_core.testing_milvus import milvus_lite_server
from handler_core.vectors import Row, VectorStore
from local_cluster.testing import running
from tools.images.starts import Surroundings

PASSAGE = "A cactus needs water, weekly at most."
ANSWERING = ("LLM_URL", "EMBEDDINGS_URL", "RERANKER_URL")
CHEAP = {"ENGINE": "echo", "ECHO_TOKENS": "16", "HOST": "127.0.0.1", "LOG_LEVEL": "error"}
ACCOUNT = "account"
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
    in_cluster: dict[str, str] | None
    """The environment by which a pod finds the cluster that has TLS; without a bridge there is none."""

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
        return self._bridge({"KUBECONFIG": "/cluster/kubeconfig"})

    @property
    def pod(self) -> Surroundings | None:
        """What the bridge's container is told and given where it asks the cluster over TLS, by a service account."""
        if self.in_cluster is None:
            return None
        account = ("--volume", f"{self.cluster / ACCOUNT}:{SERVICE_ACCOUNT}:ro,z")
        return self._bridge(self.in_cluster, *account)

    def _bridge(self, there: dict[str, str], *options: str) -> Surroundings:
        environment = {"NATS_URL": self.nats, "LOG_LEVEL": "warning", "PIPELINES_FILE": "/cluster/pipelines.yaml"}
        return Surroundings({**environment, **there}, ("--volume", f"{self.cluster}:/cluster:ro,z", *options))

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
        in_cluster = None
        if "pipeline_bridge" in services:
            _cluster(stack, cluster)
            in_cluster = _pod(stack, cluster)
        asyncio.run(_fill(nats.url, models, milvus))
        yield World(nats.url, models, milvus, cluster, in_cluster)


def _cluster(stack: ExitStack, folder: Path) -> None:
    (folder / "pipelines.yaml").write_text(CATALOGUE)
    kubeconfig, port = folder / "kubeconfig", free_port()
    written = ("--write-kubeconfig", str(kubeconfig))
    stack.enter_context(process("local_cluster", {**AT_ONCE, "PORT": str(port)}, *written))
    asyncio.run(answers(f"http://127.0.0.1:{port}/version"))
    for path in (folder.parent, folder, kubeconfig):  # the container's user is another one
        path.chmod(0o755)


def _pod(stack: ExitStack, folder: Path) -> dict[str, str]:
    """A second cluster, with TLS, and the files of a service account; gives what tells a pod where it is."""
    served = stack.enter_context(in_thread(running(tls=True, tokens=["secret"])))
    account = served.service_account(folder / ACCOUNT)
    for path in (account, *account.iterdir()):
        path.chmod(0o755)
    return served.in_cluster


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
