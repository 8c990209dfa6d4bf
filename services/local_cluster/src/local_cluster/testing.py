"""A cluster for tests: served on a port of its own, with its runs moved by hand, and its connections cut at will."""

import socket
import ssl
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from handler_core.config import load
from handler_core.tasks import background
from local_cluster import app, kubeconfig
from local_cluster.faults import Faults
from local_cluster.kubeflow import Kubeflow
from local_cluster.rayjobs import RayJobs
from local_cluster.settings import Settings
from local_cluster.store import Store
from local_cluster.workflows import Workflows

_HOST = "127.0.0.1"


class RunningCluster:
    """A cluster that is served; `running` makes one."""

    def __init__(
        self, cluster: app.Cluster, reserved: socket.socket, folder: Path, authority: "_Authority | None"
    ) -> None:
        self._cluster = cluster
        self._authority = authority
        self._runner: web.AppRunner | None = None
        self.host = _HOST
        self.port: int = reserved.getsockname()[1]
        self.ca_file = folder / "ca.crt"
        """The certificate authority, as PEM; without TLS there is no such file."""
        if authority is not None:
            self.ca_file.write_bytes(authority.certificate)

    @property
    def url(self) -> str:
        """Of all its APIs."""
        return f"{'https' if self._authority else 'http'}://{self.host}:{self.port}"

    @property
    def store(self) -> Store:
        """The objects of the Kubernetes API."""
        return self._cluster.store

    @property
    def faults(self) -> Faults:
        """What goes wrong."""
        return self._cluster.faults

    @property
    def calls(self) -> Counter[str]:
        """Requests that came, by method and route."""
        return self._cluster.faults.calls

    @property
    def tokens(self) -> set[str]:
        """The bearer tokens that are known; may be changed. Empty: none is needed."""
        return self._cluster.access.tokens

    @property
    def forbidden(self) -> set[str]:
        """The verbs of Kubernetes that are refused; may be changed."""
        return self._cluster.access.forbidden

    @property
    def workflows(self) -> Workflows:
        """Argo's controller."""
        return self._cluster.workflows

    @property
    def rayjobs(self) -> RayJobs:
        """KubeRay's controller."""
        return self._cluster.rayjobs

    @property
    def kubeflow(self) -> Kubeflow:
        """Kubeflow Pipelines."""
        return self._cluster.kubeflow

    @property
    def in_cluster(self) -> dict[str, str]:
        """The environment by which a pod finds the API."""
        return {"KUBERNETES_SERVICE_HOST": self.host, "KUBERNETES_SERVICE_PORT": str(self.port)}

    def kubeconfig(self, path: Path, token: str | None = None) -> Path:
        """Write a kubeconfig, with one of the tokens that are known unless one is given."""
        certificate = self._authority.certificate if self._authority else b""
        return kubeconfig.write(path, self.url, token=self._token(token), ca=certificate)

    def service_account(self, folder: Path, namespace: str = "default", token: str | None = None) -> Path:
        """Write the files that a pod has of its service account: token, ca.crt, namespace.

        Raises:
            RuntimeError: the cluster is served without TLS, which in-cluster configuration cannot do without.
        """
        if self._authority is None:
            raise RuntimeError("a service account wants running(tls=True)")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "token").write_text(self._token(token) or "unused")
        (folder / "ca.crt").write_bytes(self._authority.certificate)
        (folder / "namespace").write_text(namespace)
        return folder

    async def start(self) -> None:
        """Serve."""
        context = self._authority.context() if self._authority else None
        self._runner = web.AppRunner(
            app.create_app(self._cluster), access_log=None, handler_cancellation=True, shutdown_timeout=0.05
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, self.host, self.port, ssl_context=context, reuse_address=True).start()

    async def stop(self) -> None:
        """Cut every connection, and refuse new ones until it is started; what is stored stays, and time goes on."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def restart(self) -> None:
        """Cut every connection, and come back on the same port with what was stored."""
        await self.stop()
        await self.start()

    def _token(self, token: str | None) -> str:
        return next(iter(sorted(self.tokens)), "") if token is None else token


class _Authority:
    """A certificate authority, and the server's certificate by it."""

    def __init__(self) -> None:
        import trustme  # for tests alone: the service needs none

        authority = trustme.CA()
        self.certificate = authority.cert_pem.bytes()
        self._issued = authority.issue_cert(_HOST, "localhost")

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._issued.configure_cert(context)
        return context


@asynccontextmanager
async def running(
    *, tls: bool = False, tokens: Iterable[str] = (), hold: bool = False, **settings: Any
) -> AsyncIterator[RunningCluster]:
    """Serve a cluster on a free port of the loopback interface while the block lasts.

    Args:
        tls: serve https, by a certificate authority of its own.
        tokens: bearer tokens, one of which every request needs; none: nobody needs one.
        hold: no run is moved by the clock; by default each passes through all its states at once.
        settings: of `Settings`, by name.
    """
    defaults: dict[str, Any] = {"pending_seconds": 0, "running_seconds": 0}
    cluster = app.create_cluster(load(Settings, **{**defaults, **settings}))
    cluster.access.tokens.update(tokens)
    if hold:
        for engine in (cluster.workflows, cluster.rayjobs, cluster.kubeflow):
            engine.hold()
    with tempfile.TemporaryDirectory() as folder, socket.socket() as reserved:
        # Bound and not listening, it keeps the port from others while the cluster is stopped.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind((_HOST, 0))
        served = RunningCluster(cluster, reserved, Path(folder), _Authority() if tls else None)
        async with background(cluster.serve()):
            try:
                await served.start()
                yield served
            finally:
                await served.stop()
