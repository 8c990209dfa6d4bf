"""Faults that tests inject: refusals, slowness, silence, garbage, cut connections, lost answers."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from local_cluster.body import Body, put_body
from local_cluster.fault import GARBAGE, Fault, Match, is_watch
from local_cluster.status import REASONS, StatusError

CONTROL = "/control/"
"""What is under it is neither disturbed nor counted."""
__all__ = ["Fault", "Faults", "Match", "call_of"]

ErrorBody = Callable[[int, str, int | None], dict[str, Any]]
"""The body of a refusal: of its HTTP status, its message, and the seconds to wait, if that is told."""


@dataclass(slots=True)
class _Armed:
    fault: Fault
    skip: int
    left: int | None


class Faults:
    """The faults in force, and what is counted of the requests: a middleware, the first of its application.

    The application must be run with `handler_cancellation=True`: a request that is held up ends with its connection.
    """

    def __init__(self) -> None:
        self._armed: list[_Armed] = []
        self._errors: dict[str, ErrorBody] = {}
        self._transports: set[asyncio.Transport] = set()
        self._down_until = 0.0
        self._silenced = 0
        self._counted = asyncio.Event()
        self._landed = asyncio.Event()
        self._landing: set[asyncio.Task[web.StreamResponse]] = set()
        self.calls: Counter[str] = Counter()
        """Requests that came, by method and route; `WATCH` in the place of `GET` for a watch."""
        self.open: Counter[str] = Counter()
        """Those that are being answered."""

    def add(self, **fault: Any) -> Fault:
        """Have something go wrong; the arguments are the fields of `Fault`. Of several faults that fit a request the
        first befalls it.

        Raises:
            pydantic.ValidationError: there is no such fault.
        """
        made = Fault.model_validate(fault)
        self.arm(made)
        return made

    def arm(self, fault: Fault) -> None:
        """Have something go wrong."""
        self._armed.append(_Armed(fault, fault.skip, fault.times))

    def armed(self) -> list[Fault]:
        """What is still to go wrong, with the `times` and `skip` that are left."""
        return [armed.fault.model_copy(update={"times": armed.left, "skip": armed.skip}) for armed in self._armed]

    def clear(self) -> None:
        """Nothing more goes wrong; what is held up already stays so."""
        self._armed.clear()

    def answers(self, prefix: str, error: ErrorBody) -> None:
        """Under a prefix of the path, injected refusals have this body; elsewhere it is a Kubernetes `Status`."""
        self._errors[prefix] = error

    def restart(self, down: float = 0.0, *, spare: asyncio.Transport | None = None) -> None:
        """Cut every connection.

        Args:
            down: seconds for which each request is answered with a reset connection.
            spare: the one connection that stays, on which this was asked for.
        """
        self._down_until = time.monotonic() + down
        for transport in self._transports - {spare}:
            transport.abort()
        self._transports &= {spare}

    def silence(self) -> None:
        """Let nothing more come of the answers that are being given, open watches above all; their connections stay."""
        self._silenced += 1

    @property
    def late(self) -> int:
        """Requests that wait to be carried out, or are."""
        return len(self._landing)

    def land(self) -> None:
        """Have the requests that are `late` carried out now."""
        landed, self._landed = self._landed, asyncio.Event()
        landed.set()

    async def end(self) -> None:
        """Cut every connection, and give up what is late."""
        self.restart()
        for task in self._landing:
            task.cancel()
        await asyncio.gather(*self._landing, return_exceptions=True)

    async def until(self, call: str, times: int = 1) -> None:
        """Wait until a call has come that often."""
        while self.calls[call] < times:
            await self._counted.wait()

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Count a request, and have happen to it what is to."""
        if request.path.startswith(CONTROL):
            return await handler(request)
        self._remember(request)
        call = call_of(request)
        self.calls[call] += 1
        self.open[call] += 1
        counted, self._counted = self._counted, asyncio.Event()
        counted.set()
        try:
            return await self._answer(request, handler)
        except ConnectionError:
            return web.Response()  # to nobody: the connection is gone
        finally:
            self.open[call] -= 1

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        fault = self._take(request)
        silenced = self._silenced
        body = Body(request, fault, lambda: self._silenced != silenced)
        put_body(request, body)
        await asyncio.sleep(fault.delay)
        if time.monotonic() < self._down_until or (fault.reset and fault.cut_after is None):
            raise body.cut(reset=True)
        if fault.stall and fault.cut_after is None:
            await asyncio.Event().wait()
        if fault.garbage and fault.cut_after is None and not is_watch(request):
            return web.Response(body=GARBAGE, content_type="application/json")
        if fault.status:
            response: web.StreamResponse = self._refusal(request, fault)
        else:
            response = await (self._lately(request, handler) if fault.late else handler(request))
        if fault.drop_response:
            raise body.cut(reset=False)
        if isinstance(response, web.Response) and not response.prepared:
            return await body.send(response)
        await body.hold()
        return response

    async def _lately(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Carry a request out when it may land, in a task of its own: the connection's end is not the task's."""
        await request.read()  # later there may be no connection to read it from
        landed = self._landed

        async def carry_out() -> web.StreamResponse:
            await landed.wait()
            return await handler(request)

        task = asyncio.get_running_loop().create_task(carry_out())
        self._landing.add(task)
        task.add_done_callback(self._landing.discard)
        return await asyncio.shield(task)

    def _refusal(self, request: web.Request, fault: Fault) -> web.Response:
        status, after = fault.status or 500, fault.retry_after
        error = next((body for prefix, body in self._errors.items() if request.path.startswith(prefix)), _status_body)
        headers = {} if after is None else {"Retry-After": str(after)}
        return web.json_response(error(status, fault.message, after), status=status, headers=headers)

    def _take(self, request: web.Request) -> Fault:
        """The fault that befalls a request."""
        for armed in self._armed:
            if not armed.fault.match.fits(request):
                continue
            if armed.skip:
                armed.skip -= 1
                continue
            if armed.left is not None:
                armed.left -= 1
                if not armed.left:
                    self._armed.remove(armed)
            return armed.fault
        return Fault()

    def _remember(self, request: web.Request) -> None:
        if (transport := request.transport) is not None and transport not in self._transports:
            self._transports = {known for known in self._transports if not known.is_closing()} | {transport}


def call_of(request: web.Request) -> str:
    """What a request is counted as."""
    resource = request.match_info.route.resource
    method = "WATCH" if is_watch(request) else request.method
    return f"{method} {resource.canonical if resource else request.path}"


def _status_body(status: int, message: str, retry_after: int | None) -> dict[str, Any]:
    return StatusError(status, REASONS.get(status, "Unknown"), message, retry_after=retry_after).body()
