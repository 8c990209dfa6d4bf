"""What a bench saw, as a table with a histogram, or as one JSON object."""

import math
from collections.abc import Sequence
from typing import Any

from handlers_cli.bench_turns import Tally
from handlers_cli.session import out

PERCENTILES = (50, 90, 99)
_BAR = 40
_STEPS = (1, 2, 5)


def summary(tally: Tally) -> dict[str, Any]:
    """All figures by name; latencies in milliseconds, of answered turns only."""
    return {
        "turns": tally.started,
        "answered": tally.answered,
        "unfinished": tally.started - tally.ended,
        "errors": dict(tally.errors),
        "degraded": dict(tally.degraded),
        "restarts": tally.restarts,
        "elapsed_s": round(tally.elapsed, 3),
        "turns_per_s": round(tally.answered / tally.elapsed, 2) if tally.elapsed else 0.0,
        "first_chunk_ms": percentiles(tally.first_chunk),
        "total_ms": percentiles(tally.total),
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 and max by the nearest rank: each is a value that was seen. Empty for none."""
    ordered = sorted(values)
    if not ordered:
        return {}
    found = {f"p{p}": round(ordered[math.ceil(p / 100 * len(ordered)) - 1], 1) for p in PERCENTILES}
    return {**found, "max": round(ordered[-1], 1)}


def buckets(values: Sequence[float]) -> list[tuple[float, float, int]]:
    """How many values lie in `[low, high)`, for bounds 1, 2, 5, 10, 20, 50, …; from the first to the last not empty."""
    counts: dict[int, int] = {}
    for value in values:
        place = _place(max(value, 1e-3))
        counts[place] = counts.get(place, 0) + 1
    if not counts:
        return []
    return [(_bound(n), _bound(n + 1), counts.get(n, 0)) for n in range(min(counts), max(counts) + 1)]


def _bound(place: int) -> float:
    return float(_STEPS[place % 3] * 10.0 ** (place // 3))


def _place(value: float) -> int:
    place = 3 * math.floor(math.log10(value))
    while _bound(place + 1) <= value:
        place += 1
    return place


def print_summary(tally: Tally) -> None:
    """Print counts, percentiles and the histogram of the total latency."""
    found = summary(tally)
    unfinished = f", {found['unfinished']} unfinished" if found["unfinished"] else ""
    out.print(
        f"{found['turns']} turns in {tally.elapsed:.1f} s: {tally.answered} answered, {tally.errors.total()} failed"
        f"{unfinished}; {found['turns_per_s']:g} answered/s"
    )
    for name in ("errors", "degraded"):
        if found[name]:
            out.print(f"{name:<10}{', '.join(f'{kind} {count}' for kind, count in sorted(found[name].items()))}")
    if tally.restarts:
        out.print(f"restarts  {tally.restarts}")
    if not tally.total:
        return
    out.print(f"\n{'':<14}" + "".join(f"{name:>12}" for name in ("p50", "p90", "p99", "max")))
    for label, key in (("first chunk", "first_chunk_ms"), ("total", "total_ms")):
        if found[key]:
            out.print(f"{label:<14}" + "".join(f"{value:>9,.1f} ms" for value in found[key].values()))
    out.print("\ntotal latency, answered turns")
    block = "█" if out.encoding.startswith("utf") else "#"
    shown = buckets(tally.total)
    most = max(count for _, _, count in shown)
    for low, high, count in shown:
        drawn = block * math.ceil(_BAR * count / most)
        out.print(f"{low:>9,g} - {high:>9,g} ms {count:>8}  [cyan]{drawn}[/]")
