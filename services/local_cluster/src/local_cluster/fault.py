"""One fault: which requests it befalls, and what it does to them."""

import re

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

GARBAGE = b'\x00\xff}{"type": nonsense <html>\n'


def is_set(value: str | None) -> bool:
    """A flag of a query, as the API server reads one: what is there is true, unless it is `false` or `0`."""
    return value is not None and value.lower() not in ("false", "0")


def is_watch(request: web.Request) -> bool:
    """Whether it is a watch of the Kubernetes API."""
    return request.method == "GET" and is_set(request.query.get("watch"))


class Match(BaseModel):
    """Which requests a fault befalls: all of it must fit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = ""
    """Empty: any."""
    path: re.Pattern[str] = re.compile("")
    """A regular expression, found anywhere in the path."""
    watch: bool | None = None
    """Watches only, or all but watches."""

    def fits(self, request: web.Request) -> bool:
        """Whether a request is meant."""
        if self.method and self.method.upper() != request.method:
            return False
        if self.watch is not None and self.watch != is_watch(request):
            return False
        return self.path.search(request.path) is not None


class Fault(BaseModel):
    """What goes wrong with a request, and with which.

    First `delay` passes. Then comes the first of these that is asked for: the connection is cut (`reset`), nothing
    more ever comes (`stall`), nonsense comes in place of an answer (`garbage`), a refusal (`status`), or the request is
    carried out later (`late`). With `cut_after` the first three befall the answer's body instead, when it has got that
    far.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    match: Match = Match()
    skip: int = Field(default=0, ge=0)
    """How many requests that fit are spared first."""
    times: int | None = Field(default=1, ge=1)
    """How many it befalls; None: every one, until the faults are cleared."""
    delay: float = Field(default=0, ge=0, le=3600)
    """Seconds that pass before anything is done."""
    late: bool = False
    """The request waits until `land` is called, and is carried out then, whether or not its client is still there."""
    status: int | None = Field(default=None, ge=400, le=599)
    retry_after: int | None = Field(default=None, ge=0)
    """Seconds, told beside `status`."""
    message: str = "injected fault"
    reset: bool = False
    stall: bool = False
    garbage: bool = False
    drop_response: bool = False
    """The request is carried out, and the connection cut in place of the answer."""
    cut_after: int | None = Field(default=None, ge=0)
    """Bytes of the body that are let through; then the connection is closed, or what else is asked for happens."""
    piece_delay: float = Field(default=0, ge=0, le=60)
    """Seconds before each piece of the body."""
    piece_size: int = Field(default=16, ge=1)
    """Bytes of such a piece."""
