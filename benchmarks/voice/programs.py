"""The programs in Go that a voice benchmark runs: the models, and those who speak."""

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from benchmarks.processes import BUILD, BenchmarkError, end_of, running, say

BINARIES = BUILD / "voice"
START_PATIENCE = 10.0


async def build() -> bool:
    """Build them; false, with a word, where there is no Go to do it."""
    if shutil.which("go") is None:
        say("skipped: voice (its load and its models need `go`, which is not on the PATH)")
        return False
    say("building the voice load and models")
    BINARIES.mkdir(parents=True, exist_ok=True)
    log = BUILD / "voice_build.log"
    command = ("go", "build", "-C", "benchmarks/voice/go", "-trimpath", "-o", f"{BINARIES}/", "./...")
    async with running(command, {}, log) as process:
        if await process.wait():
            say(f"skipped: voice (its programs in Go did not build)\n{end_of(log)}")
            return False
    return True


@contextlib.asynccontextmanager
async def models(folder: Path, **delays: str) -> AsyncIterator[dict[str, str]]:
    """Run the models; gives the settings by which a service finds them.

    Args:
        delays: of what they do, as Go writes durations: `transcription`, `first_token`, `token`, `speech`.
    """
    log = folder / "models.log"
    flags = [f"-{name.replace('_', '-')}={value}" for name, value in delays.items()]
    environment = {"GOMAXPROCS": str(max(1, (os.cpu_count() or 1) // 2))}
    async with running((str(BINARIES / "models"), *flags), environment, log) as process:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_PATIENCE):
                while process.returncode is None and "\n" not in log.read_text():
                    await asyncio.sleep(0.01)
        if "\n" not in (text := log.read_text()):
            raise BenchmarkError(f"the models did not start:\n{end_of(log)}")
        url = json.loads(text.partition("\n")[0])["models"]
        yield {**dict.fromkeys(("LLM_URL", "STT_URL", "TTS_URL"), url), "TTS_ENGINE": "openai"}
