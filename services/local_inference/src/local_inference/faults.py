"""Faults that tests and benchmarks inject: slowness, errors, refusals, silence, cut connections."""

import asyncio
import math
import random
import time

from pydantic import BaseModel, ConfigDict, Field

from local_inference.errors import ApiError


class Fault(BaseModel):
    """What goes wrong with the requests of one family."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    latency_ms: float = Field(default=0, ge=0, le=3_600_000)
    """Waited before the first byte of a reply or an injected error."""
    token_delay_ms: float = Field(default=0, ge=0, le=3_600_000)
    """Waited between the tokens of a chat stream, and between the chunks of speech."""
    error_rate: float = Field(default=0, ge=0, le=1)
    """The share of requests that fail with `error_status`."""
    error_status: int = Field(default=503, ge=400, le=599)
    rate_limit: float | None = Field(default=None, gt=0, le=1_000_000)
    """Requests a second, with a burst of one second's worth; beyond it 429 with Retry-After."""
    cut_after_tokens: int | None = Field(default=None, ge=0)
    """The connection is dropped after that many tokens of a chat stream or chunks of speech (100 ms each), and in place
    of any other reply."""
    hang: bool = False
    """Never answer."""


class Faults(BaseModel):
    """A fault for each family of endpoints."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    chat: Fault = Fault()
    embeddings: Fault = Fault()
    rerank: Fault = Fault()
    transcription: Fault = Fault()
    speech: Fault = Fault()

    def __str__(self) -> str:
        return self.model_dump_json(exclude_defaults=True)


class RateLimit:
    """A token bucket that holds one second's worth, at least one.

    Args:
        per_second: how fast it fills.
        now: seconds on a monotonic clock.
    """

    def __init__(self, per_second: float, now: float) -> None:
        self.per_second = per_second
        self._size = max(1.0, per_second)
        self._level = self._size
        self._at = now

    def take(self, now: float) -> float:
        """0 when a request may pass; or else the seconds until one may."""
        self._level = min(self._size, self._level + (now - self._at) * self.per_second)
        self._at = now
        if self._level < 1:
            return (1 - self._level) / self.per_second
        self._level -= 1
        return 0.0


class FaultInjector:
    """The faults in force, which may change at any time.

    Args:
        faults: in force from the start.
    """

    def __init__(self, faults: Faults) -> None:
        self._limits: dict[str, RateLimit] = {}
        self.faults = faults

    def set(self, faults: Faults) -> None:
        """Replace all faults; rate limits start afresh, and a request that hangs goes on hanging."""
        self.faults = faults
        self._limits.clear()

    def of(self, family: str) -> Fault:
        """The fault of a family: `chat`, `embeddings` and so on."""
        fault: Fault = getattr(self.faults, family)
        return fault

    async def before_reply(self, family: str) -> None:
        """Delay or fail a request as its family's fault says.

        Raises:
            ApiError: 429 with `retry_after`, or the injected error.
        """
        fault = self.of(family)
        if fault.rate_limit is not None:
            now = time.monotonic()
            limit = self._limits.setdefault(family, RateLimit(fault.rate_limit, now))
            if wait := limit.take(now):
                raise ApiError(429, "Model is overloaded", kind="rate_limit_error", retry_after=max(1, math.ceil(wait)))
        if fault.latency_ms:
            await asyncio.sleep(fault.latency_ms / 1000)
        if fault.hang:
            await asyncio.Event().wait()  # until the client goes or the server stops
        if random.random() < fault.error_rate:
            raise ApiError(fault.error_status, f"injected fault: HTTP {fault.error_status}", kind="server_error")
