"""When the first audio of a spoken answer leaves: what the handlers add to the models, and what speaking sentence by
sentence gains.

`overhead`: models, embeddings, search and reranker answer at once, so that the time from the published question to the
first audio is the handler's, JetStream's and that of the calls between. `lifelike`: models that take as long as such
do; spoken sentence by sentence, and (`…_whole`) once all is written, as the peer that most pipelines are.
"""

import contextlib
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from benchmarks.processes import PYTHON, ROOT, BenchmarkError, end_of, nats_server, running, say
from benchmarks.turns import candidates
from benchmarks.voice.programs import models
from handler_core import streams
from handler_core.client import follow
from handler_core.config import NatsSettings
from handler_core.connection import Connection, connect
from handler_core.contract.answer import StreamEvent
from handler_core.contract.voice import REQUEST_SUBJECT, VOICE, VoiceEvent, VoiceRequest, VoiceResponse
from handler_core.jetstream import Api

TURNS = 20
LIFELIKE_TURNS = 5
WARM_UP = 5
QUESTION = ROOT / "tests" / "audio" / "dead_letter.wav"
LIFELIKE = {"transcription": "150ms", "first_token": "100ms", "token": "15ms", "speech": "150ms"}
"""Whisper on a GPU, an LLM at 67 tokens a second, a voice that is quicker than it speaks."""
MODES = {
    "overhead": ({}, "20"),
    "overhead_whole": ({}, "100000"),
    "lifelike": (LIFELIKE, "20"),
    "lifelike_whole": (LIFELIKE, "100000"),
}
"""By name: what the models take, and the least characters of a sentence; so many that all of an answer is one is
speaking once all is written."""


async def run(rounds: int) -> dict[str, dict[str, float]]:
    """Measure each mode in turn; gives `first_audio` of `voice.json`, in milliseconds."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in MODES}
    with tempfile.TemporaryDirectory(prefix="bench-voice-") as folder:
        async with candidates.upstreams(Path(folder)) as (_, settings):
            for number in range(1, rounds + 1):
                for name, (delays, minimum) in MODES.items():
                    found = await _round(Path(folder), settings, delays, minimum)
                    samples[name] += found
                    say(f"round {number}/{rounds}  {name:16} first audio {_median(found, 0):8.1f} ms")
    print(f"\n{'first audio':20}{'median ms':>12}{'p95 ms':>10}{'last audio ms':>16}")
    result: dict[str, dict[str, float]] = {}
    for name, found in samples.items():
        high = sorted(first for first, _ in found)[int(len(found) * 0.95)]
        result[name] = {"first_audio_ms": round(_median(found, 0), 1), "p95_ms": round(high, 1),
                        "last_audio_ms": round(_median(found, 1), 1)}  # fmt: skip
        print(f"{name:20}{_median(found, 0):>12.1f}{high:>10.1f}{_median(found, 1):>16.1f}")
    return result


def _median(found: list[tuple[float, float]], which: int) -> float:
    return statistics.median(times[which] for times in found)


async def _round(
    folder: Path, settings: dict[str, str], delays: dict[str, str], minimum: str
) -> list[tuple[float, float]]:
    """Milliseconds from just before a question is published to its first audio and to its last, one turn at a time."""
    async with nats_server() as url, models(folder, **delays) as speech:
        connection = await connect(NatsSettings(nats_url=url), "benchmark")
        try:
            await streams.apply(Api(connection))
            env = {**settings, **speech, "NATS_URL": url, "SENTENCE_MIN_CHARS": minimum,
                   "FIRST_SENTENCE_MIN_CHARS": "10" if minimum == "20" else minimum, "TTS_MAX_CHARS": "4096",
                   "HEALTH_HOST": "127.0.0.1", "HEALTH_PORT": "0", "LOG_LEVEL": "warning"}  # fmt: skip
            log = folder / "voice.log"
            async with running((PYTHON, "-m", "voice_assistant"), env, log):
                warm_up, turns = (1, LIFELIKE_TURNS) if delays else (WARM_UP, TURNS)
                return [await _turn(connection, number, log) for number in range(warm_up + turns)][warm_up:]
        finally:
            await connection.close()


async def _turn(connection: Connection, number: int, log: Path) -> tuple[float, float]:
    request = VoiceRequest(request_id=f"turn-{number}", audio=QUESTION.read_bytes())
    first = last = 0.0
    began = time.perf_counter()
    async for item in _items(connection, request):
        if isinstance(item, VoiceEvent):
            if item.type == "audio":
                last = time.perf_counter() - began
                first = first or last
        elif isinstance(item, VoiceResponse) and (item.error is not None or item.degraded):
            raise BenchmarkError(f"a turn failed: {item.error or item.degraded}\n{end_of(log)}")
    if not first:
        raise BenchmarkError(f"a turn had no audio:\n{end_of(log)}")
    return first * 1000, last * 1000


async def _items(connection: Connection, request: VoiceRequest) -> AsyncIterator[StreamEvent | VoiceResponse]:
    async with contextlib.aclosing(follow(connection, VOICE, REQUEST_SUBJECT, request)) as items:
        async for item in items:
            yield item
