"""A worker's way to the transcription endpoint: so many calls at once, and final transcripts as long as it takes."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from handler_core import streams
from handler_core.audio import PcmFormat, wav
from handler_core.clients.stt import STT, Transcription
from handler_core.contract.stt import SessionConfig
from handler_core.deadline import Deadline
from handler_core.errors import HandlerError

log = structlog.get_logger("stt_module")

RETRY_FIRST = 0.5
RETRY_MAX = 10.0
"""Seconds; the first and the longest pause between two tries."""


@dataclass(frozen=True)
class Speech:
    """What is to be transcribed."""

    pcm: bytes
    config: SessionConfig
    voiced_ms: float | None = None


class Transcriber:
    """All sessions' calls of one endpoint, `concurrency` of them at once; final transcripts have precedence: partial
    ones never wait, and leave a quarter of the calls, at least one, to them."""

    def __init__(self, stt: STT, concurrency: int) -> None:
        self._stt = stt
        self._slots = asyncio.Semaphore(concurrency)
        self._under_way = 0
        self._for_partials = concurrency - max(1, concurrency // 4)

    async def partial(self, speech: Speech) -> str:
        """What is understood so far; empty when the endpoint has enough to do, or fails."""
        if self._under_way >= self._for_partials or self._slots.locked():
            return ""
        try:
            return (await self._once(speech)).text
        except HandlerError as error:
            log.debug("partial_failed", error=error.message)
            return ""

    async def final(self, speech: Speech, stored_at: float, on_outage: Callable[[HandlerError], None]) -> Transcription:
        """What was said, tried for as long as the stream keeps the audio.

        Args:
            stored_at: when the stream got it, in Unix seconds.
            on_outage: told of every failure after which it is tried again.

        Raises:
            HandlerError: the endpoint refused it, or has been failing for longer than audio is kept.
        """
        delay = RETRY_FIRST
        while True:
            try:
                return await self._once(speech)
            except HandlerError as error:
                if not error.retryable or time.time() - stored_at > streams.AI_STT.max_age:
                    raise
                on_outage(error)
                await asyncio.sleep(max(delay * (0.5 + random.random() / 2), min(error.retry_after or 0.0, RETRY_MAX)))
                delay = min(delay * 2, RETRY_MAX)

    async def _once(self, speech: Speech) -> Transcription:
        config = speech.config
        async with self._slots:
            self._under_way += 1
            try:
                return await self._stt.transcribe(
                    wav(PcmFormat(config.sample_rate), speech.pcm),
                    language=config.language,
                    prompt=config.prompt,
                    voiced=None if speech.voiced_ms is None else speech.voiced_ms / 1000,
                    deadline=Deadline.never(),
                )
            finally:
                self._under_way -= 1
