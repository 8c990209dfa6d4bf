"""A JSON API beside Kubernetes, Kubeflow's or the Argo server's, whose bearer token is a file that changes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp

from handler_core.clients.body import Body
from handler_core.clients.breaker import CircuitBreaker
from handler_core.clients.failures import UpstreamError
from handler_core.clients.http import MAX_BODY, Observe, Upstream
from handler_core.deadline import Deadline
from handler_core.telemetry import trace_headers


class Api:
    """One HTTP API; each call is one attempt, for whoever calls knows what may be repeated.

    Args:
        session: from `new_session`; shared.
        name: what errors and metrics call it.
        url: the base, with or without a path prefix.
        token: a file with a bearer token, such as a projected service-account token; read at each call, as the kubelet
            writes a new one before the old one expires. None is sent while the file is not there.
        timeout: seconds for a call, body included.
        observe: metrics hook.

    Raises:
        ValueError: the URL is no absolute http(s) URL.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        name: str,
        url: str,
        *,
        token: Path | None = None,
        timeout: float = 30.0,
        observe: Observe | None = None,
    ) -> None:
        self.name = name
        self._session = session
        self._url = url
        self._file = token
        self._timeout = timeout
        self._observe = observe
        self._breaker = CircuitBreaker()
        self._token: str | None = None
        self._upstream = self._connected(None)

    async def get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The JSON object at a path.

        Raises:
            UpstreamError: the API failed, or refused.
        """
        return await self._call("GET", path, query or {}, None)

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """What a POST is answered with; an answer without a body is an empty object. Raises as `get`."""
        return await self._call("POST", path, {}, body)

    def nonsense(self, what: str) -> UpstreamError:
        """The error for an answer that is not what the API promises."""
        return self._upstream.failures.problem(f"answered with {what}")

    async def _call(
        self, method: str, path: str, query: Mapping[str, str], body: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        self._refresh()
        try:
            return await self._attempt(path, query, body)
        except UpstreamError as error:
            if error.status != 401 or self._file is None:
                raise
        self._refresh()
        return await self._attempt(path, query, body)

    async def _attempt(self, path: str, query: Mapping[str, str], body: Mapping[str, Any] | None) -> dict[str, Any]:
        if body is None:
            async with self._upstream.stream(path, None, query=query, deadline=Deadline.never()) as response:
                answer = await response.json(MAX_BODY)
        else:
            reply = await self._upstream.fetch("POST", path, Body.json(body), deadline=Deadline.never())
            try:
                answer = json.loads(reply.body or b"{}")
            except (ValueError, RecursionError):
                raise self.nonsense("something that is no JSON") from None
        if not isinstance(answer, dict):
            raise self.nonsense("JSON that is no object")
        return answer

    def _refresh(self) -> None:
        """Take up a new token; the upstream is made anew with it, so that it masks this one in what it says."""
        if self._file is None:
            return
        try:
            token = self._file.read_text(encoding="ascii").strip() or None
        except FileNotFoundError:
            token = None
        except (OSError, ValueError):  # half written, or unreadable for now: the old one may still do
            return
        if token != self._token and (token is None or token.isprintable()):
            self._upstream = self._connected(token)
            self._token = token

    def _connected(self, token: str | None) -> Upstream:
        return Upstream(
            self._session,
            self.name,
            self._url,
            api_key=token,
            timeout=self._timeout,
            attempts=1,
            breaker=self._breaker,
            observe=self._observe,
            headers=trace_headers,
        )
