"""Metrics as plain numbers, read when scraped, and W3C trace context.

Nothing here is locked or looked up by label on the hot path: whoever counts holds the counter, made once with its
labels. The text format is Prometheus exposition format 0.0.4.
"""

import hashlib
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import NamedTuple, Protocol, TypeVar, cast

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Default histogram bounds, in seconds."""

MAX_STATE = 512
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})").fullmatch


class Traced(Protocol):
    """What is being worked on; a `Context` is one."""

    request_id: str

    @property
    def traceparent(self) -> str: ...

    @property
    def trace_headers(self) -> dict[str, str]: ...


current: ContextVar[Traced | None] = ContextVar("current", default=None)
"""The message that is being handled: log lines carry its ids, calls to upstreams its trace."""


def trace_headers() -> Mapping[str, str]:
    """The trace headers for a call to an upstream."""
    handled = current.get()
    return {} if handled is None else handled.trace_headers


class Counter:
    """A number that only rises; add to `value` directly."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def samples(self, name: str, labels: str) -> Iterator[str]:
        yield f"{name}{labels} {self.value}"


class Gauge:
    """A number read from a function when scraped."""

    __slots__ = ("read",)

    def __init__(self, read: Callable[[], float]) -> None:
        self.read = read

    def samples(self, name: str, labels: str) -> Iterator[str]:
        yield f"{name}{labels} {self.read()}"


class Histogram:
    """Counts by upper bound, with their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    def samples(self, name: str, labels: str) -> Iterator[str]:
        inner = labels[1:-1] + "," if labels else ""
        total = 0
        for bound, count in zip((*self.bounds, None), self.counts, strict=True):
            total += count
            le = "+Inf" if bound is None else f"{bound:g}"
            yield f'{name}_bucket{{{inner}le="{le}"}} {total}'
        # With every digit: a sum cut to six would stand still between scrapes once it is large.
        yield f"{name}_sum{labels} {self.sum}"
        yield f"{name}_count{labels} {total}"


Metric = Counter | Gauge | Histogram
M = TypeVar("M", Counter, Gauge, Histogram)


class Family(NamedTuple):
    """The metrics of one name."""

    name: str
    help: str
    kind: str
    """`counter`, `gauge` or `histogram`."""
    members: list[tuple[dict[str, str], Metric]]
    """With the labels of each."""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class Metrics:
    """The metrics of one service.

    >>> metrics = Metrics()
    >>> metrics.counter("cups_total", "Cups poured.", kind="tea").value += 2
    >>> print(metrics.render())
    # HELP cups_total Cups poured.
    # TYPE cups_total counter
    cups_total{kind="tea"} 2
    <BLANKLINE>
    """

    def __init__(self) -> None:
        self._families: dict[str, tuple[str, str, dict[str, Metric]]] = {}
        self._labels: dict[str, dict[str, str]] = {}

    def counter(self, name: str, help: str, **labels: str) -> Counter:
        return self._get(name, help, "counter", labels, Counter)

    def gauge(self, name: str, help: str, read: Callable[[], float], **labels: str) -> Gauge:
        return self._get(name, help, "gauge", labels, lambda: Gauge(read))

    def histogram(self, name: str, help: str, bounds: Sequence[float] = SECONDS, **labels: str) -> Histogram:
        return self._get(name, help, "histogram", labels, lambda: Histogram(bounds))

    def _get(self, name: str, help: str, kind: str, labels: dict[str, str], make: Callable[[], M]) -> M:
        _, _, members = self._families.setdefault(name, (help, kind, {}))
        key = "{" + ",".join(f'{label}="{_escaped(value)}"' for label, value in labels.items()) + "}" if labels else ""
        self._labels.setdefault(key, labels)
        return cast("M", members.setdefault(key, make()))

    def upstream(self, name: str, seconds: float, outcome: str) -> None:
        """Count one upstream call; the `observe` hook of the clients."""
        self.histogram("handler_upstream_duration_seconds", "Upstream calls.", upstream=name, outcome=outcome).observe(
            seconds
        )

    def generation(self, name: str, first_token: float | None, prompt_tokens: int, completion_tokens: int) -> None:
        """Count one completion of an LLM; its `observe` hook."""
        if first_token is not None:
            text = "From the request to the first token."
            self.histogram("handler_time_to_first_token_seconds", text, upstream=name).observe(first_token)
        for kind, tokens in (("prompt", prompt_tokens), ("completion", completion_tokens)):
            self.counter(
                "handler_tokens_total", "Tokens, as the LLM counted them.", upstream=name, kind=kind
            ).value += tokens

    def families(self) -> Iterator[Family]:
        """All metrics by name, for those who send them elsewhere."""
        for name, (help, kind, members) in self._families.items():
            yield Family(name, help, kind, [(self._labels[key], metric) for key, metric in members.items()])

    def render(self) -> str:
        """All metrics in the text format."""
        lines: list[str] = []
        for name, (help, kind, members) in self._families.items():
            text = help.replace("\\", "\\\\").replace("\n", "\\n")
            lines += (f"# HELP {name} {text}", f"# TYPE {name} {kind}")
            for labels, metric in members.items():
                lines += metric.samples(name, labels)
        return "\n".join(lines) + "\n"


def carried(header: str | None) -> str:
    """A `traceparent` that arrived, if it is well formed; else an empty string.

    Source: W3C Trace Context, section 3.2.
    """
    if header and (match := _TRACEPARENT(header)) and match[1] != "0" * 32 and match[2] != "0" * 16:
        return header
    return ""


def carried_state(header: str | None) -> str:
    """A `tracestate` that arrived, if it can be sent on: printable ASCII of 512 characters at most."""
    return header if header and len(header) <= MAX_STATE and header.isascii() and header.isprintable() else ""


def made(seed: str) -> str:
    """A `traceparent` for a message that came without: the same at every delivery, where `seed` is."""
    digest = hashlib.blake2b(seed.encode(), digest_size=24).hexdigest()
    return f"00-{digest[:32]}-{digest[32:]}-00"


def trace_id(traceparent: str) -> str:
    """The trace id within a `traceparent`, 32 hexadecimal digits."""
    return traceparent[3:35]
