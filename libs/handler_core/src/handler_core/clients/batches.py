"""Lists of texts in requests that an upstream's batch limit allows."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from handler_core.clients.failures import UpstreamError
from handler_core.clients.http import Upstream
from handler_core.deadline import Deadline
from handler_core.errors import HandlerError

T = TypeVar("T")


class Batches:
    """Splits a list of texts, and learns how large a batch an upstream takes.

    A batch refused with 413 or 422 is cut to the limit that TEI's `/info` tells, else halved, down to single texts;
    what is refused even alone is the caller's error.

    Args:
        size: texts in one request, to begin with.
    """

    def __init__(self, upstream: Upstream, size: int) -> None:
        if size < 1:
            raise ValueError("a batch holds at least one text")
        self.size = size
        self._upstream = upstream
        self._told: int | None = None
        self._asked = False

    async def run(
        self, texts: Sequence[str], call: Callable[[Sequence[str]], Awaitable[list[T]]], deadline: Deadline
    ) -> list[T]:
        """The results of `call` over all batches, one for each text and in the same order."""
        results: list[T] = []
        size = self.size
        while len(results) < len(texts):
            batch = texts[len(results) : len(results) + size]
            try:
                results += await call(batch)
            except UpstreamError as error:
                if error.status not in {413, 422} or len(batch) == 1:
                    raise
                told = await self._limit(deadline)
                size = told if told is not None and told < len(batch) else len(batch) // 2
                # A text that is too long or bad is refused as well, and says nothing of how many may come at once.
                if size == told or (told is None and (error.status == 413 or "batch" in error.message.lower())):
                    self.size = size
        return results

    async def _limit(self, deadline: Deadline) -> int | None:
        if not self._asked:
            try:
                info = await self._upstream.get_json("/info", deadline=deadline)
            except HandlerError:
                info = None  # not TEI, or not now; the deadline shows in the next call
            told = info.get("max_client_batch_size") if isinstance(info, dict) else None
            self._told = told if isinstance(told, int) and told >= 1 else None
            self._asked = True
        return self._told
