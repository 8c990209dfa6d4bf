"""The answer to one request: its status judged, its body read within time and size limits."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from handler_core.clients.failures import Failures, UpstreamError, message_of, retry_after
from handler_core.deadline import Deadline
from handler_core.errors import DeadlineExceeded

_MAX_ERROR_BODY = 64 * 2**10
_ERROR_BODY_TIMEOUT = 2.0
_DRAIN_TIMEOUT = 0.25
_BROKEN = (aiohttp.ClientError, HttpProcessingError, OSError)


class Reply(NamedTuple):
    """A whole answer; `content_type` as the header has it, with its parameters, and empty without one."""

    content_type: str
    body: bytes


class Response:
    """A successful answer, read as it arrives. `Upstream.stream` makes it."""

    def __init__(self, failures: Failures, deadline: Deadline, timeout: float) -> None:
        self._failures = failures
        self._deadline = deadline
        self._timeout = timeout
        self._started = time.monotonic()
        self._answer: aiohttp.ClientResponse | None = None
        self._first: bytes | None = None

    async def open(self, send: Callable[[], Awaitable[aiohttp.ClientResponse]]) -> None:
        """Send the request and wait for the first bytes of a body, or its end.

        Raises:
            UpstreamError: no answer, or a status that is no success.
            DeadlineExceeded: the deadline came first.
        """
        async with self._within(self._timeout):
            self._answer = answer = await send()
            if not 200 <= answer.status < 300:
                raise await self._refusal(answer)
            self._first = await answer.content.readany()

    async def read(self, timeout: float) -> bytes:
        """The next bytes, waited for at most `timeout` seconds; empty at the end of the body.

        Raises:
            UpstreamError: the connection broke, or nothing came in time.
            DeadlineExceeded: the deadline came first.
        """
        if self._first:
            first, self._first = self._first, b""
            return first
        async with self._within(timeout):
            return await self._opened.content.readany()

    async def read_all(self, max_body: int) -> bytes:
        """The rest of the body, within what the attempt's own timeout has left.

        Raises:
            UpstreamError: as `read`, or not retryable when the body is larger than `max_body` bytes.
            DeadlineExceeded: the deadline came first.
        """
        body = bytearray()
        announced = self._opened.content_length or 0
        async with self._within(self._timeout, spent=time.monotonic() - self._started):
            chunk, self._first = self._first or b"", b""
            while chunk and max(announced, len(body) + len(chunk)) <= max_body:
                body += chunk
                chunk = await self._opened.content.readany()
        if chunk:
            raise self._failures.problem(f"answered with more than {max_body} bytes", retryable=False)
        return bytes(body)

    async def json(self, max_body: int) -> Any:
        """The body, decoded; raises as `read_all`, and an `UpstreamError` for what is no JSON."""
        body = await self.read_all(max_body)
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            shown = message_of(body[:_MAX_ERROR_BODY])
            raise self._failures.problem(
                f"answered with {self._opened.content_type} that is no JSON: {shown}"
            ) from None

    async def drain(self) -> None:
        """Wait a moment for the end of a body whose content is complete, so that its connection can be used again."""
        with suppress(*_BROKEN):
            async with asyncio.timeout(_DRAIN_TIMEOUT):
                while await self._opened.content.readany():
                    pass

    @property
    def content_type(self) -> str:
        """The answer's `Content-Type`, with its parameters; empty where it has none."""
        return self._opened.headers.get("Content-Type", "")

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else close it."""
        if self._answer is not None:
            self._answer.close()

    @property
    def _opened(self) -> aiohttp.ClientResponse:
        if self._answer is None:
            raise RuntimeError("read before open")
        return self._answer

    async def _refusal(self, answer: aiohttp.ClientResponse) -> UpstreamError:
        if 300 <= answer.status < 400:
            return self._failures.refused(answer.status, f"redirects to {answer.headers.get('Location')}")
        body = bytearray()
        # The status is known: a body that is slow, broken or endless must not hide it.
        with suppress(*_BROKEN):
            async with asyncio.timeout(_ERROR_BODY_TIMEOUT):
                while len(body) < _MAX_ERROR_BODY and (chunk := await answer.content.readany()):
                    body += chunk
        after = retry_after(answer.headers.get("Retry-After"))
        return self._failures.refused(answer.status, message_of(bytes(body[:_MAX_ERROR_BODY])), after=after)

    @asynccontextmanager
    async def _within(self, timeout: float, *, spent: float = 0.0) -> AsyncIterator[None]:
        """Bound a wait by the deadline and by `timeout` less what is `spent`, and say which of the two it was."""
        limit = timeout - spent
        seconds = self._deadline.timeout(at_most=limit)
        # `from None`: aiohttp's exceptions hold the request's headers, and so the key.
        try:
            async with asyncio.timeout(seconds):
                yield
        except aiohttp.ConnectionTimeoutError:
            raise self._failures.problem("cannot connect: timed out", outcome="unreachable", transient=True) from None
        except aiohttp.ClientConnectorError as error:
            raise self._failures.problem(str(error), outcome="unreachable", transient=True) from None
        except TimeoutError:
            if seconds < limit:
                raise DeadlineExceeded(f"{self._failures.name}: no answer before the deadline") from None
            raise self._failures.problem(f"timed out after {timeout:g} s", outcome="timeout") from None
        except _BROKEN as error:
            reason = error.message if isinstance(error, aiohttp.ClientResponseError) else error
            raise self._failures.problem(
                f"the connection broke: {reason or type(error).__name__}",
                outcome="broken",
                transient=self._first is None,
            ) from None
