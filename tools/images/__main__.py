"""`python -m tools.images report`: what `make image-report` runs."""

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence

from handler_core.testing_images import BASES, IMAGES, NoEngine
from tools.images import report
from tools.images.starts import ROOT, ReportError

BUILD = ROOT / "build" / "images"
_EPILOG = """\
Sizes: bytes as a registry stores them, each layer by gzip -6; the five handlers together have each layer once.
Start: from the execution of the image's command in its container until its readiness says 200, medians of interleaved
rounds, one more being the warm-up. The naive peer is benchmarks/start/naive.py with this Python, in no container.
Memory: resident, in MiB, idle with every upstream there, and after the messages.

IMAGE_PREFIX, VERSION and BASE_VERSION name the images, as for `make images`; CONTAINER_ENGINE names another command
than docker or podman, and CONTAINER_OPTIONS adds options to each run. Exits 1 over budget, and says what is over.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.images",
        description="Sizes, starts and memory of all images, against their budgets; writes build/images/report.json.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", choices=["report"], default="report", help="what there is to do")
    parser.add_argument("--rounds", type=_positive, default=5, help="starts of each that count (default: 5)")
    parser.add_argument("--messages", type=_positive, default=1000, help="of the main job (default: 1000)")
    parser.add_argument(
        "--only", choices=IMAGES, metavar="IMAGE", help=f"one of {', '.join(IMAGES)}; to a file of its own"
    )
    parser.add_argument("--sizes-only", action="store_true", help="start nothing; to sizes.json")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        over = report.run(
            (options.only,) if options.only else IMAGES,
            rounds=0 if options.sizes_only or options.only in BASES else options.rounds,
            messages=options.messages,
            where=BUILD / f"{options.only or ('sizes' if options.sizes_only else 'report')}.json",
        )
    except (ReportError, NoEngine, subprocess.CalledProcessError) as error:
        print(f"image-report: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nimage-report: interrupted; what it started has been ended", file=sys.stderr)
        return 130
    for line in over:
        print(f"over budget: {line}", file=sys.stderr)
    return 1 if over else 0


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("has to be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
