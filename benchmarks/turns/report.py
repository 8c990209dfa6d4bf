"""From the figures of the rounds to `turns.json` and the tables."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PERCENTILES = ("p50", "p90", "p99")


@dataclass(frozen=True)
class Figures:
    """One measurement of one candidate."""

    turns_per_second: float
    latency_ms: tuple[float, ...]
    """From just before the question is published until `done` has come: 50th, 90th and 99th percentile."""
    first_chunk_ms: tuple[float, ...]
    """Until the first text."""
    events_per_turn: float
    turns: int
    """All that were run, those of the warm-up and of the end included: what the CPU seconds are for."""
    cpu_seconds: float
    """User and system time of the handler's process."""
    beside: Mapping[str, float]
    """CPU seconds of the others: `load`, `upstreams`, `nats_server`."""


def summary(samples: Mapping[tuple[str, int, str], Sequence[Figures]]) -> dict[str, Any]:
    """The content of `turns.json`: mode → turns in flight → candidate, and `ratio`, ours divided by nats.go's."""
    result: dict[str, Any] = {}
    for (mode, concurrency, name), found in samples.items():
        result.setdefault(mode, {}).setdefault(str(concurrency), {})[name] = _medians(found)
    for levels in result.values():
        for level in levels.values():
            level["ratio"] = _ratio(level["ours"], level["nats_go"])
    return result


def _medians(found: Sequence[Figures]) -> dict[str, Any]:
    """Medians of the rounds; CPU time is summed up over them, since the system counts it in hundredths of a second."""

    def median(value: Callable[[Figures], float], digits: int = 2) -> float:
        return round(statistics.median(map(value, found)), digits)

    def percentiles(values: Callable[[Figures], tuple[float, ...]]) -> dict[str, float]:
        return {name: median(lambda figures, i=i: values(figures)[i]) for i, name in enumerate(PERCENTILES)}  # type: ignore[misc]

    def cpu_ms(value: Callable[[Figures], float]) -> float:
        return round(sum(map(value, found)) * 1000 / sum(figures.turns for figures in found), 3)

    return {
        "turns_per_second": median(lambda figures: figures.turns_per_second, 1),
        "latency_ms": percentiles(lambda figures: figures.latency_ms),
        "first_chunk_ms": percentiles(lambda figures: figures.first_chunk_ms),
        "events_per_turn": median(lambda figures: figures.events_per_turn, 1),
        "cpu_ms_per_turn": cpu_ms(lambda figures: figures.cpu_seconds),
        "beside_cpu_ms_per_turn": {
            name: cpu_ms(lambda figures, name=name: figures.beside[name])  # type: ignore[misc]
            for name in found[0].beside
        },
    }


def _ratio(ours: dict[str, Any], peer: dict[str, Any]) -> dict[str, float]:
    def of(*path: str) -> float:
        left, right = ours, peer
        for step in path:
            left, right = left[step], right[step]
        return round(float(left) / float(right), 2)  # type: ignore[arg-type]

    return {
        "turns_per_second": of("turns_per_second"),
        **{f"latency_{name}": of("latency_ms", name) for name in PERCENTILES},
        "first_chunk_p50": of("first_chunk_ms", "p50"),
        "cpu_per_turn": of("cpu_ms_per_turn"),
    }


def print_table(result: Mapping[str, Any]) -> None:
    """One row a candidate, and below the two of them how ours compares."""
    columns = ("turns/s", "p50 ms", "p90 ms", "p99 ms", "first ms", "CPU ms", "events", "others")
    for mode, levels in result.items():
        print(f"\n{f'turns, {mode}':12}{'in flight':>10}" + "".join(f"{name:>10}" for name in columns))
        for concurrency, level in levels.items():
            for name in ("ours", "nats_go"):
                row = level[name]
                values = (row["turns_per_second"], *row["latency_ms"].values(), row["first_chunk_ms"]["p50"],
                          row["cpu_ms_per_turn"], row["events_per_turn"],
                          sum(row["beside_cpu_ms_per_turn"].values()))  # fmt: skip
                print(f"{name:12}{concurrency:>10}" + "".join(f"{value:>10.2f}" for value in values))
            ratios = "".join(f"{f'{value:.2f}x':>10}" for value in level["ratio"].values())
            print(f"{'ours is':22}{ratios}")
