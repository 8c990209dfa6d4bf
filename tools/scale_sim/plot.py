"""The run as a picture: load, lag, workers and waits over one axis of time."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

from tools.k8s.scaling import SYNC_PERIOD
from tools.scale_sim.report import figures
from tools.scale_sim.simulation import Run
from tools.scale_sim.truth import waits

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, RED, GREY = "#2f6db5", "#e08a1e", "#3c8f4e", "#c43c3c", "#8a8a8a"
BIN = 2.0
"""Seconds of which a rate is the average."""


def draw(run: Run, folder: Path) -> list[Path]:
    """Write `plot.png` and `plot.svg` into a folder, and say where."""
    figure, axes = plt.subplots(
        4, 1, figsize=(11, 12), sharex=True, layout="constrained", gridspec_kw={"height_ratios": [1, 1, 1.1, 1]}
    )
    try:
        for draw_one, axis in zip((_load, _lag, _replicas, _waits), axes, strict=True):
            draw_one(axis, run)
            _phases(axis, run)
            axis.grid(axis="y", color="#e4e4e4", linewidth=0.8)
            axis.set_axisbelow(True)
            axis.spines[["top", "right"]].set_visible(False)
        _phase_names(axes[0], run)
        axes[-1].set_xlabel("time since the begin of the load (s)")
        axes[-1].set_xlim(0, max(run.elapsed, 1.0) * 1.01)
        figure.suptitle(_title(run), fontsize=12)
        written = [folder / "plot.png", folder / "plot.svg"]
        for path in written:
            figure.savefig(path, dpi=120)
    finally:
        plt.close(figure)
    return written


def _title(run: Run) -> str:
    found, scaling = figures(run), run.plan.scaling
    return (
        f"{scaling.service} scaled on JetStream lag: {found['published']} turns, {found['lost']} lost,"
        f" {found['duplicated']} duplicated, {found['pods_started']} workers started, {found['pods_stopped']} stopped,"
        f" {found['pods_killed']} killed\n"
        f"real workers and turns; KEDA's and the HPA's periods ({scaling.polling_interval} s, {SYNC_PERIOD} s,"
        f" {scaling.scale_down_stabilization} s …) divided by {run.plan.pace:g}"
    )


def _phases(axis: "Axes", run: Run) -> None:
    ends = [*run.begins[1:], run.elapsed]
    for phase, begin, end in zip(run.plan.phases, run.begins, ends, strict=False):
        if phase.burst:
            axis.axvspan(begin, min(end, begin + phase.seconds), color=ORANGE, alpha=0.10, linewidth=0)


def _phase_names(axis: "Axes", run: Run) -> None:
    for phase, begin in zip(run.plan.phases, run.begins, strict=False):
        middle = begin + phase.seconds / 2
        text = f"{phase.name}\n{phase.rate:g}/s"
        axis.annotate(
            text, (middle, 1.02), xycoords=("data", "axes fraction"), ha="center", fontsize=9, color="#555555"
        )


def _load(axis: "Axes", run: Run) -> None:
    for name, color, label in (("published", BLUE, "asked"), ("answered", GREEN, "answered")):
        times, rates = _rates([(sample.time, getattr(sample, name)) for sample in run.samples])
        axis.plot(times, rates, color=color, label=label, linewidth=1.6)
    axis.set_ylabel("turns per second")
    axis.set_ylim(bottom=0)
    axis.legend(loc="upper right", frameon=False, ncols=2)


def _rates(counts: list[tuple[float, int]]) -> tuple[list[float], list[float]]:
    """A running count as a rate over the last `BIN` seconds."""
    times, rates = [], []
    first = 0
    for time, total in counts:
        while counts[first][0] < time - BIN:
            first += 1
        before = counts[first][1]
        times.append(time)
        rates.append((total - before) / BIN)
    return times, rates


def _lag(axis: "Axes", run: Run) -> None:
    times = [sample.time for sample in run.samples]
    in_progress = [sample.in_progress for sample in run.samples]
    waiting = [sample.waiting for sample in run.samples]
    labels = ["in progress (num_ack_pending)", "waiting (num_pending)"]
    axis.stackplot(times, in_progress, waiting, colors=[BLUE, ORANGE], labels=labels, alpha=0.75, linewidth=0)
    axis.set_ylabel("lag (messages)")
    axis.set_ylim(bottom=0)
    axis.legend(loc="upper right", frameon=False, ncols=2)


def _replicas(axis: "Axes", run: Run) -> None:
    times = [sample.time for sample in run.samples]
    style: dict[str, Any] = {"where": "post", "linewidth": 1.8}
    axis.step(times, [sample.desired for sample in run.samples], color=GREY, linestyle="--", label="desired", **style)
    axis.step(times, [sample.ready for sample in run.samples], color=GREEN, label="ready", **style)
    for what, marker, color in (("stopped", "v", BLUE), ("killed", "X", RED)):
        found = [event for event in run.pods if event.what == what and event.time < run.elapsed]
        if found:
            label = f"{what} (number: turns running then)"
            heights = [0.25] * len(found)
            axis.scatter([e.time for e in found], heights, marker=marker, s=55, color=color, label=label, zorder=3)
        for event in found:
            axis.annotate(str(event.running_turns), (event.time, 0.25), xytext=(6, -3), textcoords="offset points",
                          fontsize=8, color=color)  # fmt: skip
    axis.axhline(run.plan.max_replicas, color=GREY, linewidth=0.8, linestyle=":")
    axis.set_ylabel("workers")
    axis.set_ylim(0, run.plan.max_replicas * 1.3)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(loc="upper right", frameon=False, ncols=4, fontsize=9)


def _waits(axis: "Axes", run: Run) -> None:
    waited = waits(run.truth)
    again = {event.request_id for event in run.truth.events if event.attempt > 1}
    points = [(asked, waited[name], name in again) for name, asked in run.asked.items() if name in waited]
    for taken_over, color, label in ((False, BLUE, "answered at the first attempt"), (True, RED, "taken over")):
        some = [(asked, wait) for asked, wait, further in points if further is taken_over]
        if some:
            times, heights = zip(*some, strict=True)
            axis.scatter(times, heights, s=10, color=color, label=label, alpha=0.7, linewidths=0)
    axis.set_ylabel("wait in the queue (s)\nby when it was asked")
    axis.set_ylim(bottom=0)
    if points:
        axis.legend(loc="upper right", frameon=False, ncols=2)
