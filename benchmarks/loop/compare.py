"""The candidates against each other, in interleaved rounds."""

import shutil
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.loop.load import Candidate, Load, load
from benchmarks.loop.sink import Sink, sink
from benchmarks.processes import BIN, BUILD, PYTHON, BenchmarkError, end_of, nats_server, running, say

MESSAGES = 200_000
AIMS = {"faststream": 6.0, "nats_py_fetch": 1.5, "nats_go": 0.4}
"""What ours divided by each is to reach, telemetry off."""

FASTSTREAM = (str(BIN / "faststream"), "run", "benchmarks.loop.faststream_app:app")
OURS = (PYTHON, "-m", "benchmarks.loop.ours")
HEALTH = {"HEALTH_HOST": "127.0.0.1", "HEALTH_PORT": "0"}
OFF = (
    Candidate("ours", "handler_core", OURS, 0.4, HEALTH),
    Candidate("faststream", "FastStream, its quickest form", FASTSTREAM, share=0.08),
    Candidate("faststream_injected", "FastStream, as documented", FASTSTREAM, 0.04, {"BENCH_FASTSTREAM": "injected"}),
    Candidate("nats_py_fetch", "nats-py fetch(100)", (PYTHON, "-m", "benchmarks.loop.fetch"), share=0.25),
)
ON = (
    Candidate("ours", "handler_core, telemetry on", OURS, 0.3, HEALTH),
    Candidate("faststream", "FastStream, telemetry on", FASTSTREAM, share=0.03),
)
"""Those that have telemetry to switch on."""


async def run(rounds: int, messages: int) -> dict[str, object]:
    """Measure all candidates; gives the content of `loop.json`, and prints the table."""
    off = [*OFF, *await _nats_go()]
    rates: dict[str, list[float]] = {}
    spans: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-loop-") as folder:
        async with nats_server() as url, sink() as collector:
            say(f"filling the stream with {messages} messages")
            async with load(url, Path(folder), messages) as filled:
                for number in range(1, rounds + 1):
                    for candidate in off:
                        rate = await _round(filled, candidate, number, rounds)
                        rates.setdefault(candidate.label, []).append(rate)
                    for candidate in ON:
                        rate, exported = await _with_telemetry(filled, candidate, collector, number, rounds)
                        spans.setdefault(candidate.name, []).append(exported / (messages * candidate.share))
                        rates.setdefault(candidate.label, []).append(rate)
    medians = {label: round(statistics.median(values)) for label, values in rates.items()}
    _print_table(rates, medians)
    result: dict[str, object] = dict.fromkeys(("ours", *AIMS))
    result |= {candidate.name: medians[candidate.label] for candidate in off}
    result["telemetry_on"] = {candidate.name: medians[candidate.label] for candidate in ON}
    result["spans_a_message"] = {name: round(statistics.median(each), 2) for name, each in spans.items()}
    print(f"spans that arrived, a message: {result['spans_a_message']}")
    _print_aims(result)
    return result


async def _nats_go() -> Sequence[Candidate]:
    """The candidate in Go, built; none, with a word, where that can't be done."""
    if shutil.which("go") is None:
        say("skipped: nats.go (there is no `go` on the PATH)")
        return ()
    say("building the nats.go candidate")
    BUILD.mkdir(parents=True, exist_ok=True)
    binary, log = BUILD / "nats_go", BUILD / "nats_go.log"
    command = ("go", "build", "-C", "benchmarks/loop/nats_go", "-trimpath", "-o", str(binary), ".")
    async with running(command, {}, log) as process:
        if await process.wait():
            say(f"skipped: nats.go (it did not build)\n{end_of(log)}")
            return ()
    return (Candidate("nats_go", "nats.go Consume", (str(binary),), share=1.0),)


async def _round(filled: Load, candidate: Candidate, number: int, rounds: int) -> float:
    rate = await filled.round(candidate)
    say(f"round {number}/{rounds}  {candidate.label:30} {rate:10,.0f} messages/s")
    return rate


async def _with_telemetry(
    filled: Load, candidate: Candidate, collector: Sink, number: int, rounds: int
) -> tuple[float, int]:
    """The rate, and how many spans have arrived when the candidate has ended."""
    env = {**candidate.env, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint}
    traced = Candidate(candidate.name, candidate.label, candidate.command, candidate.share, env)
    rate = await _round(filled, traced, number, rounds)
    spans = collector.spans()
    if not spans:
        raise BenchmarkError(f"{candidate.label} exported no spans")
    return rate, spans


def _print_table(rates: dict[str, list[float]], medians: dict[str, int]) -> None:
    off, on = medians[OFF[0].label], medians[ON[0].label]
    print(f"\n{'messages a second':32}{'median':>10}{'lowest':>10}{'highest':>10}{'ours is':>10}")
    for label, values in rates.items():
        ours = on if any(label == candidate.label for candidate in ON) else off
        ratio = f"{ours / medians[label]:.2f}x"
        print(f"{label:32}{medians[label]:>10,}{min(values):>10,.0f}{max(values):>10,.0f}{ratio:>10}")


def _print_aims(result: dict[str, object]) -> None:
    ours = result["ours"]
    for name, aim in AIMS.items():
        peer = result[name]
        if isinstance(ours, int) and isinstance(peer, int):
            reached = ours / peer
            print(f"aim {aim:g}x {name}: {reached:.2f}x, {'reached' if reached >= aim else 'not reached'}")
