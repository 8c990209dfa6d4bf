"""A Kubernetes API server: calls and watches, with our errors, limits and metrics.

Of kubernetes-asyncio this uses what finds and authenticates to a cluster. Its `ApiClient` raises on an error body that
is no UTF-8, lets aiohttp's exceptions through, and has a thread look for a proxy before every call; its `Watch` makes a
session of its own, reads lines no longer than its buffer, asks again for the very version that a 410 has just called
too old, and waits for ever on a connection that has gone silent.
"""

import asyncio
import json
import os
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from handler_core.clients.cookies import NoCookies
from handler_core.clients.failures import Failures, UpstreamError
from handler_core.clients.http import Observe
from handler_core.clients.response import Response
from handler_core.deadline import Deadline
from handler_core.tracing import Value, annotate, span
from pipeline_bridge.credentials import SERVICE_ACCOUNT, Configuration, Credentials

NAME = "kubernetes"
WATCH_NAME = "kubernetes-watch"
"""What the metrics hook is told of a watch; it lasts minutes where a call lasts milliseconds."""
MAX_EVENT = 8 * 2**20
"""Bytes that one event of a watch may have. Objects in etcd are limited to 1.5 MiB, unless it is set up otherwise."""
MAX_ANSWER = MAX_EVENT
"""Bytes that the answer to a call may have; decoded it takes up to ten times as much, and the loop half a second."""
MAX_CALLS = 16
_CONNECT_TIMEOUT = 5.0
_TOO_LARGE = ("request is too large", "trying to send message larger than max")
"""In the message of a 500: etcd's limits. The same object would not fit the next time either."""


class Cluster:
    """One API server. Every failure of a call is an `UpstreamError`.

    `connect` makes it; close it when the process ends.

    Args:
        observe: metrics hook, called once a call.
    """

    def __init__(
        self, session: aiohttp.ClientSession, credentials: Credentials, observe: Observe | None = None
    ) -> None:
        self._session = session
        self._credentials = credentials
        self._observe = observe
        self._failures = Failures(NAME, [])
        self._slots = asyncio.Semaphore(MAX_CALLS)

    @classmethod
    async def connect(
        cls,
        *,
        kubeconfig: str = "",
        context: str = "",
        service_account: Path = SERVICE_ACCOUNT,
        observe: Observe | None = None,
    ) -> "Cluster":
        """Find the cluster; whether it answers is seen with the first call. For the arguments see `Credentials`.

        Raises:
            ValueError: there is none to be found, or its description is wrong.
        """
        credentials = Credentials(kubeconfig, context, service_account)
        await credentials.load()
        try:
            session = _new_session(credentials.configuration)
        except OSError as error:  # ssl.SSLError is one
            raise ValueError(f"the cluster's or the client's certificate: {error}") from None
        return cls(session, credentials, observe)

    async def close(self) -> None:
        await self._session.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        timeout: float = 30.0,
    ) -> dict[str, Any]:
        """One call, of at most 16 at a time; what is answered, decoded.

        A 401 has the credentials read again and the call made once more. Nothing else is repeated here.

        Args:
            path: absolute, its parts quoted.
            body: sent as JSON of `content_type`.
            timeout: seconds, from when it is the call's turn.

        Raises:
            UpstreamError: no answer, or a status that is no success; `status` has it. Not retryable where the server
                refuses the request itself, nor with a 500 that says that the object is too large.
        """
        async with self._slots:
            with self._recorded(NAME), span(method, "client", self._attributes(method, path)):
                async with self._exchange(method, path, query, body, content_type, timeout) as response:
                    answer = await response.json(MAX_ANSWER)
                if not isinstance(answer, dict):
                    raise self._failures.problem("answered with JSON that is no object")
                return answer

    @asynccontextmanager
    async def stream(
        self, path: str, query: Mapping[str, str], *, stall_timeout: float = 90.0
    ) -> AsyncIterator["Events"]:
        """A watch: GET, entered once the first bytes are there, or its end.

        Args:
            stall_timeout: seconds without a byte after which it counts as broken.

        Raises:
            UpstreamError: as `request`, here or while the events are read.
        """
        with self._recorded(WATCH_NAME):
            async with self._exchange("GET", path, query, None, "application/json", stall_timeout) as response:
                yield Events(response, self._failures, stall_timeout)

    @asynccontextmanager
    async def _exchange(
        self, method: str, path: str, query: Mapping[str, str] | None, body: Any, content_type: str, timeout: float
    ) -> AsyncIterator[Response]:
        """Send, with other credentials once more if these are refused, and have the answer read; closed in any case."""
        with ExitStack() as stack:
            refused: str | None = None
            while True:
                authorization = await self._credentials.authorization(self._failures, refused)
                self._failures = Failures(NAME, [authorization.partition(" ")[2]])
                response = Response(self._failures, Deadline.never(), timeout)
                stack.callback(response.close)
                try:
                    await response.open(partial(self._send, method, path, query, body, content_type, authorization))
                except UpstreamError as error:
                    if error.status == 500 and any(phrase in error.message for phrase in _TOO_LARGE):
                        error.retryable = error.transient = False
                    if error.status != 401 or refused is not None:
                        raise
                    refused = authorization
                else:
                    break
            yield response

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Any,
        content_type: str,
        authorization: str,
    ) -> aiohttp.ClientResponse:
        configuration = self._credentials.configuration
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Content-Type": content_type,
            "User-Agent": "pipeline-bridge",  # the server notes it as the fields' manager
        }
        if authorization:
            headers["Authorization"] = authorization
        answer = await self._session.request(
            method,
            URL(f"{configuration.host}{path}").with_query(query),
            data=None if body is None else json.dumps(body).encode(),
            headers=headers,
            proxy=configuration.proxy,
            server_hostname=configuration.tls_server_name,
        )
        annotate({"http.response.status_code": answer.status})
        return answer

    def _attributes(self, method: str, path: str) -> dict[str, Value]:
        url = f"{self._credentials.configuration.host}{path}"
        return {"http.request.method": method, "url.full": url, "peer.service": NAME}

    @contextmanager
    def _recorded(self, name: str) -> Iterator[None]:
        """Tell the metrics hook how the call within went."""
        started = time.perf_counter()
        outcome = "ok"
        try:
            yield
        except UpstreamError as error:
            outcome = error.outcome
            raise
        except (asyncio.CancelledError, GeneratorExit):
            outcome = "canceled"
            raise
        finally:
            if self._observe is not None:
                self._observe(name, time.perf_counter() - started, outcome)


