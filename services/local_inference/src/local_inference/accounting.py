"""What happens to every request: counting, injected faults, errors in the right shape, a line in the log."""

import asyncio
import time
from dataclasses import asdict, dataclass, field

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from local_inference.errors import ApiError, Dialect
from local_inference.faults import FaultInjector
from local_inference.forms import receive

FAULTS = web.AppKey("faults", FaultInjector)

FAMILIES = {
    "/v1/chat/completions": "chat",
    "/v1/embeddings": "embeddings",
    "/embed": "embeddings",
    "/rerank": "rerank",
    "/v1/rerank": "rerank",
    "/v2/rerank": "rerank",
    "/v1/audio/transcriptions": "transcription",
    "/v1/audio/speech": "speech",
    "/api/tts": "speech",
    "/tts_stream": "speech",
}
_BY_GET_TOO = "/api/tts"
_CUT_BY_THEMSELVES = frozenset({"chat", "speech"})
"""Families whose endpoints stream, and drop the connection in the middle of it."""
_DROPPED = web.RequestKey("dropped", bool)
_DIALECTS = {
    "/embed": Dialect.TEI,
    "/rerank": Dialect.TEI,
    "/info": Dialect.TEI,
    "/api/tts": Dialect.COQUI,
    "/tts_stream": Dialect.FASTAPI,
    "/clone_speaker": Dialect.FASTAPI,
}

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("local_inference")


@dataclass(slots=True)
class Tally:
    """Counts of one family since the start."""

    requests: int = 0
    in_flight: int = 0
    aborted: int = 0
    """Given up by the client before the reply was complete."""


@dataclass(slots=True)
class Stats:
    """Counts by family."""

    chat: Tally = field(default_factory=Tally)
    embeddings: Tally = field(default_factory=Tally)
    rerank: Tally = field(default_factory=Tally)
    transcription: Tally = field(default_factory=Tally)
    speech: Tally = field(default_factory=Tally)

    def as_dict(self) -> dict[str, dict[str, int]]:
        """As `/stats` shows them."""
        return asdict(self)


STATS = web.AppKey("stats", Stats)


def dialect_of(request: web.Request) -> Dialect:
    """Whose error bodies the requested endpoint sends."""
    return _DIALECTS.get(request.path, Dialect.OPENAI)


def drop_connection(request: web.Request) -> web.Response:
    """Close the connection once what was written is sent, as a server that dies in mid-reply would.

    Returns:
        What a handler may return then; none of it is sent.
    """
    request[_DROPPED] = True
    if request.transport is not None:
        request.transport.close()
    return web.Response()


@web.middleware
async def report(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn exceptions into error replies and log the request at debug level."""
    started = time.perf_counter()
    response: web.StreamResponse | None = None
    try:
        response = await handler(request)
    except ApiError as error:
        response = error.response(dialect_of(request))
    except web.HTTPException as error:
        response = ApiError(error.status, _message(error, request)).response(dialect_of(request))
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
    except Exception:
        log.exception("request failed", method=request.method, path=request.path)
        response = ApiError(500, "internal error", kind="server_error").response(dialect_of(request))
    finally:
        ms = round((time.perf_counter() - started) * 1000, 1)
        status = response.status if response is not None else "aborted"
        log.debug("request", method=request.method, path=request.path, status=status, ms=ms)
    return response


@web.middleware
async def account(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Count requests of a family, and inject its faults."""
    family = FAMILIES.get(request.path)
    if family is None or not (request.method == "POST" or request.path == _BY_GET_TOO):
        return await handler(request)
    faults = request.app[FAULTS]
    tally: Tally = getattr(request.app[STATS], family)
    tally.requests += 1
    tally.in_flight += 1
    try:
        # Read first: while a body waits unread, the client's going away would pass unseen.
        await receive(request)
        await faults.before_reply(family)
        if family not in _CUT_BY_THEMSELVES and faults.of(family).cut_after_tokens is not None:
            return drop_connection(request)
        return await handler(request)
    except (asyncio.CancelledError, ConnectionError) as error:
        tally.aborted += _DROPPED not in request
        if isinstance(error, ConnectionError):
            return web.Response()  # nobody is left to read it
        raise
    finally:
        tally.in_flight -= 1


def _message(error: web.HTTPException, request: web.Request) -> str:
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return f"the body is larger than {request.client_max_size} bytes"
    return f"{error.reason}: {request.method} {request.path}"
