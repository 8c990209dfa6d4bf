"""Where the cluster is and who we are to it, as kubernetes-asyncio's loaders find it."""

import asyncio
import inspect
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from handler_core.clients.failures import Failures
from pipeline_bridge import slim

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_REREAD_INTERVAL = 60.0
"""As often as the library reads a service account's token again."""
_READ_TIMEOUT = 30.0


@dataclass
class Configuration:
    """What the library's loaders find, under the names that they give it; the rest of its own is not used."""

    host: str = ""
    """With the scheme."""
    ssl_ca_cert: str | None = None
    """A file; without it public authorities are trusted."""
    cert_file: str | None = None
    key_file: str | None = None
    verify_ssl: bool = True
    tls_server_name: str | None = None
    proxy: str | None = None
    api_key: dict[str, str] = field(default_factory=dict)
    refresh_api_key_hook: Callable[["Configuration"], Any] | None = None

    async def token(self) -> str:
        """What to send as `Authorization`, with its scheme; empty with none."""
        if self.refresh_api_key_hook is not None and inspect.isawaitable(done := self.refresh_api_key_hook(self)):
            await done
        # The library takes a token with the line end that its file may have.
        return (self.api_key.get("BearerToken") or "").strip()


class Credentials:
    """The configuration of a client, kept up to date.

    Args:
        kubeconfig: path of a kubeconfig, or several with `:` between; empty for the service account of the pod, or
            where this is no pod `~/.kube/config`.
        context: the kubeconfig's context, its current one when empty.
        service_account: the folder of `token` and `ca.crt`.
    """

    def __init__(
        self,
        kubeconfig: str = "",
        context: str = "",
        service_account: Path = SERVICE_ACCOUNT,
    ) -> None:
        self.configuration = Configuration()
        self._library = slim.loaders()
        self._kubeconfig = kubeconfig
        self._context = context
        self._service_account = service_account
        self._loader: Any = None
        self._read_at = 0.0
        self._lock = asyncio.Lock()

    async def load(self) -> None:
        """Read everything.

        Raises:
            ValueError: there is no cluster to be found, or its description is wrong.
        """
        path = self._path()
        try:
            if path:
                # The path is given as the library reads KUBECONFIG only once, when it is imported.
                self._loader = await self._library.load_kube_config(
                    config_file=path, context=self._context or None, client_configuration=self.configuration
                )
            else:
                self._library.load_incluster_config(
                    client_configuration=self.configuration,
                    token_filename=str(self._service_account / "token"),
                    cert_filename=str(self._service_account / "ca.crt"),
                )
        except Exception as error:  # of a malformed file anything: AssertionError, TypeError, KeyError, YAMLError
            raise ValueError(f"{path or 'the service account'}: {error or type(error).__name__}") from error
        self._read_at = time.monotonic()

    async def authorization(self, failures: Failures, refused: str | None = None) -> str:
        """What to send as `Authorization`; empty with none, as a client certificate may be all there is.

        Read again where it may have changed, and at once where it is the one that was `refused`.

        Raises:
            UpstreamError: it cannot be read.
        """
        try:
            async with asyncio.timeout(_READ_TIMEOUT), self._lock:
                if refused is None and self._loader and time.monotonic() - self._read_at > _REREAD_INTERVAL:
                    await self._loader.load_and_set(self.configuration)
                    self._read_at = time.monotonic()
                value = await self.configuration.token()
                if value == refused:  # else another call has read it again meanwhile
                    await self.load()
                    value = await self.configuration.token()
        except Exception as error:  # the library's own, an exec plugin's, the file's
            text = f"cannot read the credentials: {error or type(error).__name__}"
            raise failures.problem(text, outcome="unreachable") from None
        if not (value.isascii() and value.isprintable()):
            raise failures.problem("the token holds characters that cannot stand in a header", outcome="unreachable")
        return value

    def _path(self) -> str:
        """That of the kubeconfig; empty in a pod without one."""
        if not self._kubeconfig and "KUBERNETES_SERVICE_HOST" in os.environ:
            return ""
        path = self._kubeconfig or "~/.kube/config"
        if not any(Path(part).expanduser().is_file() for part in path.split(os.pathsep) if part):
            raise ValueError(f"no kubeconfig at {path}, and this is no pod of a cluster")
        return path