def _new_session(configuration: Configuration) -> aiohttp.ClientSession:
    """Connections to the API server; the caller closes them.

    Raises:
        OSError: a certificate or a key cannot be used.
    """
    trusted: ssl.SSLContext | bool = True
    if configuration.host.startswith("https:"):
        trusted = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
        # Since Python 3.13 certificates lack something by default if their issuer left out what RFC 5280 asks for, as
        # many clusters' own authorities do. Names, dates and signatures are verified as ever, as Go's clients do it.
        trusted.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if configuration.cert_file is not None:
            trusted.load_cert_chain(configuration.cert_file, configuration.key_file)
        if not configuration.verify_ssl:
            trusted.check_hostname = False
            trusted.verify_mode = ssl.CERT_NONE
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=trusted),  # no limit: watches hold a connection each
        # Without a total: a watch lasts for minutes. `Response` bounds every wait.
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT),
        # Aiohttp has a thread look for a proxy before every call, so only where there may be one.
        trust_env=any(name.lower().endswith("_proxy") for name in os.environ),
        cookie_jar=NoCookies(),
    )


class Events:
    """The events of a watch, as they arrive, each `{"type": …, "object": {…}}`; an event of type ERROR is raised.

    Raises:
        UpstreamError: with the `status` that an ERROR event has; or without, where the connection broke, nothing came
            for `stall_timeout` seconds, or what came is no event.
    """

    def __init__(self, response: Response, failures: Failures, stall_timeout: float) -> None:
        self._response = response
        self._failures = failures
        self._stall_timeout = stall_timeout
        self._read = bytearray()
        self._searched = 0

    def __aiter__(self) -> "Events":
        return self

    async def __anext__(self) -> dict[str, Any]:
        while True:
            while (end := self._read.find(b"\n", self._searched)) < 0:
                self._searched = len(self._read)
                if self._searched > MAX_EVENT:
                    raise self._failures.problem(f"sent an event of more than {MAX_EVENT} bytes")
                if not (chunk := await self._response.read(self._stall_timeout)):
                    if self._read:
                        raise self._failures.problem("ended in the middle of an event", outcome="broken")
                    raise StopAsyncIteration
                self._read += chunk
            line = bytes(self._read[:end])
            del self._read[: end + 1]
            self._searched = 0
            if line:
                return self._event(line)

    def _event(self, line: bytes) -> dict[str, Any]:
        try:
            event = json.loads(line)
            kind, object = event["type"], event["object"]
            if kind != "ERROR":
                object["metadata"]["resourceVersion"]
                return {"type": kind, "object": object}
            status = int(object["code"])
            after = float((object.get("details") or {}).get("retryAfterSeconds") or 0) or None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise self._failures.problem(f"sent what is no event: {line[:100].decode('utf-8', 'replace')}") from None
        raise self._failures.refused(status, str(object.get("message") or ""), after=after)
