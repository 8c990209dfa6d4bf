"""`python -m local_inference`: serve until Ctrl-C or SIGTERM."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence

import structlog
from aiohttp import web

from handler_core import logs
from handler_core.config import SettingsError, printable
from handler_core.lifecycle import reaping
from handler_core.tasks import loop_factory
from local_inference.app import create_app
from local_inference.engine import ModelMissing
from local_inference.settings import Settings, load_settings

_EPILOG = """\
Settings are environment variables; --print-config shows them all with their values. The main ones:
  HOST=127.0.0.1, PORT=8900 (0: any free one), LOG_LEVEL=info (debug logs requests),
  ENGINE=minilm (real embeddings, extractive answers, real speech) or echo (no model, for benchmarks),
  SPEECH_ENGINE=auto (flite where it is installed, or else espeak-ng), flite or espeak,
  FAULTS__CHAT__LATENCY_MS=200 and the like inject faults, as PUT /faults does while it runs.

Endpoints:
"""

_SERVED = {
    "chat": "/v1/chat/completions",
    "embeddings": "/v1/embeddings /embed",
    "rerank": "/rerank /v1/rerank /v2/rerank",
    "transcription": "/v1/audio/transcriptions",
    "speech": "/v1/audio/speech /v1/audio/voices /api/tts /voices",
    "xtts": "/tts_stream /studio_speakers /clone_speaker /languages",
    "control": "/health /info /v1/models /stats /faults",
}
_ENDPOINTS = "\n".join(f"  {family:<14}{paths}" for family, paths in _SERVED.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 2 for a wrong setting, 1 where it cannot serve."""
    parser = argparse.ArgumentParser(
        prog="python -m local_inference",
        description="Development only: OpenAI-, TEI- and Coqui-shaped endpoints on the CPU, so that no GPU is needed.",
        epilog=_EPILOG + _ENDPOINTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--print-config", action="store_true", help="print the settings in force and exit")
    options = parser.parse_args(arguments)
    try:
        settings = load_settings()
    except SettingsError as error:
        return _fail(f"setting {error}", 2)
    if options.print_config:
        print(printable(settings))
        return 0
    logs.configure(settings, "local_inference")
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_serve(settings))


async def _serve(settings: Settings) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # Replies in progress are cut off: a development server that lingers is a nuisance.
    app_runner = web.AppRunner(
        create_app(settings), handle_signals=False, access_log=None, handler_cancellation=True, shutdown_timeout=0.05
    )
    try:
        await app_runner.setup()
        await web.TCPSite(app_runner, settings.host, settings.port).start()
        host, port = app_runner.addresses[0][:2]
        log = structlog.get_logger("local_inference")
        log.info("serving", url=f"http://{host}:{port}", engine=str(settings.engine), **_SERVED)
        async with reaping():
            await stop.wait()
    except ModelMissing as error:
        return _fail(str(error), 1)
    except OSError as error:
        return _fail(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}", 1)
    finally:
        await app_runner.cleanup()
    return 0


def _fail(message: str, code: int) -> int:
    print(f"local_inference: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
