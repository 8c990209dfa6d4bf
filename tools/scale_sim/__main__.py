"""The command line: `python -m tools.scale_sim`."""

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path

from handler_core.errors import HandlerError
from handler_core.jetstream import JetStreamError
from tools.scale_sim.load import Phase
from tools.scale_sim.processes import SimulationError
from tools.scale_sim.report import as_json, setting, table
from tools.scale_sim.simulation import SERVICE, Plan, Run, Simulation

OUT = Path("build", "scale-sim")
EPILOG = f"""\
Starts and stops real {SERVICE} processes against a real NATS server and a stand-in for the LLM, as KEDA and the
Horizontal Pod Autoscaler would: quiet, burst, calm, a second burst, quiet. One worker is killed in the middle of the
first burst. Then every turn is counted from what the server has stored. Progress goes to stderr, the counts to stdout;
plot.png, plot.svg, run.json and the logs of all processes to the folder --out. Exits 1 when a turn was lost, answered
twice, failed or is a dead letter, 2 when it could not be run, 130 when it was interrupted (the counts so far are
printed).
"""


def parser() -> argparse.ArgumentParser:
    """The options, each with its default."""
    made = argparse.ArgumentParser(
        prog="python -m tools.scale_sim",
        description="Scale real local workers by KEDA's and the HPA's formulas under a bursty load; count every turn.",
        epilog=EPILOG,
        formatter_class=lambda prog: argparse.ArgumentDefaultsHelpFormatter(prog, width=100),
    )
    add = made.add_argument
    add("--pace", type=_positive, default=20.0, help="divides the periods of KEDA and the HPA, and nothing else")
    add("--max-replicas", type=_count, default=6, help="workers at most")
    add("--slots", type=_count, default=4, help="turns at once a worker; the declared lag threshold shrinks with them")
    add("--scale-to-zero", action="store_true", help="begin and end with no worker, endpoints off")
    add("--kill", type=int, default=1, metavar="N", help="workers killed in the first burst, as by the loss of a node")
    add("--answer", type=_positive, nargs=2, default=(0.5, 2.0), metavar=("MIN", "MAX"), help="seconds of an answer")
    add("--quiet", type=float, default=1.5, metavar="RATE", help="questions a second when it is quiet")
    add("--calm", type=float, default=4.0, metavar="RATE", help="questions a second between the bursts")
    add("--burst", type=float, default=15.0, metavar="RATE", help="questions a second in a burst")
    add("--phases", type=float, nargs=5, default=(5.0, 18.0, 28.0, 15.0, 32.0),
        metavar=("QUIET", "BURST", "CALM", "BURST", "QUIET"), help="seconds of each phase")  # fmt: skip
    add("--settle", type=_positive, default=20.0, help="seconds for the last answers after the load")
    add("--seed", type=int, default=1, help="of the moments at which questions are asked")
    add("--out", type=Path, default=OUT, help="the folder for what is written")
    return made


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError("has to be more than 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("has to be at least 1")
    return value


def plan(arguments: argparse.Namespace) -> Plan:
    """What the options ask for; where the last worker is to go, quiet is without any question."""
    quiet = 0.0 if arguments.scale_to_zero else arguments.quiet
    names = ("quiet", "burst", "calm", "second burst", "quiet")
    rates = (quiet, arguments.burst, arguments.calm, arguments.burst, quiet)
    phases = tuple(Phase(*phase) for phase in zip(names, arguments.phases, rates, strict=True))
    return Plan(
        phases=phases,
        pace=arguments.pace,
        max_replicas=arguments.max_replicas,
        slots=arguments.slots,
        answer_seconds=(min(arguments.answer), max(arguments.answer)),
        kills=arguments.kill,
        scale_to_zero=arguments.scale_to_zero,
        settle=arguments.settle,
        seed=arguments.seed,
    )


async def simulate(chosen: Plan, out: Path) -> Run:
    """Run it; SIGINT and SIGTERM break it off."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def break_off(number: int) -> None:
        stop.set()
        loop.remove_signal_handler(number)  # a second one does not wait for the counts

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, break_off, number)
    logs = out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for old in logs.glob("*.log"):
        old.unlink()
    return await Simulation(chosen, stop, logs).go()


def main(argv: list[str] | None = None) -> int:
    """Simulate, print the counts, write the files; gives the exit code."""
    arguments = parser().parse_args(argv)
    out: Path = arguments.out
    try:
        run = asyncio.run(simulate(plan(arguments), out))
    except* (SimulationError, HandlerError, JetStreamError, TimeoutError) as group:
        reasons = "; ".join(str(error) or type(error).__name__ for error in group.exceptions)
        print(f"scale-sim: {reasons}\nThe logs are in {out / 'logs'}.", file=sys.stderr)
        sys.exit(2)
    print(f"{setting(run)}\n\n{table(run)}")
    (out / "run.json").write_text(json.dumps(as_json(run), indent=1) + "\n")
    if run.samples and not run.interrupted:
        from tools.scale_sim.plot import draw

        written = ", ".join(map(str, draw(run, out)))
        print(f"\n{written} and {out / 'run.json'} are written.", file=sys.stderr)
    if run.interrupted:
        print("scale-sim: interrupted; these are the counts so far", file=sys.stderr)
        return 130
    if not run.counts.good:
        names = ", ".join(f"{len(ids)} {name}" for name, ids in run.counts.problems.items())
        print(f"scale-sim: not every turn was answered once: {names}; see run.json and {out / 'logs'}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
