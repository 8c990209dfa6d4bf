"""What images may weigh, hold and take to start. Sizes are bytes, gzip; resident memory is in MiB, as 1,024 kB of the
kernel's count."""

from collections.abc import Mapping
from typing import Any

MB = 1_000_000

GZIP_BYTES = {
    "base": 20 * MB,
    "tts_module": 22 * MB,
    "stt_module": 22 * MB,
    "pipeline_bridge": 22 * MB,
    "chat_handler": 32 * MB,
    "voice_assistant": 32 * MB,
}
FIVE_HANDLERS_UNIQUE_GZIP_BYTES = 48 * MB
READY_RATIO = 0.3
"""Of what the naive peer takes in the same run."""
RSS_IDLE_MIB = {
    "tts_module": 42.0,
    "stt_module": 42.0,
    "pipeline_bridge": 42.0,
    "chat_handler": 70.0,  # with Milvus
    "voice_assistant": 70.0,
}
"""Of these, start and memory are budgeted; what is for development only has no budget."""


def over(name: str, figures: Mapping[str, Any]) -> list[str]:
    """What of an image is over its budget, each in a line; figures that were not taken are not judged.

    Args:
        figures: `gzip_bytes`, and `ready_ratio` and `rss_idle_mb`, which may be None.
    """
    found = []
    if name in GZIP_BYTES and figures["gzip_bytes"] > GZIP_BYTES[name]:
        found.append(f"{name}: {figures['gzip_bytes'] / MB:.2f} MB gzip, of {GZIP_BYTES[name] / MB:g}")
    if name in RSS_IDLE_MIB:
        ratio, idle = figures.get("ready_ratio"), figures.get("rss_idle_mb")
        if ratio is not None and ratio > READY_RATIO:
            found.append(f"{name}: ready in {ratio:.2f} of the naive peer's time, of {READY_RATIO:g}")
        if idle is not None and idle > RSS_IDLE_MIB[name]:
            found.append(f"{name}: {idle:.1f} MiB resident when idle, of {RSS_IDLE_MIB[name]:g}")
    return found


def over_together(unique_gzip_bytes: int | None) -> list[str]:
    """The same for the unique layers of the five handlers."""
    if unique_gzip_bytes is None or unique_gzip_bytes <= FIVE_HANDLERS_UNIQUE_GZIP_BYTES:
        return []
    budget = FIVE_HANDLERS_UNIQUE_GZIP_BYTES / MB
    return [f"the five handlers: {unique_gzip_bytes / MB:.2f} MB gzip of unique layers, of {budget:g}"]
