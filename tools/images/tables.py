"""The report as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from tools.images import budgets
from tools.images.budgets import MB

HEAVIEST = 15
"""Packages that are shown of each image."""


def show_image(name: str, figures: Mapping[str, Any], shared: Mapping[str, Sequence[str]]) -> None:
    """One image: its layers, what its packages weigh, its start and its memory."""
    print(f"\n{name}\n  {'layer':20}{'MB':>8}{'MB gzip':>10}  also in")
    for layer in figures["layers"]:
        others = [other for other in shared[layer["diff_id"]] if other != name]
        print(f"  {layer['diff_id'].partition(':')[2][:12]:20}{_sizes(layer)}  {', '.join(others)}".rstrip())
    print(f"  {'in all':20}{_sizes(figures)}\n\n  {'package':40}{'MB':>8}{'MB gzip':>10}")
    packages = list(figures["packages"].items())
    for package, weight in packages[:HEAVIEST]:
        print(f"  {package:40}{_sizes(weight)}")
    rest = {key: sum(weight[key] for _, weight in packages[HEAVIEST:]) for key in ("raw_bytes", "gzip_bytes")}
    print(f"  {f'{len(packages[HEAVIEST:])} others':40}{_sizes(rest)}")
    if figures["ready_ms"] is not None:
        print(f"\n  start to ready {figures['ready_ms']:.0f} ms ({figures['ready_ms_lowest']:.0f} to "
              f"{figures['ready_ms_highest']:.0f})")  # fmt: skip
    if figures["rss_idle_mb"] is not None:
        print(f"  resident {figures['rss_idle_mb']:.1f} MiB idle, {figures['rss_loaded_mb']:.1f} MiB after "
              f"{figures['messages']} messages ({figures['messages_seconds']:.0f} s)")  # fmt: skip


def show_all(report: Mapping[str, Any]) -> None:
    """All images in one table, each figure beside its budget."""
    print(f"\n{'image':17}{'MB gzip':>14}{'MB':>8}{'ready ms':>10}{'of naive':>14}{'idle MiB':>14}{'loaded MiB':>12}")
    for name, figures in report["images"].items():
        size = _of(figures["gzip_bytes"] / MB, budgets.GZIP_BYTES.get(name, 0) / MB, 2)
        budgeted = name in budgets.RSS_IDLE_MIB
        ratio = _of(figures["ready_ratio"], budgets.READY_RATIO if budgeted else 0, 2)
        idle = _of(figures["rss_idle_mb"], budgets.RSS_IDLE_MIB.get(name, 0), 1)
        verdict = "" if not (budgeted or name in budgets.GZIP_BYTES) else "over" if figures["over"] else "ok"
        print(
            f"{name:17}{size:>14}{figures['raw_bytes'] / MB:>8.1f}{_number(figures['ready_ms'], 0):>10}{ratio:>14}"
            f"{idle:>14}{_number(figures['rss_loaded_mb'], 1):>12}  {verdict}".rstrip()
        )
        if name == "pipeline_bridge" and (tls := report["pipeline_bridge_tls"]):
            print(
                f"{'  over TLS':39}{tls['ready_ms']:>10.0f}{tls['ready_ratio']:>14.2f}"
                f"{tls['rss_idle_mb']:>14.1f}{tls['rss_loaded_mb']:>12.1f}"
            )
    if naive := report["naive"]:
        print(f"{'naive peer':39}{naive['ready_ms']:>10.0f}{'':14}{naive['rss_idle_mb']:>14.1f}")
    if (unique := report["five_handlers_unique_gzip_bytes"]) is not None:
        size = _of(unique / MB, budgets.FIVE_HANDLERS_UNIQUE_GZIP_BYTES / MB, 2)
        print(f"{'five, unique':17}{size:>14}{'':72}  {'over' if report['over_together'] else 'ok'}")
    print("\nMB: 1,000,000 bytes, gzip -6, a budget behind the stroke. MiB: 1,024 kB of the kernel's VmRSS.")


def _sizes(weight: Mapping[str, int]) -> str:
    return f"{weight['raw_bytes'] / MB:8.2f}{weight['gzip_bytes'] / MB:10.2f}"


def _of(value: float | None, budget: float, digits: int) -> str:
    return _number(value, digits) + (f" / {budget:g}" if budget and value is not None else "")


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
