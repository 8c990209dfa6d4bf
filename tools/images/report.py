"""The report: sizes of all images, their starts beside the naive peer's, memory before and after their main job."""

import asyncio
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from handler_core.lifecycle import SETTLED_AFTER
from handler_core.testing_images import BASES, HANDLERS, Engine
from tools.images import budgets, jobs, starts, tables
from tools.images.layers import Layer, Scales, by_package, total
from tools.images.starts import ROOT, Surroundings
from tools.images.surroundings import World, world

SETTLE = SETTLED_AFTER + 1
"""Seconds from ready until memory is read: by then what is put off until after the start has been done."""
ENCRYPTED = "pipeline_bridge, TLS"
"""The bridge as it is in its pod, where it asks the cluster over TLS; besides, and without a budget."""
Cases = dict[str, tuple[str, Surroundings]]
"""What is started, by the name of its figures: a service, and what is around it."""
UNKNOWN = dict.fromkeys(
    ("ready_ms", "ready_ratio", "rss_idle_mb", "rss_loaded_mb", "ready_ms_lowest", "ready_ms_highest")
)


def say(text: str) -> None:
    """Progress goes to stderr, so that the tables alone reach stdout."""
    print(text, file=sys.stderr, flush=True)


def run(names: Sequence[str], *, rounds: int, messages: int, where: Path) -> list[str]:
    """Weigh and measure images, print the tables, write the figures; gives what is over budget, each in a line.

    Args:
        names: of the images.
        rounds: starts of each, one more being the warm-up; 0 for sizes only.
        messages: of each service's main job.
        where: the file of the figures.

    Raises:
        NoEngine: there is no engine, or an image is not built; before anything is measured.
        ReportError: one could not be measured.
    """
    engine = Engine.find()
    images = {name: engine.built(name) for name in names}
    scales = Scales(engine)
    layers = {}
    for name, image in images.items():
        say(f"weighing {image}")
        layers[name] = scales.weigh(image)
    figures: dict[str, dict[str, Any]] = {name: _sizes(each) for name, each in layers.items()}
    naive: dict[str, Any] = {}
    services = [name for name in names if name not in BASES]
    if rounds and services:
        with world(services) as there:
            cases = {name: (name, there.around(name)) for name in services}
            if there.pod is not None:
                cases[ENCRYPTED] = ("pipeline_bridge", there.pod)
                figures[ENCRYPTED] = {}
            naive = _start(engine, cases, there, rounds, figures)
            _fill(engine, cases, there, messages, figures)
    encrypted = figures.pop(ENCRYPTED, {})
    report = _judged(figures, layers, naive) | {"pipeline_bridge_tls": encrypted}
    _show(report)
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_text(json.dumps(report, indent=2) + "\n")
    say(f"wrote {where.relative_to(ROOT) if where.is_relative_to(ROOT) else where}")
    return [*(line for each in figures.values() for line in each["over"]), *report["over_together"]]


def _sizes(layers: list[Layer]) -> dict[str, Any]:
    return {
        **vars(total(layers)),
        **UNKNOWN,
        "layers": [{"diff_id": layer.diff_id, **vars(layer.weight)} for layer in layers],
        "packages": {name: vars(weight) for name, weight in by_package(layers).items()},
    }


def _start(
    engine: Engine, cases: Cases, there: World, rounds: int, figures: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Interleaved starts, medians of which go to the figures; gives the naive peer's, and what that one holds."""
    found: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds + 1):
        with starts.naive(there.naive) as peer:
            times = {"naive": peer.ready_ms}
        for name, (service, around) in cases.items():
            with starts.image(engine, service, around) as running:
                times[name] = running.ready_ms
        told = "  ".join(f"{name} {ms:.0f}" for name, ms in times.items())
        say(f"start {number}/{rounds} ms  {told}" + ("" if number else "  (warm-up)"))
        for name, ms in times.items():
            if number:
                found[name].append(ms)
    medians = {name: round(statistics.median(each), 1) for name, each in found.items()}
    for name in cases:
        figures[name] |= {
            "ready_ms": medians[name],
            "ready_ms_lowest": round(min(found[name]), 1),
            "ready_ms_highest": round(max(found[name]), 1),
            "ready_ratio": round(medians[name] / medians["naive"], 4),
        }
    with starts.naive(there.naive) as peer:
        time.sleep(SETTLE)
        return {"ready_ms": medians["naive"], "rss_idle_mb": round(peer.rss, 1)}


def _fill(engine: Engine, cases: Cases, there: World, messages: int, figures: dict[str, dict[str, Any]]) -> None:
    """Memory when idle, and after so many messages."""
    for name, (service, around) in cases.items():
        with starts.image(engine, service, around) as running:
            time.sleep(SETTLE)
            idle, began = running.rss, time.monotonic()
            asyncio.run(jobs.do(service, messages, there.nats, running.url))
            seconds, loaded = time.monotonic() - began, running.rss
        say(f"{name}: {idle:.1f} MiB idle, {loaded:.1f} MiB after {messages} messages in {seconds:.1f} s")
        figures[name] |= {
            "rss_idle_mb": round(idle, 1),
            "rss_loaded_mb": round(loaded, 1),
            "messages": messages,
            "messages_seconds": round(seconds, 1),
        }


def _judged(
    figures: dict[str, dict[str, Any]], layers: dict[str, list[Layer]], naive: dict[str, Any]
) -> dict[str, Any]:
    unique = None
    if all(name in layers for name in HANDLERS):
        different = {layer.diff_id: layer.weight.gzip_bytes for name in HANDLERS for layer in layers[name]}
        unique = sum(different.values())
    for name, each in figures.items():
        each["over"] = budgets.over(name, each)
    return {
        "images": figures,
        "five_handlers_unique_gzip_bytes": unique,
        "naive": naive,
        "over_together": budgets.over_together(unique),
    }


def _show(report: dict[str, Any]) -> None:
    shared: dict[str, list[str]] = defaultdict(list)
    for name, figures in report["images"].items():
        for layer in figures["layers"]:
            shared[layer["diff_id"]].append(name)
    for name, figures in report["images"].items():
        tables.show_image(name, figures, shared)
    tables.show_all(report)
