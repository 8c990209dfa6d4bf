"""`python -m benchmarks`: the message loop against its peers, the start of a handler, turns, voice, and pipelines."""

import argparse
import asyncio
import json
import os
import signal
import sys

from benchmarks.loop import compare
from benchmarks.pipelines import compare as pipelines
from benchmarks.processes import BUILD, BenchmarkError, say
from benchmarks.start import measure
from benchmarks.turns import compare as turns
from benchmarks.voice import compare as voice

LEAST_ROUNDS = 5


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "which",
        nargs="?",
        choices=["all", "loop", "start", "turns", "voice", "pipelines"],
        default="all",
        help="default: all",
    )
    parser.add_argument("--rounds", type=int, default=LEAST_ROUNDS, help="interleaved rounds (default: %(default)s)")
    parser.add_argument("--messages", type=int, default=compare.MESSAGES, help="stored messages (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.messages < 1_000:
        parser.error("at least 1 round and 1000 messages")
    return arguments


async def main(arguments: argparse.Namespace) -> None:
    """Run what was asked for; each writes its file when it is done."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    if (busy := os.getloadavg()[0]) > 0.5:
        say(f"this machine is not idle (load {busy:.1f}): quote no figures of this run")
    if arguments.which in ("all", "loop"):
        write("loop.json", await compare.run(arguments.rounds, arguments.messages), arguments.rounds)
    if arguments.which in ("all", "start"):
        write("start.json", await measure.run(arguments.rounds), arguments.rounds)
    if arguments.which in ("all", "turns"):
        found = await turns.run(arguments.rounds)
        if found is not None:
            write("turns.json", found, arguments.rounds)
        elif arguments.which == "turns":
            raise BenchmarkError("no turns were measured")
    if arguments.which in ("all", "voice"):
        found = await voice.run(arguments.rounds)
        if found is not None:
            write("voice.json", found, arguments.rounds)
        elif arguments.which == "voice":
            raise BenchmarkError("nothing of voice was measured")
    if arguments.which in ("all", "pipelines"):
        write("pipelines.json", await pipelines.run(arguments.rounds), arguments.rounds)


def write(name: str, result: dict[str, object], rounds: int) -> None:
    """Keep a result, unless it comes of too few rounds to be one."""
    if rounds < LEAST_ROUNDS:
        say(f"{name} is not written: it takes {LEAST_ROUNDS} rounds")
        return
    BUILD.mkdir(parents=True, exist_ok=True)
    path = BUILD / name
    path.write_text(json.dumps(result, indent=2) + "\n")
    say(f"wrote {path}")


if __name__ == "__main__":
    try:
        asyncio.run(main(parse()))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit("benchmark: interrupted; its processes have been ended")
    except BenchmarkError as error:
        sys.exit(f"benchmark: {error}")
