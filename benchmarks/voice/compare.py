"""Voice: the time to the first audio, live sessions on one core, and how well speech is found in noise."""

import asyncio

import benchmarks.voice.vad as vad
from benchmarks.turns import candidates
from benchmarks.voice import first_audio, programs, sessions


async def run(rounds: int) -> dict[str, object] | None:
    """Measure all three; gives the content of `voice.json`, and prints the tables. None where there is no Go."""
    if not await programs.build() or not await candidates.build():
        return None
    audio = await first_audio.run(rounds)
    live = await sessions.run()
    return {
        "first_audio_overhead_ms": audio["overhead"]["first_audio_ms"],
        "first_audio": audio,
        "stt_sessions_per_core": live["chunks_20_ms"]["sessions"],
        "stt_sessions": live,
        "vad": await asyncio.to_thread(vad.run),
    }
