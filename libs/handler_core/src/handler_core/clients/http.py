"""One HTTP upstream: pooled connections, deadlines, retries, a circuit breaker, and errors that say what happened."""

import asyncio
import random
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import aiohttp
import stamina
from yarl import URL

from handler_core.clients.body import Body
from handler_core.clients.breaker import CircuitBreaker
from handler_core.clients.cookies import NoCookies
from handler_core.clients.failures import Failures, UpstreamError
from handler_core.clients.response import Reply, Response
from handler_core.deadline import Deadline
from handler_core.errors import DeadlineExceeded
from handler_core.tracing import Value, annotate, span

T = TypeVar("T")

Observe = Callable[[str, float, str], None]
"""`observe(upstream, seconds, outcome)`, called once an attempt. Outcomes: `ok`, `http_<status>`, `unreachable`,
`broken` (the connection), `invalid` (the body), `timeout`, `deadline`, `canceled`, `circuit_open`."""

MAX_BODY = 64 * 2**20
_MAX_URLS = 256
"""Paths whose URL is kept; most upstreams have a handful, some one for each thing they are asked about."""


def new_session(*, limit: int = 256, connect_timeout: float = 5.0) -> aiohttp.ClientSession:
    """The connection pool that all upstreams of a process share; close it when the process ends.

    Args:
        limit: most connections at once, over all upstreams; calls past it wait within their own timeout.
        connect_timeout: seconds for the TCP and TLS handshakes of one connection.
    """
    return aiohttp.ClientSession(
        # Uvicorn, below vLLM and Ray Serve, drops connections idle for 5 s: be first, and none breaks in our hands.
        connector=aiohttp.TCPConnector(limit=limit, keepalive_timeout=4.0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout),
        cookie_jar=NoCookies(),
    )


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait between attempts, in seconds: `initial`, doubled each time up to `maximum`, plus up to `jitter`.

    A `Retry-After` longer than `longest_wait` is not waited for here: the error is raised at once and carries it.
    """

    initial: float = 0.2
    maximum: float = 5.0
    jitter: float = 0.2
    longest_wait: float = 30.0


class Upstream:
    """One HTTP upstream. Every failure is a `DownstreamUnavailable` or, when the time is up, a `DeadlineExceeded`.

    An attempt is repeated only on a failed connect, 408, 409, 429, 5xx, or a connection that broke before the first
    byte of a body, never past the deadline. Canceling a call closes its connection, which tells the upstream.

    Args:
        session: from `new_session`; shared, and closed by whoever made it.
        name: what errors and metrics call it, such as `llm`.
        url: the base, with or without a path prefix or a closing `/v1`; user and password in it become Basic
            authorization.
        api_key: sent as a bearer token; masked wherever an upstream echoes it.
        timeout: seconds for one attempt, body included; for a stream, until its first bytes.
        attempts: how many in all.
        breaker: its own with default settings unless given.
        observe: metrics hook, called synchronously.
        headers: further headers, asked for at each attempt (trace context).
        max_body: bytes that a JSON body may have, decompressed.

    Raises:
        ValueError: the URL is no absolute http(s) URL, or the key cannot stand in a header.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        name: str,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        attempts: int = 3,
        backoff: Backoff | None = None,
        breaker: CircuitBreaker | None = None,
        observe: Observe | None = None,
        headers: Callable[[], Mapping[str, str]] | None = None,
        max_body: int = MAX_BODY,
    ) -> None:
        self.name = name
        self.timeout = timeout
        self.breaker = breaker or CircuitBreaker()
        self._session = session
        self._attempts = attempts
        self._backoff = backoff or Backoff()
        self._observe = observe
        self._headers = headers
        self._max_body = max_body
        self._base, user, password = _base_url(name, url)
        self._urls: dict[str, URL] = {}
        self._authorization = _authorization(name, api_key, user, password)
        queried = [value for value in self._base.query.values() if len(value) >= 8]  # a key may be among them
        self.failures = Failures(name, [(self._authorization or "").partition(" ")[2], password, *queried])

    async def post_json(self, path: str, body: Any, *, deadline: Deadline, timeout: float | None = None) -> Any:
        """POST `body` as JSON and decode the JSON answer. `path` is absolute below the base, as `/v1/embeddings`."""
        return await self._json("POST", path, body, deadline, timeout)

    async def get_json(self, path: str, *, deadline: Deadline, timeout: float | None = None) -> Any:
        """GET a JSON answer."""
        return await self._json("GET", path, None, deadline, timeout)

    async def fetch(
        self, method: str, path: str, body: Body | None = None, *, deadline: Deadline, timeout: float | None = None
    ) -> Reply:
        """An answer of any kind, read to its end."""

        async def attempt() -> Reply:
            async with self._exchange(method, path, body, deadline, timeout) as response:
                return Reply(response.content_type, await response.read_all(self._max_body))

        return await self._retrying(attempt, deadline)

    @asynccontextmanager
    async def stream(
        self,
        path: str,
        body: Any,
        *,
        deadline: Deadline,
        timeout: float | None = None,
        query: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Response]:
        """POST `body`, as JSON unless it is a `Body`, and read the answer piece by piece; with a `query`, GET.

        Entered once the first bytes are there; from then on nothing is repeated. Leaving before the end of the body
        closes the connection, which aborts the request upstream.
        """
        async with AsyncExitStack() as stack:

            async def attempt() -> Response:
                method = "POST" if query is None else "GET"
                return await stack.enter_async_context(self._exchange(method, path, body, deadline, timeout, query))

            response = await self._retrying(attempt, deadline)
            # It answers: that need not wait for the end of a long stream.
            self.breaker.succeeded()
            yield response

    async def _json(self, method: str, path: str, body: Any, deadline: Deadline, timeout: float | None) -> Any:
        async def attempt() -> Any:
            async with self._exchange(method, path, body, deadline, timeout) as response:
                return await response.json(self._max_body)

        return await self._retrying(attempt, deadline)

    async def _retrying(self, call: Callable[[], Awaitable[T]], deadline: Deadline) -> T:
        backoff = self._backoff

        def wait(error: Exception) -> bool | float:
            if not isinstance(error, UpstreamError) or not error.transient or self.breaker.is_open:
                return False
            left = deadline.remaining()
            if error.retry_after is None:
                return left > attempt.next_wait + backoff.jitter
            seconds = error.retry_after + random.uniform(0, backoff.jitter)
            return seconds if error.retry_after <= backoff.longest_wait and seconds < left else False

        try:
            return await call()  # nearly always the only one: the apparatus of repeating costs more than a small call
        except UpstreamError as error:
            failed: list[UpstreamError] = [error]

        async for attempt in stamina.retry_context(
            on=wait,
            attempts=self._attempts,
            timeout=None,  # `wait` sees to the deadline; stamina's own timeout would let the last wait run past it
            wait_initial=backoff.initial,
            wait_max=backoff.maximum,
            wait_jitter=backoff.jitter,
        ):
            with attempt:
                if failed:
                    raise failed.pop()  # as the first attempt's outcome
                return await call()
        raise AssertionError("the last attempt returns or raises")

    @asynccontextmanager
    async def _exchange(
        self,
        method: str,
        path: str,
        body: Any,
        deadline: Deadline,
        timeout: float | None,
        query: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Response]:
        """One attempt: request, status, first bytes; then the caller reads. Recorded and closed however it ends."""
        data = body if body is None or isinstance(body, Body) else Body.json(body)
        with self._recorded(), span(method, "client", self._attributes(method, path)):
            response = Response(self.failures, deadline, self.timeout if timeout is None else timeout)
            try:
                await response.open(partial(self._send, method, path, data, query))
                yield response
            finally:
                response.close()

    @property
    def place(self) -> dict[str, Value]:
        """Where it is, as the attributes of a span."""
        return {"server.address": self._base.host or "", "server.port": self._base.port or 443}

    def _attributes(self, method: str, path: str) -> dict[str, Value]:
        url = str(self._base.origin()) + self._base.path.rstrip("/") + path  # without the query, which may hold a key
        return {"http.request.method": method, "url.full": url, "peer.service": self.name, **self.place}

    async def _send(
        self, method: str, path: str, body: Body | None, query: Mapping[str, str] | None
    ) -> aiohttp.ClientResponse:
        # Upstreams are near: compressing costs more than it saves, and holds tokens back.
        headers = {"Accept": "application/json, text/event-stream, */*", "Accept-Encoding": "identity"}
        if body is not None:
            headers["Content-Type"] = body.content_type
        if self._headers is not None:
            headers.update(self._headers())
        if self._authorization is not None:
            headers["Authorization"] = self._authorization
        if (url := self._urls.get(path)) is None:
            if len(self._urls) >= _MAX_URLS:
                self._urls.clear()
            url = self._urls[path] = self._base.joinpath(*path.strip("/").split("/")).with_query(self._base.query)
        if query:
            url = url.update_query(query)
        # A redirect would turn a POST into a GET, or take the key elsewhere: it is reported, not followed.
        data = None if body is None else body.data
        answer = await self._session.request(method, url, data=data, headers=headers, allow_redirects=False)
        annotate({"http.response.status_code": answer.status})
        return answer

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Tell the breaker and the metrics hook how the attempt within went."""
        rest = self.breaker.acquire()
        started = time.perf_counter()
        outcome = "ok"
        try:
            if rest:
                problem = f"{self.name}: not called, it failed too often; last: {self.breaker.last_failure}"
                raise UpstreamError(problem, outcome="circuit_open", retry_after=rest)
            yield
            self.breaker.succeeded()
        except UpstreamError as error:
            outcome = error.outcome
            if outcome != "circuit_open":
                if error.retryable and (error.status is None or error.status >= 500):
                    self.breaker.failed(error.message)
                else:
                    self.breaker.succeeded()  # it is there, and minds its work
            raise
        except DeadlineExceeded:
            outcome = "deadline"
            raise
        except (asyncio.CancelledError, GeneratorExit):
            outcome = "canceled"
            raise
        finally:
            if self._observe is not None:
                self._observe(self.name, time.perf_counter() - started, outcome)


def _base_url(name: str, url: str) -> tuple[URL, str, str]:
    """The base without a closing `/v1`, which paths carry themselves, and the user and password it had."""
    try:
        base = URL(url.strip())
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if base.scheme not in {"http", "https"} or not base.host:
        raise ValueError(f"{name}: the URL must be absolute, with http:// or https://")
    path = base.path.rstrip("/").removesuffix("/v1")
    bare = base.with_user(None).with_path(path or "/").with_query(base.query)
    return bare, base.user or "", base.password or ""


def _authorization(name: str, api_key: str | None, user: str, password: str) -> str | None:
    if key := (api_key or "").strip():  # a key mounted as a file often ends in a newline
        if not (key.isascii() and key.isprintable()):
            raise ValueError(f"{name}: the API key holds characters that cannot stand in a header")
        return f"Bearer {key}"
    return f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}" if user or password else None
